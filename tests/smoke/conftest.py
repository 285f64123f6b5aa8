"""Fixtures of the gates. The model is loaded here while the lane trains in its own process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.evidence import RunEvidence

sys.path.insert(0, str(Path(__file__).parent))
from truth import Truth, load_model


@pytest.fixture(scope="session", autouse=True)
def model(lane_process: Callable[[], RunEvidence]) -> Any:
    """audiocraft's own model. Autouse, so that it comes before the wait for the run; None where it cannot be loaded."""
    try:
        return load_model()
    except Exception as error:  # the lane meets the same trouble and says what it is
        return error


@pytest.fixture(scope="session")
def truth(model: Any, lane_run: RunEvidence) -> Truth:
    return Truth(model, lane_run)
