"""``python tests/proof learning``: whether the lane learns what it was not shown, over seeds, steps and voices.

Each case is one run of the lane. Three of the voices are spoken here, by espeak-ng, with texts and voices that neither
the shipped model nor its settings ever met. Beside them stands the upper bound: every weight of the model trained on
the same chunks. Results are kept in a file of JSON lines, so that the command can be stopped.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from proof.copies import MEASUREMENTS, ROOT
from proof.kept import read_rows, write_rows
from support.voice import run_lane

from harness.evidence import RunEvidence, load_run

DOCUMENT = MEASUREMENTS / "learning.md"
SHIPPED = "the shipped narration"
VOICES = ("Augustus", "Cordelia", "Ophelia")  # HELD_OUT_VOICES of the model's build
SEEDS = {(SHIPPED, 24): 8, (SHIPPED, 300): 4}  # how many; of every other case, OTHER_SEEDS
OTHER_SEEDS = {24: 3, 300: 1}
RATES = (3e-4, 1e-3)  # learning rates that the upper bound is the better of


class Case(NamedTuple):
    """One run. ``seed`` is -1 for the upper bound."""

    voice: str
    steps: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.voice}, {self.steps} steps, {'all weights' if self.seed < 0 else f'seed {self.seed}'}"


def cases() -> Iterator[Case]:
    for steps in (24, 300):
        for voice in (SHIPPED, *VOICES):
            yield from (Case(voice, steps, seed) for seed in range(SEEDS.get((voice, steps), OTHER_SEEDS[steps])))
            yield Case(voice, steps, -1)


def speak_voice(name: str, folder: Path) -> Path:
    """A recording of one of VOICES, with the words that were held out from the model. Needs espeak-ng."""
    import numpy as np

    from data.make_narration import add_room_tone, speak, write_flac
    from data.musicgen_nano.build import HELD_OUT_VOICES
    from data.training_text import sentences

    path = folder / f"{name}.flac"
    if not path.exists():
        voice = next(voice for voice in HELD_OUT_VOICES if voice.name == name)
        rng = np.random.default_rng([2026, VOICES.index(name)])
        text = sentences(rng, words=460, held_out=True)
        samples = speak(text, voice=voice.espeak, pitch=voice.pitch, words_per_minute=voice.words_per_minute)
        write_flac(path, add_room_tone(samples, dbfs=-72.0, rng=rng))
    return path


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """Run one case; returns what the table shows."""
    settings = {"LANE_STEPS": str(case.steps), "LANE_SEED": str(max(0, case.seed))}
    if case.voice != SHIPPED:
        settings |= {"AUDIO_PATH": str(speak_voice(case.voice, folder))}
        settings |= {"LANE_DESCRIPTION": f"a narration by {case.voice}"}
    if case.seed < 0:
        settings["LANE_STEPS"] = "2"  # for its tokens
    with tempfile.TemporaryDirectory(prefix="learning-") as run_dir:
        ended = run_lane(Path(run_dir), settings)
        evidence = load_run(Path(run_dir), run_id=ended.run_id)
        if reason := evidence.failure():
            raise SystemExit(f"{case.name}: {reason}")
        if case.seed < 0:
            found = min((all_weights(evidence, case.steps, rate) for rate in RATES), key=lambda one: one["best"])
        else:
            curve = {0: evidence.trace.start.held_out, **{s.step: s.held_out for s in evidence.trace.steps}}
            losses = {step: float(one.loss) for step, one in curve.items() if one is not None}
            found = found_of(losses)
    return {"case": case.name, **case._asdict(), "date": time.strftime("%Y-%m-%d"), **found}


def found_of(losses: dict[int, float]) -> dict[str, Any]:
    best = min((step for step in losses if step), key=lambda step: losses[step])
    return {"before": losses[0], "best": losses[best], "best_step": best, "last": losses[max(losses)]}


def all_weights(evidence: RunEvidence, steps: int, rate: float) -> dict[str, Any]:
    """The same training of all of the language model's weights, in float32: what there is to learn."""
    import numpy as np
    import torch

    from harness.lane.draws import Draws
    from harness.lane.model import condition_tensors
    from harness.lane.objective import masked_cross_entropy
    from harness.lane.voice import load_musicgen

    torch.set_num_threads(2)
    model = load_musicgen(ROOT / "data" / "musicgen_nano")
    description = (evidence.status.settings or {})["description"]
    model.lm.requires_grad_(True)
    codes = torch.from_numpy(evidence.tokens.astype(np.int64))
    train = [number for number, chunk in enumerate(evidence.trace.tokens.chunks) if chunk.use == "train"]
    held_out = codes[evidence.trace.start.held_out_chunks]

    def loss_of(some: Any) -> Any:
        output = model.lm.compute_predictions(some, [], condition_tensors(model, description, len(some)))
        return masked_cross_entropy(output.logits, some, output.mask).total

    def measured() -> float:
        with torch.no_grad():
            return float(loss_of(held_out))

    optimizer = torch.optim.AdamW(model.lm.parameters(), lr=rate, weight_decay=0.01)
    draws, waiting, losses = Draws(0, "order"), list[int](), {0: measured()}
    for step in range(1, steps + 1):
        if len(waiting) < 4:
            waiting += [train[number] for number in draws.permutation(len(train))]
        batch, waiting = waiting[:4], waiting[4:]
        optimizer.param_groups[0]["lr"] = rate * min(1.0, step / 3) * (1 - 0.9 * step / steps)
        optimizer.zero_grad()
        loss_of(codes[batch]).backward()
        optimizer.step()
        if step % 8 == 0 or step == steps:
            losses[step] = measured()
    return {**found_of(losses), "rate": rate}


