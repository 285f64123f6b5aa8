"""report.html: one file that holds all there is to see and hear of a run. No script, no other file, no network.

Everything that comes from a file is escaped, and the page forbids itself scripts and connections on top of that.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

from harness.base.files import PAGE_MARK, atomic_write
from harness.evidence import EvidenceError
from harness.present.audio import CLIPS, SECONDS, Clip, NoAudio, possible_clips, read_clips
from harness.present.curves import losses, trend
from harness.present.elements import html_base64, html_join, html_list, html_table, html_text
from harness.present.facts import Facts, facts_of
from harness.present.gates import NOT_APPLICABLE, NOT_RUN, XFAILED, XPASSED, GateResult, all_passed, by_reason, counts
from harness.present.picture import RANGE_DB, TOP_HZ, spectrogram_png
from harness.present.style import POLICY, STYLE
from harness.present.text import without_local_paths

PAGE = "report.html"
_NAMED = 12  # red gates that the verdict names
_OUTCOME = {
    "passed": "✓",
    "failed": "✗",
    "error": "✗",
    "skipped": "–",
    XFAILED: "–",
    XPASSED: "–",
    NOT_RUN: "–",
    NOT_APPLICABLE: "·",
}
_GOOD = ("match", "tolerance-match")


def write_html(
    run_dir: Path,
    gates: Sequence[GateResult],
    verdict: Mapping[str, Any] | None,
    *,
    facts: Facts | None = None,
    missing_audio: Sequence[str] = (),
) -> Path:
    """Write the page of a run, over no file of another's. `verdict` is `Verdict.to_json()`. Raises OSError.

    Clips that lie in the run's folder `listen/` are on it; `missing_audio` says why others are not.
    """
    path = run_dir / PAGE
    text = page(facts or facts_of(run_dir, verdict), gates, verdict, missing_audio)
    atomic_write(path, text.encode("utf-8", "backslashreplace"))
    return path


def page(
    facts: Facts,
    gates: Sequence[GateResult],
    verdict: Mapping[str, Any] | None,
    missing_audio: Sequence[str] = (),
) -> str:
    """The page's text; the same for the same files."""
    model = facts.run.name if facts.run.numerics == "bits" else facts.report("model_id")
    kind = "Training lane" if facts.run.numerics == "bits" else "Voice-adapter training lane"
    head = f"{_headline(gates, verdict, facts)[0]} · {model}"
    sections = [
        _verdict(facts, gates, verdict),
        _gates(gates),
        losses(facts, verdict),
        trend(facts),
        _listen(facts, missing_audio),
        _provenance(facts),
    ]
    body = f"""<header>
<p class="over">{escape(kind)}</p>
<h1>{escape(model)}</h1>
<p class="over">experimental, not promotable · run <code>{escape(facts.run_id[:12])}</code></p>
</header>
<main>
{chr(10).join(sections)}
</main>
"""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{PAGE_MARK}
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{_portable(f"<title>{escape(head)}</title>", facts.run.run_dir)}
<style>{STYLE}</style>
</head>
<body>
{_portable(body, facts.run.run_dir)}</body>
</html>
"""


def _portable(html: str, run_dir: Path) -> str:
    """HTML, without paths of this machine in its text."""
    clean = without_local_paths(run_dir)
    return re.sub(r"(?<=>)[^<>]+(?=<)", lambda found: escape(clean(unescape(found[0]))), html)


def _headline(gates: Sequence[GateResult], verdict: Mapping[str, Any] | None, facts: Facts) -> tuple[str, str]:
    """(The most important thing in a few words, good or bad)."""
    if facts.run.failure() is not None:
        return "the lane failed", "bad"
    if verdict is not None and verdict["verdict"] not in _GOOD:
        return str(verdict["verdict"]), "bad"
    if not all_passed(gates):
        return counts(gates), "bad"
    if any(gate.outcome == NOT_RUN for gate in gates):
        return counts(gates), "unsure"
    if verdict is None:
        return "gates passed, not compared with a baseline", "unsure"
    return str(verdict["verdict"]), "good"


def _verdict(facts: Facts, gates: Sequence[GateResult], verdict: Mapping[str, Any] | None) -> str:
    headline, kind = _headline(gates, verdict, facts)
    mark = {"good": "✓", "bad": "✗", "unsure": "?"}[kind]
    lines = [f'<p class="badge"><span aria-hidden="true">{mark}</span> {escape(headline)}</p>']
    failure = facts.run.failure()
    if failure:
        lines.append(f"<p>{escape(failure)}</p>")
    if headline != counts(gates):
        lines.append(f'<p><a href="#gates">{escape(counts(gates))}</a></p>')
    lines.append(_red(gates))
    if verdict is None:
        lines.append("<p>The run was not compared with a baseline.</p>")
    else:
        name = "" if headline == verdict["verdict"] else f"<strong>{html_text(verdict, 'verdict')}</strong>: "
        lines.append(f"<p>{name}{html_text(verdict, 'headline')}</p>")
        rows = [("baseline", html_text(verdict, "baseline")), ("first differs", _where(verdict))]
        rows += [("moved", escape("; ".join(map(str, verdict.get("moved") or []))))]
        rows += [("likely", html_text(verdict, "cause"))]
        rows += [("note", escape(str(note))) for note in verdict.get("notes") or []]
        rows += [("next", f"<code>{escape(line)}</code>") for line in str(verdict.get("next") or "").splitlines()]
        lines.append(html_list((name, value) for name, value in rows if value))
        lines.append(_out_of_bounds(verdict))
    if facts.baseline is not None:
        lines.append(f"<p>Baseline {escape(facts.baseline.recorded)}.</p>")
    lines += [f'<p class="note">{escape(problem)}</p>' for problem in facts.problems]
    return f'<section class="verdict {kind}" aria-label="Verdict"><h2>Verdict</h2>\n{html_join(lines)}</section>'


def _red(gates: Sequence[GateResult]) -> str:
    """Links to the gates that are red."""
    red = [
        (n, gate) for n, gate in enumerate(gates) if gate.outcome not in ("passed", "skipped", NOT_RUN, NOT_APPLICABLE)
    ]
    links = [f'<a href="#gate-{n}">{escape(gate.name)}</a>' for n, gate in red[:_NAMED]]
    more = f', <a href="#gates">and {len(red) - _NAMED} more</a>' if len(red) > _NAMED else ""
    return f'<p class="red">Red: {", ".join(links)}{more}</p>' if red else ""


def _where(verdict: Mapping[str, Any]) -> str:
    where = verdict.get("where")
    if not isinstance(where, Mapping):
        return ""
    tensors = ", ".join(map(str, (where.get("tensors") or [where.get("what")])[:3]))
    return escape(f"step {where.get('step')}, phase {where.get('phase')}: {tensors}")


def _out_of_bounds(verdict: Mapping[str, Any]) -> str:
    rows = verdict.get("out_of_bounds") or []
    if not rows:
        return ""
    columns = ("what", "obtained", "expected", "distance")
    more = f'<p class="note">and {verdict["more"]} more</p>' if verdict.get("more") else ""
    return (
        html_table("What is out of bounds", columns, [[escape(str(row.get(c))) for c in columns] for row in rows])
        + more
    )


def _gates(gates: Sequence[GateResult]) -> str:
    blocks = []
    place = {id(gate): number for number, gate in enumerate(gates)}
    judged = [gate for gate in gates if gate.outcome != NOT_APPLICABLE]
    for group in by_reason(judged):
        # Gates with one reason stand together, and say it once.
        reason = f'<p class="reason">{escape(group[0].reason)}</p>' if group[0].reason else ""
        few = len(group) <= 4
        rows = [_gate(gate, place[id(gate)], details=few or number == 0) for number, gate in enumerate(group)]
        caption = f"{len(group)} {group[0].outcome}"
        blocks.append(f'<div class="{_class(group[0])}">{reason}{_gate_table(caption, rows)}</div>')
    passed = [_gate(gate, place[id(gate)]) for gate in gates if gate.outcome == "passed"]
    blocks.append(_gate_table(f"{len(passed)} passed", passed) if passed else "")
    others = [dataclasses.replace(gate, measured=gate.reason) for gate in gates if gate.outcome == NOT_APPLICABLE]
    if others:
        table = _gate_table(
            "What the lane need not give", [_gate(gate, len(gates) + n) for n, gate in enumerate(others)]
        )
        blocks.append(f"<details><summary>{len(others)} not applicable</summary>{table}</details>")
    empty = "" if gates else "<p>No gate ran.</p>"
    return f'<section id="gates"><h2>Gates</h2>\n{empty}{html_join(blocks)}</section>'


def _gate_table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    return html_table(caption, ("gate", "wants", "found", "seconds"), rows, style="gates")


def _class(gate: GateResult) -> str:
    return "skipped" if gate.outcome in (NOT_APPLICABLE, NOT_RUN, XFAILED, XPASSED) else escape(gate.outcome)


def _gate(gate: GateResult, number: int, *, details: bool = False) -> list[str]:
    mark = f'<span aria-hidden="true">{_OUTCOME.get(gate.outcome, "?")}</span>'
    said = "" if gate.outcome in ("passed", NOT_APPLICABLE) else f"{escape(gate.outcome)}: "
    more = ""
    if details and gate.details and " ".join(gate.details.split()) != gate.reason:
        more = f"<details><summary>in full</summary><pre tabindex=0>{escape(gate.details)}</pre></details>"
    name = f'<div id="gate-{number}" class="gate {_class(gate)}">{mark}<b>{said}{escape(gate.name)}</b></div>{more}'
    return [name, escape(gate.wants), escape(gate.measured), f"{gate.seconds:.2f}"]


def _listen(facts: Facts, missing: Sequence[str]) -> str:
    clips = read_clips(facts.run.run_dir, facts.run_id)
    lines = [_clip(clip) for clip in clips]
    there = {clip.name for clip in clips}
    absent = [CLIPS[name][0] for name in possible_clips(facts.run) if name not in there]
    notes = [f'<p class="note">{escape(line)}</p>' for line in missing]
    if absent:
        command = f"python3 -m harness listen {shlex.quote(str(facts.run.run_dir.absolute()))}"
        notes.append(
            f'<p class="note">Not here: {escape(", ".join(absent).lower())}. '
            f"This makes them: <code>{escape(command)}</code></p>"
        )
    about = f"<p>Excerpts of about {SECONDS:.0f} seconds. The spectrograms reach from 0 to {TOP_HZ // 1000} kHz.</p>"
    about = about if clips else ""
    if "with_adapter" in there:
        about += (
            "<p>The samples are experimental, and no production voice. The shipped model is a toy of 1.1M parameters: "
            "its voice buzzes, with an adapter and without.</p>"
        )
    body = f'<div class="clips">{html_join(lines)}</div>{html_join(notes)}'
    return f"<section><h2>Listen and look</h2>{about}\n{body}</section>"


def _clip(clip: Clip) -> str:
    try:
        wave, rate = clip.decoded()
        png = spectrogram_png(wave, rate)
    except NoAudio as error:
        return f"<article><h3>{escape(clip.title)}</h3><p>{escape(str(error))}</p></article>"
    seconds = len(wave) / rate
    alt = (
        f"Spectrogram of {clip.what}: {seconds:.1f} seconds from left to right, 0 to {TOP_HZ // 1000} kHz from bottom "
        f"to top, brighter is louder, over {RANGE_DB} dB."
    )
    return f"""<article><h3>{escape(clip.title)}</h3>
