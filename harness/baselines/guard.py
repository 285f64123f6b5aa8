"""The guard: which parameters a digest of float32 values must leave out, so that a drift in float64 cannot move it.

Universal mode trains in float64 and rounds the result to float32. A parameter x of a later run differs from the
recorded v by a drift |x - v| <= g. Rounding to float32 is monotone, so float32(x) lies between float32(v - g) and
float32(v + g): where those two are the same bits, x has these bits too. Every other position is *guarded*: it is listed
in the recording and left out of the digest. Nothing else is assumed; in particular ties, powers of two (where the grid
changes its width), subnormals, overflow and the two zeros need no case of their own, with one exception below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

GUARD = 1e-12  # 30 times the largest drift that was measured
MEASURED_DRIFT = 3.4e-14  # largest |difference| of a float64 parameter of the shipped lane between kernels and threads

_BLOCK = 1 << 18


def guarded_positions(values64: npt.NDArray[np.float64], guard: float) -> list[int]:
    """The flat indices (sorted) of `values64` (float64, any shape) whose float32 bits a drift of `guard` may change.

    For every other position each float64 within `guard` (absolute) of the value rounds to the same float32 bits.
    Raises ValueError unless `guard` is finite and positive, and when a value is not a finite float64.
    """
    if not (math.isfinite(guard) and guard > 0.0):
        raise ValueError(f"a guard is a finite positive number, found {guard}")
    if values64.dtype != np.float64:
        raise ValueError(f"the guard needs the values before rounding, in float64; found {values64.dtype}")
    flat = np.ascontiguousarray(values64).reshape(-1)
    found: list[int] = []
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if not np.isfinite(block).all():
            position = start + int(np.argmin(np.isfinite(block)))
            raise ValueError(f"a value that is not finite cannot be guarded: position {position}")
        low, high = block - guard, block + guard
        # -0.0 lies as near as +0.0, and rounds to other bits. A sum that is zero is +0.0, so `high` needs nothing.
        low[low == 0.0] = -0.0
        with np.errstate(over="ignore", under="ignore"):
            same = low.astype(np.float32).view(np.uint32) == high.astype(np.float32).view(np.uint32)
        found += (np.flatnonzero(~same) + start).tolist()
    return found


def encode_positions(positions: Iterable[int]) -> str:
    """Sorted positions as text: the step from each to the next, `7*3` for three steps of 7. `5,1*2` is 5, 6, 7."""
    steps: list[tuple[int, int]] = []
    last = 0
    for position in positions:
        step, last = position - last, position
        if steps and steps[-1][0] == step:
            steps[-1] = (step, steps[-1][1] + 1)
        else:
            steps.append((step, 1))
    return ",".join(f"{step}*{times}" if times > 1 else str(step) for step, times in steps)


def decode_positions(text: str, *, size: int) -> Sequence[int]:
    """The positions of `encode_positions`. Raises ValueError unless they are strictly increasing and in [0, size)."""
    positions: list[int] = []
    last = 0
    for item in text.split(",") if text else ():
        step, _, times = item.partition("*")
        if not (step.isascii() and step.isdigit() and (not _ or (times.isascii() and times.isdigit()))):
            raise ValueError(f"positions are steps such as 5,1*2; found {item[:40]!r}")
        for _repeat in range(min(int(times or 1), size + 1)):
            if (positions and int(step) == 0) or last + int(step) >= size:
                raise ValueError(f"positions must be strictly increasing and in [0, {size}); found {item[:40]!r}")
            last += int(step)
            positions.append(last)
    return positions
