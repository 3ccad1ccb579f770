"""`Figure` is one measured number and its bound; `line` and `comparison` print tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number that a scenario gives."""

    what: str
    """What is measured."""
    value: float | None
    """The number; None where it could not be measured, such as after the end of the server."""
    unit: str = ""
    """Its unit; empty for counts."""
    bound: float = math.inf
    """The most that it may be; infinite: it is shown, not judged."""
    note: str = ""
    """What else there is to know, in a few words."""
    is_common: bool = False
    """Whether every scenario has it: such figures share a line."""

    @property
    def verdict(self) -> str:
        """`within` or `beyond` its bound; `-` where it has none."""
        if math.isinf(self.bound):
            return "-"
        return "within" if self.value is not None and self.value <= self.bound else "beyond"


def percentile(values: Sequence[float], share: float) -> float | None:
    """Returns a percentile by the nearest rank; None where there are no values.

    Args:
        values: The values, in any order.
        share: Which one, above 0 to 1; 0.99 is the 99th.
    """
    if not values:
        return None
    rank = max(1, math.ceil(share * len(values) - 1e-9))
    return sorted(values)[rank - 1]


def line(scenario: str, figure: Figure) -> str:
    """Returns the line of the table for a figure."""
    bound = "" if math.isinf(figure.bound) else f"<= {number(figure.bound)}"
    value = f"{number(figure.value)} {figure.unit}".rstrip()
    columns = f"{scenario:<26}{figure.what:<32}{value:>14}{bound:>10}  {figure.verdict:<7}"
    return f"{columns} {figure.note}".rstrip()


def common_line(scenario: str, figures: Sequence[Figure]) -> str:
    """Returns the one line for the figures that every scenario has; those beyond are marked."""
    texts = []
    for figure in figures:
        text = f"{figure.what} {number(figure.value)} {figure.unit}".rstrip()
        if figure.note:
            text += f" ({figure.note})"
        texts.append(
            f"{text} BEYOND {number(figure.bound)}" if figure.verdict == "beyond" else text
        )
    return f"{scenario:<26}{', '.join(texts)}"


def number(value: float | None) -> str:
    """Returns a number with as many digits as say something."""
    if value is None:
        return "none"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def beyond(results: Mapping[str, Sequence[Figure]]) -> list[str]:
    """Returns the scenarios that have a figure beyond its bound."""
    return [
        name
        for name, figures in results.items()
        if any(figure.verdict == "beyond" for figure in figures)
    ]


def as_json(results: Mapping[str, Sequence[Figure]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the results for a JSON file; a bound that is infinite becomes null."""
    return {
        name: [
            {
                **asdict(figure),
                "bound": None if math.isinf(figure.bound) else figure.bound,
                "verdict": figure.verdict,
            }
            for figure in figures
        ]
        for name, figures in results.items()
    }


def comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Returns a Markdown table of what two JSON files say; each has what `as_json` returns.

    Of the figures that every scenario has, health's are shown, and those beyond their bound.
    """
    rows = ["| scenario | figure | bound | before | after |", "|---|---|---|---|---|"]
    for name, figures in after.items():
        earlier = {figure["what"]: figure for figure in before.get(name, [])}
        for figure in figures:
            old = earlier.get(figure["what"])
            both = [figure, old or figure]
            if figure["is_common"] and not (
                figure["what"] == "longest" or any(one["verdict"] == "beyond" for one in both)
            ):
                continue
            bound = "" if figure["bound"] is None else number(figure["bound"])
            cells = [name, figure["what"], bound, _cell(old), _cell(figure)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    return f"{number(figure['value'])} {figure['unit']}".rstrip()
