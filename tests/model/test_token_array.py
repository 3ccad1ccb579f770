"""Tokens out of the vocabulary are refused before a kernel indexes with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_models import model_of

from treadle.model.config import SamplingConfig
from treadle.model.data.corpus import Corpus, TokenData, read_corpus
from treadle.model.data.token_array import TokenWriter
from treadle.model.enums import CorpusLayout, TokenizerKind
from treadle.model.errors import TokenError
from treadle.model.generation.beam_rows import BeamRows
from treadle.model.generation.constraint import compile_constraint
from treadle.model.generation.novelty import NoveltyIndex
from treadle.model.generation.sampling import ResolvedSampling, resolve_sampling
from treadle.model.generation.sequence_slot import SequenceSlot
from treadle.model.generation.slot_arrays import SlotArrays
from treadle.model.model import Model
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.prefill import read_tokens
from treadle.model.online.learner import Learner
from treadle.model.scoring.embedder import Embedder
from treadle.model.scoring.scorer import Scorer
from treadle.model.scoring.scores import Details
from treadle.model.tokenizers.token_ids import check_tokens
from treadle.model.training.baseline import baseline
from treadle.model.training.trainer import Trainer

FRESH = np.ones(1, np.bool_)


def strangers(model: Model) -> list[int]:
    V = model.vocabulary_size
    return [V, V + 1, 1_000_000, 2**31 - 1, -1, -(2**31)]


def column(*tokens: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    return np.array(tokens, np.int32).reshape(-1, 1)


def scorer_of(model: Model) -> Scorer:
    return Scorer(model.parameters.shape, model.weights, 1, 8, Pool(1))


def read_prompt(model: Model, token: int) -> None:
    tokens = np.array([1, token, 1], np.int32)
    for _ in read_tokens(model.parameters.shape, model.weights, model.beginning(), tokens):
        pass


def join_group(
    model: Model,
    token: int = 0,
    end: int = -1,
    choices: ResolvedSampling | None = None,
    rule: int = 0,
) -> None:
    state = replace(model.beginning(), token=token)
    choices = choices or resolve_sampling(SamplingConfig(), model.tokenizer)
    SlotArrays(model.parameters.shape, model.weights).replace(
        [], [SequenceSlot(choices, state, end, rule=rule)]
    )


def forced(model: Model, token: int) -> ResolvedSampling:
    return ResolvedSampling(SamplingConfig(), forced=np.array([0, token], np.int32))


def engine_of(model: Model) -> Engine:
    return Engine(model.parameters, 1, 8, Pool(1))


def write(model: Model, token: int) -> None:
    with TokenWriter(model.vocabulary_size, None) as writer:
        writer.write(np.array([0, token], np.int64))


def corpus_with(model: Model, token: int) -> Corpus:
    """A corpus of the caller's own making, with a token that no tokenizer has made."""
    tokens = np.tile(np.array([0, 1, 2], np.int32), 100)
    odd = np.append(tokens, np.int32(token))
    data = TokenData(tokens), TokenData(odd)
    return Corpus(model.tokenizer, CorpusLayout.TEXT, data[1], data[0])


ENTRANCES: dict[str, Callable[[Model, int], Any]] = {
    "scored": lambda m, t: scorer_of(m).log_probabilities(column(0, t), column(0, 0), FRESH),
    "read": lambda m, t: scorer_of(m).read(column(t), FRESH),
    "ranked": lambda m, t: scorer_of(m).scores(column(t), column(0), FRESH, Details(ranks=True)),
    "prompt": read_prompt,
    "state": lambda m, t: list(
        read_tokens(
            m.parameters.shape,
            m.weights,
            replace(m.beginning(), token=t if t >= 0 else 10**6),
            column(0)[0],
        )
    ),
    "group": join_group,
    "beam": lambda m, t: list(BeamRows(m.parameters.shape, m.weights, m.beginning()).read([0, t])),
    "trained": lambda m, t: engine_of(m).loss_and_gradient(column(0, t), column(0, 0), FRESH),
    "corpus file": write,
    "baseline": lambda m, t: baseline(corpus_with(m, t)),
    "trainer": lambda m, t: Trainer(corpus_with(m, t)),
    "novelty": lambda m, t: NoveltyIndex.build(np.array([0, t], np.int64), None, m.tokenizer),
}

TARGETS: dict[str, Callable[[Model, int], object]] = {
    "scored": lambda m, t: scorer_of(m).log_probabilities(column(0, 0), column(0, t), FRESH),
    "trained": lambda m, t: engine_of(m).loss_and_gradient(column(0, 0), column(0, t), FRESH),
    "end": lambda m, t: join_group(m, end=t),
    "forced": lambda m, t: join_group(m, choices=forced(m, t)),
}


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of()


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_token_out_of_the_vocabulary_never_comes_to_a_kernel(model: Model, entrance: str) -> None:
    for token in strangers(model):
        with pytest.raises(TokenError, match=r"token -?\d+ is not in the vocabulary"):
            ENTRANCES[entrance](model, token)


@pytest.mark.parametrize("entrance", TARGETS)
def test_what_may_be_none_is_in_the_vocabulary_or_minus_one(model: Model, entrance: str) -> None:
    TARGETS[entrance](model, -1)
    for token in strangers(model):
        if token != -1:
            with pytest.raises(TokenError, match="is not in the vocabulary"):
                TARGETS[entrance](model, token)


def test_an_automaton_of_another_vocabulary_is_refused(model: Model) -> None:
    other = model_of(layout=CorpusLayout.LINES)
    foreign = ResolvedSampling(
        SamplingConfig(), constraint=compile_constraint("a+", other.tokenizer)
    )
    with pytest.raises(TokenError, match="automaton"):
        join_group(model, choices=foreign)
    own = ResolvedSampling(SamplingConfig(), constraint=compile_constraint("a+", model.tokenizer))
    join_group(model, choices=own)
    with pytest.raises(TokenError, match="automaton"):
        join_group(model, choices=own, rule=1000)


class Odd:
    """Stands in for what the package `tokenizers` makes: its ids are of no vocabulary."""

    ids = (1, 1_000_000)

    def encode(self, text: str, **_: object) -> Odd:
        return self

    def encode_batch_fast(self, texts: list[str], **_: object) -> list[Odd]:
        return [self for _ in texts]


def test_a_package_that_gives_strange_tokens_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(TokenizerKind.SUBWORDS)
    monkeypatch.setattr(model.tokenizer, "_learned", Odd())
    uses: list[Callable[[], object]] = [
        lambda: model.score("ab"),
        lambda: model.generate("ab", max_new_tokens=2),
        lambda: list(Embedder(model.trained).embedding("ab")),
        lambda: list(Learner(model).feed("ab", end=True)),
        lambda: model.tokenizer.encode_records(["ab"]),
        lambda: read_corpus(b"abc abc", fixed=model.tokenizer),
    ]
    for use in uses:
        with pytest.raises(TokenError, match="token 1000000 is not in the vocabulary"):
            use()


def test_every_token_of_the_vocabulary_is_legal() -> None:
    for V in (1, 256, 257, 65_536, 65_537):
        check_tokens(np.arange(V), V)
        check_tokens(np.array([-1, V - 1]), V, least=-1)
    check_tokens(np.zeros(0, np.int32), 0)
