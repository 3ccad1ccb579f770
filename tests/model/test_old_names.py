"""Public names of earlier versions, which still work."""

from __future__ import annotations

import pytest
from small_models import model_of

import treadle.model
from treadle.model import OutputOptions


def test_an_old_name_stands_for_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="Wanted is now called OutputOptions"):
        assert treadle.model.Wanted is OutputOptions


def test_a_name_that_never_was_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Shelf'"):
        treadle.model.Shelf  # noqa: B018


def test_the_old_argument_of_stream_still_works() -> None:
    model = model_of()
    with pytest.warns(DeprecationWarning, match="wanted is now called output"):
        pieces = model.stream("ab", seed=1, max_new_tokens=3, wanted=OutputOptions(tokens=False))
    assert all(piece.tokens == () for piece in pieces)
