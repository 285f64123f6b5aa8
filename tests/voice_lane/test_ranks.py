"""Several processes that train together: the same result for any number of them, and an end that tells, whatever
happens to one. What takes long is under the marker `soak`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from lane_child import LANE, ROOT, Ended, assert_refused, environment, leftovers, run

from harness.baselines.compare import compare
from harness.baselines.store import Store
from harness.evidence import RunEvidence, load_run
from harness.gates.training import test_all_ranks_hold_the_same_parameters as ranks_agree

GUARD = 1e-12
SHORT = {"LANE_STEPS": "4", "LANE_STRIDE_SECONDS": "20", "LANE_EVAL_EVERY": "3"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def completed(folder: Path, settings: Mapping[str, str]) -> RunEvidence:
    return checked(run(folder, settings))


def checked(ended: Ended) -> RunEvidence:
    assert ended.exit_code == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert not leftovers(ended.run_dir)
    return load_run(ended.run_dir)


ON_RANK_1 = "import os\nif os.environ.get('RANK') == '1':\n    "
NATIVE = {"LANE_NUMERICS": "native"}
ALONE = {"LANE_STEPS": "24", "LANE_STRIDE_SECONDS": "2.56", "LANE_EVAL_EVERY": "8"}  # the shipped lane, whole


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """What needs no signal in the middle, all at the same time. Three ranks do not divide a batch of four."""
    chosen: dict[str, dict[str, str]] = {
        "one": {},
        "two": {"LANE_RANKS": "2"},
        "three": {"LANE_RANKS": "3", **ALONE},
        "one in float32": NATIVE,
        "two in float32": {"LANE_RANKS": "2", **NATIVE},
        "other seed": {"LANE_RANKS": "2"},
    }
    plants = {"other seed": f"{ON_RANK_1}os.environ['LANE_SEED'] = '7'"}
    folder = tmp_path_factory.mktemp("ranks")
    children = {name: start(folder / name, told, plant=plants.get(name, "")) for name, told in chosen.items()}
    return {name: child.end("") for name, child in children.items()}


@pytest.fixture(scope="session")
def one(runs: dict[str, Ended]) -> RunEvidence:
    return checked(runs["one"])


@pytest.fixture(scope="session")
def two(runs: dict[str, Ended]) -> RunEvidence:
    return checked(runs["two"])


@pytest.fixture(scope="session")
def three(runs: dict[str, Ended]) -> RunEvidence:
    return checked(runs["three"])


def drift(found: RunEvidence, due: RunEvidence) -> float:
    assert found.checkpoint_float64 is not None and due.checkpoint_float64 is not None
    theirs = due.checkpoint_float64.tensors
    return max(float(np.abs(v - theirs[n]).max()) for n, v in found.checkpoint_float64.tensors.items())


def test_three_ranks_give_what_was_recorded(three: RunEvidence) -> None:
    verdict = compare(three, Store(ROOT / "baselines"))
    assert verdict.kind == "match", verdict.text()
    assert three.report["ranks"] == "3" and three.status.get("ranks") == 3


def test_two_ranks_compute_what_one_process_does(one: RunEvidence, two: RunEvidence) -> None:
    assert two.tokens_digest() == one.tokens_digest()
    assert drift(two, one) < GUARD / 10
    assert two.checkpoint.tensor_digest == one.checkpoint.tensor_digest
    assert two.trace.header.settings_digest == one.trace.header.settings_digest
    for found, due in zip(two.trace.steps, one.trace.steps, strict=True):
        assert (found.chunks, found.valid, found.batch_digest) == (due.chunks, due.valid, due.batch_digest)
        assert found.loss == pytest.approx(due.loss, rel=1e-13)
        assert (found.held_out is None) == (due.held_out is None)
        if found.held_out is not None and due.held_out is not None:
            assert found.held_out.loss == pytest.approx(due.held_out.loss, rel=1e-13)


def test_two_ranks_in_float32_are_within_its_tolerance(runs: dict[str, Ended]) -> None:
    found, due = checked(runs["two in float32"]), checked(runs["one in float32"])
    assert found.tokens_digest() == due.tokens_digest()
    for mine, theirs in zip(found.trace.steps, due.trace.steps, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
    for name, value in found.checkpoint.tensors.items():
        other = due.checkpoint.tensors[name]
        assert np.linalg.norm(value - other) <= 0.05 * np.linalg.norm(other), name


@pytest.mark.parametrize("field", ["header", "digest", "report", "kept"])
def test_the_gate_holds_the_ranks_together(field: str, two: RunEvidence, tmp_path: Path) -> None:
    """Each of its statements was seen to fail."""
    import shutil

    shutil.copytree(two.run_dir, tmp_path / "run")
    trace, report = tmp_path / "run" / "trace.jsonl", tmp_path / "run" / "train_report.txt"
    lines = trace.read_text().splitlines()
    if field == "header":
        lines[0] = lines[0].replace('"ranks": 2', '"ranks": 3')
    elif field == "report":
        report.write_text(report.read_text().replace("\nranks: 2\n", "\nranks: 1\n"))
    else:
        at = 4 if field == "digest" else next(i for i, line in enumerate(lines) if '"step": 4,' in line)
        step = json.loads(lines[at])
        step["param_by_rank"] = [step["param_by_rank"][0], "0" * 16] if field == "digest" else ["0" * 16] * 2
        lines[at] = json.dumps(step)
    trace.write_text("\n".join(lines) + "\n")
    says = {"header": "the trace 3", "digest": "after step 2 rank 1 has other", "report": "1 ranks", "kept": "was kept"}
    with pytest.raises(AssertionError, match=says[field]):
        ranks_agree(load_run(tmp_path / "run"), lambda text: None)
    ranks_agree(two, lambda text: None)


@dataclass
class Child:
    """A lane that is under way, and the processes that carry its run id."""

    process: subprocess.Popen[str]
    run_dir: Path
    run_id: str

    def ranks(self) -> dict[str, int]:
        """Process numbers by rank; the launcher is none."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                names = (entry / "environ").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                continue
            told = dict(name.split("=", 1) for name in names if "=" in name)
            if told.get("LANE_RUN_ID") == self.run_id and entry.name.isdigit():
                found[told.get("RANK", "launcher")] = int(entry.name)
        return found

    def lines(self) -> Iterator[str]:
        assert self.process.stdout is not None
        yield from self.process.stdout

    def end(self, said: str) -> Ended:
        """Wait for the end of all: none of its processes is left."""
        try:
            rest, error = self.process.communicate(timeout=120)
            assert not self.ranks(), "a process was left behind"
        finally:
            for pid in self.ranks().values():
                os.kill(pid, signal.SIGKILL)
        return Ended(self.run_dir, self.process.returncode, said + rest, error)