<p>{escape(clip.what)}</p>
<audio controls preload="metadata" aria-label="{escape(clip.title)}"
src="data:audio/flac;base64,{html_base64(clip.data)}"></audio>
<img alt="{escape(alt)}" src="data:image/png;base64,{html_base64(png)}">
<p class="note">{escape(clip.about)}</p></article>"""


def _provenance(facts: Facts) -> str:
    keys = (
        "run_id head_commit model_id model_digest dataset_digest tokens_digest settings_digest numeric_mode "
        "numeric_class seed steps loss loss_first loss_smoothed held_out_loss_first held_out_loss best_step "
        "sanitized_logits checkpoint_sha256 checkpoint_tensor_digest "
        "python_version gpu_available audiocraft_import"
    ).split()
    rows = [(key.replace("_", " "), f"<code>{escape(facts.report(key))}</code>") for key in keys]
    try:
        environment = facts.run.environment
        packages = environment.get("packages")
        if isinstance(packages, Mapping):
            listed = ", ".join(f"{name} {version}" for name, version in packages.items())
            rows.append(("packages", f"<code>{escape(listed)}</code>"))
        for key in ("platform", "cpu_capability", "threads", "device"):
            rows.append((key.replace("_", " "), f"<code>{escape(str(environment.get(key, 'unknown')))}</code>"))
    except EvidenceError:
        pass
    try:
        status = facts.run.status
        rows.append(("started, ended", escape(f"{status.started_at}, {status.finished_at}")))
    except EvidenceError:
        pass
    rows.append(("RUN_DIR", "the run's directory, in which this page was written"))
    if facts.baseline is not None:
        rows.append(("baseline", f"<code>{escape(str(facts.baseline.result.source))}</code>"))
        rows.append(("recorded", escape(facts.baseline.recorded)))
    return f"<footer><h2>Provenance</h2>{html_list(rows)}</footer>"
