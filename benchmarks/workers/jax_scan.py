"""`make` measures JAX: a jitted scan that decodes a chunk, sampling inside."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from treadle.benchmarks.answers import FIRST_TOKEN
from treadle.benchmarks.networks import network_weights
from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.serve import CheckedStep, Maker, Options, Step

Network = dict[str, Any]


def _network(case: Case) -> Network:
    """The input is folded into a table (V, 4H), as ours has it."""
    weights = network_weights(case)
    table = weights["embedding"] @ weights["Wx0"] + weights["b0"]
    arrays = {"table": table, "Wh": weights["Wh0"], "Wy": weights["Wy"], "by": weights["by"]}
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def _decoder(case: Case, options: Options) -> Any:
    network = _network(case)
    table = network["table"]
    by = network["by"]
    turned = options["transposed"]
    Wh, Wy = (jnp.array(network[name].T if turned else network[name]) for name in ("Wh", "Wy"))

    def product(h: Any, W: Any) -> Any:
        return W @ h if turned else h @ W

    def one(carry: Any, noise: Any) -> Any:
        token, h, c = carry
        i, f, g, o = jnp.split(table[token] + product(h, Wh), 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        # Gumbel noise and argmax are a draw; several ways were tried, this is the fastest.
        token = jnp.argmax(by + product(h, Wy) + noise).astype(jnp.int32)
        return (token, h, c), token

    def chunk(key: Any, carry: Any) -> Any:
        key, own = jax.random.split(key)
        noise = jax.random.gumbel(own, (case.steps, case.vocabulary))
        return key, *jax.lax.scan(one, carry, noise, unroll=options["unroll"])

    return jax.jit(chunk)


def make(case: Case, options: Options) -> Step:
    """Draws a chunk of tokens."""
    decoder = _decoder(case, options)
    zeros = jnp.zeros(case.hidden, jnp.float32)
    key = jax.random.key(0)
    begin = (jnp.int32(FIRST_TOKEN), zeros, zeros)
    carry = begin

    def step() -> float:
        nonlocal key, carry
        key, carry, tokens = decoder(key, carry)
        return float(np.asarray(tokens).size)

    def answers() -> dict[str, Any]:
        _, (_, h, _), tokens = decoder(key, begin)
        return {"tokens": [[token] for token in tokens.tolist()], "h": [h.tolist()]}

    return CheckedStep(step, answers)


def load() -> tuple[str, Maker]:
    """Returns JAX's version and what makes cases."""
    return jax.__version__, make