def start(folder: Path, settings: Mapping[str, str], *, plant: str = "", command: list[str] | None = None) -> Child:
    run_id = uuid.uuid4().hex
    whole = [sys.executable, *(["-c", f"{plant}\n{LANE}"] if plant else ["-m", "harness.lane"])]
    env = environment(folder, {**SHORT, "LANE_RUN_ID": run_id, **settings})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command or whole, env=env, text=True, **pipes)  # type: ignore[call-overload]
    return Child(process, folder, run_id)


def signalled(child: Child, line: str, rank: str, signum: int) -> Ended:
    """Send a signal to a rank, or to the launcher, when ``line`` is said, and wait for the end."""
    said = ""
    for text in child.lines():
        said += text
        if text.startswith(line):
            os.kill(child.ranks()[rank], signum)
            break
    return child.end(said)


def assert_lost(ended: Ended, *names: str) -> None:
    assert ended.exit_code not in (0, None)
    status = ended.status
    assert status["status"] == "failed" and status["checkpoint_sha256"] is None, status
    assert ended.report["objective_status"] == "failed"
    for name in names:
        assert name in status["root_cause"], status["root_cause"]
    # A signal that comes while libsndfile calls back is told by cffi itself, of one process too.
    assert "Traceback" not in ended.stdout + (ended.stderr if "cffi callback" not in ended.stderr else "")


def test_a_rank_that_is_killed_ends_all(tmp_path: Path) -> None:
    ended = signalled(start(tmp_path, {"LANE_RANKS": "2"}), "PROGRESS 2", "1", signal.SIGKILL)
    assert_lost(ended, "rank 1 of 2 was killed", "in step train, after 2 of 4")
    assert ended.status["first_failed_step"] == "train"


def test_sigterm_to_the_launcher_ends_all_and_another_number_of_ranks_goes_on(one: RunEvidence, tmp_path: Path) -> None:
    child = start(tmp_path, {"LANE_RANKS": "2", "LANE_SAVE_EVERY": "1"})
    ended = signalled(child, "PROGRESS 2", "launcher", signal.SIGTERM)
    assert ended.exit_code == 143 and ended.status["status"] == "interrupted"
    again = completed(tmp_path, {**SHORT, "LANE_RANKS": "3", "LANE_RESUME": "1"})
    assert again.checkpoint_path.read_bytes() == one.checkpoint_path.read_bytes()
    assert drift(again, one) < GUARD / 10


def test_a_rank_with_other_settings_is_named(runs: dict[str, Ended]) -> None:
    assert_refused(runs["other seed"], "ranks_disagree", "rank 1 of 2 has seed 7, and rank 0 has 0")


def test_more_ranks_than_chunks_in_a_step_are_refused(tmp_path: Path) -> None:
    assert_refused(run(tmp_path, {"LANE_RANKS": "5"}), "too_many_ranks", "5 ranks", "4 chunks")


def test_one_process_imports_nothing_of_it(tmp_path: Path) -> None:
    """With one process the group is not made, and the launcher not imported."""
    said = "import atexit, sys\natexit.register(lambda: None)"
    tail = "import os, sys; from harness.lane.__main__ import main; code = main(); "
    tail += "print('LOADED', sorted(m for m in sys.modules if 'elastic' in m or m == 'harness.lane.launch')); "
    tail += "import torch.distributed as d; print('GROUP', d.is_initialized()); os._exit(code)"
    env = environment(tmp_path, SHORT)
    done = subprocess.run([sys.executable, "-c", f"{said}\n{tail}"], env=env, capture_output=True, text=True)
    assert "GROUP False" in done.stdout and "harness.lane.launch" not in done.stdout, done.stdout[-500:]


