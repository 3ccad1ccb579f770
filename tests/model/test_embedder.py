from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.kernels import reference
from treadle.model.config import NetworkConfig, TokenizerConfig
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, UnknownSymbolError
from treadle.model.model import Model
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.scoring.embedder import Embedder, Embedding
from treadle.model.tokenizers.build import build_tokenizer

pytestmark = pytest.mark.jit  # what it calls in kernels is tested uncompiled elsewhere

TEXT = "abc cab bca, a cab abc! "


def model_of(cell: Cell = Cell.LSTM, layout: CorpusLayout = CorpusLayout.TEXT) -> Model:
    tokenizer = build_tokenizer(TokenizerConfig(TokenizerKind.CHARACTERS), [TEXT], layout)
    config = NetworkConfig(cell=cell, hidden_size=5, embedding_size=3, layers=2)
    parameters = Parameters.initial(Shape.of(config, tokenizer.vocabulary_size), seed=1)
    parameters.flat *= 3
    return Model(config, tokenizer, parameters)


def embed(model: Model, text: str) -> Embedding:
    *_, found = Embedder(model.trained).embedding(text)
    assert found is not None
    return found


def expected(model: Model, tokens: list[int]) -> NDArray[np.float64]:
    """The hidden states (L, H) after tokens, in float64."""
    weights: reference.Parameters = {
        name: array.astype(np.float64) for name, array in model.parameters.named().items()
    }
    states = reference.zero_states(weights, model.network.cell, B=1)
    inputs = np.array(tokens, np.int32)[:, None]
    _, (hs, _), _ = reference.network_forward(weights, model.network.cell, inputs, states)
    return np.asarray(hs, np.float64)[:, 0]


@pytest.mark.parametrize("cell", Cell)
@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("repeats", [1, 4])
def test_an_embedding_is_the_state_after_the_last_token(
    repeats: int, layout: CorpusLayout, cell: Cell
) -> None:
    model = model_of(cell, layout)
    tokens = model.tokenizer.encode(TEXT * repeats).tolist()
    begin = [] if model.tokenizer.begin is None else [model.tokenizer.begin]
    found = embed(model, TEXT * repeats)
    assert found.token_count == len(tokens)
    assert found.states.shape == (2, 5)
    np.testing.assert_allclose(found.states, expected(model, begin + tokens), rtol=1e-4, atol=1e-5)


def test_an_empty_text_is_what_there_is_before_it() -> None:
    empty = embed(model_of(), "")
    assert not empty.states.any()
    assert empty.token_count == 0
    model = model_of(layout=CorpusLayout.LINES)
    assert model.tokenizer.begin is not None
    item = embed(model, "")
    assert item.token_count == 0
    np.testing.assert_allclose(item.states, expected(model, [model.tokenizer.begin]), 1e-4, 1e-6)


def test_texts_before_it_change_no_bit() -> None:
    model = model_of()
    embedder = Embedder(model_of().trained)
    for text in (TEXT * 5, "abc", "", "cab"):
        *_, found = embedder.embedding(text)
        assert found is not None
        assert found.states.tobytes() == embed(model, text).states.tobytes()


def test_an_embedding_is_the_hidden_state_that_a_score_hands_out() -> None:
    model = model_of()
    state = model.score(TEXT * 4 + "a").state
    assert state is not None
    assert state.hs.tobytes() == embed(model, TEXT * 4).states.tobytes()


def test_unknown_symbols_fall_under_the_policy() -> None:
    model = model_of()
    with pytest.raises(UnknownSymbolError, match=r"'x' .* position 1 "):
        list(Embedder(model.trained).embedding("ax"))
    with pytest.raises(ConfigError, match="no unknown token"):
        list(Embedder(model.trained, UnknownPolicy.UNKNOWN).embedding("ax"))
    *_, found = Embedder(model.trained, UnknownPolicy.SKIP).embedding("axb")
    assert found is not None
    assert found.states.tobytes() == embed(model, "ab").states.tobytes()
