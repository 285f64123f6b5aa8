"""Every gate that another project can use: `from harness.gates import *` in a test file of its own, and nothing else.

`training` holds the gates on what the voice lane writes, `baseline` those on what was recorded, `black_box` those that
need nothing of a lane's inside, `invariants` those on a program that is watched. The fixtures and the options come with
the plugin (harness/pytest_plugin.py).
"""

from harness.gates import baseline, black_box, invariants, training
from harness.gates.baseline import *  # noqa: F403
from harness.gates.black_box import *  # noqa: F403
from harness.gates.invariants import *  # noqa: F403
from harness.gates.training import *  # noqa: F403

__all__ = list(dict.fromkeys([*training.__all__, *black_box.__all__, *invariants.__all__, *baseline.__all__]))
