from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.model.config import DataConfig, TokenizerConfig
from treadle.model.data.batching import (
    IGNORED,
    Batch,
    Batches,
    LineBatches,
    TextBatches,
    make_batches,
)
from treadle.model.data.corpus import TokenData, read_corpus
from treadle.model.data.validation_batches import ValidationBatches
from treadle.model.enums import CorpusLayout
from treadle.model.errors import CorpusError, LoadError
from treadle.model.tokenizers.build import build_tokenizer

BEGIN = 1_000_000
END = 1_000_001
sizes = st.integers(1, 9)


def text_of(count: int) -> TokenData:
    """A text in which every token occurs once, so that a transition shows its position."""
    return TokenData(np.arange(count, dtype=np.int32))


def items_of(lengths: list[int]) -> TokenData:
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    return TokenData(np.arange(sum(lengths), dtype=np.int32), offsets)


def lists_of_lengths() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 20), min_size=1, max_size=60)


def epoch_of(batches: Batches, epoch: int = 0) -> list[Batch]:
    batches.seek({"epoch": epoch, "batch": 0})
    return list(itertools.islice(batches, batches.batches_in(epoch)))


def check_shape(batch: Batch, window: int, rows: int) -> None:
    assert batch.tokens.shape == batch.targets.shape == (window, rows)
    assert batch.tokens.dtype == batch.targets.dtype == np.int32
    assert batch.fresh.shape == (rows,)
    assert batch.fresh.dtype == np.bool_
    assert batch.tokens.flags.c_contiguous
    assert batch.targets.flags.c_contiguous
    assert 1 <= batch.steps <= window
    assert np.all(batch.targets[batch.steps :] == IGNORED)
    assert np.all(batch.tokens[batch.steps :] == 0)
    assert batch.token_count == np.sum(batch.targets >= 0)


def sequences(batches: Iterable[Batch]) -> list[list[tuple[int, int]]]:
    """What each row trains on from one fresh start to the next: (token, target) in order."""
    done: list[list[tuple[int, int]]] = []
    rows: list[list[tuple[int, int]]] = []
    for batch in batches:
        assert batch.fresh.all() or not batch.fresh.any()
        if batch.fresh.all():
            done += rows
            rows = [[] for _ in batch.fresh]
        for row, pairs in enumerate(rows):
            for token, target in zip(batch.tokens[:, row], batch.targets[:, row], strict=True):
                if target != IGNORED:
                    pairs.append((int(token), int(target)))
    return [pairs for pairs in done + rows if pairs]


def same(one: Batch, other: Batch) -> bool:
    return (
        np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.targets, other.targets)
        and np.array_equal(one.fresh, other.fresh)
        and one.steps == other.steps
    )


def test_hello() -> None:
    corpus = read_corpus(b"hello")
    batches = make_batches(corpus.train, DataConfig(), corpus.tokenizer, 0)
    assert isinstance(batches, TextBatches)
    assert (batches.batch_size, batches.window, batches.tokens_per_epoch) == (1, 4, 4)
    assert batches.notices == (
        "batch size 32 shrunk to 1: the corpus has 5 tokens to train on",
        "window 64 shrunk to 4: the corpus has 5 tokens to train on",
    )
    for batch in itertools.islice(batches, 3):
        assert batch.tokens[:, 0].tolist() == corpus.train.tokens[:-1].tolist()
        assert batch.targets[:, 0].tolist() == corpus.train.tokens[1:].tolist()
        assert batch.fresh.tolist() == [True]
        assert batch.steps == 4


@settings(deadline=None)
@given(count=st.integers(2, 200), batch_size=sizes, window=sizes, epoch=st.integers(0, 3))
def test_every_transition_of_a_text_is_trained_on_once(
    count: int, batch_size: int, window: int, epoch: int
) -> None:
    batches = TextBatches(text_of(count), batch_size, window)
    passed = epoch_of(batches, epoch)
    for batch in passed:
        check_shape(batch, batches.window, batches.batch_size)
    rows = sequences(passed)
    assert [pair for row in rows for pair in row] == [(t, t + 1) for t in range(count - 1)]
    assert sum(batch.token_count for batch in passed) == batches.tokens_per_epoch
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    steps = [batch.steps for batch in passed]
    assert max(steps) - min(steps) <= 1
    assert [batch.fresh.all() for batch in passed] == [True, *[False] * (len(passed) - 1)]


