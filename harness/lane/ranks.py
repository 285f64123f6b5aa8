"""The processes that train together: *ranks*, through torch.distributed. A process by itself is rank 0 of one, and
nothing of that is imported.

Every rank does all that the lane does, on what it reads itself, in a folder of its own; they divide the chunks that
they encode and train on, and add up what comes of it. Rank 0 writes what is kept. What is waited for is polled, so
that a signal, which Python hears between two lines alone, ends a rank that waits for one that hangs.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.lane.errors import LaneError
from harness.lane.settings import Settings
from harness.lane.signals import raise_if_stopped

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("harness.lane")
ROLL_CALL_S = 5.0  # in which a rank says how it ended, where another one did
POLL_S = 0.0001
LOST = "rank_lost"  # this rank ended because another one did
NOT_ITS_OWN = ("interrupted", "time_limit", LOST)  # reasons to end that come from elsewhere


class Ranks:
    """One process by itself."""

    rank, world = 0, 1

    def mine(self, items: Any) -> Any:
        """This rank's part of ``items`` (a list, or a tensor's rows), of which every rank has all: each is of one."""
        return items[self.rank :: self.world]

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor (all of one dtype) by its sum over the ranks, in one message; the same bits on each."""

    def digests(self, digest: str) -> list[str]:
        """Every rank's ``digest`` of 16 hexadecimal digits."""
        return [digest]

    def share(self, value: bytes | None) -> bytes | None:
        """Rank 0's ``value``."""
        return value

    def agree(self, told: Mapping[str, object]) -> None:
        """Raises LaneError, naming the rank and what it has otherwise than rank 0, unless all say the same."""

    def join(self, settings: Settings) -> None:
        """Be ready for all that follows, once every rank is there."""

    def tell(self, what: str, value: str = "") -> None:
        """Say that this rank has come so far."""

    def await_all(self, what: str) -> None:
        """Wait until every rank has come so far."""

    def await_first(self, what: str) -> None:
        """Wait until rank 0 has come so far."""

    def last_word(self, failure: LaneError, error: BaseException, step: str, where: str) -> tuple[LaneError, bool]:
        """(What ended the run, whether this rank is the one to write it down), of this rank's ``failure`` and what the
        others say of theirs. ``step`` and ``where``: how far it has come."""
        return failure, True


ALONE = Ranks()


