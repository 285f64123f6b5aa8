"""The run's log."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from harness.base.files import remove
from harness.lane.run import log


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log, warnings, errors that Python cannot raise or that end a thread, and the stacks of a crash go to ``path``,
    not to the terminal.

    A log that can no longer be written (a full disk) is no reason to fail, and nothing to show a traceback for.
    """
    logging.raiseExceptions = False
    remove(path, "log")
    file = path.open("x", encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    faulthandler.enable(file)
    sys.unraisablehook = lambda what: log.error("ignored in %r: %r", what.object, what.exc_value)
    threading.excepthook = lambda what: log.error("%r ended: %r", what.thread, what.exc_value)
    try:
        yield
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        threading.excepthook = threading.__excepthook__
        faulthandler.disable()
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            file.close()
