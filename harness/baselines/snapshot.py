"""The gates that compare with a baseline: `assert evidence == baseline("loss")`, through syrupy.

How it hangs together. One baseline file holds all of a run, so that it is recorded and reviewed as one; four gates each
hold one part of the run against it. `Gates` has what they share: the verdict, found once a session, and the recording,
done at most once. `baseline(part)` is syrupy's own assertion object with an extension of ours, so that syrupy counts
the gate, reports it and obeys `--snapshot-update`. In `==` syrupy asks the extension where the snapshot lies
(`get_location`: the file of the run's key), reads it, asks `matches` (the verdict decides), and on `--snapshot-update`
has it written (`write_snapshot_collection`: `record` writes the file, or refuses; a refusal fails the gate). After one
gate has recorded, the others compare with the new file. A failure's text is the verdict's.
Nothing is ever found unused or deleted by syrupy: `discover_snapshots` tells it of no file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest
from syrupy.assertion import DiffMode, SnapshotAssertion
from syrupy.data import SnapshotCollection, SnapshotCollections
from syrupy.extensions.base import AbstractSyrupyExtension
from syrupy.location import PyTestLocation

from harness.base.workers import one_at_a_time
from harness.baselines.baseline import Baseline, BaselineError, Code
from harness.baselines.compare import compare, judge
from harness.baselines.record import RecordRefused, is_current, record, refusal, unused_baselines
from harness.baselines.result import PARTS, result_of_run, shown
from harness.baselines.store import Store
from harness.baselines.verdict import GATES_COMMAND, Verdict
from harness.evidence import EvidenceError, RunEvidence

NOTHING_TO_RECORD = (
    "nothing was recorded: a recording holds the tensors of a checkpoint, and the lane gives none; next: name what it "
    'saves, checkpoint = "PATH" in its table (docs/gate-your-own-lane.md), or run it without --snapshot-update'
)


class BaselineFactory(Protocol):
    """What the fixture `baseline` gives a gate."""

    def __call__(self, part: str) -> SnapshotAssertion:
        """The recorded `part` (`dataset`, `tokens`, `loss` or `checkpoint`), to be compared with a run by `==`."""


@dataclasses.dataclass
class Findings:
    """What the gates of one session have found so far: the verdict, and what was `recorded` or why that was refused.
    `count` grows with each finding."""

    verdict: Verdict | None = None
    recorded: list[str] | None = None
    refused: str | None = None
    count: int = 0


class Gates:
    """What the gates of one session share: the run, the store, the verdict, and the recording.

    `rerun`, `second_leg`, `code`: see `judge`; recording needs `rerun` too. `reason`: of a recording. `update`: whether
    this session records (`--snapshot-update`). `shared`: a file of the session, where several processes judge its run:
    what one of them finds, the others read there. `others`: the session's gates that need no recording, those that held
    and those that did not; they run before a recording is made.
    """

    def __init__(
        self,
        evidence: RunEvidence,
        store: Store,
        *,
        code: Code,
        rerun: Callable[[], RunEvidence] | None = None,
        second_leg: Callable[[Baseline], RunEvidence | None] | None = None,
        update: bool = False,
        reason: str | None = None,
        environment: Mapping[str, str] | None = None,
        shared: Path | None = None,
        others: Callable[[], tuple[list[str], list[str]]] = lambda: ([], []),
        command: str = GATES_COMMAND,
    ) -> None:
        self.evidence = evidence
        self.store = store
        self._code = code
        self._rerun = rerun
        self._second_leg = second_leg
        self.update = update
        self._reason = reason
        self._environment = environment
        self._shared = shared
        self._others = others
        self._command = command
        self._own = Findings()

    @contextlib.contextmanager
    def _findings(self) -> Iterator[Findings]:
        """What was found so far, to be added to, by one process at a time."""
        if self._shared is None:
            yield self._own
            return
        with one_at_a_time(Path(f"{self._shared}.lock")):
            found = pickle.loads(self._shared.read_bytes()) if self._shared.exists() else Findings()
            count = found.count
            yield found
            if found.count != count:
                unfinished = self._shared.with_suffix(".tmp")
                unfinished.write_bytes(pickle.dumps(found))
                unfinished.replace(self._shared)

    @property
    def verdict(self) -> Verdict:
        """The verdict on the session's run, with the further runs that a failure needs; found once."""
        with self._findings() as found:
            if found.verdict is None:
                found.verdict = self._judge()
                found.count += 1
            return found.verdict

    def _judge(self) -> Verdict:
        if self.update:
            verdict = compare(self.evidence, self.store)
        else:
            verdict = judge(self.evidence, self.store, self._rerun, self._second_leg, self._code)
        typed = verdict.next_command.replace(GATES_COMMAND, f"{self._command}{self.evidence.lane_option}")
        return dataclasses.replace(verdict, next_command=typed)

    def parts(self) -> tuple[str, ...]:
        """The parts that the run gives, or that were recorded of it: an external lane need not give all."""
        try:
            result = result_of_run(self.evidence)
            baseline = self.store.get(result)
        except (EvidenceError, BaselineError, OSError):
            return PARTS  # each says by itself what is wrong
        if not result.tensors and not result.unreadable:
            return ()
        recorded = () if baseline is None else baseline.result.parts
        return tuple(part for part in PARTS if part in (*result.parts, *recorded))

    @property
    def location(self) -> Path:
        """The file that the run is compared with, or would be recorded in."""
        if self.update or self.verdict.baseline is None:
            try:
                return self.store.path_for(result_of_run(self.evidence))
            except EvidenceError:
                return self.store.root / "none.json"
        return self.verdict.baseline

    def holds(self, part: str) -> bool:
        """Whether a part of the run is what was recorded; while recording: and whether nothing is to be recorded."""
        verdict = self.verdict
        if not self.update or not verdict.passed:
            return verdict.holds(part)
        # Good by another class's recording, or recorded with other tolerances than today's: to be recorded.
        result = result_of_run(self.evidence)
        baseline = self.store.get(result)
        return baseline is not None and is_current(result, baseline, self.store)

    def record(self) -> None:
        """Run the lane a second time and record both, once a session. Raises RecordRefused, the same each time."""
        with self._findings() as found:
            if found.refused is None and found.recorded is None:
                found.count += 1
                try:
                    found.recorded = self._record()
                    found.verdict = self._judge()
                except RecordRefused as error:
                    found.refused = str(error)
        if found.refused is not None:
            raise RecordRefused(found.refused)

    def _record(self) -> list[str]:
        refused = refusal(self._reason, os.environ if self._environment is None else self._environment)
        if refused or self._rerun is None:
            raise RecordRefused(
                refused or "recording takes a second run, and there is no way to run the lane again here"
            )
        held, red = self._others()
        try:
            seen = self.store.read(result_of_run(self.evidence))
        except EvidenceError as error:
            raise RecordRefused(f"the run is no good, and a failed run is never recorded: {error}") from None
        try:
            second = self._rerun()
        except Exception as error:
            raise RecordRefused(f"the second run failed, so nothing is recorded: {error}") from error
        return record(
            self.evidence,
            second,
            self.store,
            reason=self._reason,
            code=self._code,
            environment=self._environment,
            seen=seen,
            held=held,
            red=red,
        )

    def told(self) -> tuple[int, dict[str, Any] | None, list[str]]:
        """For the end of the session: how many findings there are, the verdict as JSON, and lines for the terminal."""
        with self._findings() as found:
            return found.count, None if found.verdict is None else found.verdict.to_json(), self._summary(found)

    def _summary(self, found: Findings) -> list[str]:
        """What was recorded, the verdict with its baseline, and unused baselines."""
        lines = list(found.recorded or [])
        verdict = found.verdict
        if verdict is not None:
            recorded = f" ({verdict.recorded})" if verdict.recorded else ""
            lines.append(f"verdict: {verdict.kind}: {verdict.headline}")
            if verdict.baseline is not None:
                lines.append(f"baseline: {shown(verdict.baseline)}{recorded}")
                lines += [f"unused baseline: {line}" for line in unused_baselines(self.store, [verdict.baseline])]
        return lines


