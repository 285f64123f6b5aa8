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

from harness.base.files import CLIP
from harness.evidence import EvidenceError, load_run
from harness.present.audio import (
    CLIPS,
    Clip,
    NoAudio,
    choose_excerpt,
    encode,
    possible_clips,
    read_clips,
    source_clip,
    write_clips,
)
from harness.present.chart import Series, line_chart
from harness.present.facts import facts_of
from harness.present.gates import GateResult
from harness.present.history import LIMIT, read_history
from harness.present.html import page, write_html
from harness.present.page import present_run
from harness.present.picture import HEIGHT, WIDTH, png, spectrogram_png
from harness.present.text import without_local_paths

GOOD = GateResult(
    "tests/smoke/test_gates.py::test_loss_falls", "passed", seconds=1.234, wants="it falls", measured="by 0.08"
)
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
    for text in ("it falls", "by 0.08", "1.23"):
        assert text in found.text
    (red,) = [a["href"] for a in found.all("a") if str(a["href"]).startswith("#gate-")]
    assert "loss is finite" in path.read_text().partition(f'<div id="{str(red)[1:]}"')[2].partition("</div>")[0]
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
        assert (attributes.get("src") or "data:").startswith("data:") and "action" not in attributes
        # A link leads to a place on the page.
        assert "href" not in attributes or (attributes["href"] or "").removeprefix("#") in ids
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
        ([GOOD, dataclasses.replace(BAD, outcome="not run")], MATCH, "2 gates: 1 passed, 1 not run", "unsure"),
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
    assert "the lane failed" in text and "loss_not_finite: at 2" in text and "batch in 1 step," in text


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


def judged(run_dir: Path, run_id: str = RUN_ID, verdict: Any = MATCH, **changes: str) -> Any:
    """Present a run under an id of its own, and what is known of it then."""
    edit_json(run_dir / "train_status.json", lambda v: v.update(run_id=run_id, **changes))
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines[0].update(run_id=run_id))
    (run_dir / "train_report.txt").unlink(missing_ok=True)
    present_run(run_dir, [GOOD], verdict)
    return read_history(run_dir)


def test_the_last_runs_of_a_key_are_a_trend(run_dir: Path) -> None:
    times = {"started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:41Z"}
    judged(run_dir, "a" * 32, **times)
    assert "No earlier run" in (run_dir / "report.html").read_text()
    judged(run_dir, "a" * 32, {**MATCH, "verdict": "regression"})  # judged once more: it is one run all the same
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines[0].update(settings_digest="other settings"))
    judged(run_dir, "b" * 32)
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines[0].update(settings_digest="settings"))
    runs = judged(run_dir, "c" * 32)
    assert [run.run_id[0] for run in runs] == ["a", "b", "c"]
    assert runs[0].verdict == "regression" and runs[0].seconds == 41.0
    assert len({run.key for run in runs}) == 3 and runs[0].loss == facts_of(run_dir, None).losses()[-1][1]
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines[0].update(settings_digest="other settings"))
    judged(run_dir, "d" * 32)
    found = Page((run_dir / "report.html").read_text())
    titles = [text for text in ("Last loss", "Seconds that the lane took") if text in found.text]
    assert titles == ["Last loss", "Seconds that the lane took"] and found.text.count("✓ 1 gate: 1 passed") == 2


def test_the_history_is_bounded_and_read_strictly(run_dir: Path) -> None:
    judged(run_dir)
    path = run_dir / "history.json"
    row = json.loads(path.read_text())["runs"][0]
    edit_json(path, lambda v: v.update(runs=[{**row, "run_id": str(n)} for n in range(3 * LIMIT)]))
    assert len(judged(run_dir)) == LIMIT == len(json.loads(path.read_text())["runs"])
    for edit in (
        lambda v: v.update(schema="history/2"),
        lambda v: v["runs"][0].update(loss=4.1),
        lambda v: v["runs"][0].update(gates="x" * 1000),
        lambda v: v["runs"][0].pop("key"),
        lambda v: v.update(runs={}),
    ):
        judged(run_dir)
        edit_json(path, edit)
        damaged = path.read_bytes()
        with pytest.raises(EvidenceError, match=r"history\.json"):
            read_history(run_dir)
        file, lines = present_run(run_dir, [GOOD], MATCH)
        assert file.run_id == RUN_ID and any(line.startswith("no trend: ") for line in lines)
        assert "history.json" in Page((run_dir / "report.html").read_text()).text
        assert path.read_bytes() == damaged
        path.unlink()


def test_a_history_that_is_none(run_dir: Path) -> None:
    path = run_dir / "history.json"
    for data in (b"", b"[" * 100_000, b"\xff", b"a user's notes"):
        path.write_bytes(data)
        _, lines = present_run(run_dir, [GOOD], MATCH)
        assert lines[-1].startswith("page: ") and path.read_bytes() == data


