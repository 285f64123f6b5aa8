"""How a result was computed, and what it is: digests, sketches, numeric modes and the kernel battery."""
