"""The system under test: a voice-adapter training lane, run as a child process (``python -m harness.lane``)."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    from harness.bootstrap.too_old import refuse

    sys.exit(refuse("harness.lane"))
