"""A generation has the same bits in any chunks, and when it continues after its text is read."""

from typing import Any

import numpy as np
import pytest
from small_networks import CELLS, same_bytes

from treadle.model import Cell, DataConfig, Model, NetworkConfig, SamplingConfig, TokenizerConfig
from treadle.model.data.corpus import read_corpus
from treadle.model.generation import generate as generating
from treadle.model.generation.output import OutputOptions
from treadle.model.network import prefill as reading
from treadle.model.network.parameters import Parameters
from treadle.model.network.prefill import read_tokens
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import Shape

pytestmark = pytest.mark.jit

TEXT = "the treadle turns a wheel by foot, a loop that needs no engine; " * 3
SAMPLING = SamplingConfig(temperature=0.9, top_k=12, top_p=0.95, seed=11, max_new_tokens=100)


@pytest.fixture(params=CELLS)
def model(request: pytest.FixtureRequest) -> Model:
    tokenizer = read_corpus(TEXT.encode(), TokenizerConfig(), DataConfig(), seed=0).tokenizer
    network = NetworkConfig(cell=Cell(request.param), hidden_size=33, layers=2, embedding_size=5)
    shape = Shape.of(network, tokenizer.vocabulary_size)
    return Model(network, tokenizer, Parameters.initial(shape, seed=4))


def generate(model: Model, prompt: str) -> tuple[str, list[Any]]:
    pieces = list(model.stream(prompt, SAMPLING))
    tokens = [(token.id, token.log_probability) for piece in pieces for token in piece.tokens]
    return "".join(piece.text for piece in pieces), tokens


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_do_not_matter(model: Model, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(model, TEXT[:70])
    monkeypatch.setattr(generating, "CHUNK", chunk)
    assert generate(model, TEXT[:70]) == expected


@pytest.mark.parametrize("window", [1, 13, 1000])
def test_how_a_prompt_is_read_does_not_matter(
    model: Model, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(model, TEXT)
    monkeypatch.setattr(reading, "WINDOW", window)
    assert generate(model, TEXT) == expected


def test_what_was_generated_scores_the_same(model: Model) -> None:
    text, tokens = generate(model, TEXT[:20])
    scores = model.score(text, context=TEXT[:20]).tokens
    assert [(token.id, token.log_probability) for token in scores] == tokens


def test_reading_leaves_the_state_that_drawing_leaves(model: Model) -> None:
    """A state returned after a text is the one that the text leaves when it is read."""
    drawn = list(model.stream(TEXT[:30], SAMPLING, output=OutputOptions(tokens=True, state=True)))
    result = drawn[-1].result
    assert result is not None
    assert result.state is not None
    ids = [token.id for piece in drawn for token in piece.tokens]
    tokens = np.concatenate((model.tokenizer.encode(TEXT[:30]), np.array(ids, np.int32)))
    begun = SessionState.fresh(model.parameters.shape)
    *_, read = read_tokens(model.parameters.shape, model.weights, begun, tokens)
    assert same_bytes(result.state.hs, read.hs)
    assert same_bytes(result.state.cs, read.cs)
    assert (result.state.token, result.state.position) == (ids[-1], len(ids))
