"""All randomness of the lane: exact draws from the bits of a counter-based generator.

Only ``Philox.random_raw`` is used: its stream is specified (Salmon et al., SC 2011) and is the same on every machine
and NumPy release, where the distributions of ``numpy.random.Generator`` and of torch are not promised to be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STREAMS = {"adapter": 1, "order": 2}


class Draws:
    """One stream of draws, named by ``seed`` and ``stream`` (a key of STREAMS); streams do not overlap."""

    def __init__(self, seed: int, stream: str) -> None:
        self._bits = np.random.Philox(key=np.array([seed, STREAMS[stream]], dtype=np.uint64))

    def uniform(self, shape: tuple[int, ...], bound: float) -> NDArray[np.float64]:
        """Uniform in [-bound, bound), float64, exact to the bit: 53 raw bits scaled by powers of two."""
        raw = self._bits.random_raw(int(np.prod(shape))) >> np.uint64(11)
        unit = raw.astype(np.float64) * 2.0**-53
        return ((2.0 * unit - 1.0) * bound).reshape(shape)

    def permutation(self, count: int) -> list[int]:
        """A permutation of ``range(count)``: the order of ``count`` raw 64-bit draws."""
        return [int(index) for index in np.argsort(self._bits.random_raw(count), kind="stable")]
