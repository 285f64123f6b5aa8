"""The switches of the set-up: defaults, what is accepted, and that nothing else is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.bootstrap.errors import SetupError
from harness.bootstrap.settings import SetupSettings, read_settings


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "ac" / "audiocraft").mkdir(parents=True)
    (tmp_path / "ac" / "audiocraft" / "__init__.py").touch()
    return tmp_path / "ac"


@pytest.mark.parametrize("environ", [{}, dict.fromkeys(["RUN_GIT_SYNC", "EXPECTED_HEAD", "AUDIOCRAFT_SOURCE"], "")])
def test_defaults(environ: dict[str, str], tmp_path: Path) -> None:
    assert read_settings(environ, tmp_path) == SetupSettings()


def test_all_of_them(source: Path, tmp_path: Path) -> None:
    environ = {
        "RUN_GIT_SYNC": "1",
        "EXPECTED_HEAD": "ABCDEF1",
        "AUDIOCRAFT_SOURCE": "ac",
        "INSTALL_AUDIOCRAFT_EDITABLE": "1",
        "PIP_BOOTSTRAP_URL": "file:///get-pip.py",
    }
    assert read_settings(environ, tmp_path) == SetupSettings(True, "abcdef1", "1", source, "file:///get-pip.py")


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("RUN_GIT_SYNC", "maybe", "0, 1"),
        ("RUN_GIT_SYNC", "true", "0, 1"),
        ("EXPECTED_HEAD", "abc123", "at least 7 digits"),
        ("EXPECTED_HEAD", "main", "at least 7 digits"),
        ("EXPECTED_HEAD", "g234567", "at least 7 digits"),
        ("INSTALL_AUDIOCRAFT_EDITABLE", "yes", "auto, 1, 0"),
        ("PIP_BOOTSTRAP_URL", "get-pip.py", "an https, http or file address"),
        ("AUDIOCRAFT_SOURCE", "nowhere", "audiocraft/__init__.py"),
    ],
)
def test_what_is_not_understood_is_named_with_what_is(name: str, value: str, accepted: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        read_settings({name: value}, tmp_path)
    assert f"{name}={value!r}" in caught.value.cause
    assert accepted in caught.value.cause
    assert caught.value.step == "settings" and caught.value.blocked


def test_editable_without_a_checkout_is_no_wish_that_can_be_met(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="AUDIOCRAFT_SOURCE is not set"):
        read_settings({"INSTALL_AUDIOCRAFT_EDITABLE": "1"}, tmp_path)
