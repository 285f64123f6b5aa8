"""The one exception by which the lane ends early on purpose."""

from __future__ import annotations

import errno
import re

# The last but one is a GPU's. The last is CPython's, where not even the MemoryError could be made (seen once under
# RLIMIT_AS).
OUT_OF_MEMORY = re.compile(
    "can't allocate memory|not enough memory|cannot allocate memory|bad_alloc|failed to map"
    "|cuda (error: )?out of memory|cublas_status_alloc_failed"
    "|error return without exception set",
    re.I,
)
OUT_OF_FILES = re.compile("too many open files", re.I)
OUT_OF_THREADS = re.compile("can't start new thread", re.I)


def shortage(error: BaseException | None) -> str | None:
    """``out_of_memory``, ``too_many_open_files`` or ``too_many_threads`` where the machine's limits, and nothing else,
    are behind ``error``; else None. Libraries report them in many ways: as an exception's type, its number, or in the
    text of a cause."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, MemoryError) or number == errno.ENOMEM or OUT_OF_MEMORY.search(str(error)):
            return "out_of_memory"
        if number in (errno.EMFILE, errno.ENFILE) or OUT_OF_FILES.search(str(error)):
            return "too_many_open_files"
        if OUT_OF_THREADS.search(str(error)):
            return "too_many_threads"
        error = error.__cause__ or error.__context__
    return None


class LaneError(Exception):
    """Ends the run with a report a person can act on.

    ``step`` is where (stable identifier), ``code`` what (stable identifier), ``cause`` one line that names the thing
    and says what was found and expected, ``action`` the next thing to do. ``status`` goes to the status file, and
    ``exit_code`` is the process's: see EXIT_CODES.
    """

    def __init__(
        self, step: str, code: str, cause: str, action: str, *, status: str = "blocked", exit_code: int = 3
    ) -> None:
        super().__init__(cause)
        self.step = step
        self.code = code
        self.cause = cause
        self.action = action
        self.status = status
        self.exit_code = exit_code


EXIT_CODES = {
    0: "completed",
    1: "failed: something broke that the lane did not foresee; the log has the traceback",
    2: "failed: a value that must be finite was not (hard fail)",
    3: "blocked: a setting, the audio, the model or the run directory must be put right first",
    4: "failed: the time limit was reached",
    129: "interrupted by SIGHUP",
    130: "interrupted by SIGINT",
    143: "interrupted by SIGTERM",
}