class Together(Ranks):
    """One of several processes that torch's launcher started (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``)."""

    def __init__(self, settings: Settings) -> None:
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._machine = os.environ.get("GROUP_RANK", "0")
        self._limit = datetime.timedelta(seconds=settings.timeout_s)
        self._agreed = 0
        self._has_group = False
        with self._reaching("the launcher's store"):
            self._store = next(rendezvous("env://", timeout=self._limit))[0]
            self._store.set(f"who/{self.rank}", json.dumps([os.getpid(), self._machine]))

    @contextlib.contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        """Torch's errors in here mean that another process is gone."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            cause = f"rank {self.rank} of {self.world} lost {what} ({told})"
            raise LaneError("ranks", LOST, cause, "run it again", status="failed", exit_code=1) from error

    def join(self, settings: Settings) -> None:
        """Make the process group, once every rank is there: torch's own waiting hears no signal."""
        import torch
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore

        self.tell("here")
        self.await_all("here")
        if settings.device == "cuda":
            here, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if here >= gpus:
                cause = f"rank {self.rank} is number {here} on its machine, which has {gpus} GPUs"
                raise LaneError("ranks", "too_few_gpus", cause, "start as many ranks as there are GPUs")
            torch.cuda.set_device(here)
        backend = "cpu:gloo,cuda:nccl" if settings.device == "cuda" else "gloo"
        group = PrefixStore("group", self._store)
        with self._reaching("another rank"):
            dist.init_process_group(backend, store=group, rank=self.rank, world_size=self.world, timeout=self._limit)
        self._has_group = True

    def _finish(self, start: Callable[[], Any]) -> None:
        with self._reaching("another rank"):
            work = start()
            while not work.is_completed():
                time.sleep(POLL_S)
            work.wait()

    def sum_(self, *tensors: Tensor) -> None:
        import torch
        import torch.distributed as dist

        buffer = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        self._finish(lambda: dist.all_reduce(buffer, async_op=True))
        for tensor, part in zip(tensors, torch.split(buffer, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(part.view(tensor.shape))

    def digests(self, digest: str) -> list[str]:
        import torch
        import torch.distributed as dist

        own = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.world)]
        self._finish(lambda: dist.all_gather(found, own, async_op=True))
        return [bytes(one.tolist()).hex() for one in found]

    def share(self, value: bytes | None) -> bytes | None:
        import numpy as np
        import torch
        import torch.distributed as dist

        size = torch.tensor([-1 if value is None else len(value)])
        self._finish(lambda: dist.broadcast(size, 0, async_op=True))
        if size.item() < 0:
            return None
        data = torch.empty(int(size.item()), dtype=torch.uint8)
        if self.rank == 0 and value is not None:
            data = torch.from_numpy(np.frombuffer(value, np.uint8).copy())
        self._finish(lambda: dist.broadcast(data, 0, async_op=True))
        return data.numpy().tobytes()

    def agree(self, told: Mapping[str, object]) -> None:
        self._agreed += 1
        step = f"agree/{self._agreed}"
        self.tell(step, json.dumps({name: str(value) for name, value in told.items()}))
        self.await_all(step)
        with self._reaching("the launcher's store"):
            found = [json.loads(self._store.get(f"{step}/{rank}")) for rank in range(self.world)]
        for rank, other in enumerate(found):
            for name, value in found[0].items():
                if other.get(name) != value:
                    cause = f"rank {rank} of {self.world} has {name} {other.get(name)}, and rank 0 has {value}"
                    action = "give every rank the same code, settings, audio and model"
                    raise LaneError("ranks", "ranks_disagree", cause, action)

    def tell(self, what: str, value: str = "") -> None:
        with self._reaching("the launcher's store"):
            self._store.set(f"{what}/{self.rank}", value)

    def await_all(self, what: str) -> None:
        self._await([f"{what}/{rank}" for rank in range(self.world)])

    def await_first(self, what: str) -> None:
        self._await([f"{what}/0"])

    def _await(self, keys: list[str]) -> None:
        with self._reaching("the launcher's store"):
            while not self._store.check(keys):
                ended = [rank for rank in range(self.world) if self._store.check([f"word/{rank}"])]
                if ended and not self._store.check(keys):
                    raise RuntimeError(f"rank {ended[0]} has ended")
                raise_if_stopped()
                time.sleep(0.01)

    def last_word(self, failure: LaneError, error: BaseException, step: str, where: str) -> tuple[LaneError, bool]:
        try:
            return self._last_word(failure, error, step, where)
        except RuntimeError:  # the launcher is gone, and with it what the ranks know of each other
            return failure, self.rank == 0

    def _last_word(self, failure: LaneError, error: BaseException, step: str, where: str) -> tuple[LaneError, bool]:
        lines = "" if isinstance(error, LaneError) else "".join(traceback.format_exception(error))[-8000:]
        names = ("step", "code", "cause", "action", "status", "exit_code")
        own = {name: getattr(failure, name) for name in names} | {"log": lines}
        self._store.set(f"word/{self.rank}", json.dumps([self._store.add("words", 1), own]))
        words, gone, silent = self._roll_call()
        if any(rank < self.rank for rank in words):
            return failure, False
        if self._machine != "0":  # the run directory is on another machine
            return failure, False
        told = sorted((order, rank, word) for rank, (order, word) in words.items())
        for _, rank, word in told:
            if word["code"] not in NOT_ITS_OWN:
                if rank == self.rank:
                    return failure, True
                if word["log"]:
                    log.error("rank %d ended early:\n%s", rank, word["log"])
                prefix = "" if word["code"] == "ranks_disagree" else f"rank {rank} of {self.world}: "
                return _failure(word, f"{prefix}{word['cause']}"), True
        lost = [f"rank {rank} of {self.world} was killed (its process is gone; often: out of memory)" for rank in gone]
        for rank in silent:
            how = "does not answer: it hangs" if self._store.check([f"who/{rank}"]) else "never came: killed, or slow"
            lost.append(f"rank {rank} of {self.world} {how}")
        from_outside = [word for _, _, word in told if word["code"] != LOST]
        if gone or (silent and not from_outside):
            cause = f"{'; '.join(lost)}; {where}"
            return LaneError(step, LOST, cause, "look for what ended it", status="failed", exit_code=1), True
        if from_outside:
            return _failure(from_outside[0], "; ".join([from_outside[0]["cause"], *lost])), True
        return failure, True

    def _roll_call(self) -> tuple[dict[int, Any], list[int], list[int]]:
        """(The words of the ranks that gave one, those whose process is gone, those that are silent)."""
        words: dict[int, Any] = {}
        gone: list[int] = []
        deadline = time.monotonic() + ROLL_CALL_S
        waiting = list(range(self.world))
        while waiting:
            for rank in list(waiting):
                is_gone = self._is_gone(rank)  # first: a rank gives its word, and ends
                if self._store.check([f"word/{rank}"]):
                    words[rank] = json.loads(self._store.get(f"word/{rank}"))
                elif is_gone:
                    gone.append(rank)
                else:
                    continue
                waiting.remove(rank)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return words, gone, waiting

    def _is_gone(self, rank: int) -> bool:
        """Whether a rank's process has ended, as far as that can be seen from this machine."""
        if not self._store.check([f"who/{rank}"]):
            return False
        pid, machine = json.loads(self._store.get(f"who/{rank}"))
        return machine == self._machine and not is_running(pid)


def _failure(word: Mapping[str, Any], cause: str) -> LaneError:
    return LaneError(
        word["step"], word["code"], cause, word["action"], status=word["status"], exit_code=word["exit_code"]
    )


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    if not Path("/proc/self/stat").exists():
        with contextlib.suppress(PermissionError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
