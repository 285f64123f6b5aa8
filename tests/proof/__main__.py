"""`python tests/proof COMMAND`: what measures the claims of the documentation, with the interpreter of the set-up.

These commands are this project's own, and no part of the package: they change copies of this checkout's lane, and
write the generated pages under docs/.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

COMMANDS = {
    "sensitivity": "how small a change is seen; docs/measurements/sensitivity.md",
    "learning": "whether the lane learns what it was not shown; docs/measurements/learning.md",
    "universality": "whether the digest holds however it is computed; docs/measurements/universality.md",
    "mutation": "faults seeded in the lane, and which gates notice them",
    "false-alarms": "clean runs under all that must not matter",
    "detection": "write docs/measurements/detection.md from what the last two have kept",
}


def main(argv: list[str]) -> int:
    """Call the command. Returns its exit code; 0 after help, 2 for a command that is not there."""
    if argv[:1] and argv[0] in COMMANDS:
        return int(importlib.import_module(f"proof.{argv[0].replace('-', '_')}").main(argv[1:]))
    print("usage: python tests/proof COMMAND [--help]\n")
    print("\n".join(f"  {name:<14}{what}" for name, what in COMMANDS.items()))
    return 0 if argv and argv[0] in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
