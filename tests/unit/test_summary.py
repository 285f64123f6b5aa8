"""The Markdown of a run, what pytest leaves for it, and what GitHub is told."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bare_machine import BARE_PYTHON, ROOT, clean_environ
from run_directory import RUN_ID, edit_json, edit_trace, write_run
from smoke_session import smoke
from toy_lane import Toy

from harness.bootstrap.doctor import TESTED_PYTHONS
from harness.present import collect
from harness.present.changed import ChangedFile, Decision, Place
from harness.present.collect import GateCollector, annotation_lines, place_of_change
from harness.present.gates import GateResult, GatesError, GatesFile, judging, read_gates
from harness.present.listen import listen
from harness.present.recording import recording_table
from harness.present.summary import LIMIT, render, shorten

GOOD = GateResult("tests/smoke/test_gates.py::test_loss_falls", "passed")
BAD = GateResult(
    "tests/smoke/test_gates.py::test_loss_is_finite", "failed", "the loss is nan", "long\nstory", "tests/a.py", 7
)
VERDICT = {
    "verdict": "regression",
    "passed": False,
    "headline": "not the recorded result: loss",
    "baseline": "baselines/a.json",
    "where": {"step": 3, "phase": "optimizer", "tensors": ["0.taps"], "what": "0.taps after step 3"},
    "out_of_bounds": [{"what": "loss, step 3", "obtained": "1.5", "expected": "1.25", "distance": "2e-01"}],
    "more": 4,
    "moved": ["torch 2.13.0 → 2.14.0"],
    "cause": "another | learning rate",
    "notes": ["a second run gave the same bits"],
    "next": "python3 -m harness explain a b\nif it is meant: record",
}
FILE = GatesFile(
    RUN_ID,
    [GOOD, BAD],
    VERDICT,
    {"objective_status": "completed", "loss": "1.5", "numeric_class": "abcd"},
    [(1, 2.0, 2.0), (2, math.nan, 1.5), (3, 1.5, None)],
    {"path": "baselines/a.json", "recorded": "recorded 2026-01-01 at abc: first"},
)


def test_gates_json_holds_what_was_written(tmp_path: Path) -> None:
    FILE.write(tmp_path)
    found = read_gates(tmp_path)
    assert repr(found) == repr(FILE)  # NaN equals nothing
    assert json.loads((tmp_path / "gates.json").read_text())["losses"][1] == [2, "nan", (1.5).hex()]


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v.update(schema="gates/2"),
        lambda v: v.pop("gates"),
        lambda v: v["gates"][0].update(outcome="fine"),
        lambda v: v["gates"][0].update(surprise=1),
        lambda v: v["gates"][0].update(line="7"),
        lambda v: v.update(losses=[[1, 2.0, None]]),
        lambda v: v.update(verdict={}),
        lambda v: v.update(metrics={"loss": 1}),
        lambda v: v.update(baseline=[]),
    ],
)
def test_a_damaged_gates_json_is_one_clear_line(tmp_path: Path, edit: object) -> None:
    FILE.write(tmp_path)
    edit_json(tmp_path / "gates.json", edit)  # type: ignore[arg-type]
    with pytest.raises(GatesError, match=r"gates\.json") as error:
        read_gates(tmp_path)
    assert "\n" not in str(error.value) and str(error.value).endswith(f" {judging(tmp_path)}")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"schema": NaN}'])
def test_a_gates_json_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "gates.json").write_bytes(data)
    text, found = render(tmp_path)
    assert not found and "No gates of this run" in text
    # No session writes over it, so that it must go first.
    away = r"mv \S+gates\.json \S+gates\.json\.away && " if data else ""
    with pytest.raises(GatesError, match=rf"next: {away}python3 -m harness run "):
        read_gates(tmp_path)


def test_the_summary_says_verdict_gates_losses_and_what_moved(tmp_path: Path) -> None:
    FILE.write(tmp_path)
    text, found = render(tmp_path)
    assert found
    assert text.startswith("## ❌ Lane: `regression` · 2 gates: 1 passed, 1 failed\n")
    for line in (
        "- first differs: `step 3, phase optimizer: 0.taps`",
        "- moved: `torch 2.13.0 → 2.14.0`",
        "- likely: `another | learning rate`",
        "- next: `python3 -m harness explain a b`",
        "- next: `if it is meant: record`",
        "| `loss, step 3` | `1.5` | `1.25` | `2e-01` |",
        "and 4 more",
        "| ❌ | `loss is finite` | `the loss is nan` |",
        "- ✅ `loss falls`",
        "| 1 | 2.0 | 2.0 | equal |",
        "| 2 | nan | 1.5 | not finite |",
        "| 3 | 1.5 | – | – |",
        "3 steps, 2 to 1.5; 1 of 2 losses equal the recorded ones to the bit.",
    ):
        assert line in text.splitlines(), line


@pytest.mark.parametrize(
    ("gates", "said"),
    [([], "❌ Lane: `match` · no gate ran"), ([dataclasses.replace(GOOD, outcome="skipped")], "❌"), ([GOOD], "✅")],
)
def test_only_gates_that_passed_pass(tmp_path: Path, gates: list[GateResult], said: str) -> None:
    dataclasses.replace(FILE, gates=gates, verdict={**VERDICT, "verdict": "match"}).write(tmp_path)
    assert render(tmp_path)[0].startswith(f"## {said}")


def test_text_from_files_is_never_markup(tmp_path: Path) -> None:
    evil = "x\n# Heading\n| a | b |\n</details>``[link](http://x) @someone"
    gate = GateResult(f"a::test_{evil}", "failed", evil, evil)
    verdict = {**VERDICT, "headline": evil, "moved": [evil], "verdict": evil, "notes": [evil]}
    dataclasses.replace(FILE, gates=[gate], verdict=verdict).write(tmp_path)
    text = render(tmp_path)[0]
    for line in text.splitlines():
        assert not line.startswith(("# Heading", "| a |", "</details>``"))
        if "link" in line:
            assert "```" in line[: line.index("link")]  # inside a fence that the text cannot close


def test_a_run_without_gates_shows_its_report(tmp_path: Path) -> None:
    lines = [
        "=== COLAB TRAIN REPORT ===",
        "objective_status: blocked",
        "root_cause: no `network`",
        "next_unblock_action: x",
    ]
    (tmp_path / "train_report.txt").write_text("\n".join(lines))
    text, found = render(tmp_path)
    assert found and "- root cause: `` no `network` ``" in text.splitlines()
    assert render(tmp_path / "nowhere")[1] is False


def test_gates_of_another_run_are_not_shown_as_this_ones(tmp_path: Path) -> None:
    write_run(tmp_path / "run", checkpoint=False)
    dataclasses.replace(FILE, run_id="another").write(tmp_path / "run")
    text, _ = render(tmp_path / "run")
    assert "gates.json is of run another" in text and "regression" not in text
    assert f"harness run --lane-evidence={tmp_path / 'run'}" in text


def test_gates_with_one_reason_stand_together(tmp_path: Path) -> None:
    gates = [dataclasses.replace(BAD, nodeid=f"a::test_{n}") for n in range(120)]
    dataclasses.replace(FILE, gates=[GOOD, *gates]).write(tmp_path)
    text, _ = render(tmp_path)
    (row,) = [line for line in text.splitlines() if "the loss is nan" in line]
    assert "`0`, `1`, " in row and "and 20 more" in row


def test_a_summary_never_exceeds_githubs_limit(tmp_path: Path) -> None:
    long = "ü" * 400
    gates = [GateResult(f"a::test_{n}_{long}", "failed", f"{n} {long}", long * 20) for n in range(1000)]
    losses = [(n, 1.0, 1.0) for n in range(1, 5001)]
    dataclasses.replace(FILE, gates=gates, losses=losses).write(tmp_path)
    text, _ = render(tmp_path)
    assert len(text.encode()) <= LIMIT and "and 900 more" in text
    cut = shorten("ü" * 100 + "\n" + "line\n" * 1000, 600)
    assert len(cut.encode()) <= 600
    assert cut.startswith("> [!CAUTION]") and "5,201 bytes" in cut and "**Cut here.**" in cut


def test_edited_baselines_and_their_reasons(tmp_path: Path) -> None:
    def document(reason: str, digest: str) -> str:
        curve = {"columns": "step loss", "rows": ["1 0x1.0p+1"]}
        exact = {"tensor_digest": digest, "curve": curve}
        return json.dumps({"provenance": {"reason": reason}, "exact": exact})

    def git(*words: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines/a.json").write_text(document("first", "a" * 64))
    git("add", ".")
    git("commit", "-qm", "1")
    (tmp_path / "baselines/a.json").write_text(document("a better\nloss | really", "b" * 64))
    files = [ChangedFile("baselines/a.json", "changed", "baselines", True)]
    files.append(ChangedFile("baselines/b.json", "removed", "baselines", True))
    decision = Decision("main", git("rev-parse", "HEAD").strip(), tuple(files))
    FILE.write(tmp_path)
    text, _ = render(tmp_path, decision, tmp_path)
    lines = text.splitlines()
    assert "`baselines/a.json` (changed): `a better\\nloss | really`" in lines
    assert "| `tensor digest` | `aaaaaaaaaaaa` | `bbbbbbbbbbbb` | another |" in lines
    assert "`baselines/b.json` (removed): no reason" in lines and "[!WARNING]" not in text
    both = dataclasses.replace(decision, files=(*files, ChangedFile("harness/lane/x.py", "changed", "lane code", True)))
    assert "> [!WARNING]\n> A baseline changes together with the lane's code" in render(tmp_path, both, tmp_path)[0]


def test_annotations_are_escaped_and_said_once_for_one_reason() -> None:
    evil = dataclasses.replace(BAD, reason="100%\n::error::x", path="a,b:c.py")
    others = [dataclasses.replace(BAD, nodeid=f"a::test_{n}", reason=f"r{n}") for n in range(12)]
    lines = list(annotation_lines([evil, dataclasses.replace(evil, nodeid="a::test_b"), GOOD, *others]))
    assert lines[0] == (
        "::error file=a%2Cb%3Ac.py,line=7,title=gate%3A loss is finite and 1 more gates::100%25%0A::error::x"
    )
    assert len(lines) == 11 and lines[-1].startswith("::notice::3 more reasons")
    assert not list(annotation_lines([GOOD]))


def test_an_annotation_is_at_the_changed_line_where_one_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place("harness/lane/trainer.py", 12, 2)
    (line,) = annotation_lines([BAD], place)
    assert line.startswith("::error file=harness/lane/trainer.py,line=12,title=gate%3A loss is finite::the loss is nan")
    assert "tests/a.py:7" in line and "2 places" in line
    monkeypatch.setattr(collect, "changed_place", {"main": place}.get)
    monkeypatch.delenv("GITHUB_BASE_REF", raising=False)
    monkeypatch.delenv("CHANGE_BASE", raising=False)
    assert place_of_change({"verdict": "regression"}) is None, "nothing to compare with"
    monkeypatch.setenv("CHANGE_BASE", "main")
    assert place_of_change({"verdict": "regression"}) == place_of_change(None) == place
    assert place_of_change({"verdict": "environment-moved"}) is place_of_change({"verdict": "nondeterministic"}) is None


SESSION = """
    import pytest, sys
    from pathlib import Path
    from harness.present import collect

    def pytest_configure(config):
        config.addinivalue_line("markers", "smoke: gates")
        if not hasattr(config, "workerinput"):
            collect.register(config, lambda: Path({run_dir!r}))

    def pytest_collection_modifyitems(config, items):
        collect.tell_gates(config, items)

    @pytest.fixture(scope="session", autouse=True)
    def verdict(request):
        yield
        collect.publish_verdict(request.config, 1, {verdict!r}, [])
