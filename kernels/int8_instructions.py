"""`INSTRUCTIONS` says what multiplies int8 numbers on the processor that kernels are compiled for.

All give the same integers, so the choice changes the speed and no bit of a result:

- DOT: one instruction adds four products of a byte each, VPDPBUSD of AVX512_VNNI or AVX-VNNI;
- PAIRS: bytes are widened to 16 bits, of which one instruction adds two products, PMADDWD of SSE2,
  AVX2 or AVX-512BW. VPMADDUBSW, which takes bytes, is no choice: its sums of two products saturate;
- PLAIN: bytes are widened to 32 bits, multiplied and added; for every other processor.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from llvmlite import binding as llvm
from numba.core import config

from treadle.kernels.jit import TARGET


class Instructions(enum.Enum):
    """The instructions that multiply int8 numbers."""

    DOT = "dot"
    PAIRS = "pairs"
    PLAIN = "plain"


_AVX512_VNNI = (
    "cascadelake",
    "cooperlake",
    "icelake",
    "rocketlake",
    "tigerlake",
    "sapphirerapids",
    "emeraldrapids",
    "graniterapids",
    "diamondrapids",
    "znver4",
    "znver5",
)
_AVX_VNNI = (
    "alderlake",
    "raptorlake",
    "meteorlake",
    "arrowlake",
    "lunarlake",
    "pantherlake",
    "gracemont",
    "sierraforest",
    "grandridge",
    "clearwaterforest",
)


def choose(
    name: str | None, extra: str | None, host: Mapping[str, bool], lanes: int, triple: str
) -> Instructions:
    """Returns the fastest instructions of a processor.

    Args:
        name: LLVM's name of a processor that was asked for; None: the host.
        extra: what was asked for in addition, such as `+avx512vnni`; None: nothing, the host's
            features if no name was given.
        host: the features of the host.
        lanes: int32 numbers of a vector.
        triple: the target in LLVM's naming, such as x86_64-unknown-linux-gnu.
    """
    if not triple.lower().startswith(("x86_64", "amd64")):
        return Instructions.PLAIN
    if name is None and extra is None:
        known = {feature for feature, there in host.items() if there}
    else:
        known = _named_features(name or llvm.get_host_cpu_name(), extra or "")
    if "avx512vnni" in known and (lanes == 16 or "avx512vl" in known):
        return Instructions.DOT
    if "avxvnni" in known and lanes < 16:
        return Instructions.DOT
    # PMADDWD over 16 int32 needs AVX-512BW; those over 8 and 4 came with AVX2 and SSE2.
    return Instructions.PAIRS if lanes < 16 or "avx512bw" in known else Instructions.PLAIN


def _named_features(name: str, extra: str) -> set[str]:
    """Returns those features that matter here, of a processor by LLVM's name."""
    known: set[str] = set()
    if name.startswith(_AVX512_VNNI):
        known |= {"avx512vnni", "avx512vl", "avx512bw"}
    if name.startswith(("skylake-avx512", "x86-64-v4")):
        known |= {"avx512vl", "avx512bw"}
    if name.startswith(_AVX_VNNI):
        known.add("avxvnni")
    for word in extra.split(","):
        if word.startswith("+"):
            known.add(word[1:])
        elif word.startswith("-"):
            known.discard(word[1:])
    return known


def _host_features() -> Mapping[str, bool]:
    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:  # LLVM does not know this processor's features
        return {}


INSTRUCTIONS = choose(
    config.CPU_NAME, config.CPU_FEATURES, _host_features(), TARGET.lanes, llvm.get_default_triple()
)
"""Those of the processor that kernels are compiled for."""
