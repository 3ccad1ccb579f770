"""The baseline against counts in plain dictionaries, and at the edges."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from treadle.model.config import DataConfig, TokenizerConfig
from treadle.model.data.corpus import Corpus, TokenData, read_corpus
from treadle.model.enums import CorpusLayout, TokenizerKind
from treadle.model.training import baseline as ngram
from treadle.model.training.baseline import Baseline, baseline

Sequence = list[int]
Context = tuple[int, ...]


def plain(train: list[Sequence], valid: list[Sequence], V: int, order: int) -> float:
    """Witten-Bell by the book: the mean nats of all tokens but each sequence's first."""
    came: defaultdict[Context, Counter[int]] = defaultdict(Counter)
    for sequence in train:
        for place in range(1, len(sequence)):
            for length in range(min(order - 1, place) + 1):
                came[tuple(sequence[place - length : place])][sequence[place]] += 1

    def probability(token: int, context: Context) -> float:
        below = probability(token, context[1:]) if context else 1 / V
        counts = came.get(context)
        if counts is None:
            return below
        return (counts[token] + len(counts) * below) / (counts.total() + len(counts))

    losses = [
        -math.log(probability(sequence[place], tuple(sequence[max(0, place - order + 1) : place])))
        for sequence in valid
        for place in range(1, len(sequence))
    ]
    return math.fsum(losses) / len(losses)


def sequences(data: TokenData, corpus: Corpus) -> list[Sequence]:
    """Predicted from its first token on."""
    if data.offsets is None:
        return [data.tokens.tolist()]
    begin = corpus.tokenizer.begin
    end = corpus.tokenizer.end
    assert begin is not None
    assert end is not None
    edges = zip(data.offsets[:-1], data.offsets[1:], strict=True)
    return [[begin, *data.tokens[first:last].tolist(), end] for first, last in edges]


def some_text(count: int, alphabet: str, seed: int) -> str:
    """Random, and for the most part a repetition of what was there two places before."""
    draw = random.Random(seed)
    text: list[str] = []
    for place in range(count):
        repeat = place > 2 and draw.random() < 0.5
        text.append(text[place - 2] if repeat else draw.choice(alphabet))
    return "".join(text)


def corpus_of(text: str, layout: CorpusLayout, kind: TokenizerKind, fraction: float) -> Corpus:
    return read_corpus(
        text.encode(), TokenizerConfig(kind), DataConfig(layout, validation_fraction=fraction), 3
    )


@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("alphabet", ["ab\n", "abcdefgh \n", "a\n"])
@pytest.mark.parametrize("kind", [TokenizerKind.CHARACTERS, TokenizerKind.BYTES])
def test_it_is_what_dictionaries_count(
    layout: CorpusLayout, alphabet: str, kind: TokenizerKind
) -> None:
    for seed, count in enumerate((200, 700)):
        corpus = corpus_of(some_text(count, alphabet, seed), layout, kind, 0.3)
        assert corpus.valid is not None
        found = baseline(corpus)
        assert found is not None
        V = corpus.tokenizer.vocabulary_size
        assert found.order == (5 if V <= 256 else 3)
        train, valid = (sequences(part, corpus) for part in (corpus.train, corpus.valid))
        assert found.loss == pytest.approx(plain(train, valid, V, found.order), rel=1e-12)


def test_words_are_counted_in_threes() -> None:
    words = [f"w{place % 9}x{place % 41}" for place in range(3000)]
    corpus = corpus_of(" ".join(words), CorpusLayout.TEXT, TokenizerKind.WORDS, 0.2)
    assert corpus.valid is not None
    found = baseline(corpus)
    assert found is not None
    V = corpus.tokenizer.vocabulary_size
    assert V > ngram.SMALL_VOCABULARY
    assert found.order == 3
    train = [corpus.train.tokens.tolist()]
    valid = [corpus.valid.tokens.tolist()]
    assert found.loss == pytest.approx(plain(train, valid, V, 3), rel=1e-12)


@pytest.mark.parametrize("layout", CorpusLayout)
def test_of_a_large_corpus_the_beginning_is_read(
    layout: CorpusLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(some_text(900, "abc\n", 1), layout, TokenizerKind.CHARACTERS, 0.3)
    assert corpus.valid is not None
    whole = baseline(corpus)
    monkeypatch.setattr(ngram, "MAX_TRAIN_TOKENS", 301)
    monkeypatch.setattr(ngram, "MAX_VALID_TOKENS", 47)
    found = baseline(corpus)
    assert found is not None
    assert found != whole

    def cut(part: TokenData, limit: int) -> list[Sequence]:
        kept = []
        for sequence in sequences(part, corpus):
            kept.append(sequence[:limit])
            limit -= len(kept[-1])
        return [sequence for sequence in kept if sequence]

    V = corpus.tokenizer.vocabulary_size
    expected = plain(cut(corpus.train, 301), cut(corpus.valid, 47), V, 5)
    assert found.loss == pytest.approx(expected, rel=1e-12)


def test_counting_ends_where_room_does(monkeypatch: pytest.MonkeyPatch) -> None:
    text = some_text(900, "abcdefghijklmnop", 2)
    corpus = corpus_of(text, CorpusLayout.TEXT, TokenizerKind.CHARACTERS, 0.3)
    assert corpus.valid is not None
    monkeypatch.setattr(ngram, "MAX_NODES", 400)
    found = baseline(corpus)
    assert found is not None
    tokens = corpus.train.tokens.tolist()
    V = corpus.tokenizer.vocabulary_size
    seen: set[Context] = set()
    for last in range(len(tokens)):  # the empty sequence is one of the 400, and five must fit
        if len(seen) + 1 + 5 > 400:
            break
        seen |= {tuple(tokens[first : last + 1]) for first in range(max(0, last - 4), last + 1)}
    expected = plain([tokens[:last]], [corpus.valid.tokens.tolist()], V, 5)
    assert 100 < last < 300
    assert found.loss == pytest.approx(expected, rel=1e-12)


def corpus_with(train: list[int], valid: list[int] | None) -> Corpus:
    """A text of given tokens; the tokenizer knows four."""
    tokenizer = read_corpus(b"abcd" * 20).tokenizer
    parts = [None if part is None else TokenData(np.array(part, np.int32)) for part in (valid,)]
    return Corpus(tokenizer, CorpusLayout.TEXT, TokenData(np.array(train, np.int32)), parts[0])


def test_the_smallest_parts() -> None:
    assert baseline(corpus_with([0, 1, 2], None)) is None
    assert baseline(corpus_with([0, 1, 2], [])) is None
    assert baseline(corpus_with([0, 1, 2], [3])) is None, "the first token is not predicted"
    assert baseline(corpus_with([0], [1, 2])) == Baseline(math.log(4), 1)
    ones = baseline(corpus_with([1] * 2000, [1] * 40))
    assert ones is not None
    assert 0 < ones.loss < 1e-3
    never = baseline(corpus_with([0, 1] * 3000, [2, 3] * 3000))
    assert never is not None, "so small a product of probabilities is no floating-point number"
    assert 7 < never.loss < 12


@pytest.mark.jit
def test_tiny_shakespeare_has_the_known_figure() -> None:
    path = Path(__file__).parents[2] / "examples" / "data" / "tinyshakespeare.txt"
    corpus = read_corpus(path)
    found = baseline(corpus)
    assert found is not None
    assert (round(found.loss, 3), found.order) == (1.669, 5)
