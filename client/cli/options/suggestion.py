"""`suggestion` returns the name that a caller may have meant: ": did you mean 'train'?"."""

from __future__ import annotations

from collections.abc import Iterable

CLOSENESS = 0.6
"""How much a name must have in common with a word, from 0 to 1."""


def suggestion(word: str, names: Iterable[str], quote: str = "'") -> str:
    """Returns the end of a sentence about an unknown word.

    Args:
        word: The word.
        names: The names that there are.
        quote: What to put before and behind the name.

    Returns:
        The nearest name as the end of a sentence; empty if none is near.
    """
    from difflib import get_close_matches

    spelled: dict[str, str] = {}
    for name in names:
        spelled.setdefault(name.lower(), name)
    close = get_close_matches(word.lower(), list(spelled), 1, CLOSENESS)
    return f": did you mean {quote}{spelled[close[0]]}{quote}?" if close else ""
