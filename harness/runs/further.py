"""The further runs of a lane that one session needs: a second, two with other audio, and one of a baseline's code."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from harness.base.workers import one_at_a_time
from harness.baselines.baseline import Baseline
from harness.baselines.second_leg import run_second_leg
from harness.baselines.verdict import SecondLegUnavailable
from harness.evidence import NotApplicable, RunEvidence, load_run
from harness.evidence.errors import mismatch
from harness.runs.footprint import Footprint
from harness.runs.progress import Progress
from harness.runs.run import LaneRun
from harness.runs.table import Lane
from harness.runs.variants import Varied, data_for, other_data, renamed_data

Say = Callable[[str], None]
AGAIN, OTHER_AUDIO, SAME_AUDIO, SECOND_LEG = "again", "other-audio", "same-audio", "second-leg"
_SAYS = {
    AGAIN: "running again, to rule out chance",
    OTHER_AUDIO: "running with other data",
    SAME_AUDIO: "running with the same data under other names",
    SECOND_LEG: "running again, from the baseline's code",
}
COUNTS = {AGAIN: 2, OTHER_AUDIO: 3, SAME_AUDIO: 4}  # how many trainings a session has made with it


class FurtherRuns:
    """`first`: the session's run. Further ones go into `store`, the same for every worker of pytest-xdist, so that each
    takes place once and never beside another. `footprint`: of the project, looked at before the first run; None for a
    lane that writes into its run directory alone. `most`: how many trainings the gates may take, the first included."""

    def __init__(
        self,
        lane: Lane,
        first: Path,
        store: Path,
        footprint: Footprint | None,
        terminal: Callable[[], AbstractContextManager[Say]],
        most: int | None = None,
    ) -> None:
        self.lane, self.first, self.store, self.most = lane, first, store, most
        self._footprint, self._terminal = footprint, terminal

    def again(self) -> RunEvidence:
        """A second run, however many are asked for: a verdict or a recording needs it. Raises EvidenceError, as all of
        these do."""
        return self._run(AGAIN, self._start)

    def repeated(self) -> RunEvidence:
        """The same for a gate. Raises NotApplicable where as many runs are not to be made, as the next two do."""
        self._allow(AGAIN)
        return self.again()

    def other_audio(self) -> RunEvidence:
        """A run with other audio. Raises NotApplicable where there is none to change."""
        self._allow(OTHER_AUDIO)
        return self._run(OTHER_AUDIO, lambda to: self._start(to, other_data(self.lane, self._folder())))

    def same_audio(self) -> RunEvidence:
        """A run with the same audio under other names and times. Raises NotApplicable likewise."""
        self._allow(SAME_AUDIO)
        return self._run(SAME_AUDIO, lambda to: self._start(to, renamed_data(self.lane, self._folder())))

    def second_leg(self, baseline: Baseline) -> RunEvidence:
        """A run of the baseline's code, with this machine and this data. Raises SecondLegUnavailable too."""
        lane = self.lane
        if not lane.table.code:
            raise SecondLegUnavailable(f'the table of lane {lane.name} names no code, as in code = ["train.py"]')

        def start(run_dir: Path) -> None:
            suffix = lane.table.code_suffix
            run_second_leg(baseline, lane.root, lambda root: self._start_from(root, run_dir), lane.code_paths, suffix)

        return self._run(SECOND_LEG, start)

    def _allow(self, kind: str) -> None:
        if self.most is not None and COUNTS[kind] > self.most:
            count = f"{self.most} training{'s' if self.most > 1 else ''}"
            raise NotApplicable(f"this session makes {count}; with --lane-runs={COUNTS[kind]} it is judged")

    def _run(self, kind: str, start: Callable[[Path], object]) -> RunEvidence:
        run_dir, done = self.store / kind, self.store / f"{kind}.done"
        self.store.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.store / "lock"):
            if not done.exists():
                start(run_dir)
                done.touch()
        return load_run(run_dir)

    def _start(self, run_dir: Path, varied: Varied = (None, {}), root: Path | None = None) -> RunEvidence:
        with self._terminal() as say:
            say(f"lane: {_SAYS[run_dir.name]}")
            if self._footprint is not None:
                try:
                    self._footprint.before_further()
                except OSError as error:
                    what = f"no place to keep the first run's files ({error.strerror})"
                    raise mismatch(self.store, what, "one") from None
            try:
                run = LaneRun(
                    self.lane,
                    run_dir,
                    environ=self._seed_of_hashes(run_dir.name) | self.lane.table.further_env,
                    audio=varied[0],
                    data=varied[1],
                    root=root,
                    numeric_class=lambda: load_run(self.first).record.numeric_class,
                    on_line=Progress(say),
                ).wait()
            finally:
                for line in self._footprint.put_back() if self._footprint is not None else ():
                    say(f"lane: {line}")
        return load_run(run_dir, run_id=run.run_id, told=run.report)

    def _seed_of_hashes(self, kind: str) -> dict[str, str]:
        """A caller that sets PYTHONHASHSEED hides what is seeded by `hash()` or depends on the order of a set: a second
        run gets another one. One that the table sets is the lane's own."""
        seed = os.environ.get("PYTHONHASHSEED", "random")
        if kind != AGAIN or not seed.isdigit() or "PYTHONHASHSEED" in self.lane.table.env:
            return {}
        return {"PYTHONHASHSEED": str((int(seed) + 1) % (1 << 32))}

    def _start_from(self, root: Path, run_dir: Path) -> RunEvidence:
        """A run of another checkout. What training starts from is in the baseline's key, so it is the one that lies
        here; of a checkout it is no part where git does not have it."""
        if (name := self.lane.table.initial_checkpoint) is not None:
            here, there = (folder / self.lane.table.cwd / name for folder in (self.lane.root, root))
            if here.is_file() and not there.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(here, there)
        data_for(self.lane, root)
        return self._start(run_dir, root=root)

    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="data-", dir=self.store))