"""
GATES = """
    import pytest
    pytestmark = getattr(pytest.mark, "smoke")

    def test_good(record_property):
        '''It wants
        this.

        And more that is not told.'''
        record_property("measured", 4.5)
    def test_bad(): assert 1 == 2, "one is not\\ntwo"
    def test_plain(): pytest.fail("a plain reason", pytrace=False)
    def test_left_out(): pytest.skip("not here")
    @pytest.fixture
    def broken(): raise RuntimeError("no fixture")
    def test_broken(broken): pass
    @pytest.fixture
    def messy():
        yield
        raise RuntimeError("at the end")
    def test_messy(messy): pass
    def test_elsewhere(): pass
"""


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n", "1")], ids=["one process", "xdist"])
def test_pytest_leaves_gates_page_properties_and_annotations(tmp_path: Path, workers: tuple[str, ...]) -> None:
    run_dir, tests = write_run(tmp_path / "run", checkpoint=False), tmp_path / "tests"
    tests.mkdir()
    verdict = {**VERDICT, "baseline": None}
    (tests / "conftest.py").write_text(textwrap.dedent(SESSION.format(run_dir=str(run_dir), verdict=verdict)))
    (tests / "test_gates.py").write_text(textwrap.dedent(GATES))
    (tests / "test_other.py").write_text("def test_no_gate(): pass\n")
    (tests / "pytest.ini").write_text("[pytest]\n")
    environ = {
        **os.environ,
        "GITHUB_ACTIONS": "true",
        "GITHUB_BASE_REF": "",
        "CHANGE_BASE": "",
        "PYTHONPATH": str(ROOT),
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    words = [sys.executable, "-m", "pytest", *workers, "--junitxml", "junit.xml", "-k", "not elsewhere"]
    done = subprocess.run(words, cwd=tests, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stdout + done.stderr
    found = read_gates(run_dir)
    assert found.run_id == RUN_ID and found.verdict == verdict
    assert {gate.name: (gate.outcome, gate.reason) for gate in found.gates} == {
        "good": ("passed", ""),
        "bad": ("failed", "one is not"),
        "plain": ("failed", "a plain reason"),
        "left out": ("skipped", "Skipped: not here"),
        "broken": ("error", "RuntimeError: no fixture"),
        "messy": ("error", "RuntimeError: at the end"),
        "elsewhere": ("not run", "it was deselected, or the session ended before it"),
    }
    assert "1 not run" in (run_dir / "report.html").read_text()
    assert [(gate.wants, gate.measured) for gate in found.gates if gate.wants] == [("It wants this.", "4.5")]
    assert "::error file=test_gates.py,line=12,title=gate%3A plain::a plain reason" in done.stdout.splitlines()
    assert f"page: {run_dir / 'report.html'}" in done.stdout.splitlines()
    assert "a plain reason" in (run_dir / "report.html").read_text()
    suite = ElementTree.parse(tests / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    values = {p.get("name"): p.get("value") for p in suite.iterfind("properties/property")}
    assert values["verdict"] == "regression" and values["run_id"] == RUN_ID and values["loss"] == found.metrics["loss"]
    assert {"loss_first", "checkpoint_tensor_digest", "numeric_class"} <= set(values)


def test_a_recordings_diff_is_in_decimal_numbers_with_up_and_down() -> None:
    (path,) = (ROOT / "baselines" / "experimental").glob("musicgen_nano-universal-*.json")
    old = json.loads(path.read_text())
    assert recording_table(old, old) == []
    new = json.loads(path.read_text())
    rows = new["exact"]["curve"]["rows"]
    loss = float.fromhex(rows[-1].split(" ")[3])
    rows[-1] = rows[-1].replace(loss.hex(), (2 * loss).hex())
    rows.append(rows[0])
    ended = float.fromhex(new["exact"]["end"]["evaluation loss"])
    new["exact"]["end"]["evaluation loss"] = (ended - 0.5).hex()
    first = "0.linear1.down"
    new["shape"]["end"][first] = new["shape"]["end"][first].replace("8x128", "4x128")
    new["provenance"]["environment"]["packages.torch"] = "9.9"
    new["key"]["model_digest"] = "f" * 64
    del new["tolerance"]["loss"]
    found = {line.split(" | ")[0].strip("| `"): line for line in recording_table(old, new)}
    shown = f"| `evaluation loss` | `{ended!r}` | `{ended - 0.5!r}` | ▼ 0.5 ({-0.5 / ended:.2%}) |".replace("(-", "(")
    assert found["evaluation loss"] == shown
    assert found["steps"] == "| `steps` | `24` | `25` | ▲ 1 (4.17%) |"
    assert found["loss, step 24"].endswith(f"| `{2 * loss!r}` | new |") and found["last loss"].count("▼") == 1
    assert "`float32 8x128` | `float32 4x128` | another" in found["0.linear1.down: type and shape"]
    assert found["environment: packages.torch"].endswith("`9.9` | another |")
    assert found["key: model_digest"].count("`ffffffffffff`") == 1
    assert found["tolerance: loss"].endswith("| – | gone |")
    assert not any("0x" in line for line in found.values())


@pytest.mark.parametrize(
    "document",
    [
        None,
        {"exact": []},
        {"exact": {"curve": {"columns": "loss", "rows": [1, None]}}},
        {"exact": {"end": {"a": 1, "b": "0x1.0p+99999"}}, "key": "x", "shape": {"end": {"t": {}}}},
    ],
)
def test_a_recording_that_is_none_is_shown_as_far_as_it_goes(document: object) -> None:
    assert isinstance(recording_table({}, document), list)
    assert isinstance(recording_table(document, {}), list)


def test_summary_runs_where_nothing_is_installed(tmp_path: Path) -> None:
    FILE.write(tmp_path)
    words = [*BARE_PYTHON, "-m", "harness", "summary", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=clean_environ(LC_ALL="C"), capture_output=True, timeout=240)
    assert done.returncode == 0 and done.stdout.decode().startswith("## ❌ Lane: `regression`"), done.stderr


def test_the_workflow_is_one_that_github_accepts() -> None:
    check = subprocess.run([sys.executable, "-m", "check_jsonschema", "--version"], capture_output=True)
    if check.returncode:
        pytest.skip("check-jsonschema is not installed: pip install check-jsonschema")
    words = ["--builtin-schema", "vendor.github-workflows", ".github/workflows/lane.yml"]
    done = subprocess.run([sys.executable, "-m", "check_jsonschema", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_workflow_keeps_to_its_promises() -> None:
    import yaml  # a dependency of omegaconf

    text = (ROOT / ".github/workflows/lane.yml").read_text()
    workflow = yaml.safe_load(text)
    triggers = workflow[True]  # YAML 1.1 reads `on` as true
    assert triggers["pull_request"] is None, "a path filter here leaves a required check pending for ever"
    assert "merge_group" in triggers and "pull_request_target" not in triggers
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    assert not [name for name, job in jobs.items() if "permissions" in job or "timeout-minutes" not in job]
    for step in (step for job in jobs.values() for step in job["steps"]):
        assert "${{" not in step.get("run", ""), "an expression in a script is an injection: pass it as a variable"
        assert "continue-on-error" not in step
    used = [line.partition("uses:")[2].strip() for line in text.splitlines() if "uses:" in line]
    pinned = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert used and not [use for use in used if not pinned.fullmatch(use)], "not pinned, or unsaid to what"
    assert len({use.partition("@")[0] for use in used}) == len(set(used)), "one action in two versions"


def test_the_workflow_tries_each_python_that_is_listed_and_both_kinds_of_processor() -> None:
    import tomllib

    import yaml

    jobs = yaml.safe_load((ROOT / ".github/workflows/lane.yml").read_text())["jobs"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line}
    assert (
        set(jobs["suite"]["strategy"]["matrix"]["python"]) == listed == {".".join(map(str, p)) for p in TESTED_PYTHONS}
    )
    assert {"ubuntu-24.04", "ubuntu-24.04-arm"} == set(jobs["gates"]["strategy"]["matrix"]["runner"])
    assert set(jobs["required"]["needs"]) == set(jobs) - {"required"} and jobs["required"]["if"] == "always()"


@pytest.mark.parametrize(("results", "code"), [("success success success", 0), ("success skipped success", 1), ("", 1)])
def test_what_is_required_is_that_every_job_passed(results: str, code: int) -> None:
    import yaml

    (step,) = yaml.safe_load((ROOT / ".github/workflows/lane.yml").read_text())["jobs"]["required"]["steps"]
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]], env={**os.environ, "RESULTS": results}, capture_output=True
    )
    assert done.returncode == code


def test_each_gate_says_what_it_wants() -> None:
    """In the first paragraph of its docstring, which the page shows: a short sentence, and none twice."""
    said: dict[str, str] = {}
    for path in (*ROOT.glob("harness/gates/*.py"), *ROOT.glob("tests/smoke/test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                wants = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
                assert wants.endswith(".") and len(wants) <= 120, f"{path.name}: {node.name}: {wants!r}"
                assert wants not in said, f"{node.name} wants what {said[wants]} wants"
                said[wants] = node.name
    assert len(said) > 40


def test_the_next_command_leads_to_gates_from_every_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "my run"
    assert judging(run) == f"python3 -m harness run --lane-run-dir='{run}'"  # nothing there: a run is made
    write_run(run, checkpoint=False)
    assert judging(run) == f"python3 -m harness run --lane-evidence='{run}'"
    (run / "train_status.json").unlink()  # it lies elsewhere, by TRAIN_STATUS_PATH
    assert judging(run) == f"python3 -m harness run --lane-evidence='{run}'"
    other = tmp_path / "artifacts" / "mine"
    other.mkdir(parents=True)
    (other / "run.json").write_text("{}")
    assert judging(other) == f"pytest -m smoke --lane-evidence={other}"
    assert judging(other.parent) == f"python3 -m harness summary {other}"
    monkeypatch.chdir(tmp_path)  # a relative path is of here, and `harness run` is for a checkout
    assert judging(Path("my run")) == f"cd {ROOT} && python3 -m harness run --lane-evidence='{run}'"
    (tmp_path / "pyproject.toml").touch()  # a project of its own
    assert judging(Path("my run")) == "pytest -m smoke --lane-evidence='my run'"
    monkeypatch.chdir(ROOT)
    assert judging(Path("artifacts/nosuch")) == "python3 -m harness run --lane-run-dir=artifacts/nosuch"
    monkeypatch.setenv("LANE_RUN_DIR", str(tmp_path / "new"))
    assert judging(tmp_path / "new") == "python3 -m harness run"


def test_listening_succeeds_without_gates_and_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing: list[str] = []
    monkeypatch.setattr("harness.present.listen.make_clips", lambda run, seed: ({}, missing))
    run_dir = write_run(tmp_path / "run", checkpoint=False)
    assert listen([str(run_dir)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{run_dir / 'report.html'}\n" and f"next: {judging(run_dir)}\n" in said.err
    dataclasses.replace(FILE, run_id="another").write(run_dir)
    assert listen([str(run_dir)]) == 0
    assert f"next: {judging(run_dir)}\n" in capsys.readouterr().err
    FILE.write(run_dir)
    assert listen([str(run_dir)]) == 0 and not capsys.readouterr().err
    assert "the loss is nan" in (run_dir / "report.html").read_text()
    missing.append("no model")
    assert listen([str(run_dir)]) == 1 and capsys.readouterr().err == "no model\n"
    assert listen([str(tmp_path)]) == 1 and judging(tmp_path) in capsys.readouterr().err


def test_judging_earlier_evidence_leaves_what_any_session_leaves(tmp_path: Path) -> None:
    run = Toy().run(tmp_path / "a run").run_dir
    edit_trace(run / "trace.jsonl", lambda lines: lines[4].update(loss="nan"))
    words = ("-B", f"--lane-evidence={run}", "--junitxml=junit.xml")
    code, output = smoke(tmp_path, *words, GITHUB_ACTIONS="true")
    assert code == 1, output
    found = read_gates(run)
    assert "loss is finite" in {gate.name for gate in found.gates if gate.outcome == "failed"}
    assert render(run)[0].startswith("## ❌ Lane: ")
    assert "loss is finite" in (run / "report.html").read_text()
    assert [line for line in output.splitlines() if line.startswith("::error file=")]
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert found.run_id in {p.get("value") for p in suite.iterfind("properties/property")}
    assert {p.get("name") for p in suite.iterfind("testcase/properties/property")} == {"wants", "measured"}


def test_a_folder_that_holds_no_run_gets_no_files(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    collector = GateCollector(pytestconfig, lambda: folder)
    report = pytest.TestReport(BAD.nodeid, ("a.py", 1, "test_a"), {"smoke": 1}, "failed", "it is red", "call")
    collector.pytest_runtest_logreport(report)
    collector.pytest_sessionfinish()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert collector.lines == [f"no page: {folder} holds no run"]
