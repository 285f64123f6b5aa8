"""No room, no memory, no file descriptors, nowhere to write: a status and a report where the disk still permits, and
a clear line on stderr where it does not."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import lane_child
import pytest

from harness.lane.errors import shortage

pytestmark = pytest.mark.fault

FEW = {"LANE_STEPS": "2", "LANE_STRIDE_SECONDS": "80", "LANE_BATCH": "2"}
MB = 1 << 20


def assert_orderly(ended: lane_child.Ended, code: str) -> None:
    """It failed, without a traceback, and says why on stderr; a status, where there is one, says the same."""
    assert ended.exit_code == 1, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr, ended.stderr
    assert re.search(rf"^FAILED \w+: {code}: \S", ended.stderr, re.MULTILINE), ended.stderr
    assert ended.printed_report["root_cause"].startswith(f"{code}: ")
    assert not lane_child.leftovers(ended.run_dir)
    for path in ended.run_dir.rglob("*.json"):
        assert lane_child.strict_json(path).get("status") != "completed"


@pytest.mark.parametrize("room", [0, 1_500, 10_000])
def test_no_room_to_write(room: int, tmp_path: Path) -> None:
    """0: not even a status; 1,500: a status, no report; 10,000: a trace that is cut in the middle of a line."""
    (tmp_path / "train_status.json").write_text(
        '{"schema": "train_status/1", "lane": "experimental", "status": "completed", "run_id": "an earlier one"}'
    )
    settings = {**FEW, "RESET_TRAIN_OUTPUTS": "0"}
    ended = lane_child.run(tmp_path, settings, limits={resource.RLIMIT_FSIZE: room})
    assert_orderly(ended, "disk_full")
    if room:
        lane_child_status = ended.status
        assert lane_child_status["root_cause"].startswith(("disk_full: ", "run_not_ended: "))
    else:
        assert not (tmp_path / "train_status.json").exists(), "an earlier run's status would be taken for this one's"
        assert f"{tmp_path / 'train_status.json'}: the status could not be written" in ended.stderr
    assert not list(tmp_path.rglob("*.pt"))
    assert not (tmp_path / "trace.jsonl").exists()


def test_full_file_system(tmp_path: Path) -> None:
    """A real one, of 1 MB: the shipped narration does not fit, and is copied, because it lies elsewhere."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        ended = lane_child.run(disk / "run", FEW)
        assert_orderly(ended, "disk_full")
        assert ended.status["first_failed_step"] == "prepare"
        assert ended.report["root_cause"] == ended.status["root_cause"]
        assert str(disk) in ended.status["root_cause"] or "auntie_dottie" in ended.status["root_cause"]
        # With no room at all not even the first status fits.
        with (disk / "filler").open("wb") as file, pytest.raises(OSError, match="No space"):
            file.write(bytes(2 * MB))
            file.flush()
        second = lane_child.run(disk / "run", {**FEW, "LANE_RUN_ID": "second"})
        assert_orderly(second, "disk_full")
        assert "could not be written" in second.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_output_to_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """/dev/full refuses every byte: the run ends as ever, with its own exit code."""
    with Path("/dev/full").open("w") as full:
        ended = lane_child.run(tmp_path, {"RUN_TRAIN": "0"}, stdout=full)
    assert ended.exit_code == 0, ended.stderr
    assert "Exception" not in ended.stderr
    assert ended.report["first_failed_step"] == "train"


def test_reader_that_goes_away_changes_nothing(tmp_path: Path) -> None:
    process = lane_child.start(tmp_path, {"RUN_TRAIN": "0"})
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(250) == 0
    assert process.stderr is not None
    assert "Traceback" not in (stderr := process.stderr.read())
    assert "Exception" not in stderr


def test_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    ended = lane_child.run(tmp_path / "Dörte", {"RUN_TRAIN": "0", "PYTHONIOENCODING": "ascii"})
    assert ended.exit_code == 0
    assert "D\\xf6rte" in ended.printed_report["manifest_path"]


CHATTER = """
import os
from harness.lane.errors import shortage
from harness.lane import dataset
real = dataset.prepare_dataset
def prepare_dataset(*arguments):
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"chatter of a library")
        except OSError:
            pass
    return real(*arguments)
dataset.prepare_dataset = prepare_dataset
"""


def test_streams_that_are_closed(tmp_path: Path) -> None:
    """With 0, 1 and 2 closed, files of the run would get their numbers, and a library's chatter would go into them."""
    program = f"{CHATTER}\n{lane_child.LANE}"
    environment = lane_child.environment(tmp_path, {"RUN_TRAIN": "0", "PROGRAM": program})
    command = f'exec "{sys.executable}" -c "$PROGRAM" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], env=environment, timeout=250).returncode == 0
    assert lane_child.strict_json(tmp_path / "train_status.json")["status"] == "blocked"
    for name in (".lane.lock", "lane.log"):
        assert "chatter" not in (tmp_path / name).read_text()


def test_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    ended = lane_child.run(folder, FEW, unprivileged=True)
    assert ended.exit_code == 3
    assert "Traceback" not in ended.stderr
    assert f"FAILED run_directory: run_directory_unusable: {folder}" in ended.stderr
    assert "Permission denied" in ended.stderr
    assert ended.printed_report["objective_status"] == "blocked"
    assert ended.printed_report["next_unblock_action"] == "set LANE_RUN_DIR to a folder you can write to"
    assert not list(folder.iterdir())


def test_read_only_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        ended = lane_child.run(disk / "run", FEW)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert ended.exit_code == 3
    assert "Read-only file system" in ended.stderr
    assert ended.printed_report["root_cause"].startswith("run_directory_unusable: ")


