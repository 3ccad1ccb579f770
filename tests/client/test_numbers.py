"""Numbers and tables stay short, whatever a run or a name came to."""

from __future__ import annotations

import io
from typing import Any

import pytest

from treadle.client.cli.display.console import Console, middle_cut
from treadle.client.cli.display.numbers import number_text, share_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5123, "1.512"),
        (-0.2, "-0.200"),
        (-0.0, "0.000"),
        (-0.0004, "0.000"),
        (0.0005, "0.001"),
        (123456.7891, "123456.789"),
        (1.2345e33, "1.2e+33"),
        (-1.2345e33, "-1.2e+33"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_a_number(value: float, text: str) -> None:
    assert number_text(value) == text
    assert len(number_text(value, 4)) < 14


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (0.125, "12.5 %"),
        (0.97, "97 %"),
        (1.0, "100 %"),
        (1e-6, "less than 0.1 %"),
        (0.99999, "more than 99.9 %"),
    ],
)
def test_a_share(share: float, text: str) -> None:
    assert share_text(share) == text


class Terminal(io.StringIO):
    """A terminal of a certain encoding."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


HEAD = ("name", "version", "stored")
ROWS = [("a" * 50 + "z" * 50, "1", "2023-11-14 22:13:20 UTC"), ("hello", "12", "2023-11-14")]


def drawn(out: Any, monkeypatch: pytest.MonkeyPatch, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    Console(out, {}).table(HEAD, ROWS, cut=0)
    return str(out.getvalue()).splitlines()


def test_a_long_name_makes_no_row_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    head, long, short = drawn(Terminal(), monkeypatch, 80)
    assert max(map(len, (head, long, short))) == 79
    name = long.split()[0]
    assert name.startswith("aaaa")
    assert name.endswith("zzzz")
    assert "…" in name
    assert short.startswith("hello ")
    assert head.index("stored") == long.index("2023") == short.index("2023")


def test_a_very_narrow_terminal_still_tells_names_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    _, long, _ = drawn(Terminal(), monkeypatch, 20)
    assert long.split()[0] == "aaaaaa…zzzzz"


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_what_is_piped_and_what_fits_is_whole(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    assert ROWS[0][0] in drawn(io.StringIO(), monkeypatch, columns)[1]
    assert ROWS[0][0] in drawn(Terminal(), monkeypatch, 200)[1]


def test_the_middle_of_a_text_is_cut() -> None:
    assert middle_cut("abcdefgh", 8, "…") == "abcdefgh"
    assert middle_cut("abcdefgh", 5, "…") == "ab…gh"
    assert middle_cut("abcdefgh", 5, "...") == "a...h"
    assert middle_cut("abcdefgh", 1, "…") == "…"
