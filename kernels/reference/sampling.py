"""`sample` draws a token, and `generate` text."""

from collections.abc import Sequence

import numpy as np

from treadle.kernels.reference.arrays import Array, Parameters, States, Tokens
from treadle.kernels.reference.network import network_forward, zero_states


def lane_sum(weights: Array) -> np.float32:
    """Returns the sum of weights (N,) in float32, in the order of the kernels.

    Sixteen sums of every sixteenth weight, of which the upper half is added to the lower one until
    one is left.
    """
    padded = np.zeros(-(-weights.size // 16) * 16, np.float32)
    padded[: weights.size] = weights
    lanes = np.zeros(16, np.float32)
    for row in padded.reshape(-1, 16):
        lanes += row
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return np.float32(lanes[0]) if lanes.size else np.float32(0)


def draw(weights: Array, threshold: np.float32) -> int:
    """Returns the first place at which summed weights exceed a threshold, in float32.

    The place is found in stretches of 256 weights, within one in blocks of 16, within one among
    its weights. At each level the first part is taken with which the sum of this and all parts
    before it exceeds the threshold; where rounding leaves none, the last part that has a weight.

    Args:
        weights: (V,), from 0 up.
        threshold: a share of their sum.

    Returns:
        The place, from 0 to V - 1.
    """
    first = 0
    last = weights.size
    running = np.float32(0)
    for width in (256, 16, 1):
        before = running
        taken = first
        for start in range(first, last, width):
            part = lane_sum(weights[start : min(start + width, last)])
            if part > 0:
                taken = start
                running = before
            before += part
            if before > threshold:
                break
        first = taken
        last = min(first + width, last)
    return first


def sample(
    logits: Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    u: float = 0.0,
    typical_p: float = 1.0,
) -> int:
    """Draws a token from softmax(logits / temperature), truncated to its likely part.

    1. top-k (Fan et al. 2018): the top_k likeliest tokens are kept, equals by lower id.
    2. top-p, the nucleus (Holtzman et al. 2020): of these, the fewest likeliest whose probability,
       renormalized, reaches top_p.
    3. min-p (Nguyen et al. 2024): of these, the ones at least min_p times as likely as the
       likeliest.
    4. typical sampling (Meister et al. 2023): of these, renormalized, the fewest that reach
       typical_p, in ascending order of |-log p - entropy|, equals by lower id.
    5. The kept tokens are walked through in ascending id, with their probabilities added up. The
       token where the sum first exceeds u times the total is drawn (inversion sampling).

    Args:
        logits: scores of the vocabulary, (V,).
        temperature: below 1 sharpens the distribution, above 1 flattens it; 0 takes the likeliest
            token, of equals the lowest id.
        top_k: number of tokens to keep; 0 keeps all.
        top_p: probability to keep, in (0, 1]; 1 keeps all.
        min_p: least probability to keep, in [0, 1], relative to the likeliest token's.
        u: a uniform random number in [0, 1), the only random input.
        typical_p: probability of typical tokens to keep, in (0, 1]; 1 keeps all.

    Returns:
        The token's id.
    """
    if temperature == 0:
        return int(np.argmax(logits))
    # The maximum is subtracted before the division, so that no temperature leads to inf - inf.
    with np.errstate(over="ignore", under="ignore"):
        weights: Array = np.exp((logits - logits.max()) / temperature)
    kept = np.argsort(-weights, kind="stable")[: top_k or None]  # likeliest first
    if top_p < 1:
        reached = np.cumsum(weights[kept])
        kept = kept[: 1 + int(np.argmax(reached >= top_p * reached[-1]))]
    kept = kept[weights[kept] >= min_p * weights[kept[0]]]
    kept = np.sort(kept)
    if typical_p < 1:
        p = weights[kept] / weights[kept].sum()
        surprisal = -np.log(np.maximum(p, np.finfo(p.dtype).tiny))
        order = np.argsort(np.abs(surprisal - (p * surprisal).sum()), kind="stable")
        reached = np.cumsum(p[order])
        kept = np.sort(kept[order[: 1 + int(np.argmax(reached >= typical_p * reached[-1]))]])
    running = np.cumsum(weights[kept])
    beyond = np.flatnonzero(running > u * running[-1])
    # u times the total can round up to the total; the last kept token is drawn then.
    return int(kept[beyond[0]] if beyond.size else kept[-1])


def generate(
    parameters: Parameters,
    cell: str,
    prompt_tokens: Sequence[int] | Tokens,
    n: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    rng: np.random.Generator | None = None,
    states: States | None = None,
) -> list[int]:
    """Reads a prompt, then samples n tokens, each of which is the next input.

    Args:
        parameters: the network.
        cell: "rnn", "gru" or "lstm".
        prompt_tokens: at least one id.
        n: number of tokens to sample.
        temperature: see sample.
        top_k: see sample.
        top_p: see sample.
        min_p: see sample.
        rng: source of the random numbers; None for a new one. Not used at temperature 0.
        states: the states before the prompt, with B = 1; None for zeros.

    Returns:
        The n new token ids.
    """
    rng = rng or np.random.default_rng()
    states = states or zero_states(parameters, cell, B=1)
    tokens = np.asarray(prompt_tokens)
    sampled: list[int] = []
    while len(sampled) < n:
        logits, states, _ = network_forward(parameters, cell, tokens[:, np.newaxis], states)
        u = rng.random()
        sampled.append(sample(logits[-1, 0], temperature, top_k, top_p, min_p, u))
        tokens = np.array(sampled[-1:])
    return sampled
