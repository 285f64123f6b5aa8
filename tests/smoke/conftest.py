"""Fixtures of the gates. The model is loaded here while the lane trains in its own process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from truth import Truth, load_model

from harness.evidence import EvidenceError, RunEvidence
from harness.lane.hub import stay_offline
from harness.lane.settings import is_shipped
from harness.session.lane import promises

if TYPE_CHECKING:
    from reference_run import Reference


@pytest.fixture(scope="session", autouse=True)
def model(request: pytest.FixtureRequest, lane_process: Callable[[], RunEvidence]) -> Any:
    """audiocraft's own model, or why it cannot be loaded. Autouse, so that it comes before the wait for the run."""
    if not promises(request.config, "checkpoint"):
        return None
    try:
        # Of another model some part may be on the hub: the lane downloads it, or says why it cannot.
        if not is_shipped(os.environ.get("LANE_MODEL", "")):
            if reason := lane_process().failure():
                return EvidenceError(reason)
            stay_offline()
        return load_model()
    except Exception as error:  # the lane meets the same trouble and says what it is
        return error


@pytest.fixture(autouse=True)
def own_lane(request: pytest.FixtureRequest) -> None:
    """What only the voice lane promises is not asked of another one."""
    if request.path.name == "test_own_lane.py" and not promises(request.config, "checkpoint"):
        pytest.skip("not applicable: only the voice lane promises it")


@pytest.fixture(scope="session")
def truth(model: Any, lane_run: RunEvidence) -> Truth:
    if model is None:
        pytest.skip("not applicable: it probes the voice lane, whose functions it calls")
    return Truth(model, lane_run)


@pytest.fixture(scope="session")
def reference(truth: Truth) -> Reference:
    from reference_run import Reference

    return Reference(truth.model, truth.run, truth.conditions_of)
