"""`harness changed`, in throw-away git repositories: which files count, and what it says where git cannot tell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from bare_machine import BARE_PYTHON, ROOT, clean_environ

from harness.present import changed as module
from harness.present.changed import Place, base_of, changed, changed_place, decide, markdown, rule_for


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(["git", *who, *words], cwd=root, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write(root: Path, path: str, text: str = "x\n") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def commit(root: Path, **files: str) -> str:
    for path, text in files.items():
        write(root, path, text)
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "a change", "--allow-empty")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    files = ("harness/lane/trainer.py", "harness/bootstrap/command_line.py", "pyproject.toml", "README.md")
    commit(root, **dict.fromkeys(files, "1\n"), **{"baselines/a.json": "{}\n"})
    git(root, "checkout", "-q", "-b", "topic")
    return root


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("harness/lane/trainer.py", "lane code"),
        ("harness/lane/deep/er.py", "lane code"),
        ("harness/numerics/digest.py", "lane code"),
        ("harness/session/lane.py", "gates"),
        ("harness/lane/settings.py", "settings"),
        ("data/knowledge_audio_source/auntie_dottie.flac", "shipped data and model"),
        ("data/musicgen_nano/state_dict.bin", "shipped data and model"),
        ("baselines/experimental/x.json", "baselines"),
        ("pyproject.toml", "dependencies and set-up"),
        ("harness/bootstrap/pip.py", "dependencies and set-up"),
        ("harness/evidence/run.py", "gates"),
        ("tests/smoke/test_gates.py", "gates"),
        (".github/workflows/lane.yml", "workflow"),
        ("harness/present/changed.py", "workflow"),
        ("harness/something_new.py", "no rule knows it"),
        ("sitecustomize.py", "no rule knows it"),
        ("harness/present/html.py", None),
        ("README.md", None),
        ("docs/colab.ipynb", None),
        ("tests/unit/test_cli.py", None),
    ],
)
def test_each_kind_of_file_has_its_rule(path: str, rule: str | None) -> None:
    found = rule_for(path)
    assert found.counts is (rule is not None)
    assert rule in (None, found.name)


def test_every_file_of_this_checkout_is_known_to_a_rule() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = git(ROOT, "ls-files").splitlines()
    unknown = [path for path in listed if rule_for(path) is module.UNKNOWN and not path.startswith("harness/")]
    assert not unknown, "these count as the lane for want of a rule: add them to one in harness/present/changed.py"


def test_where_the_lanes_code_first_changed(root: Path) -> None:
    """The first line of each place that changed: committed, uncommitted, added; not of what is no lane code."""
    lines = [f"{number}\n" for number in range(1, 21)]
    base = commit(root, **{"harness/lane/trainer.py": "".join(lines)})
    assert changed_place(base, root) is None
    write(root, "README.md", "another\n")
    write(root, "harness/lane/trainer.py", "".join([*lines[:6], "seven\n", *lines[7:14], *lines[16:]]))
    assert changed_place(base, root) == Place("harness/lane/trainer.py", 7, 2)
    write(root, "harness/lane/a new one.py")
    assert changed_place(base, root) == Place("harness/lane/a new one.py", 1, 3)
    assert changed_place("nowhere", root) is None
    assert base_of({"GITHUB_BASE_REF": "main"}) == "origin/main" and base_of({}) == ""
    assert base_of({"GITHUB_BASE_REF": "main", "CHANGE_BASE": "abc"}) == "abc"


def test_nothing_changed(root: Path) -> None:
    decision = decide("main", root)
    assert not decision.changed and decision.reason == "no file changed"


def test_what_is_committed_uncommitted_untracked_and_removed(root: Path) -> None:
    commit(root, **{"docs/a.txt": "1\n"})
    assert not decide("main", root).changed
    commit(root, **{"harness/lane/trainer.py": "2\n"})
    write(root, "pyproject.toml")
    write(root, "README.md", "2\n")
    (root / "baselines/a.json").unlink()
    found = {file.path: (file.status, file.counts) for file in decide("main", root).files}
    assert found == {
        "docs/a.txt": ("added", False),
        "harness/lane/trainer.py": ("changed", True),
        "pyproject.toml": ("changed", True),
        "README.md": ("changed", False),
        "baselines/a.json": ("removed", True),
    }


def test_what_the_base_changed_meanwhile_is_not_ours(root: Path) -> None:
    commit(root, **{"docs/a.txt": "1\n"})
    git(root, "checkout", "-q", "main")
    commit(root, **{"harness/lane/trainer.py": "2\n"})
    git(root, "checkout", "-q", "topic")
    assert not decide("main", root).changed


def test_a_file_that_moved_out_of_the_lane_was_in_it(root: Path) -> None:
    git(root, "config", "diff.renames", "copies")
    (root / "docs").mkdir()
    git(root, "mv", "harness/lane/trainer.py", "docs/trainer.md")
    decision = decide("main", root)
    assert [(file.path, file.status) for file in decision.files if file.counts] == [
        ("harness/lane/trainer.py", "removed")
    ]


@pytest.mark.parametrize("path", ["harness/lane/trainer.py", "harness/lane/settings.py"])
def test_a_baseline_together_with_what_it_judges_is_called_out(
    root: Path, path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(root, **{"baselines/a.json": '{"new": 1}\n'})
    assert not decide("main", root).baseline_with_code
    commit(root, **{path: "2\n"})
    assert decide("main", root).baseline_with_code
    monkeypatch.setattr(module, "decide", lambda base: decide(base, root))
    assert changed(["--base", "main"]) == 0
    assert "a baseline changed together" in capsys.readouterr().out


def test_names_that_want_to_be_markup_or_outputs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(root, **{"harness/a\nlane-changed=false\n`|.py": "1\n"})
    decision = decide("main", root)
    assert decision.changed
    assert r"harness/a\nlane-changed=false\n`|.py" in [file.path for file in decision.files]
    (row,) = [line for line in markdown(decision).splitlines() if "harness/a" in line]
    assert r"| ``harness/a\nlane-changed=false\n`\|.py`` |" in row
    output = tmp_path / "output"
    monkeypatch.setenv("GITHUB_OUTPUT", str(output))
    monkeypatch.setattr(module, "decide", lambda base: decide(base, root))
    assert changed(["--base", "main"]) == 0
    assert output.read_text().splitlines()[0] == "lane-changed=true"
    assert len(output.read_text().splitlines()) == 2
    assert capsys.readouterr().out.startswith("lane changed: yes\n")


@pytest.mark.parametrize("base", ["nonsense", "-x", "", "0" * 40, "a" * 40, "HEAD~99"])
def test_an_unknown_base_counts_as_changed_and_says_what_to_do(root: Path, base: str) -> None:
    decision = decide(base, root)
    assert decision.changed and decision.problem and decision.next_command
    assert "cannot be decided" in decision.reason


def test_a_shallow_clone_names_the_way_out(root: Path, tmp_path: Path) -> None:
    first = git(root, "rev-parse", "HEAD")
    commit(root, **{"docs/a.txt": "1\n"})
    commit(root, **{"docs/a.txt": "2\n"})
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{root}", "shallow")
    decision = decide(first, tmp_path / "shallow")
    assert decision.changed and "shallow" in decision.problem
    assert "git fetch --unshallow" in decision.next_command and "fetch-depth: 0" in decision.next_command


def test_histories_without_a_common_commit(root: Path) -> None:
    git(root, "checkout", "-q", "--orphan", "other")
    commit(root, **{"docs/a.txt": "1\n"})
    assert "no merge base" in decide("main", root).problem


def test_outside_of_git_and_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no git repository" in decide("main", tmp_path).problem
    monkeypatch.setenv("PATH", str(tmp_path))
    assert decide("main", tmp_path).changed


def test_another_gits_variables_do_not_lead_astray(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert not decide("main", root).problem


def test_another_projects_lane_is_what_its_tables_name(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever in git the project lies; what no table names counts, documentation but where a table names it."""
    table = '[tool.harness.lanes.mine]\ncommand = ["x"]\ncwd = "sub"\ncode = ["train.py", "docs/"]\n'
    commit(root, **{"project/pyproject.toml": table, "project/notes.md": "1\n", "README.md": "2\n"})
    monkeypatch.chdir(root / "project")
    assert changed(["--base", "HEAD", "--json"]) == 0 and not json.loads(capsys.readouterr().out)["changed"]
    write(root, "project/notes.md", "2\n")
    assert not decide("HEAD").changed
    for path in ("project/sub/train.py", "project/sub/docs/recipe.md", "project/tests/a.py", "outside.py", "data/x"):
        write(root, path)
    rules = {file.path: (file.rule, file.counts) for file in decide("HEAD").files}
    assert rules == {
        "notes.md": ("documentation", False),
        "sub/train.py": ("lane code", True),
        "sub/docs/recipe.md": ("lane code", True),
        "tests/a.py": ("no rule knows it", True),
        "../outside.py": ("no rule knows it", True),
        "../data/x": ("no rule knows it", True),
    }
    (place,) = {changed_place("HEAD")}
    assert place is not None and (root / "project" / place.path).exists()


