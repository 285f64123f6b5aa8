"""Nothing asks for kernels that the processor lacks: where kernels are forced, and what is said where they are not
there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import voice
from proof import false_alarms, universality

from harness.lane.errors import LaneError
from harness.lane.preflight import check_processor
from harness.lane.settings import read_settings
from harness.numerics import processor
from harness.numerics.modes import environment_pins
from harness.numerics.processor import ATEN, FORCING, MKL, MKL_LIMIT, NEEDS, ONEDNN, OPENBLAS, forced, lacking

ROOT = Path(__file__).resolve().parents[2]
ARM = frozenset({"NEON", "ASIMD"})
OLD = frozenset({"SSE2", "SSSE3", "SSE41", "SSE42", "AVX"})  # a Sandy Bridge
HASWELL = OLD | {"AVX2", "FMA3"}
SKYLAKE = HASWELL | {"AVX512F", "AVX512BW", "AVX512DQ", "AVX512VL"}
CODE = ("harness/**/*.py", "tests/**/*.py", "data/**/*.py", "*.py", "*.toml", ".ci/*", ".github/**/*.yml")
PLACE = {"harness/numerics/processor.py"}


@pytest.fixture
def capped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[frozenset[str]]:
    """This processor, but with the features of another one."""
    monkeypatch.setattr(processor, "processor_features", lambda: request.param)
    yield request.param


def test_every_forced_kernel_goes_through_one_place() -> None:
    """No other file of the repository names a variable that chooses kernels: it would not be held against the
    processor. Documentation and what was recorded force nothing."""
    files = [path for pattern in CODE for path in ROOT.glob(pattern) if path.is_file()]
    found = {str(file.relative_to(ROOT)) for file in files for name in NEEDS if name in file.read_text()}
    assert found == PLACE


def test_the_features_of_this_processor_are_known() -> None:
    """With none known nothing is ever refused."""
    assert processor.processor_features()
    needed = {feature for values in NEEDS.values() for features in values.values() for feature in features}
    from numpy._core._multiarray_umath import __cpu_features__

    assert needed <= set(__cpu_features__), "features that NumPy does not know are lacking everywhere"


@pytest.mark.parametrize(
    ("capped", "kernels", "runs"),
    [
        (SKYLAKE, {"aten": "avx512", "openblas": "SkylakeX"}, True),
        (HASWELL, {"aten": "avx512"}, False),
        (HASWELL, {"aten": "avx2", "onednn": "AVX2", "mkl": "AVX2,STRICT", "openblas": "Haswell"}, True),
        (HASWELL, {"mkl": "AVX512"}, False),
        (HASWELL, {"mkl_limit": "AVX512"}, False),
        (HASWELL, {"onednn": "AVX512_CORE"}, False),
        (HASWELL, {"openblas": "SKYLAKEX"}, False),
        (OLD, {"aten": "avx2"}, False),
        (ARM, {"aten": "avx2"}, False),
        (ARM, {"aten": "default", "mkl": "COMPATIBLE"}, True),
        (ARM, {"aten": "sve256"}, False),
        (frozenset(), {"aten": "avx512"}, True),
    ],
    indirect=["capped"],
)
def test_kernels_are_held_against_the_features(capped: frozenset[str], kernels: dict[str, str], runs: bool) -> None:
    settings = {name: value for library, text in kernels.items() for name, value in [(_variable(library), text)]}
    assert (lacking(settings) == "") is runs
    for name, value in settings.items() if not runs else ():
        assert f"{name}={value}" in lacking(settings)


def _variable(library: str) -> str:
    return {"aten": ATEN, "onednn": ONEDNN, "mkl": MKL, "mkl_limit": MKL_LIMIT, "openblas": OPENBLAS}[library]


def test_what_a_value_needs_must_be_known() -> None:
    for kernels in ({"aten": "avx1024"}, {"openmp": "on"}):
        with pytest.raises(KeyError):
            forced(**kernels)


@pytest.mark.parametrize(("capped", "refused"), [(ARM, True), (OLD, True), (HASWELL, False)], indirect=["capped"])
def test_portable_mode_is_refused_by_name(
    capped: frozenset[str], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANE_NUMERICS", "portable")
    for name, value in environment_pins("portable", 1).items():
        monkeypatch.setenv(name, value)
    assert _refusal(tmp_path) == ("processor_lacks_kernels" if refused else "")


@pytest.mark.parametrize("capped", [HASWELL], indirect=True)
def test_a_caller_who_forces_kernels_is_refused_by_name(
    capped: frozenset[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables that only limit change nothing beyond the processor, and are no reason to refuse."""
    for name in NEEDS:
        monkeypatch.delenv(name, raising=False)
    for name in (ONEDNN, MKL, MKL_LIMIT):
        monkeypatch.setenv(name, "AVX512_E1")
    assert _refusal(tmp_path) == ""
    for name in FORCING:
        with monkeypatch.context() as patch:
            patch.setenv(name, "avx512" if name == ATEN else "SkylakeX")
            assert _refusal(tmp_path) == "processor_lacks_kernels"


def _refusal(folder: Path) -> str:
    """The code with which the lane's preflight refuses this process's environment; empty if it does not."""
    try:
        check_processor(read_settings({**os.environ, "LANE_RUN_DIR": str(folder)}))
    except LaneError as error:
        assert error.step == "preflight"
        return error.code
    return ""


@pytest.mark.parametrize("capped", [HASWELL, ARM], indirect=True)
def test_tables_list_what_could_not_be_run(capped: frozenset[str]) -> None:
    """Each case of the two tables that would ask for more than this processor has says so, and is not started."""
    cases = list(universality.native_cases())
    told = {case.name: universality.why_not(case) for case in cases}
    assert {name for name, why in told.items() if why} == {
        case.name
        for case in cases
        if case.settings[ATEN] == "avx512" or (capped == ARM and "avx2" in case.name.lower())
    }
    rows = [universality.run_case(case, None) for case in cases if told[case.name]]
    page = universality.document(rows)
    assert all(f"| {row['case']} | not run: {told[row['case']]} |" in page for row in rows)
    assert "0 of 0 match" in page
    alarms = [case for case in false_alarms.cases() if lacking(case.settings)]
    assert alarms
    assert all(ATEN in false_alarms.why_not(case) or ONEDNN in false_alarms.why_not(case) for case in alarms)


def test_the_lane_refuses_what_this_processor_lacks(tmp_path: Path) -> None:
    """For real: kernels of the other kind of processor."""
    other = forced(aten="avx512" if "SVE" in processor.processor_features() else "sve256")
    assert lacking(other), "a processor with both"
    lane = voice.start(tmp_path / "run", other)
    assert lane.wait().exit_code == 3
    assert "\nroot_cause: processor_lacks_kernels: " in (tmp_path / "run" / "train_report.txt").read_text()


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("model", "settings"), [("Nehalem", {"LANE_NUMERICS": "portable"}), ("Haswell", forced(aten="avx512"))]
)
def test_a_real_processor_without_them_refuses(model: str, settings: dict[str, str], tmp_path: Path) -> None:
    emulator = next(filter(None, map(shutil.which, universality.EMULATORS)), None)
    assert emulator, "install qemu-user"
    lane = voice.start(tmp_path / "run", settings, python=(emulator, "-cpu", model, sys.executable))
    assert lane.wait().exit_code == 3
    assert "\nroot_cause: processor_lacks_kernels: " in (tmp_path / "run" / "train_report.txt").read_text()
