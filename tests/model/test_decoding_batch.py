"""`DecodingBatch`: sequences that join, leave and end between two steps."""

from __future__ import annotations

from typing import Any

import pytest
from small_models import model_of, text_of

from treadle.model import Model, Piece
from treadle.model.config import SamplingConfig
from treadle.model.errors import ConfigError
from treadle.model.generation.decoding_batch import DecodingBatch
from treadle.model.generation.generate import PreparedPrompt
from treadle.model.generation.output import TOKENS
from treadle.model.generation.sequence import Sequence

TOKEN_COUNT = 30


def sequence_of(model: Model, index: int, **settings: Any) -> Sequence:
    given = {"seed": 1, "max_new_tokens": TOKEN_COUNT, **settings}
    prepared = PreparedPrompt(model.trained, "ab", SamplingConfig(**given), None)
    list(prepared.read())
    return prepared.sequence(index, TOKENS)


def alone(model: Model, index: int) -> list[Any]:
    pieces = model.stream("ab", seed=1, max_new_tokens=TOKEN_COUNT, index=index)
    return [token for piece in pieces for token in piece.tokens]


def test_a_sequence_moves_between_batches_without_a_change() -> None:
    model = model_of()
    first, second = DecodingBatch(model.trained), DecodingBatch(model.trained)
    moving, staying = sequence_of(model, 0), sequence_of(model, 1)
    found: dict[Sequence, list[Any]] = {moving: [], staying: []}

    def step(batch: DecodingBatch) -> None:
        for sequence, piece in batch.step(7):
            assert isinstance(piece, Piece)
            found[sequence] += piece.tokens

    first.add([moving, staying])
    step(first)
    first.remove([moving])
    assert first.sequences == [staying]
    second.add([moving])
    while first.sequences or second.sequences:
        for batch in (first, second):
            if batch.sequences:
                step(batch)
    assert found == {moving: alone(model, 0), staying: alone(model, 1)}


def test_a_sequence_that_ends_leaves_and_the_others_continue() -> None:
    model = model_of()
    short, long = sequence_of(model, 0, max_new_tokens=3), sequence_of(model, 1)
    batch = DecodingBatch(model.trained)
    batch.add([short, long])
    assert batch.max_left == TOKEN_COUNT
    assert batch.details_per_step == 2
    (_, ended), _ = batch.step(5)
    assert isinstance(ended, Piece)
    assert ended.result is not None
    assert batch.sequences == [long]
    assert batch.details_per_step == 1
    ((sequence, piece),) = batch.step(5)
    assert sequence is long
    assert isinstance(piece, Piece)
    assert text_of([piece])


def test_an_error_ends_its_own_sequence_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    broken, sound = sequence_of(model, 0), sequence_of(model, 1)

    def fail(*_: object) -> Piece:
        raise ConfigError("no token is left", "regex")

    monkeypatch.setattr(broken, "take", fail)
    batch = DecodingBatch(model.trained)
    batch.add([broken, sound])
    pieces = dict(batch.step(4))
    assert isinstance(pieces[broken], ConfigError)
    assert isinstance(pieces[sound], Piece)
    assert batch.sequences == [sound]
