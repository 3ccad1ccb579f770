"""Public names of earlier versions, which still work."""

from __future__ import annotations

import pytest
from small_models import model_of

import treadle.model
from treadle.model import OutputOptions


@pytest.mark.parametrize(("old", "new"), treadle.model._RENAMED.items())
def test_an_old_name_stands_for_the_new_one(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
        assert getattr(treadle.model, old) is getattr(treadle.model, new)
    assert old not in treadle.model.__all__


def test_a_name_that_never_was_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bookcase'"):
        _ = treadle.model.Bookcase  # type: ignore[attr-defined]


def test_the_old_argument_of_stream_still_works() -> None:
    model = model_of()
    with pytest.warns(DeprecationWarning, match="wanted is now called output"):
        pieces = model.stream("ab", seed=1, max_new_tokens=3, wanted=OutputOptions(tokens=False))
    assert all(piece.tokens == () for piece in pieces)
    with (
        pytest.warns(DeprecationWarning, match="is now called output"),
        pytest.raises(TypeError, match="give only one of them"),
    ):
        model.stream("ab", output=OutputOptions(), wanted=OutputOptions(tokens=False))
