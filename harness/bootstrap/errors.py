"""The one error of the set-up."""

from __future__ import annotations


class SetupError(Exception):
    """Set-up cannot go on. ``step`` is a stable identifier; ``cause`` and ``action`` are one line each for a person.

    ``blocked`` tells apart what somebody has to decide or provide first (a setting, a network, a free disk) from a
    command that failed. ``command`` is the command that was running, if one was.
    """

    def __init__(self, step: str, cause: str, action: str, *, blocked: bool = False, command: str = "none") -> None:
        super().__init__(f"{step}: {cause}")
        self.step = step
        self.cause = " ".join(cause.split())
        self.action = " ".join(action.split())
        self.blocked = blocked
        self.command = command