def test_json(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commit(root, **{"harness/lane/trainer.py": "2\n"})
    monkeypatch.setattr(module, "decide", lambda base: decide(base, root))
    assert changed(["--base", "main", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changed"] is found["decided"] is True
    assert found["files"] == [
        {"path": "harness/lane/trainer.py", "status": "changed", "rule": "lane code", "counts": True}
    ]


def test_it_runs_where_nothing_is_installed(tmp_path: Path) -> None:
    words = [*BARE_PYTHON, "-m", "harness", "changed", "--base", "HEAD"]
    environ = clean_environ(GITHUB_OUTPUT=str(tmp_path / "output"))
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("lane changed: "), done.stderr
    done = subprocess.run([*words[:-2]], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 64 and "--base" in done.stderr


@pytest.mark.parametrize(
    ("path", "answer", "summary"),
    [("docs/a.md", "false", "### The lane did not change: no gate is needed"), ("harness/lane/a.py", "true", "")],
)
def test_the_workflows_own_step_decides(tmp_path: Path, path: str, answer: str, summary: str) -> None:
    import yaml  # a dependency of omegaconf

    workflow = yaml.safe_load((ROOT / ".github/workflows/lane.yml").read_text())
    (script,) = [step["run"] for step in workflow["jobs"]["gates"]["steps"] if step.get("id") == "changed"]
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "harness", root / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    git(root, "init", "-q")
    write(root, ".gitignore", "__pycache__/\n")
    base = commit(root)
    commit(root, **{path: "x\n"})
    files = {name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    environ = clean_environ(CHANGE_BASE=base, **files)
    done = subprocess.run(["bash", "-e", "-c", script], cwd=root, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "GITHUB_OUTPUT").read_text().startswith(f"lane-changed={answer}\n")
    shown = tmp_path / "GITHUB_STEP_SUMMARY"
    assert (shown.read_text() if shown.exists() else "").startswith(summary)
    assert shown.exists() is bool(summary)
