"""`choose_clusters` cuts a vocabulary into the head and the clusters of a factored softmax.

A cluster is a range of neighbouring token ids. The cuts have the least cost by a model of the work
for one shard, found by dynamic programming. The head's columns cost one unit for each row. A
cluster costs its column in the head, and its own columns for the rows whose target is in it. Each
of these columns costs _LOAD_ROWS rows more if there are any such rows at all, since its weights
are loaded for a few rows as for many; and each cluster costs _CLUSTER_COST, for its own calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from treadle.model.enums import Softmax
from treadle.model.errors import ConfigError

if TYPE_CHECKING:
    from treadle.model.config import NetworkConfig

Counts = npt.NDArray[np.int64]

ALIGNMENT = 32
"""A cluster begins at a multiple of this, the columns of the widest packed panel."""

LEAST_VOCABULARY = 1_000
"""Tokens of the smallest vocabulary that is cut at places of our choice."""

_SHARD_TOKENS = 512
"""Tokens of a shard: 16 rows of 32 steps."""
_LOAD_ROWS = 12.0
"""What loading a column's weights and gradients costs, in rows."""
_CLUSTER_COST = 10_000.0
"""What a cluster costs besides, in columns times rows."""
_MOST_CUTS = 512
"""Places that are considered for cuts, at most."""


def choose_clusters(counts: Counts) -> tuple[int, ...]:
    """Returns where to cut a vocabulary for the least work of training.

    Args:
        counts: (V,), how often each token is predicted in the corpus.

    Returns:
        The first token of every cluster, ascending; at least one.

    Raises:
        ConfigError: The vocabulary is too small for it to pay.
    """
    V = counts.size
    if V < LEAST_VOCABULARY:
        raise ConfigError(
            f"network.softmax 'factored' pays from {LEAST_VOCABULARY:,} tokens on, but the "
            f"vocabulary has {V:,}: leave it out, or have more tokens by another tokenizer.kind "
            "or a higher tokenizer.max_vocabulary_size",
            "network.softmax",
        )
    step = ALIGNMENT * -(-V // (ALIGNMENT * _MOST_CUTS))
    cuts = np.append(np.arange(0, V, step), V)
    shares = np.append(0, np.cumsum(counts))[cuts] / max(int(counts.sum()), 1)
    # best[j]: the least cost of clusters from cut j to the end; found from the end.
    best = np.zeros(cuts.size)
    following = np.zeros(cuts.size, np.int64)
    for j in range(cuts.size - 2, 0, -1):
        ends = np.arange(j + 1, cuts.size)
        share = shares[ends] - shares[j]
        rows = _SHARD_TOKENS * share
        seen = 1 - np.exp(-rows)  # how likely a shard has such a row at all
        work = (cuts[ends] - cuts[j]) * (rows + _LOAD_ROWS * seen)
        costs = _SHARD_TOKENS + _CLUSTER_COST * seen + work + best[ends]
        following[j] = ends[np.argmin(costs)]
        best[j] = costs.min()
    heads = cuts[1:-1] * (_SHARD_TOKENS + _LOAD_ROWS) + best[1:-1]
    found = []
    place = 1 + int(np.argmin(heads))
    while place < cuts.size - 1:
        found.append(int(cuts[place]))
        place = int(following[place])
    return tuple(found)


def check_clusters(config: NetworkConfig) -> None:
    """Refuses clusters that no softmax can have.

    Raises:
        ConfigError: The softmax is full, or they do not ascend in multiples of ALIGNMENT.
    """
    clusters = config.softmax_clusters
    if clusters and config.softmax is Softmax.FULL:
        raise ConfigError(
            "network.softmax_clusters belongs to network.softmax 'factored', but that is 'full': "
            "leave the clusters out, or set it",
            "network.softmax_clusters",
        )
    before = 0
    for first in clusters:
        if first <= before or first % ALIGNMENT:
            raise ConfigError(
                "network.softmax_clusters must be ascending multiples of "
                f"{ALIGNMENT}, but {first} follows {before}",
                "network.softmax_clusters",
            )
        before = first


def check_clusters_fit(clusters: tuple[int, ...], vocabulary_size: int) -> None:
    """Refuses clusters that begin beyond a vocabulary.

    Raises:
        ConfigError: The last one begins after the last token.
    """
    if clusters and clusters[-1] >= vocabulary_size:
        raise ConfigError(
            f"network.softmax_clusters has a cluster that begins with token {clusters[-1]}, but "
            f"the vocabulary has {vocabulary_size} tokens: leave it out",
            "network.softmax_clusters",
        )