@settings(deadline=None)
@given(count=st.integers(2, 100), batch_size=sizes, window=sizes)
def test_a_text_shrinks_its_batch_before_its_window(
    count: int, batch_size: int, window: int
) -> None:
    batches = TextBatches(text_of(count), batch_size, window)
    assert 1 <= batches.batch_size <= batch_size
    assert 1 <= batches.window <= window
    assert batches.batch_size * batches.window <= count - 1
    if batches.window < window:
        assert (batches.batch_size, batches.window) == (1, count - 1)
    if batches.batch_size < batch_size:
        assert (batches.batch_size + 1) * window > count - 1
    assert len(batches.notices) == (batches.batch_size < batch_size) + (batches.window < window)


@settings(deadline=None)
@given(
    lengths=lists_of_lengths(), batch_size=sizes, window=sizes, seed=sizes, epoch=st.integers(0, 3)
)
def test_every_item_is_trained_on_once(
    lengths: list[int], batch_size: int, window: int, seed: int, epoch: int
) -> None:
    data = items_of(lengths)
    batches = LineBatches(data, BEGIN, END, batch_size, window, seed)
    passed = epoch_of(batches, epoch)
    for batch in passed:
        check_shape(batch, batches.window, batches.batch_size)
    assert data.offsets is not None
    expected = []
    for start, stop in itertools.pairwise(data.offsets.tolist()):
        item = data.tokens[start:stop].tolist()
        expected.append(list(zip([BEGIN, *item], [*item, END], strict=True)))
    assert sorted(sequences(passed)) == sorted(expected)
    assert sum(batch.token_count for batch in passed) == batches.tokens_per_epoch
    assert batches.batch_size == min(batch_size, len(lengths))
    assert batches.window == min(window, max(lengths) + 1)


def test_no_group_of_items_is_a_remnant() -> None:
    batches = LineBatches(items_of([3] * 33), BEGIN, END, 32, 8, 0)
    assert [batch.token_count for batch in epoch_of(batches)] in ([64, 68], [68, 64])


def test_items_of_like_length_stand_side_by_side() -> None:
    lengths = (np.arange(4000) * 7919 % 50 + 1).tolist()
    batches = LineBatches(items_of(lengths), BEGIN, END, 32, 64, 0)
    passed = epoch_of(batches)
    seen = sum(batch.steps * batches.batch_size for batch in passed)
    assert batches.tokens_per_epoch / seen > 0.95
    # And yet long and short groups come in no order.
    steps = np.array([batch.steps for batch in passed])
    assert np.count_nonzero(np.diff(steps) < 0) > len(passed) / 4


def test_a_long_item_continues_in_the_same_row() -> None:
    batches = LineBatches(items_of([10, 9]), BEGIN, END, 2, 4, 0)
    passed = epoch_of(batches)
    assert [batch.steps for batch in passed] == [3, 4, 4]
    assert [batch.fresh.tolist() for batch in passed] == [[True] * 2, [False] * 2, [False] * 2]


def make(kind: str, seed: int = 5) -> Batches:
    if kind == "text":
        return TextBatches(text_of(101), 3, 7)
    lengths = (np.arange(30) * 7919 % 12 + 1).tolist()
    return LineBatches(items_of(lengths), BEGIN, END, 4, 5, seed)


@pytest.mark.parametrize("kind", ["text", "lines"])
def test_resuming_at_any_place_is_never_having_stopped(kind: str) -> None:
    whole = make(kind)
    expected = []
    positions = []
    for _ in range(40):
        positions.append(whole.position)
        expected.append(next(whole))
    assert positions[0] == {"epoch": 0, "batch": 0}
    assert positions[-1]["epoch"] > 1
    assert len({tuple(position.items()) for position in positions}) == 40
    for start, position in enumerate(positions):
        again = make(kind)
        again.seek(position)
        assert again.position == position
        assert all(map(same, expected[start:], again))


