"""report.html in a real browser: on a phone and on a desktop, in light and in dark, with scripts turned off.

The page itself is shown with JavaScript disabled. What only a script can see (is anything wider than the screen, did
sound and pictures load) is measured in copies of it that get a script, and a policy that lets it run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_directory import RUN_ID, edit_json, write_report, write_run

from harness.evidence import load_run
from harness.present.audio import CLIPS, Clip, encode, write_clips
from harness.present.facts import facts_of
from harness.present.gates import GateResult, GatesFile
from harness.present.history import add_to_history
from harness.present.html import write_html
from harness.present.style import POLICY

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here: apt-get install -y chromium"),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()
PHONE, DESKTOP = (390, 844), (1280, 900)
PROBE = """<script>
addEventListener("load", async () => {
  const audio = [...document.querySelectorAll("audio")];
  await Promise.all(audio.map(a => new Promise(done => {
    if (a.readyState >= 1 || a.error) return done();
    a.onloadedmetadata = a.onerror = done;
    setTimeout(done, 5000);
  })));
  const inside = e => e.closest(".scroll, pre, svg") && !e.matches(".scroll, pre, svg");
  const width = document.documentElement.clientWidth;
  const wide = [...document.querySelectorAll("body *")].filter(e => !inside(e) && e.getClientRects().length
      && e.getBoundingClientRect().right > width + 0.5).map(e => e.outerHTML.slice(0, 99));
  const expected = [...document.querySelectorAll("td[data-label=expected]")].filter(e => e.getClientRects().length);
  const seen = e => { const r = e.getBoundingClientRect(); return r.left >= 0 && r.right <= width && r.width > 20; };
  const target = document.querySelector(document.querySelector("a[href^='#gate-']").getAttribute("href"));
  const smallest = Math.min(...[...document.querySelectorAll("svg[role=img] text")].map(e =>
      e.getBoundingClientRect().height));
  const found = {expected: expected.map(seen), main: document.querySelector("main").clientWidth,
    target: target.textContent, width, scroll: document.documentElement.scrollWidth, wide,
    smallest, audio: audio.map(a => [a.duration, a.error && a.error.message]),
    images: [...document.images].map(i => [i.naturalWidth, i.alt.length]),
    background: getComputedStyle(document.body).backgroundColor};
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
# A window of chromium is at least 500 pixels wide, a frame in it is not.
FRAME = """<!DOCTYPE html><iframe src="{}" style="border: 0" width="{}" height="{}"></iframe><script>
addEventListener("message", event => {{
  const out = document.createElement("output");
  out.textContent = event.data;
  document.body.append(out);
}});
</script>"""
VERDICT = {
    "verdict": "regression",
    "passed": False,
    "headline": "not the recorded result: loss, checkpoint",
    "baseline": None,
    "where": {"step": 2, "phase": "forward", "tensors": [], "what": "loss, step 2"},
    "out_of_bounds": [
        {"what": f"loss, step {n}", "obtained": "4.04876871", "expected": "4.04876872", "distance": "1.2e-09 relative"}
        for n in range(2, 8)
    ],
    "more": 40,
    "moved": ["settings.learning_rate 0.005 → 0.006", "torch 2.13.0 → 2.14.0"],
    "cause": "another learning rate",
    "notes": ["a second run, at once, gave the same bits: not chance"],
    "next": "python3 -m harness explain artifacts baselines/experimental/musicgen_nano-universal-03d83622e6db.json",
}
GATES = [
    GateResult(
        f"tests/smoke/test_gates.py::test_gate_{n}_is_as_long_as_some_names_of_tests_are",
        "passed",
        seconds=n / 7,
        wants="What a gate wants is a sentence of about this length, or of a little more than that.",
        measured=f"{n} of 24 tensors, digest 0123456789ab",
    )
    for n in range(24)
]
BAD = GateResult(
    "tests/smoke/test_baseline.py::test_loss_curve_is_the_recorded_one",
    "failed",
    "regression: not the recorded result /a/very/long/path/" + "x" * 200,
    "\n".join(["regression: not the recorded result", "loss, step 2   " + "4.04876871 " * 30]),
)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page of a run that failed a gate: everything that a page can have is on it."""
    run_dir = write_run(tmp_path / "run", checkpoint=False, steps=24)
    random = np.random.default_rng(0)
    clips = {name: Clip(name, f"{name}, 5 s", encode(0.3 * random.standard_normal(160_000), 32_000)) for name in CLIPS}
    write_clips(run_dir, RUN_ID, clips)
    digest = "0123456789abcdef" * 4
    report = load_run(run_dir).report | {"model_id": "musicgen_nano", "model_digest": digest, "tokens_digest": digest}
    write_report(run_dir / "train_report.txt", report)
    edit_json(run_dir / "environment.json", lambda v: v.update(packages={"torch": "2.13.0+cpu", "numpy": "2.4.6"}))
    facts = facts_of(run_dir, VERDICT)
    add_to_history(run_dir, facts, GatesFile(RUN_ID, GATES, VERDICT, facts.metrics(VERDICT), facts.losses()))
    row = json.loads((run_dir / "history.json").read_text())["runs"][0]
    earlier = [{**row, "run_id": f"{n:032x}", "seconds": 9 + n / 7} for n in range(12)]
    edit_json(run_dir / "history.json", lambda v: v.update(runs=[*earlier, row]))
    return write_html(run_dir, [BAD, *GATES], VERDICT)


@pytest.fixture
def chromium(tmp_path: Path) -> Callable[..., str]:
    """Runs chromium on a file: `chromium(path, size, flag, …, scripts=False)` gives what it prints."""
    profile = 0

    def run(path: Path, size: tuple[int, int], *flags: str, scripts: bool = False) -> str:
        nonlocal profile
        profile += 1
        folder = tmp_path / f"profile-{profile}"
        (folder / "Default").mkdir(parents=True)
        setting = {"profile": {"default_content_setting_values": {"javascript": 1 if scripts else 2}}}
        (folder / "Default" / "Preferences").write_text(json.dumps(setting))
        words = ["chromium", *FLAGS, f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}", *flags]
        done = subprocess.run([*words, path.as_uri()], capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def measured(page: Path, chromium: Callable[..., str], size: tuple[int, int], *flags: str) -> dict[str, Any]:
    copy = page.with_name("probe.html")
    text = page.read_text().replace(POLICY, POLICY + "; script-src 'unsafe-inline'")
    assert "script-src" in text
    copy.write_text(text.replace("</body>", PROBE + "</body>"))
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(copy.name, *size))
    dom = chromium(frame, DESKTOP, *flags, "--virtual-time-budget=20000", "--dump-dom", scripts=True)
    found = re.search(r"<output>(.*?)</output>", dom)
    assert found, dom[-500:]
    result: dict[str, Any] = json.loads(unescape(found[1]))
    return result


def test_scripts_are_off_where_this_says_so(tmp_path: Path, chromium: Callable[..., str]) -> None:
    path = tmp_path / "a.html"
    path.write_text("<p>still</p><script>document.querySelector('p').textContent = 'ran'</script>")
    assert "<p>still</p>" in chromium(path, PHONE, "--dump-dom")
    assert "<p>ran</p>" in chromium(path, PHONE, "--dump-dom", scripts=True)


def test_without_scripts_all_of_it_is_there(page: Path, chromium: Callable[..., str]) -> None:
    dom = chromium(page, PHONE, "--dump-dom")
    headings = re.findall(r"<h([123])>(.*?)</h\1>", dom)
    assert [text for level, text in headings if level != "3"] == [
        "musicgen_nano", "Verdict", "Gates", "Loss", "Runs of the same key", "Listen and look", "Provenance",
    ]  # fmt: skip
    assert [text for level, text in headings if level == "3"] == [
        "By step", "By codebook", "Last loss", "Seconds that the lane took", *(title for title, _ in CLIPS.values()),
    ]  # fmt: skip
    for gate in (BAD, *GATES):
        assert gate.name in dom
    assert dom.count("<audio ") == dom.count("<img ") == len(CLIPS)
    assert dom.count('role="img"') == 4


@pytest.mark.parametrize("size", [(320, 568), PHONE, (768, 1024), DESKTOP], ids=lambda size: f"{size[0]} wide")
def test_nothing_is_wider_than_the_screen(page: Path, chromium: Callable[..., str], size: tuple[int, int]) -> None:
    found = measured(page, chromium, size)
    assert found["width"] == size[0]
    assert found["wide"] == [] and found["scroll"] <= found["width"]
    assert found["smallest"] >= 10, "the charts' text is too small to read"
    assert found["expected"] == [True] * len(VERDICT["out_of_bounds"]), "what was expected is seen without scrolling"
    assert found["main"] >= min(size[0], 1280) - 40, "the room is used"
    assert BAD.name in found["target"], "the verdict leads to its gate"


def test_sound_and_pictures_load(page: Path, chromium: Callable[..., str]) -> None:
    found = measured(page, chromium, PHONE)
    assert found["audio"] == [[5, None]] * len(CLIPS)
    assert all(width == 512 and alt > 50 for width, alt in found["images"])


def test_dark_is_dark(page: Path, chromium: Callable[..., str]) -> None:
    light = measured(page, chromium, PHONE)["background"]
    dark = measured(page, chromium, PHONE, "--blink-settings=preferredColorScheme=0")["background"]
    assert light == "rgb(251, 250, 248)" and dark == "rgb(21, 19, 28)"


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_picture_of_it(page: Path, chromium: Callable[..., str], size: tuple[int, int], tmp_path: Path) -> None:
    """For people to look at: kept in SCREENSHOTS where that is set. Here: it is no blank page."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for scheme, flags in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        picture = folder / f"report-{size[0]}-{scheme}.png"
        chromium(page, (size[0], 7000 if size == PHONE else 4200), *flags, f"--screenshot={picture}")
        assert picture.stat().st_size > 100_000
