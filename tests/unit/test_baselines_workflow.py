"""The whole workflow, as somebody lives it: missing fails, recording passes, a drift fails, an update writes.

Each test is a pytest session of its own, on a lane in a page of NumPy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import syrupy
from toy_lane import Toy

from harness.baselines import baseline as baseline_module
from harness.baselines import record as record_module

pytest_plugins = ["pytester"]

CONFTEST = """
import itertools, json, os
from pathlib import Path
import pytest
from toy_lane import Toy
from harness.baselines.baseline import Code
from harness.baselines.store import Store
from harness.baselines.snapshot import Gates, baseline_factory

ROOT = Path(__file__).parent
COUNT = itertools.count()

def toy():
    settings = json.loads(os.environ.get("TOY", "{}"))
    if settings.pop("random", 0):
        settings["noise_seed"] = next(COUNT)
    return Toy(**settings)

def train(tmp_path_factory):
    if os.environ.get("CRASH"):
        raise RuntimeError("the lane crashed")
    return toy().run(tmp_path_factory.mktemp("runs") / "run")

@pytest.fixture(scope="session")
def lane_run(tmp_path_factory):
    return train(tmp_path_factory)

@pytest.fixture(scope="session")
def gates(request, lane_run, tmp_path_factory):
    options = request.config.option
    made = Gates(
        lane_run,
        Store(ROOT / "baselines"),
        code=Code("a" * 40, False, os.environ.get("CODE", "1") * 64),
        rerun=lambda: train(tmp_path_factory),
        update=options.update_snapshots,
        reason=options.baseline_reason,
        environment={"CI": os.environ.get("FAKE_CI", "")},
    )
    yield made
    for line in made.told()[2]:
        print(line)

@pytest.fixture
def baseline(request, gates):
    return baseline_factory(request, gates)
"""
GATES = """
import os, pytest, time

def test_dataset_digest(lane_run, baseline):
    assert lane_run == baseline("dataset")

def test_tokens_digest(lane_run, baseline):
    assert lane_run == baseline("tokens")

def test_loss_curve(lane_run, baseline):
    assert lane_run == baseline("loss")

def test_checkpoint_digest(lane_run, baseline):
    assert lane_run == baseline("checkpoint")
