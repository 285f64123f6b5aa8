"""The switches of the set-up, read from the environment. What is not understood is an error, never ignored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from harness.bootstrap.errors import SetupError

DEFAULT_PIP_BOOTSTRAP_URL = "https://bootstrap.pypa.io/get-pip.py"
EDITABLE_CHOICES = ("auto", "1", "0")


@dataclass(frozen=True)
class SetupSettings:
    """The parsed switches; the defaults change nothing on the host beyond what the lane needs."""

    git_sync: bool = False
    expected_head: str = ""
    audiocraft_editable: str = "auto"
    audiocraft_source: Path | None = None
    pip_bootstrap_url: str = DEFAULT_PIP_BOOTSTRAP_URL


def _refuse(name: str, value: str, accepted: str) -> SetupError:
    return SetupError(
        "settings",
        f"{name}={value!r} is not understood; accepted: {accepted}",
        f"set {name} to one of the accepted values, or unset it",
        blocked=True,
    )


def _choice(environ: dict[str, str], name: str, accepted: tuple[str, ...], default: str) -> str:
    value = environ.get(name, "").strip() or default
    if value not in accepted:
        raise _refuse(name, value, ", ".join(accepted))
    return value


def read_settings(environ: dict[str, str], root: Path) -> SetupSettings:
    """Parse and check every switch of the set-up. An empty value counts as unset. Raises SetupError."""
    git_sync = _choice(environ, "RUN_GIT_SYNC", ("0", "1"), "0") == "1"
    editable = _choice(environ, "INSTALL_AUDIOCRAFT_EDITABLE", EDITABLE_CHOICES, "auto")

    expected_head = environ.get("EXPECTED_HEAD", "").strip()
    if expected_head and not re.fullmatch(r"[0-9a-fA-F]{7,64}", expected_head):
        raise _refuse("EXPECTED_HEAD", expected_head, "a commit hash, or a beginning of one of at least 7 digits")

    url = environ.get("PIP_BOOTSTRAP_URL", "").strip() or DEFAULT_PIP_BOOTSTRAP_URL
    if urlsplit(url).scheme not in ("https", "http", "file"):
        raise _refuse("PIP_BOOTSTRAP_URL", url, "an https, http or file address of get-pip.py")

    source = None
    if source_text := environ.get("AUDIOCRAFT_SOURCE", "").strip():
        source = (root / Path(source_text).expanduser()).resolve()
        if not (source / "audiocraft" / "__init__.py").is_file():
            raise _refuse("AUDIOCRAFT_SOURCE", source_text, "a folder that contains audiocraft/__init__.py")
    if editable == "1" and source is None:
        raise SetupError(
            "settings",
            "INSTALL_AUDIOCRAFT_EDITABLE=1 needs a checkout of audiocraft, and AUDIOCRAFT_SOURCE is not set",
            "set AUDIOCRAFT_SOURCE to the folder of the checkout, or unset INSTALL_AUDIOCRAFT_EDITABLE",
            blocked=True,
        )
    return SetupSettings(git_sync, expected_head.lower(), editable, source, url)
