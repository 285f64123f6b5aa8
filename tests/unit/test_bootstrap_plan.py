"""What the set-up decides to change, given what is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.bootstrap.errors import SetupError
from harness.bootstrap.plan import Plan, constraints, make_plan
from harness.bootstrap.versions import parse_requirement

NEEDS = [parse_requirement(line) for line in ("torch>=2.6", "numpy>=1.26", "pytest>=8.2")]
COMPLETE = {"torch": "2.9.1+cu126", "numpy": "2.0.2", "pytest": "8.4.2", "audiocraft": "1.3.0", "jax": "0.7.2"}


def plan(installed: dict[str, str], **changes: object) -> Plan:
    arguments: dict[str, object] = {"is_own": False, "project_is_linked": True, **changes}
    return make_plan(NEEDS, installed, **arguments)  # type: ignore[arg-type]


def without(*names: str) -> dict[str, str]:
    return {name: version for name, version in COMPLETE.items() if name not in names}


def test_nothing_to_do() -> None:
    assert plan(COMPLETE).actions == ()


def test_bare_environment_gets_torch_first_by_its_exact_version_and_audiocraft_last() -> None:
    actions = plan({"pip": "23.2.1", "setuptools": "65.5.0"}, is_own=True, project_is_linked=False).actions
    assert [action.step for action in actions] == ["torch", "project", "audiocraft"]
    assert [action.package for action in actions] == ["torch==2.13.0", "voice-lane-harness", "audiocraft==1.3.0"]
    assert "replace setuptools 65.5.0" in actions[0].words
    assert "numpy>=1.26" in actions[1].words and "torch" not in actions[1].words


@pytest.mark.parametrize("torch", ["2.6", "2.6.0+cu124", "2.9.1", "3.0"])
@pytest.mark.parametrize("is_own", [True, False])
def test_a_torch_in_the_range_is_left_alone(torch: str, is_own: bool) -> None:
    installed = {"torch": torch, "numpy": "1.26.4", "transformers": "4.57.0"}
    found = plan(installed, is_own=is_own, project_is_linked=False)
    assert "torch" not in [action.step for action in found.actions]
    assert found.left_alone == (f"torch {torch}", "numpy 1.26.4", "transformers 4.57.0")
    assert f"torch=={torch}\n" in constraints(installed, is_own=is_own)


@pytest.mark.parametrize("torch", ["2.5.1", "2.6.0a0+df5bbc09d1.nv24.11", "1.13"])
@pytest.mark.parametrize("is_own", [True, False])
def test_an_older_torch_blocks_and_is_not_replaced(torch: str, is_own: bool) -> None:
    with pytest.raises(SetupError, match=f"torch {torch.split('+')[0]}") as caught:
        plan({**COMPLETE, "torch": torch}, is_own=is_own)
    assert caught.value.step == "torch" and caught.value.blocked


def test_a_package_of_somebody_is_not_replaced_and_every_one_is_named() -> None:
    with pytest.raises(SetupError) as caught:
        plan({**COMPLETE, "numpy": "1.24.0", "pytest": "7.4.0"})
    assert caught.value.blocked
    assert "numpy 1.24.0 (needed: numpy>=1.26), pytest 7.4.0 (needed: pytest>=8.2)" in caught.value.cause


def test_in_the_own_environment_it_is_replaced_and_said() -> None:
    (action,) = plan({**COMPLETE, "numpy": "1.24.0"}, is_own=True).actions
    assert action.words == "replace numpy 1.24.0 by numpy>=1.26"


def test_what_an_earlier_set_up_left_and_is_gone_is_installed_again() -> None:
    (action,) = plan(COMPLETE, vanished=("colorlog",)).actions
    assert action.step == "project" and "colorlog" in action.words


def test_another_checkout_is_linked_over() -> None:
    (action,) = plan(COMPLETE, project_is_linked=False).actions
    assert "link this checkout" in action.words


def test_another_audiocraft_is_the_one_thing_that_is_replaced() -> None:
    (action,) = plan({**COMPLETE, "audiocraft": "1.4.0a1"}).actions
    assert action.words.endswith("in place of audiocraft 1.4.0a1")


def test_audiocraft_from_a_checkout() -> None:
    source = Path("/somewhere/audiocraft")
    (action,) = plan(without("audiocraft"), audiocraft="editable", audiocraft_source=source).actions
    assert action.step == "audiocraft" and "/somewhere/audiocraft" in action.words
    assert plan(without("audiocraft"), audiocraft="pythonpath", audiocraft_source=source).actions == ()


def test_in_somebodys_environment_everything_is_kept_as_it_is() -> None:
    kept = constraints({**COMPLETE, "setuptools": "65.5.0", "voice-lane-harness": "0.1.0"}, is_own=False)
    assert kept.split() == ["jax==0.7.2", "numpy==2.0.2", "pytest==8.4.2", "setuptools==65.5.0", "torch==2.9.1+cu126"]


def test_torch_may_bring_the_setuptools_it_needs() -> None:
    assert constraints({"setuptools": "65.5.0", "wheel": "0.40"}, is_own=False) == "wheel==0.40\n"


def test_in_the_own_environment_torch_is_kept() -> None:
    assert constraints(COMPLETE, is_own=True) == "torch==2.9.1+cu126\n"