def document(rows: Sequence[dict[str, Any]]) -> str:
    """The page with the table."""
    lines = [
        "# Does the lane learn what it was not shown?",
        "",
        "Written by `python tests/proof learning`; do not edit. The loss on held-out audio (cross-entropy in nats,",
        "over the last 15 % of each recording, which is never trained on), before the training and of the checkpoint",
        "that is written, with the shipped model and the default settings. *sd*: standard deviation over the seeds.",
        "*Last*: the loss after the last step, had that been written. *All weights*: every weight of the language",
        "model trained on the same chunks, in float32, the better of two learning rates, at its best step: an upper",
        "bound on what an adapter can win.",
        "",
        "The settings were chosen on the shipped narration. The other voices are espeak-ng's, with other texts;",
        "neither the model's training nor that choice heard them. All of it is synthetic speech: how the lane does on",
        "a person's recording is not measured.",
        "",
        "| voice | steps | seeds | before | written | fall | sd | fall / sd | best step | last | all weights' fall |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["voice"], row["steps"]), []).append(row)
    for (voice, steps), group in groups.items():
        runs = [row for row in group if row["seed"] >= 0]
        bound = [row["before"] - row["best"] for row in group if row["seed"] < 0]
        if not runs:
            continue
        falls = [row["before"] - row["best"] for row in runs]
        deviation = statistics.stdev(falls) if len(falls) > 1 else math.nan
        spread = (
            ["–", "–"] if math.isnan(deviation) else [f"{deviation:.4f}", f"{statistics.mean(falls) / deviation:.0f}"]
        )
        mean = {name: statistics.mean(row[name] for row in runs) for name in ("before", "best", "last")}
        best_steps = sorted({row["best_step"] for row in runs})
        cells = [
            voice, str(steps), str(len(runs)), f"{mean['before']:.3f}", f"{mean['best']:.3f}",
            f"{statistics.mean(falls):.4f}", *spread, ", ".join(map(str, best_steps)), f"{mean['last']:.3f}",
            f"{max(bound):.4f}" if bound else "–",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python tests/proof learning",
        description="Measure the held-out loss over seeds, steps and voices, and write learning.md. Needs espeak-ng.",
    )
    parser.add_argument("--results", type=Path, default=MEASUREMENTS / "learning.jsonl", help="kept results")
    parser.add_argument("--again", action="store_true", help="forget the kept results of the cases that are run")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name holds TEXT")
    options = parser.parse_args(arguments)
    kept = read_rows(options.results, "case")
    chosen = [case for case in cases() if options.only in case.name]
    with tempfile.TemporaryDirectory(prefix="voices-") as folder:
        for number, case in enumerate(chosen, 1):
            if options.again or case.name not in kept:
                kept[case.name] = run_case(case, Path(folder))
                write_rows(options.results, kept)
            row = kept[case.name]
            print(f"{number}/{len(chosen)} {case.name}: {row['before']:.4f} → {row['best']:.4f}", flush=True)
    ordered = [kept[case.name] for case in cases() if case.name in kept]
    DOCUMENT.write_text(document(ordered))
    return 0