class BaselineExtension(AbstractSyrupyExtension):
    """Syrupy's view of one part of the baselines. A subclass for each assertion carries `gates` and `part`."""

    gates: ClassVar[Gates]
    part: ClassVar[str]
    file_extension = "json"
    write_immediately = True  # a refused recording fails the gate, not the end of the session

    def serialize(self, data: Any, **_: Any) -> str:
        """One line for syrupy to keep. Raises TypeError for anything but the session's run."""
        if data is not self.gates.evidence:
            raise TypeError(f"a baseline is compared with the run of the session, not with {type(data).__name__}")
        return f"{self.part} of {self.gates.evidence.run_dir}"

    def matches(self, *, serialized_data: Any, snapshot_data: Any) -> bool:
        """Whether the verdict lets this part of the run pass."""
        return self.gates.holds(self.part)

    def read_snapshot_data_from_location(
        self, *, snapshot_location: str, snapshot_name: str, session_id: str
    ) -> str | None:
        """One line for syrupy to keep, where there is a file; what it holds is for the verdict to read."""
        return f"{self.part} in {snapshot_location}" if Path(snapshot_location).exists() else None

    @classmethod
    def write_snapshot_collection(
        cls, *, snapshot_collection: SnapshotCollection, name_order: dict[str, int] | None = None
    ) -> None:
        """Record the session's run. Raises RecordRefused."""
        cls.gates.record()

    @classmethod
    def get_location(cls, *, test_location: PyTestLocation, index: Any) -> str:
        """The file of the run's key; the same for every gate."""
        return str(cls.gates.location)

    @classmethod
    def matches_test_location(cls, *, test_location: PyTestLocation, snapshot_location: str) -> bool:
        """Every gate belongs to the one file."""
        return True

    @classmethod
    def dirname(cls, *, test_location: PyTestLocation) -> str:
        """The folder of baselines."""
        return str(cls.gates.store.root)

    def discover_snapshots(self, **_: Any) -> SnapshotCollections:
        """None: what syrupy does not know of, it cannot find unused, and cannot delete."""
        return SnapshotCollections()

    def read_snapshot_collection(self, *, snapshot_location: str) -> SnapshotCollection:
        """An empty collection; never asked for, since nothing is discovered."""
        return SnapshotCollection(location=snapshot_location)

    def delete_snapshots(self, *, snapshot_location: str, snapshot_names: set[str]) -> None:
        """Baselines are deleted by people, with git."""
        raise RecordRefused(f"{snapshot_location}: a test session deletes no baseline")


