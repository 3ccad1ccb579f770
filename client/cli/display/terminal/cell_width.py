"""`cut` and `cut_middle` cut a text to columns of a terminal."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size


def pad(text: str, columns: int) -> str:
    """Fills a text up with spaces; wide characters count as two columns."""
    return text + " " * (columns - cell_len(text))


def cut(text: str, columns: int, dots: str = "…") -> str:
    """Cuts the end of a text so that it fits; wide characters count as two columns."""
    if cell_len(text) <= columns:
        return text
    if columns < cell_len(dots):
        return ""
    return set_cell_size(text, columns - cell_len(dots)).rstrip() + dots


def cut_middle(text: str, columns: int, dots: str = "…") -> str:
    """Cuts the middle of a text so that it fits; wide characters count as two columns."""
    if cell_len(text) <= columns:
        return text
    kept = max(0, columns - cell_len(dots))
    tail = ""
    for character in reversed(text):
        if cell_len(character + tail) > kept // 2:
            break
        tail = character + tail
    while tail and cell_len(tail[0]) == 0:  # a mark without the character that it belongs to
        tail = tail[1:]
    return set_cell_size(text, kept - cell_len(tail)).rstrip() + dots + tail