"""
REASON = ("--snapshot-update", "--baseline-reason", "the schedule was fixed")
OUTPUT = ("-p", "no:cacheprovider", "-p", "no:randomly", "-rA")


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """pytester forgets every module that was imported since it began, and torch cannot be imported twice."""
    Toy().run(tmp_path_factory.mktemp("imported") / "run").checkpoint  # noqa: B018


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., pytest.RunResult]]:
    """Runs a pytest session in a project with the four gates; keywords are environment variables."""
    outer = syrupy._syrupy
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # syrupy in a worker leaves what it found to the others
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_gates=GATES)

    def run(*arguments: str, toy: dict[str, Any] | None = None, **environment: str) -> pytest.RunResult:
        with monkeypatch.context() as context:
            context.setenv("TOY", json.dumps(toy or {}))
            for name, value in environment.items():
                context.setenv(name, value)
            return pytester.runpytest_inprocess(*OUTPUT, *arguments)

    yield run
    syrupy._syrupy = outer


def files(pytester: pytest.Pytester) -> dict[str, str]:
    root = pytester.path / "baselines"
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def text_of(result: pytest.RunResult) -> str:
    return result.stdout.str()


def test_the_workflow_from_missing_to_updated(session: Any, pytester: pytest.Pytester) -> None:
    # Missing fails, says what records, and writes nothing.
    result = session()
    result.assert_outcomes(failed=4)
    assert "missing: nothing is recorded" in text_of(result)
    assert 'pytest -m smoke --snapshot-update --baseline-reason "' in text_of(result)
    assert files(pytester) == {}

    # Recorded passes: syrupy counts it, and the file is new, and where it belongs.
    result = session(*REASON)
    result.assert_outcomes(passed=4)
    assert "Can not relate snapshot" not in text_of(result), "syrupy takes the file for one of the gates'"
    assert "1 snapshot generated" in text_of(result) and "3 snapshots passed" in text_of(result)
    assert "recorded " in text_of(result)
    recorded = files(pytester)
    assert len(recorded) == 1

    result = session()
    result.assert_outcomes(passed=4)
    assert "4 snapshots passed" in text_of(result)

    # A drift fails in the gates that it concerns, says where, and leaves the file alone.
    drift = {"rate_factor": 1.01}
    result = session(toy=drift, CODE="2")
    result.assert_outcomes(passed=2, failed=2)
    text = text_of(result)
    assert "PASSED test_gates.py::test_dataset_digest" in text and "FAILED test_gates.py::test_loss_curve" in text
    assert "regression: not the recorded result: loss, checkpoint" in text
    assert "step 1 of 6, phase optimizer" in text and "the code moved it" in text
    assert files(pytester) == recorded

    # An update writes, prints old and new, and then it passes.
    result = session(*REASON, toy=drift)
    result.assert_outcomes(passed=4)
    assert "1 snapshot updated" in text_of(result)
    assert "loss, step 2: 0.6330607984 → 0.6321602594" in text_of(result)
    updated = files(pytester)
    assert updated.keys() == recorded.keys() and updated != recorded
    session(toy=drift).assert_outcomes(passed=4)

    # An update of what has not changed writes nothing.
    result = session(*REASON, toy=drift)
    result.assert_outcomes(passed=4)
    assert "4 snapshots passed" in text_of(result) and files(pytester) == updated


def test_the_table_of_a_failure_is_of_its_own_part_and_fits_on_a_screen(session: Any) -> None:
    session(*REASON).assert_outcomes(passed=4)
    result = session("-k", "checkpoint", toy={"rate_factor": 1.01}, CODE="2")
    result.assert_outcomes(failed=1, deselected=3)
    first = result.outlines.index("regression: not the recorded result: loss, checkpoint")
    last = next(n for n, line in enumerate(result.outlines) if n > first and line.startswith("---"))
    failure = result.outlines[first:last]
    (row,) = (line for line in failure if "norm of 0.out" in line)
    assert row.split() == "norm of 0.out 1.355062306 1.355008827 2.0e-02 of its change (allowed 1e-09)".split()
    assert any("guarded tensor digest" in line for line in failure)
    assert not any("loss, step" in line for line in failure)
    assert failure[-2].startswith("next      python3 -m harness explain")
    assert failure[-1].startswith("          if the change is meant: pytest -m smoke --snapshot-update")
    assert len(failure) <= 15


def test_no_reason_is_refused_and_nothing_is_written(session: Any, pytester: pytest.Pytester) -> None:
    result = session("--snapshot-update")
    result.assert_outcomes(failed=4)
    assert "nothing was recorded:" in text_of(result) and "a baseline needs a reason" in text_of(result)
    assert files(pytester) == {}


def test_under_ci_it_is_refused_and_nothing_is_written(session: Any, pytester: pytest.Pytester) -> None:
    result = session(*REASON, FAKE_CI="true")
    result.assert_outcomes(failed=4)
    assert "baselines are not recorded under CI" in text_of(result)
    assert files(pytester) == {}


def test_two_runs_that_differ_are_refused_and_it_says_where(session: Any, pytester: pytest.Pytester) -> None:
    result = session(*REASON, toy={"noise": 1e-6, "random": 1})
    result.assert_outcomes(failed=4)
    assert "two runs, one after the other, differ: first at step 1 of 6, phase backward" in text_of(result)
    assert files(pytester) == {}


def test_a_nondeterministic_lane_is_called_so(session: Any) -> None:
    session(*REASON).assert_outcomes(passed=4)
    result = session(toy={"noise": 1e-6, "random": 1})
    result.assert_outcomes(passed=2, failed=2)
    assert "nondeterministic: two runs of the same code" in text_of(result)


def test_a_pass_within_tolerance_says_so_and_an_update_records_the_own_class(
    session: Any, pytester: pytest.Pytester
) -> None:
    here = {"mode": "native"}
    elsewhere = here | {"numeric_class": "bbbbbbbbbbbbbbbb", "noise": 1e-7}
    session(*REASON, toy=here).assert_outcomes(passed=4)
    result = session("-s", toy=elsewhere)
    result.assert_outcomes(passed=4)
    assert "tolerance-match: nothing is recorded for numeric class bbbbbbbb" in text_of(result)
    assert len(files(pytester)) == 1
    session(*REASON, toy=elsewhere).assert_outcomes(passed=4)
    assert len(files(pytester)) == 2
    session(toy=here).assert_outcomes(passed=4)


def test_an_update_brings_a_baseline_to_today_s_tolerances(
    session: Any, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    session(*REASON).assert_outcomes(passed=4)
    before = files(pytester)
    tighter = baseline_module.Tolerance(1e-12, 1e-10, 1e-15, 1e-13)
    monkeypatch.setattr(record_module, "tolerance_for", lambda mode: tighter)
    session(*REASON).assert_outcomes(passed=4)
    assert files(pytester) != before


@pytest.mark.parametrize("cleanup", [[], ["--snapshot-no-cleanup"]], ids=["with cleanup", "without cleanup"])
def test_nothing_but_a_recording_ever_alters_or_deletes_a_baseline(
    session: Any, pytester: pytest.Pytester, cleanup: list[str]
) -> None:
    session(*REASON).assert_outcomes(passed=4)
    stray = pytester.path / "baselines" / "experimental" / "of-another-lane.json"
    stray.write_text("{}")
    before = files(pytester)
    # The session's run crashes: fixtures fail before any assertion.
    session(*REASON, *cleanup, CRASH="1").assert_outcomes(errors=4)
    assert files(pytester) == before
    # Everything is deselected, or one gate alone is selected.
    session(*REASON, *cleanup, "-k", "nothing_has_this_name")
    session(*REASON, *cleanup, "-k", "tokens").assert_outcomes(passed=1, deselected=3)
    assert files(pytester) == before
    # The gates are gone, or crash before they compare.
    pytester.makepyfile(test_gates="def test_loss_curve(baseline):\n    raise RuntimeError('before')\n")
    session(*REASON, *cleanup).assert_outcomes(failed=1)
    pytester.makepyfile(test_gates="def test_other(snapshot):\n    assert snapshot == 'x'\n")
    session(*REASON, *cleanup).assert_outcomes(passed=1)
    assert {path: digest for path, digest in files(pytester).items() if path in before} == before
    # A gate that takes too long is stopped by pytest-timeout before it compares.
    pytester.makepyfile(test_gates="import time\n\ndef test_loss(baseline):\n    time.sleep(30)\n")
    session(*REASON, *cleanup, "--timeout=0.3").assert_outcomes(failed=1)
    assert {path: digest for path, digest in files(pytester).items() if path in before} == before


def test_the_wrong_run_and_the_wrong_part_are_errors(session: Any, pytester: pytest.Pytester) -> None:
    session(*REASON).assert_outcomes(passed=4)
    pytester.makepyfile(
        test_gates="""
        def test_other_run(baseline):
            assert {"loss": 1.0} == baseline("loss")

        def test_other_part(lane_run, baseline):
            assert lane_run == baseline("losses")
        """
    )
    result = session()
    result.assert_outcomes(failed=2)
    assert "compared with the run of the session, not with dict" in text_of(result)
    assert "no part 'losses'; the parts are dataset, tokens, loss, checkpoint" in text_of(result)
