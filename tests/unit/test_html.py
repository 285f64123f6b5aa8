"""report.html: what is on it, that nothing on it is anybody else's markup, and that it needs nothing else."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from run_directory import RUN_ID, edit_json, edit_trace, write_report, write_run

from harness.evidence import load_run
from harness.lane.files import CLIP
from harness.present.audio import CLIPS, Clip, NoAudio, choose_excerpt, encode, read_clips, source_clip, write_clips
from harness.present.chart import Series, line_chart
from harness.present.facts import facts_of
from harness.present.gates import GateResult
from harness.present.html import page, write_html
from harness.present.page import present_run
from harness.present.picture import HEIGHT, WIDTH, png, spectrogram_png

GOOD = GateResult("tests/smoke/test_gates.py::test_loss_falls", "passed")
BAD = GateResult("tests/smoke/test_gates.py::test_loss_is_finite", "failed", "the loss is nan", "the whole story")
MATCH = {"verdict": "match", "passed": True, "headline": "the result is the recorded one", "baseline": None}
VOID = "meta img line circle polygon link br input base".split()


class Page(HTMLParser):
    """The elements of a page: (tag, attributes), the text, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", checkpoint=False)


def tone(seconds: float = 1.0, rate: int = 32_000, hz: float = 1000.0) -> Any:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def with_clips(run_dir: Path) -> None:
    write_clips(run_dir, RUN_ID, {name: Clip(name, f"how {name} was made", encode(tone(), 32_000)) for name in CLIPS})


def test_the_page_has_everything_and_needs_nothing(run_dir: Path) -> None:
    with_clips(run_dir)
    path = write_html(run_dir, [GOOD, BAD], MATCH)
    found = Page(path.read_text(encoding="utf-8"))
    for text in ("Verdict", "2 gates: 1 passed, 1 failed", "loss falls", "the loss is nan", "the whole story", RUN_ID):
        assert text in found.text
    assert len(found.all("h1")) == 1
    assert len(found.all("audio")) == len(found.all("img")) == len(CLIPS)
    assert all(image["alt"] for image in found.all("img")) and all(a["aria-label"] for a in found.all("audio"))
    assert all("controls" in attributes and "autoplay" not in attributes for attributes in found.all("audio"))
    charts = [svg for svg in found.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 2 and len(found.all("desc")) == 2
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert not found.all("script") and not found.all("link") and not found.all("iframe")
    for _, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "http:" not in path.read_text() and "https:" not in path.read_text() and "url(" not in path.read_text()
    (policy,) = [m["content"] for m in found.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy.startswith("default-src 'none'") and "script" not in policy


def test_equal_runs_give_equal_pages(run_dir: Path) -> None:
    facts = facts_of(run_dir, None)
    assert page(facts, [GOOD], MATCH) == page(facts_of(run_dir, None), [GOOD], MATCH)


EVIL = '</script></style></title></svg><script>alert(1)</script><img src=x onerror="alert(1)">&\'\u202e\x00\ud800'


def test_hostile_text_stays_text(run_dir: Path) -> None:
    plain = {tag for tag, _ in Page(write_html(run_dir, [GOOD, BAD], MATCH).read_text()).elements}
    report = dict.fromkeys(load_run(run_dir).report, EVIL.replace("\x00", "").replace("\ud800", ""))
    write_report(run_dir / "train_report.txt", report | {"run_id": RUN_ID, "objective_status": "completed"})
    edit_json(run_dir / "environment.json", lambda v: v.update(packages={EVIL: EVIL}, platform=EVIL))
    edit_json(run_dir / "train_status.json", lambda v: v.update(started_at=EVIL))
    write_clips(run_dir, RUN_ID, {"source": Clip("source", EVIL, encode(tone(), 32_000))})
    gate = GateResult(EVIL, "failed", EVIL, EVIL)
    where = {"step": EVIL, "phase": EVIL, "tensors": [EVIL], "what": EVIL}
    row = dict.fromkeys(("what", "obtained", "expected", "distance"), EVIL)
    texts = {"headline": EVIL, "verdict": EVIL, "baseline": EVIL.replace("\x00", ""), "cause": EVIL, "next": EVIL}
    verdict = {**texts, "where": where, "out_of_bounds": [row], "more": 0, "moved": [EVIL], "notes": [EVIL]}
    path = write_html(run_dir, [gate], verdict, missing_audio=[EVIL])
    found = Page(path.read_bytes().decode("utf-8"))
    more = "table caption thead tbody tr th td div pre details summary article h3 img audio"
    assert {tag for tag, _ in found.elements} - plain <= set(more.split())
    assert found.text.count("<script>alert(1)</script>") > 15
    for image in found.all("img"):
        assert "onerror" not in image and str(image["src"]).startswith("data:image/png")


@pytest.mark.parametrize(
    ("gates", "verdict", "said", "kind"),
    [
        ([GOOD], MATCH, "match", "good"),
        ([GOOD], {**MATCH, "verdict": "tolerance-match"}, "tolerance-match", "good"),
        ([GOOD], {**MATCH, "verdict": "regression"}, "regression", "bad"),
        ([GOOD], {**MATCH, "verdict": "something new"}, "something new", "bad"),
        ([GOOD, BAD], MATCH, "2 gates: 1 passed, 1 failed", "bad"),
        ([GOOD, dataclasses.replace(GOOD, outcome="skipped")], MATCH, "2 gates: 1 passed, 1 skipped", "bad"),
        ([], MATCH, "no gate ran", "bad"),
        ([GOOD], None, "gates passed, not compared with a baseline", "unsure"),
    ],
)
def test_only_what_passed_looks_good(run_dir: Path, gates: Any, verdict: Any, said: str, kind: str) -> None:
    text = page(facts_of(run_dir, verdict), gates, verdict)
    assert f'<section class="verdict {kind}"' in text
    assert f"</span> {said}</p>" in text


def test_a_run_that_failed_has_a_page_too(run_dir: Path) -> None:
    edit_json(run_dir / "train_status.json", lambda v: v.update(status="failed", root_cause="loss_not_finite: at 2"))
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines.__delitem__(slice(4, None)))
    text = Page(write_html(run_dir, [BAD], None).read_text()).text
    assert "the lane failed" in text and "loss_not_finite: at 2" in text and "Loss in 1 steps" in text


@pytest.mark.parametrize("missing", ["trace.jsonl", "train_status.json", "train_report.txt", "environment.json", "*"])
def test_files_that_are_missing_are_said_to_be(run_dir: Path, missing: str) -> None:
    for path in [path for path in run_dir.glob(missing) if path.is_file()]:
        path.unlink()
    text = write_html(run_dir, [BAD], None).read_text()
    Page(text)
    name = "trace.jsonl" if missing == "*" else missing
    assert missing == "environment.json" or name in text


def test_a_trace_of_another_run_is_left_out(run_dir: Path) -> None:
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines[0].update(run_id="another"))
    text = write_html(run_dir, [BAD], MATCH).read_text()
    assert "is of another run" in text and "The run took no training step" in text


