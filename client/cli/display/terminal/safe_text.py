"""`safe_text` and `cut` prepare texts of any origin for a terminal."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

from treadle.client.cli.display.console import one_line

# Characters that reorder what follows them: with them, a text can look like another one.
_REORDERING = {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def safe_text(text: str) -> str:
    """Returns a text on one line; characters that control the terminal are shown as escapes."""
    return one_line(text).translate(_REORDERING)


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