OTHER_DATA = f"{ON_RANK_1}os.environ['AUDIO_PATH'] = '{{other}}'"
OUT_OF_MEMORY = f"""{ON_RANK_1}import resource
    from harness.lane import trace
    write = trace.Trace.write
    def full(self, kind, **values):
        write(self, kind, **values)
        if values.get('step') == 2:
            resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))
    trace.Trace.write = full"""


@pytest.mark.soak
class TestLong:
    def test_other_data(self, tmp_path: Path) -> None:
        import soundfile

        samples, rate = soundfile.read(ROOT / "data" / "knowledge_audio_source" / "auntie_dottie.flac", dtype="int16")
        samples[rate : 2 * rate] = samples[rate : 2 * rate][::-1]
        soundfile.write(tmp_path / "other.flac", samples, rate, subtype="PCM_16")
        plant = OTHER_DATA.format(other=tmp_path / "other.flac")
        audio = str(ROOT / "data" / "knowledge_audio_source" / "auntie_dottie.flac")
        ended = start(tmp_path / "run", {"LANE_RANKS": "2", "AUDIO_PATH": audio}, plant=plant).end("")
        assert_refused(ended, "ranks_disagree", "rank 1 of 2 has dataset_digest")

    def test_another_model(self, tmp_path: Path) -> None:
        import shutil

        import torch

        shutil.copytree(ROOT / "data" / "musicgen_nano", tmp_path / "musicgen_nano")
        path = tmp_path / "musicgen_nano" / "state_dict.bin"
        package = torch.load(path, weights_only=True)
        next(iter(package["best_state"].values())).reshape(-1)[0] += 0.5
        torch.save(package, path)
        same = f"os.environ['LANE_MODEL'] = '{tmp_path / 'musicgen_nano'}'; os.environ['LANE_NUMERICS'] = 'universal'"
        ended = start(tmp_path / "run", {"LANE_RANKS": "2", "LANE_BATCH": "4"}, plant=f"{ON_RANK_1}{same}").end("")
        assert_refused(ended, "ranks_disagree", "rank 1 of 2 has model_digest")

    def test_out_of_memory(self, tmp_path: Path) -> None:
        ended = start(tmp_path, {"LANE_RANKS": "2"}, plant=OUT_OF_MEMORY).end("")
        assert_lost(ended, "out_of_memory", "rank 1 of 2")

    @pytest.mark.parametrize("rank", ["0", "1"])
    def test_a_rank_that_hangs_ends_at_the_time_limit(self, rank: str, tmp_path: Path) -> None:
        child = start(tmp_path, {"LANE_RANKS": "2", "LANE_TIMEOUT_S": "12"})
        ended = signalled(child, "PROGRESS 2", rank, signal.SIGSTOP)
        assert_lost(ended, "time_limit", f"rank {rank} of 2 does not answer")
        assert ended.exit_code == 4

    def test_a_port_that_is_taken(self, tmp_path: Path) -> None:
        """torchrun's own end: no rank starts, and nothing is written."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            where = ["--master-addr=127.0.0.1", f"--master-port={port}", "--nproc-per-node=2", "-m", "harness.lane"]
            child = start(tmp_path, {}, command=[*TORCHRUN, *where])
            ended = child.end("")
        assert ended.exit_code != 0 and "EADDRINUSE" in ended.stderr
        assert not (tmp_path / "train_status.json").exists()

    def test_two_launchers(self, one: RunEvidence, tmp_path: Path) -> None:
        """As on two machines: each has its own launcher, and its own run directory."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
        command = [*TORCHRUN, *options, "--rdzv-id=voice", "--local-addr=127.0.0.1", "-m", "harness.lane"]
        children = [start(tmp_path / name, {}, command=command) for name in ("one", "two")]
        ended = [child.end("") for child in children]
        assert [each.exit_code for each in ended] == [0, 0], ended[0].stderr[-3000:]
        written = [folder for folder in ("one", "two") if (tmp_path / folder / "train_status.json").exists()]
        assert len(written) == 1
        assert load_run(tmp_path / written[0]).checkpoint.tensor_digest == one.checkpoint.tensor_digest

    @pytest.mark.parametrize("rank", ["0", "1"])
    @pytest.mark.parametrize(
        "line",
        "RANKS|STEP preflight|STEP prepare|STEP load_model|STEP tokenise|TOKENS 1 |TOKENS 2 |STEP adapt|STEP train"
        "|PROGRESS 2".split("|"),
    )
    def test_killed_at_twenty_points(self, line: str, rank: str, tmp_path: Path) -> None:
        child = start(tmp_path, {"LANE_RANKS": "2"})
        said = ""
        for text in child.lines():
            said += text
            if text.startswith(line):
                while rank not in child.ranks():
                    pass
                os.kill(child.ranks()[rank], signal.SIGKILL)
                break
        assert_lost(child.end(said), f"rank {rank} of 2")
