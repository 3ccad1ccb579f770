"""A log-probability has the same bits alone and among others, at once and in pieces."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from small_networks import CELLS, Network, make_network, same_bytes

from treadle.model import (
    Cell,
    CorpusLayout,
    DataConfig,
    Model,
    NetworkConfig,
    TokenizerConfig,
    read_corpus,
)
from treadle.model.data.validation_batches import ValidationBatches
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.network.workspace import pack_for_inference
from treadle.model.scoring.scorer import Scorer

pytestmark = pytest.mark.jit

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

V = 37
T = 48
B = 32


@pytest.fixture(params=CELLS)
def network(request: pytest.FixtureRequest) -> Network:
    return make_network(request.param, V, E=5, H=33, L=2)


def scores_of(network: Network, tokens: Ints, targets: Ints, cuts: list[int]) -> Floats:
    """Score tokens (T, B), the state carried from cut to cut."""
    edges = [0, *cuts, len(tokens)]
    window = max(np.diff(edges))
    rows = tokens.shape[1]
    weights = pack_for_inference(network.parameters)
    scorer = Scorer(network.shape, weights, rows, int(window), Pool(2))
    parts = [
        scorer.log_probabilities(tokens[a:b], targets[a:b], np.full(rows, a == 0))
        for a, b in pairwise(edges)
    ]
    return np.concatenate(parts)


def draw_batch() -> tuple[Ints, Ints]:
    rng = np.random.default_rng(6)
    tokens, targets = rng.integers(V, size=(2, T, B), dtype=np.int32)
    return tokens, targets


def test_a_row_among_32_is_the_row_alone(network: Network) -> None:
    tokens, targets = draw_batch()
    together = scores_of(network, tokens, targets, [16, 32])
    for b in range(B):
        row = slice(b, b + 1)
        alone = scores_of(network, tokens[:, row], targets[:, row], [16, 32])
        assert same_bytes(alone, together[:, row].copy())


@pytest.mark.parametrize("cuts", [[1, 2, 3], [7, 20], [47], list(range(1, T))])
def test_pieces_do_not_matter(network: Network, cuts: list[int]) -> None:
    tokens, targets = draw_batch()
    row = slice(3, 4)
    at_once = scores_of(network, tokens[:, row], targets[:, row], [])
    in_pieces = scores_of(network, tokens[:, row], targets[:, row], cuts)
    assert same_bytes(in_pieces, at_once)


@pytest.mark.parametrize("cell", CELLS)
def test_an_item_in_validation_scores_as_it_does_alone(cell: str) -> None:
    lines = [f"{n}{'-' * (n % 7)}{n * n}" for n in range(5, 90)]
    config = DataConfig(layout=CorpusLayout.LINES, validation_fraction=0.5)
    corpus = read_corpus("\n".join(lines).encode(), TokenizerConfig(), config, seed=3)
    assert corpus.valid is not None
    tokenizer = corpus.tokenizer
    settings = NetworkConfig(cell=Cell(cell), hidden_size=20, layers=2, embedding_size=3)
    shape = Shape.of(settings, tokenizer.vocabulary_size)
    model = Model(settings, tokenizer, Parameters.initial(shape, seed=1))

    weights = pack_for_inference(model.parameters)
    checked = 0
    for batch in ValidationBatches(corpus.valid, tokenizer, streams=B, window=64, context=0):
        scorer = Scorer(shape, weights, batch.tokens.shape[1], 64, Pool(1))
        scores = scorer.log_probabilities(batch.tokens, batch.targets, batch.fresh)
        for tokens, row, targets in zip(batch.tokens.T, scores.T, batch.targets.T, strict=True):
            length = int((targets >= 0).sum())
            if length:
                alone = model.score(tokenizer.decode(tokens[1:length]))
                assert [t.log_probability for t in alone.tokens] == row[:length].tolist()
                checked += 1
    assert checked == corpus.valid.items > B
