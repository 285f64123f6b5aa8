"""Which kernels can be asked for by name, and what each needs of the processor.

The only file that names the variables by which kernels are chosen: whatever forces some asks `forced` for them, and
`lacking` whether this processor can run them. (A kernel that it lacks ends the process with SIGILL, without a word.)
Standard library only at import time.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

_AVX2 = ("AVX2", "FMA3")
_AVX512 = (*_AVX2, "AVX512F", "AVX512BW", "AVX512DQ", "AVX512VL")

ATEN = "ATEN_CPU_CAPABILITY"
ONEDNN = "ONEDNN_MAX_CPU_ISA"
MKL = "MKL_CBWR"
MKL_LIMIT = "MKL_ENABLE_INSTRUCTIONS"
OPENBLAS = "OPENBLAS_CORETYPE"
# Torch and OpenBLAS run what they are told to. The others only limit: beyond the processor they change nothing.
FORCING = (ATEN, OPENBLAS)

# variable → value → the processor's features, in NumPy's names
NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    ATEN: {"default": (), "avx2": _AVX2, "avx512": _AVX512, "sve": ("SVE",), "sve256": ("SVE",)},
    ONEDNN: {
        "default": (), "sse41": ("SSE41",), "avx": ("AVX",), "avx2": _AVX2, "avx2_vnni": _AVX2, "avx512_core": _AVX512,
        "avx512_core_vnni": (*_AVX512, "AVX512VNNI"), "avx512_core_bf16": (*_AVX512, "AVX512BF16"),
        "avx512_core_fp16": (*_AVX512, "AVX512FP16"),
    },
    MKL: {
        "compatible": (), "auto": (), "off": (), "sse2": ("SSE2",), "ssse3": ("SSSE3",), "sse4_1": ("SSE41",),
        "sse4_2": ("SSE42",), "avx": ("AVX",), "avx2": _AVX2, "avx512": _AVX512, "avx512_e1": (*_AVX512, "AVX512VNNI"),
    },
    MKL_LIMIT: {
        "sse4_2": ("SSE42",), "avx": ("AVX",), "avx2": _AVX2, "avx512": _AVX512, "avx512_e1": (*_AVX512, "AVX512VNNI"),
    },
    OPENBLAS: {
        "prescott": (), "core2": (), "penryn": (), "nehalem": ("SSE42",), "sandybridge": ("AVX",), "haswell": _AVX2,
        "zen": _AVX2, "skylakex": _AVX512, "cooperlake": (*_AVX512, "AVX512BF16"),
        "sapphirerapids": (*_AVX512, "AVX512BF16", "AVX512FP16"), "armv8": ("ASIMD",), "neoversen1": ("ASIMD",),
        "neoversev1": ("SVE",), "neoversen2": ("SVE",), "armv8sve": ("SVE",), "a64fx": ("SVE",),
    },
}  # fmt: skip


def forced(**kernels: str) -> dict[str, str]:
    """Environment variables that choose kernels: ``forced(aten="avx2", mkl="COMPATIBLE")``; an empty value is left out.

    Raises KeyError for a library or a value of which it is not known what it needs.
    """
    names = {"aten": ATEN, "onednn": ONEDNN, "mkl": MKL, "mkl_limit": MKL_LIMIT, "openblas": OPENBLAS}
    chosen = {names[library]: value for library, value in kernels.items() if value}
    for name, value in chosen.items():
        NEEDS[name][value.lower()]
    return chosen


def lacking(environ: Mapping[str, str], variables: Collection[str] = tuple(NEEDS)) -> str:
    """What ``environ`` asks for by ``variables`` and this processor cannot run, in one line; empty if it can all be
    run, and where the processor's features cannot be told."""
    features = processor_features()
    lines = []
    for name in variables:
        needed = NEEDS[name].get(environ.get(name, "").partition(",")[0].strip().lower(), ())
        if absent := [feature for feature in needed if features and feature not in features]:
            lines.append(f"{name}={environ[name]} needs {', '.join(absent)}, which this processor lacks")
    return "; ".join(lines)


@functools.cache
def processor_features() -> frozenset[str]:
    """The features of this processor that NumPy knows, by its names; empty where they cannot be told.

    NumPy asks the processor itself, and has no public name for the answer. /proc/cpuinfo
    shows an emulated process its host's features.
    """
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as found  # type: ignore[import-not-found]
    except ImportError:
        return frozenset()
    return frozenset(name for name, is_there in found.items() if is_there)
