"""Many texts after one context: the bits of reading it for each, the work of reading it once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from small_models import model_of

from treadle.model import Model
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import UnknownSymbolError
from treadle.model.scoring.scores import Details, TextScore
from treadle.model.scoring.sequence_scorer import SequenceScorer
from treadle.model.scoring.text_scorer import Ints, TextScorer

TEXT = "abc cab bca, a cab abc!, bb aa"
TEXTS = ["", "a", "bca, a cab", TEXT * 4, "", "abc cab " * 20, "a"]
DETAILS = Details(ranks=True, alternatives=3)


def bits(model: Model, score: TextScore) -> list[object]:
    assert score.state is not None
    arrays = (score.ids, score.log_probabilities)
    return [
        *(array.tobytes() for array in arrays),
        score.tokens,
        score.total_log_probability.hex(),
        model.state_bytes(score.state),
    ]


def scores(scorer: TextScorer, texts: list[str]) -> list[TextScore]:
    found = []
    for text in texts:
        steps = scorer.encode(text)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                tokens = end.value
                break
        *_, score = scorer.score(tokens)
        assert score is not None
        found.append(score)
    return found


@pytest.mark.parametrize("cell", Cell)
@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("kind", [TokenizerKind.CHARACTERS, TokenizerKind.EVENTS])
def test_texts_score_as_if_each_had_the_context_read_for_itself(
    kind: TokenizerKind, layout: CorpusLayout, cell: Cell
) -> None:
    model = model_of(kind, layout, cell=cell, layers=2)
    before = model.score("cab a").state
    for context in ("", "a", TEXT, (TEXT * 9)[:129]):
        for state in (None, before):
            scorer = TextScorer(model.trained, None, DETAILS, state)
            list(scorer.read_context(context))
            for text, score in zip(TEXTS, scores(scorer, TEXTS), strict=True):
                alone = model.score(text, context, details=DETAILS, state=state)
                assert bits(model, score) == bits(model, alone)


def test_a_context_is_read_once_however_many_texts_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    reading = SequenceScorer.read

    def counted(self: SequenceScorer, tokens: Ints) -> Iterator[None]:
        read.append(tokens.size)
        return reading(self, tokens)

    monkeypatch.setattr(SequenceScorer, "read", counted)
    scorer = TextScorer(model_of().trained)
    list(scorer.read_context(TEXT))
    scores(scorer, ["abc"] * 50)
    assert read == [len(TEXT)]


def test_a_context_that_cannot_be_read_says_so() -> None:
    scorer = TextScorer(model_of().trained, UnknownPolicy.ERROR)
    with pytest.raises(UnknownSymbolError):
        list(scorer.read_context("a#"))
