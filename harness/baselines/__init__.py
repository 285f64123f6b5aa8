"""Baselines: evidence that was recorded as good, what a comparison with it found, and why two runs differ."""
