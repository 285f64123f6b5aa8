"""A set-up that fails: the report, the logs, what the terminal shows, and the exit code. All of it for real."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from bare_machine import BARE_PYTHON, clean_environ, copy_checkout, harness, no_index

TWENTY = (
    "objective_status first_failed_step root_cause head_commit python_version gpu_available audio_path audio_exists "
    "audio_size_bytes audio_is_lfs_pointer manifest_path manifest_exists manifest_entry_count training_status_path "
    "training_status_json checkpoint_path checkpoint_exists checkpoint_size_bytes checkpoint_sha256 next_unblock_action"
).split()


def report_of(text: str) -> dict[str, str]:
    """The report at the end of ``text``, checked for its shape."""
    start = text.rindex("=== COLAB TRAIN REPORT ===\n")
    lines = text[start:].splitlines()[1:]
    pairs = [line.split(": ", 1) for line in lines]
    assert all(len(pair) == 2 and pair[1] for pair in pairs), "the report is not the last thing, or has an empty value"
    assert [key for key, _ in pairs][:20] == TWENTY
    return dict(pairs)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_checkout(tmp_path)


@pytest.mark.parametrize("command", ["run", "test", "bootstrap"])
def test_a_setting_that_is_not_understood(command: str, checkout: Path) -> None:
    done = harness(checkout, command, environ=clean_environ(RUN_GIT_SYNC="maybe"))
    assert done.returncode == 11
    report = report_of(done.stdout)
    assert report["objective_status"] == "blocked" and report["first_failed_step"] == "settings"
    assert report["root_cause"] == "RUN_GIT_SYNC='maybe' is not understood; accepted: 0, 1"
    assert report["audio_exists"] == "false" and report["checkpoint_sha256"] == "none"
    assert (checkout / "artifacts" / "train_report.txt").read_text() in done.stdout
    assert not (checkout / ".venv").exists()


def test_a_set_up_that_fails_writes_nothing_where_a_run_lies(checkout: Path) -> None:
    """Neither report and status nor its logs; the logs are then elsewhere, and named."""
    status = checkout / "status" / "now.json"
    status.parent.mkdir()
    status.write_text('{"run_id": "abc", "first_failed_step": "none", "status": "completed"}')
    (checkout / "pyproject.toml").write_text("[project\n")
    done = harness(checkout, "run", environ=clean_environ(TRAIN_STATUS_PATH="status/now.json"))
    assert done.returncode == 10 and report_of(done.stdout)["objective_status"] == "failed"
    assert '"run_id": "abc"' in status.read_text() and not (checkout / "artifacts").exists()
    assert "Traceback" in Path(done.stderr.partition(".log and ")[2].split()[0]).read_text()


def test_the_audio_is_described_as_it_is(checkout: Path) -> None:
    audio = checkout / "voice.flac"
    audio.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    environ = clean_environ(EXPECTED_HEAD="x", AUDIO_PATH="voice.flac", LANE_RUN_DIR="elsewhere")
    report = report_of(harness(checkout, "run", environ=environ).stdout)
    assert report["audio_path"] == str(audio) and report["audio_exists"] == "true"
    assert report["audio_size_bytes"] == str(audio.stat().st_size) and report["audio_is_lfs_pointer"] == "true"
    assert (checkout / "elsewhere" / "train_report.txt").exists() and not (checkout / "artifacts").exists()


def test_no_network_is_said_with_the_package_and_leaves_the_logs(checkout: Path) -> None:
    done = harness(checkout, "run", environ=no_index(), timeout=120)
    assert done.returncode == 11
    report = report_of(done.stdout)
    assert report["objective_status"] == "blocked" and report["first_failed_step"] == "packages"
    assert report["root_cause"].startswith("no network: pip could not reach the package index for torch")
    assert "-m pip install --dry-run" in report["root_cause"] and "torch==2.13.0" in report["root_cause"]
    assert "pip is missing; trying ensurepip" in done.stdout, "a new environment has none, and gets one this way"
    assert "will install" not in done.stdout, "what is changed is printed before, and nothing was to be"
    stdout, stderr = (checkout / "artifacts" / f"colab_bootstrap_{name}.log" for name in ("stdout", "stderr"))
    assert "pip install --dry-run" in stdout.read_text()
    last = stderr.read_text().splitlines()[-1]
    assert last.startswith("ERROR:") and f"| {last}" in done.stderr
    assert str(stdout) in done.stderr and str(stderr) in done.stderr


def test_the_stop_names_the_command_and_shows_no_traceback(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text("[project\n")
    done = harness(checkout, "bootstrap", environ=clean_environ())
    assert done.returncode == 10
    assert report_of(done.stdout)["first_failed_step"] == "set_up"
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (checkout / "artifacts" / "colab_bootstrap_stderr.log").read_text()


def test_a_run_directory_that_cannot_be_written_does_not_silence_the_report(checkout: Path) -> None:
    (checkout / "file").touch()
    done = harness(checkout, "run", environ=clean_environ(RUN_GIT_SYNC="maybe", LANE_RUN_DIR="file/below"))
    assert done.returncode == 11 and "could not be written" in done.stderr
    assert report_of(done.stdout)["first_failed_step"] == "settings"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_set_up_with_a_report_and_leaves_no_process(checkout: Path, number: int, code: int) -> None:
    """get-pip.py is replaced by a script that says its id and sleeps: the signal comes while it runs."""
    (checkout / "mask" / "ensurepip").mkdir(parents=True)
    (checkout / "mask" / "ensurepip" / "__init__.py").write_text("raise ImportError('split off')\n")
    marker = checkout / "pid"
    script = checkout / "get-pip.py"
    script.write_text(f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(60)\n")
    environ = clean_environ(PIP_BOOTSTRAP_URL=script.as_uri(), PYTHONPATH=str(checkout / "mask"))
    process = subprocess.Popen(
        [BARE_PYTHON[0], "-m", "harness", "run"],
        cwd=checkout,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that a script runs in the background ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    try:
        while not (marker.exists() and marker.read_text()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == code
    report = report_of(stdout)
    assert report["first_failed_step"] == "interrupted" and signal.Signals(number).name in report["root_cause"]
    assert "Traceback" not in stderr
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # a process that has ended is there until whoever inherited it has noticed
            os.kill(int(marker.read_text()), 0)
            time.sleep(0.05)
