"""The gates that hold the run against what was recorded as good. A red one says what moved, and where."""

from __future__ import annotations

import pytest

from harness.baselines.snapshot import BaselineFactory
from harness.evidence import RunEvidence

pytestmark = pytest.mark.smoke


def test_dataset_digest_is_the_recorded_one(lane_run: RunEvidence, baseline: BaselineFactory) -> None:
    """The audio that was trained on is the recorded one, by its digest."""
    assert lane_run == baseline("dataset")


def test_tokens_digest_is_the_recorded_one(lane_run: RunEvidence, baseline: BaselineFactory) -> None:
    """The tokens that were trained on are the recorded ones, by their digest."""
    assert lane_run == baseline("tokens")


def test_loss_curve_is_the_recorded_one(lane_run: RunEvidence, baseline: BaselineFactory) -> None:
    """Every loss is the recorded one, to the bit or within the tolerance that was recorded with it."""
    assert lane_run == baseline("loss")


def test_checkpoint_digest_is_the_recorded_one(lane_run: RunEvidence, baseline: BaselineFactory) -> None:
    """The checkpoint's tensors are the recorded ones, by digest or within the tolerance of another class."""
    assert lane_run == baseline("checkpoint")


__all__ = [name for name in list(globals()) if name.startswith("test_")] + ["pytestmark"]
