from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.model.config import NetworkConfig, TokenizerConfig
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import UnknownSymbolError
from treadle.model.model import Model
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.scoring.scores import Details, PieceScore, Summary
from treadle.model.scoring.stream_scorer import StreamScorer
from treadle.model.scoring.token_score import TokenScore
from treadle.model.tokenizers.build import build_tokenizer

pytestmark = pytest.mark.jit  # what it calls in kernels is tested uncompiled elsewhere

TEXT = "abc cab bca, a cab abc! ab ca bc, bb aa ca é"
DETAILS = Details(ranks=True, alternatives=2)


def model_of(
    kind: TokenizerKind = TokenizerKind.CHARACTERS,
    layout: CorpusLayout = CorpusLayout.TEXT,
    cell: Cell = Cell.LSTM,
) -> Model:
    size = 270 if kind is TokenizerKind.SUBWORDS else 10_000
    tokenizer = build_tokenizer(TokenizerConfig(kind, max_vocabulary_size=size), [TEXT], layout)
    config = NetworkConfig(cell=cell, hidden_size=5, embedding_size=3, layers=2)
    parameters = Parameters.initial(Shape.of(config, tokenizer.vocabulary_size), seed=1)
    parameters.flat *= 3
    return Model(config, tokenizer, parameters)


MODELS = {
    (kind, layout): model_of(kind, layout) for kind in TokenizerKind for layout in CorpusLayout
}


def stream_of(model: Model, context: str = "", keep_tokens: bool = True) -> StreamScorer:
    start = model.beginning()
    return StreamScorer(model.trained, DETAILS, None, start, context, keep_tokens=keep_tokens)


def feed(stream: StreamScorer, text: str, end: bool = False) -> PieceScore:
    *steps, piece = stream.feed(text, end)
    assert piece is not None
    assert not any(steps)
    return piece