def test_a_loss_that_is_not_finite_breaks_the_line_and_is_named(run_dir: Path) -> None:
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines[4].update(loss="nan"))
    text = Page(write_html(run_dir, [BAD], None).read_text()).text
    assert "Not finite in step 2." in text


def test_chart_places_points_where_they_belong() -> None:
    text = line_chart("a", "t<", "d&", [Series("s", "run", [(1, 0.0), (2, 5.0), (3, math.nan), (4, 10.0)], dots=True)])
    root = ElementTree.fromstring(text)
    circles = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter("circle")]
    assert len(circles) == 3 and len(list(root.iter("polyline"))) == 1
    (x1, y1), (x2, y2), (x4, y4) = circles
    assert x2 - x1 == pytest.approx((x4 - x1) / 3, abs=0.02) and y1 - y2 == pytest.approx(y2 - y4, abs=0.02) and y1 > y2


@pytest.mark.parametrize("points", [[], [(1, math.nan)], [(1, 2.0)], [(1, 2.0), (2, 2.0)], [(1, -1e300), (2, 1e300)]])
def test_chart_of_anything(points: list[tuple[float, float]]) -> None:
    text = line_chart("a", "t", "d", [Series("s", "run", points)])
    ElementTree.fromstring(text)
    assert "nan" not in text and "inf" not in text