@pytest.mark.parametrize("name", ["gates.json", "report.html", "listen/listen.json", "listen/source.flac"])
def test_what_is_not_ours_is_left_as_it_is(run_dir: Path, tmp_path: Path, name: str) -> None:
    audible(run_dir)
    (run_dir / "listen").mkdir()
    (run_dir / name).write_text("a user's own")
    _, lines = present_run(run_dir, [GOOD], MATCH)
    assert (run_dir / name).read_text() == "a user's own"
    written = {"gates.json", "report.html"} - {name}
    assert all((run_dir / other).stat().st_size > 100 for other in written)
    told = Page((run_dir / "report.html").read_text()).text if name.startswith("listen/") else "".join(lines)
    assert f"{name} is" in told or f"{name}: is" in told
    (run_dir / name).unlink()
    outside = tmp_path / "outside"
    outside.write_text("a user's own")
    (run_dir / name).symlink_to(outside)
    present_run(run_dir, [GOOD], MATCH)
    assert outside.read_text() == "a user's own"


def test_a_directory_that_cannot_be_written_is_said_to_be(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("harness.base.files.reserve", refuse)
    file, lines = present_run(run_dir, [GOOD], MATCH)
    assert file.metrics["run_id"] == RUN_ID and len(lines) == 3
    assert all(f"{run_dir}: Read-only file system" in line for line in lines)


def test_no_path_of_this_machine_is_on_the_page(run_dir: Path) -> None:
    away = "/home/someone/My Recordings/take.flac"
    said = f"{run_dir}/lane.log and {Path.cwd()}/baselines/a.json and {away}"
    edit_json(run_dir / "train_status.json", lambda v: v.update(status="failed", root_cause=said))
    edit_json(run_dir / "train_status.json", lambda v: v["settings"].update(chunk_seconds=2.56))
    report = load_run(run_dir).report
    write_report(run_dir / "train_report.txt", report | {"model_id": away, "objective_status": "failed"})
    edit_json(run_dir / "environment.json", lambda v: v.update(platform=said, packages={"torch": said}))
    gate = dataclasses.replace(BAD, reason=said, details=f"{said}\nFile '/usr/lib/python3.11/json.py'", measured=said)
    texts = dict.fromkeys(("headline", "baseline", "cause", "next"), said)
    verdict = {**texts, "verdict": "regression", "moved": [said], "notes": [said], "out_of_bounds": [{"what": said}]}
    found = Page(write_html(run_dir, [gate], verdict, missing_audio=[said]).read_text())
    for local in (str(run_dir), str(run_dir.parent), str(Path.cwd()), "/home", "/usr"):
        assert local not in found.text
    assert "RUN_DIR/lane.log and baselines/a.json" in found.text
    assert "harness listen RUN_DIR" in found.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at /a/b c", "at …/b c"),
        ("log:/a/b/c.log", "log:…/c.log"),
        ("'/a/b/'", "'…'"),
        ("https://example.org/a/b, 1/2 and/or x/y/z", "https://example.org/a/b, 1/2 and/or x/y/z"),
        ("/one", "/one"),
        ("RUN.old/x", "…/my run.old/x"),
        ("RUN", "RUN_DIR"),
        ("RUN.", "RUN_DIR."),
        ("'RUN/a b'", "'RUN_DIR/a b'"),
    ],
)
def test_paths_are_shortened_and_nothing_else(tmp_path: Path, text: str, shown: str) -> None:
    run_dir = tmp_path / "my run"
    clean = without_local_paths(run_dir)
    assert clean(text.replace("RUN", str(run_dir))) == shown


def test_a_page_offers_no_clips_that_cannot_be_made(run_dir: Path) -> None:
    edit_json(run_dir / "train_status.json", lambda v: v["settings"].update(chunk_seconds=2.56))
    assert possible_clips(load_run(run_dir)) == ["source", "reconstruction"]  # it left no checkpoint
    text = Page(write_html(run_dir, [GOOD], MATCH).read_text()).text
    assert "Not here: source, reconstruction." in text
    edit_trace(run_dir / "trace.jsonl", lambda lines: lines.__delitem__(slice(1, None)))
    assert possible_clips(load_run(run_dir)) == []
    assert "harness listen" not in write_html(run_dir, [GOOD], MATCH).read_text()


def test_values_that_lie_close_have_labels_that_differ() -> None:
    for step in (1e-3, 1e-8, 1e-13):
        text = line_chart("a", "t", "d", [Series("s", "run", [(1, 4.1), (2, 4.1 + step), (3, 4.1 + 3 * step)])])
        labels = [t.text for t in ElementTree.fromstring(text).iter("text") if t.get("class") == "tick end"]
        assert len(labels) == len(set(labels)) > 2
