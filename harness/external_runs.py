"""The runs of an external lane that one test session needs: its own, a second one, two with other audio, and one of the
code of a baseline."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from harness.base.workers import one_at_a_time
from harness.baselines.baseline import Baseline
from harness.baselines.compare import SecondLegUnavailable
from harness.baselines.second_leg import run_second_leg
from harness.evidence import EvidenceError, NotApplicable, RunEvidence, load_run
from harness.evidence.data import audio_files
from harness.evidence.errors import mismatch
from harness.lanes import ExternalLane, ExternalProcess, changed_audio, renamed_audio
from harness.numerics.digest import file_sha256
from harness.runs.footprint import Footprint

Say = Callable[[str], None]
_SAYS = {
    "again": "running again, to rule out chance",
    "other-audio": "running with other audio",
    "same-audio": "running with the same audio under other names",
    "second-leg": "running again, from the baseline's code",
}


class ExternalRuns:
    """`first`: the session's run. `footprint`: of the project, looked at before it. Further runs go into its `store`,
    the same for every worker of pytest-xdist, so that each takes place once and never beside another: they share the
    places where the lane leaves its files."""

    def __init__(
        self,
        lane: ExternalLane,
        first: Path,
        footprint: Footprint,
        terminal: Callable[[], AbstractContextManager[Say]],
    ) -> None:
        self.lane, self.first, self.folder = lane, first, footprint.store
        self._footprint, self._terminal = footprint, terminal

    def again(self) -> RunEvidence:
        """A second run. Raises EvidenceError, as all of these do."""
        return self._run("again", self._start)

    def other_audio(self) -> RunEvidence:
        """A run with other audio. Raises NotApplicable where there is none to change."""
        return self._run("other-audio", lambda to: self._start(to, self._varied(changed_audio, differs=True)))

    def same_audio(self) -> RunEvidence:
        """A run with the same audio under other names and times. Raises NotApplicable likewise."""
        return self._run("same-audio", lambda to: self._start(to, self._varied(renamed_audio, differs=False)))

    def second_leg(self, baseline: Baseline) -> RunEvidence:
        """A run of the baseline's code, with this machine and this data. Raises SecondLegUnavailable too."""
        lane = self.lane
        if not lane.code:
            raise SecondLegUnavailable(f'the table of lane {lane.name} names no code, as in code = ["train.py"]')

        def start(run_dir: Path) -> None:
            run_second_leg(baseline, lane.root, lambda root: self._start_from(root, run_dir), lane.code_paths, "")

        return self._run("second-leg", start)

    def _run(self, kind: str, start: Callable[[Path], object]) -> RunEvidence:
        run_dir, done = self.folder / kind, self.folder / f"{kind}.done"
        self.folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.folder / "lock"):
            if not done.exists():
                start(run_dir)
                done.touch()
        return load_run(run_dir)

    def _start(self, run_dir: Path, audio: Path | None = None, root: Path | None = None) -> RunEvidence:
        with self._terminal() as say:
            say(f"lane: {_SAYS[run_dir.name]}")
            try:
                self._footprint.before_further()
            except OSError as error:
                raise mismatch(
                    self.folder, f"no place to keep the first run's files ({error.strerror})", "one"
                ) from None
            try:
                process = ExternalProcess(
                    self.lane,
                    run_dir,
                    audio=audio,
                    root=root,
                    numeric_class=lambda: load_run(self.first).record.numeric_class,
                )
                process.wait()
            finally:
                for line in self._footprint.put_back():
                    say(f"lane: {line}")
        return load_run(run_dir)

    def _start_from(self, root: Path, run_dir: Path) -> RunEvidence:
        """A run of another checkout. What training starts from is in the baseline's key, so it is the one that lies
        here; of a checkout it is no part where git does not have it."""
        if self.lane.initial_checkpoint is not None:
            here, there = (folder / self.lane.cwd / self.lane.initial_checkpoint for folder in (self.lane.root, root))
            if here.is_file() and not there.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(here, there)
        return self._start(run_dir, root=root)

    def _varied(self, vary: Callable[[Path, Path], Path], *, differs: bool) -> Path:
        name = self.lane.name
        if self.lane.audio is None:
            raise NotApplicable(f"the table of lane {name} names no audio")
        source = self.lane.folder / self.lane.audio
        try:
            varied = vary(source, Path(tempfile.mkdtemp(prefix="audio-", dir=self.folder)))
        except EvidenceError as error:
            raise NotApplicable(str(error)) from None
        if differs and sorted(map(file_sha256, audio_files(source))) == sorted(map(file_sha256, audio_files(varied))):
            raise NotApplicable(f"{source}: backwards and softer it is the same (is it silent?)")
        return varied