def pieces_of(text: str, cuts: Iterable[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def totals(summary: Summary) -> tuple[float, int, int, int]:
    counts = summary.token_count, summary.character_count, summary.unknown_count
    return summary.total_log_probability, *counts


@pytest.mark.parametrize("case", MODELS, ids=str)
@settings(max_examples=12, deadline=None)
@given(
    text=st.one_of(st.just(TEXT * 4), st.lists(st.sampled_from([*TEXT])).map("".join)),
    cuts=st.lists(st.integers(0, 500), max_size=12),
    context=st.sampled_from(["", "a", "cab abc! ab"]),
)
def test_a_stream_scores_what_its_text_does_in_one_call(
    case: tuple[TokenizerKind, CorpusLayout], text: str, cuts: list[int], context: str
) -> None:
    model = MODELS[case]
    expected = model.score(text, context, details=DETAILS)
    stream = stream_of(model, context)
    found = [feed(stream, piece) for piece in pieces_of(text, cuts)]
    found.append(feed(stream, "", end=True))
    # Tokens are compared with their float32 log-probabilities, ranks and alternatives: exactly.
    assert tuple(token for piece in found for token in piece.tokens) == expected.tokens
    assert sum(piece.token_count for piece in found) == expected.token_count
    whole = found[-1].whole
    assert whole is not None
    assert all(piece.whole is None for piece in found[:-1])
    assert totals(whole) == totals(expected) == totals(stream.total)
    assert stream.item_count == 1


def test_tokens_may_be_taken_as_they_are_scored() -> None:
    model = MODELS[TokenizerKind.CHARACTERS, CorpusLayout.TEXT]
    expected = feed(stream_of(model), TEXT * 8)
    stream = stream_of(model)
    taken: list[TokenScore] = []
    left: tuple[TokenScore, ...] = ()
    for scored in stream.feed(TEXT * 8):
        some = stream.take_tokens()
        assert len(some) <= 65
        taken += some
        left = scored.tokens if scored is not None else ()
    assert (tuple(taken), left) == (expected.tokens, ())
    assert feed(stream, "a").token_count == 1  # and the next piece has its own


def test_a_context_may_be_read_before_anything_follows_it() -> None:
    model = MODELS[TokenizerKind.CHARACTERS, CorpusLayout.TEXT]
    stream = stream_of(model, TEXT)
    assert len([*stream.read_context()]) > 0
    assert [*stream.read_context()] == []
    assert feed(stream, "abc").tokens == model.score("abc", TEXT, details=DETAILS).tokens


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_a_new_text_begins_after_an_end(case: tuple[TokenizerKind, CorpusLayout]) -> None:
    model = MODELS[case]
    stream = stream_of(model, "cab ")
    total = 0.0
    for number, (text, context) in enumerate([("abc cab", "cab "), ("", ""), ("bca, a", "")]):
        feed(stream, text[:3])
        whole = feed(stream, text[3:], end=True).whole
        expected = model.score(text, context)
        assert whole is not None
        assert totals(whole) == totals(expected)
        assert stream.item_count == number + 1
        for value in expected.log_probabilities.tolist():
            total += value
    assert stream.total.total_log_probability == total
    assert model.state_bytes(stream.state) == model.state_bytes(model.beginning())


@pytest.mark.parametrize("cell", Cell)
@pytest.mark.parametrize(
    "kind", [TokenizerKind.CHARACTERS, TokenizerKind.EVENTS, TokenizerKind.WHITESPACE]
)
@pytest.mark.parametrize("layout", CorpusLayout)
def test_a_stream_continues_in_another(
    layout: CorpusLayout, kind: TokenizerKind, cell: Cell
) -> None:
    model = model_of(kind, layout, cell)
    text = "abc cab a bb " * 12
    expected = model.score(text, details=DETAILS)
    for cut in (0, 4, 65, 104):  # where no event is cut in two
        first = stream_of(model)
        tokens = list(feed(first, text[:cut]).tokens)
        list(first.finish())
        begun = model.read_state(model.state_bytes(first.state))
        second = StreamScorer(model.trained, DETAILS, None, begun)
        tokens += feed(second, text[cut:], end=True).tokens
        assert first.total.token_count + second.total.token_count == expected.token_count
        assert [token for token in tokens if token.rank] == [
            token for token in expected.tokens if token.rank
        ]


def test_finishing_scores_what_waits() -> None:
    model = MODELS[TokenizerKind.WORDS, CorpusLayout.TEXT]
    stream = stream_of(model)
    assert feed(stream, "abc cab").token_count == 0
    assert len(list(stream.finish())) > 0
    expected = model.score("abc cab")
    assert totals(stream.total) == totals(expected)
    assert expected.state is not None
    assert model.state_bytes(stream.state) == model.state_bytes(expected.state)
    assert stream.item_count == 0


def test_an_unknown_symbol_is_named_by_its_place_in_the_whole_text() -> None:
    stream = stream_of(MODELS[TokenizerKind.CHARACTERS, CorpusLayout.TEXT])
    feed(stream, "abc")
    with pytest.raises(UnknownSymbolError, match=r"'x' .* at position 5 "):
        list(stream.feed("abxc"))
    model = MODELS[TokenizerKind.CHARACTERS, CorpusLayout.TEXT]
    with pytest.raises(UnknownSymbolError, match="'x'"):
        list(stream_of(model, "x").read_context())
    skipping = StreamScorer(model.trained, Details(), UnknownPolicy.SKIP, model.beginning())
    assert feed(skipping, "axb").token_count == 1


def test_tokens_are_kept_only_where_asked_for() -> None:
    model = MODELS[TokenizerKind.CHARACTERS, CorpusLayout.LINES]
    piece = feed(stream_of(model, keep_tokens=False), "abc", end=True)
    assert (piece.tokens, piece.token_count) == ((), 4)


@pytest.mark.jit
def test_a_long_stream_takes_no_more_memory_than_a_short_one() -> None:
    model = MODELS[TokenizerKind.CHARACTERS, CorpusLayout.TEXT]
    stream = stream_of(model, keep_tokens=False)
    text = (TEXT * 250)[:10_000]
    tracemalloc.start()
    sizes = []
    for _ in range(20):
        feed(stream, text)
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert stream.total.token_count == 2 * 10**5 - 1
    # Caches of sizes and values fill in the first half; a fifth of a byte a token after that.
    assert max(sizes[10:]) - sizes[9] < 20_000, sizes
    score = model.score(text * 20)
    assert score.total_log_probability == stream.total.total_log_probability


def test_a_step_is_no_longer_than_a_window() -> None:
    stream = stream_of(MODELS[TokenizerKind.CHARACTERS, CorpusLayout.TEXT])
    counts = [stream.piece_token_count for _ in stream.feed(TEXT * 30)]
    assert max(np.diff(counts)) <= 64
