"""What a Python that is too old for the project says: the report, and the command that works.

Python 2.7 must be able to read this file, so it is written without what came later. It leaves no file behind: no run
took place.
"""

import os
import subprocess
import sys

GOOD = ("3.13", "3.12", "3.11")
REPORT = """\
=== COLAB TRAIN REPORT ===
objective_status: blocked
first_failed_step: python
root_cause: {cause}
head_commit: none
python_version: {found}
gpu_available: none
audio_path: none
audio_exists: none
audio_size_bytes: none
audio_is_lfs_pointer: none
manifest_path: none
manifest_exists: none
manifest_entry_count: none
training_status_path: none
training_status_json: none
checkpoint_path: none
checkpoint_exists: none
checkpoint_size_bytes: none
checkpoint_sha256: none
next_unblock_action: {action}
lane: experimental
promotable: false
"""


def refuse(module="harness"):  # type: ignore[no-untyped-def]
    """Print the report, last and on the standard output; returns the exit code."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    cause = "this is Python {0}; the project needs 3.11 or later".format(found)  # noqa: UP030, UP032
    here = next((version for version in GOOD if _works("python" + version)), None)  # type: ignore[no-untyped-call]
    action = "install Python 3.11, 3.12 or 3.13, and run the same command with it in place of this one"
    if here:
        action = "python{0} -m {1} {2}".format(here, module, " ".join(sys.argv[1:])).rstrip()  # noqa: UP030
    sys.stdout.write(REPORT.format(cause=cause, found=found, action=action))
    sys.stdout.flush()
    return 11


def _works(name):  # type: ignore[no-untyped-def]
    """Whether there is such a Python on the path, and it starts."""
    with open(os.devnull, "r+b") as nothing:  # noqa: PTH123
        try:
            return subprocess.call([name, "--version"], stdin=nothing, stdout=nothing, stderr=nothing) == 0
        except OSError:
            return False