@pytest.mark.parametrize("kind", ["text", "lines"])
@pytest.mark.parametrize(
    "position",
    [
        {},
        {"epoch": 0},
        {"epoch": -1, "batch": 0},
        {"epoch": 0, "batch": -1},
        {"epoch": 0, "batch": 10**6},
        {"epoch": 2**32, "batch": 0},
    ],
)
def test_places_that_do_not_exist(kind: str, position: dict[str, int]) -> None:
    with pytest.raises(LoadError, match="does not exist"):
        make(kind).seek(position)


def test_orders_depend_on_seed_and_epoch_only() -> None:
    first = epoch_of(make("lines"))
    assert all(map(same, first, epoch_of(make("lines"))))
    for other in (epoch_of(make("lines"), epoch=1), epoch_of(make("lines", seed=6))):
        assert Counter(map(repr, sequences(first))) == Counter(map(repr, sequences(other)))
        assert not all(map(same, first, other))


@pytest.mark.parametrize("data", [text_of(0), text_of(1)])
def test_nothing_to_predict(data: TokenData) -> None:
    with pytest.raises(CorpusError, match="nothing to predict"):
        TextBatches(data, 1, 1)
    assert list(ValidationBatches(data, LINES_TOKENIZER, 4, 4, 4)) == []


def test_no_items() -> None:
    with pytest.raises(CorpusError, match="nothing to predict"):
        LineBatches(items_of([]), BEGIN, END, 1, 1, 0)
    assert list(ValidationBatches(items_of([]), LINES_TOKENIZER, 4, 4, 4)) == []


LINES_TOKENIZER = build_tokenizer(TokenizerConfig(), ["abc"], CorpusLayout.LINES)


def test_items_need_their_tokenizer() -> None:
    data: Any = items_of([2, 3])
    plain = build_tokenizer(TokenizerConfig(), ["abc"])
    with pytest.raises(ValueError, match="LINES"):
        make_batches(data, DataConfig(), plain, 0)
    batches = make_batches(data, DataConfig(), LINES_TOKENIZER, 0)
    assert isinstance(batches, LineBatches)
    assert next(batches).tokens[0].tolist() == [LINES_TOKENIZER.begin] * 2


@settings(deadline=None)
@given(count=st.integers(2, 200), streams=sizes, window=sizes, context=st.integers(0, 20))
def test_validation_predicts_every_token_of_a_text_once(
    count: int, streams: int, window: int, context: int
) -> None:
    data = text_of(count)
    passed = list(ValidationBatches(data, LINES_TOKENIZER, streams, window, context))
    rows = len(passed[0].fresh)
    assert rows <= streams
    for batch in passed:
        check_shape(batch, window, rows)
    assert [batch.fresh.all() for batch in passed] == [True, *[False] * (len(passed) - 1)]
    scored = [pair for row in sequences(passed) for pair in row]
    assert scored == [(t, t + 1) for t in range(count - 1)]
    # Each row reads an unbroken stretch that begins `context` tokens before what it scores.
    tokens = np.concatenate([batch.tokens for batch in passed])
    targets = np.concatenate([batch.targets for batch in passed])
    for row in range(rows):
        places = np.flatnonzero(targets[:, row] != IGNORED)
        start = tokens[places[0], row]
        assert places[0] == min(context, start)
        stretch = tokens[: places[-1] + 1, row]
        assert stretch.tolist() == list(range(stretch[0], stretch[0] + len(stretch)))


@settings(deadline=None)
@given(lengths=lists_of_lengths(), streams=sizes, window=sizes)
def test_validation_predicts_every_item_once(lengths: list[int], streams: int, window: int) -> None:
    data = items_of(lengths)
    passed = list(ValidationBatches(data, LINES_TOKENIZER, streams, window, 3))
    assert data.offsets is not None
    for batch in passed:
        check_shape(batch, window, min(streams, len(lengths)))
    begin = LINES_TOKENIZER.begin
    end = LINES_TOKENIZER.end
    expected = []
    for start, stop in itertools.pairwise(data.offsets.tolist()):
        item = data.tokens[start:stop].tolist()
        expected.append(list(zip([begin, *item], [*item, end], strict=True)))
    assert sorted(sequences(passed)) == sorted(expected)