@pytest.mark.parametrize("name", ["train_status.json", "lane.log", "knowledge_audio", "tokens.npy", ".lane.lock"])
def test_something_in_the_way(name: str, tmp_path: Path) -> None:
    """A folder where the lane writes a file, or a file where it needs a folder."""
    if name == "knowledge_audio":
        (tmp_path / name).write_text("a file")
    else:
        (tmp_path / name / "occupied").mkdir(parents=True)
    ended = lane_child.run(tmp_path, {**FEW, "RUN_TRAIN": "0"})
    assert ended.exit_code == 3, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.printed_report["root_cause"].startswith(f"output_not_ours: {tmp_path / name}")
    assert [path.name for path in tmp_path.iterdir()] == [name], "something was written"


# In place of the training, a run that has nothing to do but to complete.
REPORT_BLOCKED = """
import harness.lane.recipe as recipe
def train_voice(settings, run, narration):
    settings.report_path.unlink()
    settings.report_path.mkdir()
recipe.train_voice = train_voice
"""


def test_report_that_cannot_be_written_at_the_end_is_a_failure(tmp_path: Path) -> None:
    """The status was written before it, and must not stay at `completed`."""
    ended = lane_child.run(tmp_path, FEW, plant=REPORT_BLOCKED)
    assert ended.exit_code == 3
    assert "the report could not be written (is a folder" in ended.stderr
    assert ended.status["status"] == ended.printed_report["objective_status"] == "blocked"
    assert ended.status["root_cause"] == ended.printed_report["root_cause"]


def test_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("do not touch")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lane.lock").symlink_to(precious)
    ended = lane_child.run(tmp_path / "run", {"RUN_TRAIN": "0"})
    assert ended.exit_code == 3
    assert precious.read_text() == "do not touch"


NO_THREAD = """
from concurrent.futures import ThreadPoolExecutor
def submit(*arguments):
    raise RuntimeError("can't start new thread")
ThreadPoolExecutor.submit = submit
"""


def test_no_thread_can_be_started(tmp_path: Path) -> None:
    """What Python says when a limit on processes is reached; root, as which tests may run, has no such limit."""
    ended = lane_child.run(tmp_path, FEW, plant=NO_THREAD)
    assert_orderly(ended, "too_many_threads")
    assert "ulimit -u" in ended.status["next_unblock_action"]


@pytest.mark.parametrize("number", [5, 6, 7])
def test_no_file_descriptors_left(number: int, tmp_path: Path) -> None:
    """With 5, nothing can be opened once the lock is held; with more, the lane keeps one for its last word, and what
    torch imports cannot be opened."""
    ended = lane_child.run(tmp_path, FEW, limits={resource.RLIMIT_NOFILE: number})
    assert_orderly(ended, "too_many_open_files")
    if number > 5:
        assert ended.status["root_cause"].startswith("too_many_open_files: ")
        assert "ulimit -n" in ended.status["next_unblock_action"]


def test_out_of_memory(tmp_path: Path) -> None:
    """With 300 MB of address space torch cannot be loaded."""
    ended = lane_child.run(tmp_path, FEW, limits={resource.RLIMIT_AS: 300 * MB})
    if ended.exit_code < 0:  # a library that aborts takes the process with it; the first status stands
        assert ended.status["root_cause"].startswith("run_not_ended: ")
        return
    assert_orderly(ended, "out_of_memory")
    assert ended.status["root_cause"].startswith("out_of_memory: ")


# Takes all memory, to the last small piece, and keeps it in a frame of the traceback, or in a module.
HOARD = """
import harness.lane.dataset as dataset
KEPT = []
def prepare_dataset(*arguments):
    hoard = KEPT if WHERE == "module" else []
    for size in (1_000_000, 100_000, 10_000, 1_000, 100):
        try:
            while True:
                hoard.append(bytearray(size))
        except MemoryError:
            pass
    raise MemoryError
dataset.prepare_dataset = prepare_dataset
"""


def test_a_memory_error_that_could_not_be_made_is_one() -> None:
    assert shortage(SystemError("error return without exception set")) == "out_of_memory"
    assert shortage(SystemError("bad argument to internal function")) is None


def test_a_gpu_out_of_memory_is_said_as_such() -> None:
    """torch's words, as an H100 with a limit gave them."""
    allocator = "CUDA out of memory. Tried to allocate 552.00 MiB. GPU 0 has a total capacity of 79.18 GiB of which"
    for words in (allocator, "CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"):
        assert shortage(RuntimeError(words)) == "out_of_memory", words
    assert shortage(RuntimeError("CUDA error: device-side assert triggered")) is None


@pytest.mark.parametrize("where", ["frame", "module"])
def test_out_of_memory_in_python(where: str, tmp_path: Path) -> None:
    plant = f"WHERE = {where!r}\n{HOARD}"
    ended = lane_child.run(tmp_path, FEW, plant=plant, limits={resource.RLIMIT_AS: 400 * MB})
    assert_orderly(ended, "out_of_memory")
    lane_child.assert_refused(ended, "out_of_memory", "in step prepare", exit_code=1, status="failed")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_refusal_lets_go_of_every_file(tmp_path: Path) -> None:
    """Fifty refusals in one process: none leaves a file open."""
    from harness.lane.audio import inspect_audio
    from harness.lane.errors import LaneError

    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x01\0\0\0\2\0\0\0\2\0\x10\0data\4\0\0\0\1\0\1\0")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        with pytest.raises(LaneError, match="sample rate"):
            inspect_audio(bad)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
