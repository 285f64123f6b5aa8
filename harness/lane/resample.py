"""Resampling of a stream by a windowed sinc, in float64.

audiocraft resamples with julius, whose kernels are made in float32 and for whole signals. Here the kernel is made in
float64 (float32 sines differ between processors, and a token is an argmin), and the output can be cut out piece by
piece. Method: Smith, "Digital Audio Resampling"; Hann-windowed sinc of ZEROS zero crossings, roll-off ROLLOFF of the
lower Nyquist frequency, as in julius.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ZEROS = 24
ROLLOFF = 0.945


class Resampler:
    """Gives any stretch of the resampled signal from the stretch of the source that it needs.

    ``source_rate`` and ``target_rate`` in Hz. Output sample n lies at the source's time n * source_rate / target_rate;
    outside the source the signal is its first or last sample.
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        common = math.gcd(source_rate, target_rate)
        self.old, self.new = source_rate // common, target_rate // common
        self._cutoff = min(self.old, self.new) * ROLLOFF
        self.width = 0 if self.old == self.new else math.ceil(ZEROS * self.old / self._cutoff)
        self._kernels = self._make_kernels() if self.width else np.ones((1, 1))

    def _make_kernels(self) -> NDArray[np.float64]:
        """One kernel for each of the ``new`` output phases: ``[new, 2 * width + 1]``, over source offsets -width …
        width."""
        offsets = np.arange(-self.width, self.width + 1, dtype=np.float64)
        kernels = np.empty((self.new, 2 * self.width + 1))
        for phase in range(self.new):
            # The output of this phase lies phase * old / new source samples (less the whole ones) after its base
            # sample.
            fraction = (phase * self.old % self.new) / self.new
            t = np.clip((offsets - fraction) * self._cutoff / self.old, -ZEROS, ZEROS)
            kernel = np.sinc(t) * np.cos(np.pi * t / ZEROS / 2) ** 2
            kernels[phase] = kernel / kernel.sum()
        return kernels

    def output_length(self, frames: int) -> int:
        """How many output samples ``frames`` source samples give."""
        return frames * self.new // self.old

    def source_range(self, start: int, count: int) -> tuple[int, int]:
        """The source samples [first, last) that output samples [start, start + count) need; may reach outside the
        source."""
        first = start * self.old // self.new - self.width
        last = (start + count - 1) * self.old // self.new + self.width + 1
        return first, last

    def resample(self, source: NDArray[np.float64], first: int, start: int, count: int) -> NDArray[np.float64]:
        """Output samples [start, start + count) from ``source``, which holds the source from sample ``first`` on."""
        if not self.width:
            return source[start - first : start - first + count]
        bases = np.arange(start, start + count) * self.old // self.new - self.width - first
        windows = np.lib.stride_tricks.sliding_window_view(source, 2 * self.width + 1)
        out = np.empty(count)
        # One phase at a time: the sums are plain dot products, and no array of windows is made for all phases at once.
        for phase in range(self.new):
            rows = slice((phase - start) % self.new, None, self.new)
            out[rows] = windows[bases[rows]] @ self._kernels[phase]
        return out
