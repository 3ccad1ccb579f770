"""`multiply_adds` measures the processor's float32 peak; `flops_per_token` counts a step's work.

The peak is measured, not looked up: a loop of fused multiply-adds whose operands never leave
the registers, enough chains of them side by side to hide their latency, on as many threads as the
step has. What a step needs counts useful multiply-adds of matrix products only, two FLOPs each:

    recurrence, a layer     forward T B H G,  dh (T-1) B G H,  dWh T B H G
    output layer            logits, dh and dWy: 3 T B H V
    folded input            table, dWx and dE: 3 min(V, T B) E G
    layers above the first  input, dx and dWx: 3 T B H G

The last dh of a window goes nowhere and is not counted, nor is anything that gates, softmax, clip,
optimizer and packing do: their time counts, their arithmetic does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treadle.benchmarks.settings import Case
from treadle.kernels.jit import PYTHON_MODE, TARGET, jit
from treadle.kernels.reference import GATES
from treadle.kernels.simd import broadcast

CHAINS = 24 if TARGET.rows == 8 else 12
"""Accumulators: they and two operands fill most of 32 or 16 vector registers."""

_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, TARGET.lanes)


def _emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit acc = acc * factor + term for every chain, `steps` times, and return their sum."""
    steps, factor, term = arguments
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    name = f"llvm.fma.v{TARGET.lanes}f32"
    fma = cgutils.get_or_insert_function(builder.module, kind, name)
    factor, term = (broadcast(builder, value, TARGET.lanes) for value in (factor, term))
    entry = builder.block
    body = builder.append_basic_block("peak")
    done = builder.append_basic_block("peak_end")
    builder.branch(body)
    builder.position_at_end(body)
    count = builder.phi(_INT64)
    sums = [builder.phi(_VECTOR) for _ in range(CHAINS)]
    results = [builder.call(fma, [chain, factor, term]) for chain in sums]
    following = builder.add(count, _INT64(1))
    count.add_incoming(_INT64(0), entry)
    count.add_incoming(following, body)
    for number, (chain, result) in enumerate(zip(sums, results, strict=True)):
        # Different starts: of equal chains the compiler would keep one.
        chain.add_incoming(ir.Constant(_VECTOR, [float(number)] * TARGET.lanes), entry)
        chain.add_incoming(result, body)
    builder.cbranch(builder.icmp_signed("<", following, steps), body, done)
    builder.position_at_end(done)
    total = results[0]
    for result in results[1:]:
        total = builder.fadd(total, result)
    return builder.extract_element(total, _INT32(0))


def _chains(typing_context: Any, steps: Any, factor: Any, term: Any) -> Any:
    return types.float32(types.int64, types.float32, types.float32), _emit


def _python_chains(steps: int, factor: np.float32, term: np.float32) -> np.float32:
    return np.float32(steps) * factor + term


_run: Any = _python_chains if PYTHON_MODE else intrinsic(_chains)


@jit
def _loop(steps: int, factor: np.float32, term: np.float32) -> np.float32:
    result: np.float32 = _run(steps, factor, term)
    return result


def multiply_adds(steps: int) -> float:
    """Runs `steps` rounds of all chains on this thread; returns their FLOPs."""
    _loop(steps, np.float32(0.5), np.float32(1.0))
    return 2.0 * TARGET.lanes * CHAINS * steps


def flops_per_token(case: Case) -> float:
    """Returns the useful FLOPs of a training step, over its tokens."""
    H = case.hidden
    V = case.vocabulary
    E = case.embedding
    L = case.layers
    G = GATES[case.cell] * case.hidden
    N = case.rows * case.steps
    recurrence = L * H * G * (3 * N - case.rows)
    between = (L - 1) * 3 * N * H * G
    output = 3 * N * H * V
    folded = 3 * min(V, N) * E * G
    return 2.0 * (recurrence + between + output + folded) / N
