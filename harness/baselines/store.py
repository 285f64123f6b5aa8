"""The folder of baselines: one file for each key, found by the key and never by the nearest match."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.baselines.baseline import Baseline, BaselineError, relative_path
from harness.baselines.document import load
from harness.baselines.result import Result

# Folders of a store that no run is compared with: what others published, and recordings of lanes that are no more, by
# which a promotion check still knows their results.
NOT_COMPARED = ("reference", "former")


@dataclass(frozen=True)
class Store:
    """The folder of baselines, `baselines/`."""

    root: Path

    def path_for(self, result: Result) -> Path:
        """Where the baseline of a result with this key lies, whether or not it is there."""
        return self.root / relative_path(result)

    def get(self, result: Result) -> Baseline | None:
        """The baseline with exactly this result's key; None where there is none. Raises BaselineError."""
        path = self.path_for(result)
        try:
            baseline = load(path)
        except FileNotFoundError:
            return None
        if baseline.result.key != result.key:
            raise BaselineError(f"{path}: holds the baseline of another key than its name says")
        return baseline

    def paths(self) -> list[Path]:
        """Every baseline file that a run can be compared with, sorted."""
        return sorted(path for path in self.root.glob("*/*.json") if path.parent.name not in NOT_COMPARED)

    def read(self, result: Result) -> bytes | None:
        """What lies where this result's baseline belongs, unread; None where there is nothing."""
        try:
            return self.path_for(result).read_bytes()
        except FileNotFoundError:
            return None

    def all(self, *, former: bool = False) -> tuple[list[Baseline], list[str]]:
        """Every baseline that can be read, and a line for each file that cannot; `former` adds those of lanes that are
        no more."""
        baselines: list[Baseline] = []
        broken: list[str] = []
        for path in [*self.paths(), *(sorted((self.root / "former").glob("*.json")) if former else [])]:
            try:
                baselines.append(load(path))
            except (BaselineError, OSError) as error:
                broken.append(str(error))
        return baselines, broken
