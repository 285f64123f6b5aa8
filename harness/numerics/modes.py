"""The three numeric modes: what is set before the process starts, and what after torch is imported.

Standard library only at import time: the parent process sets the environment before torch loads in the child.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.numerics.processor import forced

if TYPE_CHECKING:
    import torch

# Measured: each one is needed for float32 bits that are the same on every x86 processor with AVX2.
PORTABLE_PINS = {**forced(aten="avx2", onednn="AVX2", mkl="COMPATIBLE"), "OMP_NUM_THREADS": "1"}
# Recorded in environment.json, whatever the mode.
PIN_NAMES = (*PORTABLE_PINS, "MKL_NUM_THREADS", "GOMP_SPINCOUNT", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED")


def environment_pins(mode: str, threads: int) -> dict[str, str]:
    """Environment variables of the lane's process for ``mode``; they must be set before it starts."""
    # A thread that waits for the others sleeps after 1000 turns. By default it turns for milliseconds, and where other
    # processes want the cores too, two threads then take up to four times as long (measured).
    counts = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "1000"}
    if mode == "portable":
        return {**counts, **PORTABLE_PINS, "MKL_NUM_THREADS": "1"}
    if mode == "native":
        # Only a GPU reads it; without it, cuBLAS may choose another workspace, and another sum, each time.
        return {**counts, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return counts


def apply_mode(mode: str, threads: int) -> torch.dtype:
    """Set torch up for ``mode`` in this process; returns the dtype in which the lane computes."""
    import torch

    torch.set_num_threads(1 if mode == "portable" else threads)
    # This is use_deterministic_algorithms(True) without its import of torch's compiler, 1.3 s (measured).
    torch.set_deterministic_debug_mode("error")
    # Without this, deterministic mode fills every fresh tensor: 40 % of the time of a float64 encoding (measured).
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    # Of the attention kernels on a GPU these two have no deterministic backward pass.
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Only the codec's layers would run in cuDNN. For a float32 convolution of encodec_32khz it took 70 GB of an H100's
    # memory, and 0.24 s a chunk where torch's own take 0.02 s; with less memory free, it takes another algorithm.
    torch.backends.cudnn.enabled = False
    return torch.float64 if mode == "universal" else torch.float32
