"""Runs the lane as a shell would, as a child process, and reads what it said and left.

The child gets none of this process's settings of the lane, and, where asked for, limits that the kernel enforces.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.lane.settings import VARIABLES
from harness.numerics.modes import environment_pins

SHORT = {"LANE_STEPS": "3", "LANE_STRIDE_SECONDS": "20"}
ONE_THREAD = {"LANE_THREADS": "1"}  # short runs, often two at once
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
ROOT = Path(__file__).resolve().parents[2]
LANE = "import os; from harness.lane.__main__ import main; os._exit(main())"


def environment(run_dir: Path, settings: Mapping[str, str | bytes] | None = None) -> dict[str, Any]:
    """The environment of a lane in ``run_dir`` with these settings and no others."""
    ours = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    chosen = {**ONE_THREAD, **(settings or {})}
    pins = environment_pins(str(chosen.get("LANE_NUMERICS", "universal")), 1)
    return {**ours, **pins, "PYTHONPATH": str(ROOT), "LANE_RUN_DIR": str(run_dir), **chosen}


def start(
    run_dir: Path,
    settings: Mapping[str, str | bytes] | None = None,
    *,
    limits: Mapping[int, int] | None = None,
    plant: str | None = None,
    stdout: Any = subprocess.PIPE,
    unprivileged: bool = False,
) -> subprocess.Popen[str]:
    """Start the lane. ``limits``: values for setrlimit. ``plant``: Python code that runs before the lane, in its
    process. ``unprivileged``: permissions bind it even where the tests run as root."""

    def limit() -> None:
        for what, value in (limits or {}).items():
            resource.setrlimit(what, (value, value))
        if unprivileged and os.geteuid() == 0:
            for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
                if ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                    raise OSError("the capability could not be dropped")

    command = ["-m", "harness.lane"] if plant is None else ["-c", f"{plant}\n{LANE}"]
    return subprocess.Popen(
        [sys.executable, *command],
        # A limit on the size of files would cut the bytecode of a module that no run had compiled yet, for all others.
        env={**environment(run_dir, settings), **({"PYTHONDONTWRITEBYTECODE": "1"} if limits else {})},
        preexec_fn=limit if limits or unprivileged else None,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
    )


@dataclass
class Ended:
    """A lane that has ended."""

    run_dir: Path
    exit_code: int
    stdout: str
    stderr: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> dict[str, Any]:
        """The status file, as strict JSON."""
        path = Path(os.fsdecode(self.settings.get("TRAIN_STATUS_PATH", self.run_dir / "train_status.json")))
        return strict_json(path)

    @property
    def report(self) -> dict[str, str]:
        return parse_report((self.run_dir / "train_report.txt").read_text())

    @property
    def printed_report(self) -> dict[str, str]:
        """The report as the terminal showed it."""
        _, header, text = self.stdout.rpartition("=== COLAB TRAIN REPORT ===\n")
        assert header, f"no report on the terminal; stdout: {self.stdout[-500:]!r}, stderr: {self.stderr[-2000:]!r}"
        return parse_report(header + text)


def run(
    run_dir: Path, settings: Mapping[str, str | bytes] | None = None, *, timeout: float = 600, **options: Any
) -> Ended:
    """Run the lane to its end; see ``start``."""
    process = start(run_dir, settings, **options)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Ended(run_dir, process.returncode, stdout or "", stderr, settings or {})


def strict_json(path: Path) -> dict[str, Any]:
    """A JSON file without NaN tokens and duplicate keys."""

    def refuse(token: str) -> Any:
        raise ValueError(f"{path} holds a bare {token}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), f"{path} has a key twice"
        return dict(pairs)

    value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse, object_pairs_hook=unique)
    assert isinstance(value, dict)
    return value


def parse_report(text: str) -> dict[str, str]:
    lines = text.strip().splitlines()
    assert lines[0] == "=== COLAB TRAIN REPORT ===", lines[0]
    return dict(line.split(": ", 1) for line in lines[1:])


def assert_refused(ended: Ended, code: str, *names: str, exit_code: int = 3, status: str = "blocked") -> None:
    """Status, report, terminal and exit code tell the same story, each part of ``names`` in it, without a traceback."""
    said = f"stdout: {ended.stdout[-800:]}\nstderr: {ended.stderr[-2000:]}"
    assert ended.exit_code == exit_code, f"exit code {ended.exit_code}, expected {exit_code}\n{said}"
    for stream in (ended.stdout, ended.stderr):
        assert "Traceback" not in stream, f"a traceback on the terminal\n{said}"
    found = ended.status
    assert found["status"] == status, found
    cause = found["root_cause"]
    assert cause.startswith(f"{code}: "), f"root cause {cause!r}, expected the code {code}"
    assert "\n" not in cause
    assert cause.isprintable()
    for name in names:
        assert name in cause, f"the root cause does not name {name!r}: {cause}"
    assert found["next_unblock_action"] not in ("", "none")
    assert found["loss"] is None or status != "blocked"
    for report in (ended.report, ended.printed_report):
        assert report["objective_status"] == {"interrupted": "failed"}.get(status, status)
        for key in ("root_cause", "first_failed_step", "next_unblock_action", "run_id"):
            assert report[key] == str(found[key]), f"{key}: the report says {report[key]!r}, the status {found[key]!r}"
        assert report["checkpoint_exists"] == ("true" if found["checkpoint_path"] else "false")
    assert cause in ended.stderr, f"stderr does not say why: {ended.stderr!r}"


def leftovers(folder: Path) -> list[str]:
    """Temporary files of the lane under a folder."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".lane-tmp-*")]