class BaselineAssertion(SnapshotAssertion):
    """Syrupy's assertion, whose failure is the verdict's text."""

    def __eq__(self, other: object) -> bool:
        """True, or the test fails here: of what explains an `assert`, pytest shows eight lines."""
        equal = super().__eq__(other)
        extension = self.extension
        assert isinstance(extension, BaselineExtension)
        if measured := extension.gates.verdict.measured(extension.part):
            self.test_location.item.user_properties.append(("measured", measured))
        if not equal:
            pytest.fail("\n".join(self.get_assert_diff()), pytrace=False)
        return True

    __hash__ = None  # type: ignore[assignment]

    def get_assert_diff(self, *, diff_mode: DiffMode = DiffMode.DETAILED) -> list[str]:
        """The lines of a failure: why recording was refused, or the verdict with what is out of bounds in this part."""
        extension = self.extension
        assert isinstance(extension, BaselineExtension)
        error = self.executions[self.num_executions - 1].exception
        if isinstance(error, RecordRefused):
            return ["nothing was recorded:", *str(error).splitlines()]
        if error is not None:
            return super().get_assert_diff(diff_mode=diff_mode)
        return extension.gates.verdict.text(extension.part).splitlines()


def baseline_factory(request: pytest.FixtureRequest, gates: Gates) -> BaselineFactory:
    """The value of the fixture `baseline`, for one test: `assert lane_run == baseline("loss")`.

    `request`: of a function-scoped fixture; `gates`: of the session.
    """
    options = request.config.option
    session: Any = request.config

    def baseline(part: str) -> SnapshotAssertion:
        if part not in PARTS:
            raise ValueError(f"no part {part!r}; the parts are {', '.join(PARTS)}")
        parts = gates.parts()
        if gates.update and not parts and part == "checkpoint":
            pytest.fail(NOTHING_TO_RECORD, pytrace=False)
        if part not in parts:
            pytest.skip(f"not applicable: the lane gives no {part} that a baseline could hold")
        extension = type("BoundBaselineExtension", (BaselineExtension,), {"gates": gates, "part": part})
        return BaselineAssertion(
            session=session._syrupy,
            extension_class=extension,
            test_location=PyTestLocation(request.node),
            update_snapshots=options.update_snapshots,
            update_new_snapshots_only=options.update_new_snapshots_only,
        )(name=part)

    return baseline
