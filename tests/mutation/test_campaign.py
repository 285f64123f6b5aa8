"""The harness as a detector: seeded faults, and which gates notice them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from proof.copies import ROOT, changed_copy
from proof.faults import CAUSES, FAMILIES, RECORDED, Fault, cause_of, faults
from proof.mutation import outcome, outcome_alone, read_rows


def campaign(results: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own: it forks, which a process with threads must not."""
    command = [sys.executable, "tests/proof", "mutation", "--results", str(results), *options]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def test_there_are_enough_faults_of_every_family() -> None:
    assert len(faults()) >= 120
    assert {fault.family for fault in faults()} == set(FAMILIES)


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.name)
def test_fault_fits_the_code(fault: Fault, tmp_path: Path) -> None:
    """A fault whose edits fit the lane no longer is mended, and not left out."""
    changed_copy(tmp_path / "code", fault.edits)
    for edit in fault.edits:
        compile((tmp_path / "code" / edit.file).read_text(), edit.file, "exec")


def test_every_gate_that_a_fault_names_is_there() -> None:
    files = [*(ROOT / "tests" / "smoke").glob("test_*.py"), *(ROOT / "harness" / "gates").glob("*.py")]
    text = "".join(path.read_text() for path in files)
    for fault in faults():
        for column in ("universal", "float32"):
            assert f"def test_{fault.expected(column)[0]}(" in text, fault.name
        alone, says = fault.expected_alone()
        assert fault.missed or (says and f"def test_{alone}(" in text), fault.name


def test_a_fault_is_caught_by_the_gate_that_it_names(tmp_path: Path) -> None:
    """One, from the lane to the line of the result. That every gate goes red is held by the tests of voice_lane;
    of every fault docs/measurements/detection.md tells (marker `mutation`)."""
    fault = next(fault for fault in faults() if fault.family == "objective")
    results = tmp_path / "results.jsonl"
    done = campaign(results, "--short", "--only", fault.name)
    assert done.returncode == 0, done.stdout
    rows = read_rows(results)
    assert rows.keys() == {f"{fault.name} (universal)"} and rows[f"{fault.name} (universal)"]["outcome"] == "caught"


def test_a_fault_that_is_not_noticed_is_told(tmp_path: Path) -> None:
    """The campaign's own verdict: other words, no red gate, and a broken lane are no catch."""
    fault = faults()[0]
    gate, says = fault.expected("universal")
    assert outcome(fault, "universal", {gate: f"... {says} ..."}) == "caught"
    assert outcome(fault, "universal", {gate: "another reason"}) == "other reason"
    assert outcome(fault, "universal", {"loss_falls": says}) == "other reason"
    assert outcome(fault, "universal", {}) == "missed"
    assert outcome(fault, "universal", {gate: says}, "internal_error: NameError") == "broken"


def test_every_cause_is_of_a_fault_and_every_fault_that_a_recording_sees_has_one() -> None:
    named = [name for names in CAUSES.values() for name in names.split("; ")]
    assert len(set(named)) == len(named) and set(named) <= {fault.name for fault in faults()}
    float64_alone = [fault.name for fault in faults() if fault.float64_alone]
    assert not [f.name for f in faults() if f.gate in RECORDED and not cause_of(f) and f.name not in float64_alone]


def test_a_cause_that_is_another_is_no_catch() -> None:
    fault = next(fault for fault in faults() if fault.name == "weight decay dropped")
    said = f"{fault.says}\nlikely    {{}}"
    right, wrong = said.format("the update (weight decay)"), said.format("the forward pass")
    assert outcome(fault, "universal", {fault.gate: right}) == "caught"
    assert outcome(fault, "universal", {fault.gate: wrong}) == "other cause"


def test_what_only_a_recording_sees_is_a_miss_without_one() -> None:
    fault = next(fault for fault in faults() if fault.gate in RECORDED)
    alone, says = fault.expected_alone()
    assert outcome_alone(fault, {fault.gate: fault.says}) == "missed"
    assert outcome_alone(fault, {fault.gate: fault.says, alone: f"... {says} ..."}) == "caught"
    assert outcome_alone(fault, {"loss_falls": says}) == "other reason"


@pytest.mark.mutation
@pytest.mark.timeout(7200)
def test_every_fault_is_caught(request: pytest.FixtureRequest) -> None:
    """The whole campaign. It goes on where an earlier session was stopped."""
    results = Path(request.config.cache.mkdir("mutation")) / "results.jsonl"  # type: ignore[union-attr]
    done = campaign(results)
    print(done.stdout)
    assert done.returncode == 0, json.dumps(done.stdout.splitlines()[-200:], indent=1)