def test_png_is_what_was_drawn() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data = png(pixels, np.zeros((12, 3), np.uint8))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        name, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(name + body)
        chunks[name] = body
        place += 12 + length
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (4, 3, 8, 3, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(3, 5)
    assert (rows[:, 0] == 0).all() and (rows[:, 1:] == pixels).all()


def test_spectrogram_shows_a_tone_at_its_frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("harness.present.picture.png", lambda pixels, palette: drawn.append(pixels) or b"")
    spectrogram_png(tone(hz=2000.0), 32_000)
    (pixels,) = drawn
    assert pixels.shape == (HEIGHT, WIDTH)
    loudest = HEIGHT - 1 - pixels[:, WIDTH // 2].astype(int).argmax()
    assert loudest == pytest.approx(HEIGHT * 2000 / 8000, abs=2)
    spectrogram_png(np.zeros(1000), 32_000)
    assert not drawn[-1].any(), "silence is dark"
    spectrogram_png(np.array([np.nan, 1.0]), 8_000)


def test_clips_are_of_this_run_and_as_they_were_written(run_dir: Path) -> None:
    with_clips(run_dir)
    assert [clip.name for clip in read_clips(run_dir, RUN_ID)] == list(CLIPS)
    assert read_clips(run_dir, "another") == []
    (run_dir / "listen" / "source.flac").write_bytes(b"fLaC another " + CLIP.encode())
    assert [clip.name for clip in read_clips(run_dir, RUN_ID)] == list(CLIPS)[1:]
    write_clips(run_dir, "another", {"source": Clip("source", "", b"fLaC " + CLIP.encode())})
    assert [clip.name for clip in read_clips(run_dir, "another")] == ["source"]
    (run_dir / "listen" / "listen.json").write_text("[" * 100_000)
    assert read_clips(run_dir, RUN_ID) == []


def test_a_clip_that_is_no_audio_is_said_to_be(run_dir: Path) -> None:
    write_clips(run_dir, RUN_ID, {"source": Clip("source", "", b"no audio")})
    text = write_html(run_dir, [GOOD], MATCH).read_text()
    Page(text)
    assert "source.flac is no FLAC file" in text


def audible(run_dir: Path, rate: int = 32_000) -> None:
    """Make the run's first file real audio: a second of silence, then a rising ramp."""
    manifest = json.loads((run_dir / "knowledge_audio" / "voice_dataset_manifest.json").read_text())
    path = run_dir / "knowledge_audio" / manifest["entries"][0]["target"]
    wave = np.concatenate([np.zeros(rate), np.linspace(0, 0.9, 9 * rate)])
    soundfile.write(path, np.stack([wave, wave], axis=1), rate, format="FLAC")
    edit_json(run_dir / "train_status.json", lambda v: v["settings"].update(chunk_seconds=2.56))


@pytest.mark.parametrize("rate", [32_000, 44_100])
def test_the_excerpt_is_the_audio_of_its_chunks(run_dir: Path, rate: int) -> None:
    audible(run_dir, rate)
    excerpt = choose_excerpt(load_run(run_dir))
    assert excerpt.chunks == (0, 1) and excerpt.start == 0
    wave, found = soundfile.read(io.BytesIO(source_clip(excerpt).data))
    assert found == rate and wave.ndim == 1 and len(wave) == round(5.12 * rate)
    assert not wave[:rate].any() and wave[-1] == pytest.approx(0.9 * 4.12 / 9, abs=1e-3)


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: lines[1]["chunks"][1].update(start=3 * 81920),
        lambda lines: lines[1]["chunks"][1].update(file="f" * 64),
    ],
)
def test_chunks_that_do_not_follow_each_other_are_not_joined(run_dir: Path, edit: Any) -> None:
    audible(run_dir)
    edit_trace(run_dir / "trace.jsonl", edit)
    assert choose_excerpt(load_run(run_dir)).chunks == (0,)


def test_audio_that_is_not_there(run_dir: Path) -> None:
    edit_json(run_dir / "train_status.json", lambda v: v["settings"].update(chunk_seconds=2.56))
    with pytest.raises(NoAudio, match="one"):  # the run's files hold noise, no FLAC
        source_clip(choose_excerpt(load_run(run_dir)))
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines[1]["chunks"][0].update(file="f" * 64))
    with pytest.raises(NoAudio, match="has no file ffff"):
        choose_excerpt(load_run(run_dir))


def test_presenting_a_run_writes_gates_clips_and_page(run_dir: Path) -> None:
    audible(run_dir)
    file, lines = present_run(run_dir, [GOOD], MATCH)
    assert lines == [f"page: {run_dir / 'report.html'}"]
    assert file.metrics["verdict"] == "match" and file.metrics["run_id"] == RUN_ID
    assert [step for step, _, _ in file.losses] == [1, 2, 3]
    assert len(Page((run_dir / "report.html").read_text()).all("audio")) == 1
