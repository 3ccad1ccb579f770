"""`draw` draws a loss curve in characters for a terminal: braille dots, or plain ASCII.

It is code of our own on purpose. plotext 6 was compared with it: it takes 0.2 s to import and ten
times as long to draw, keeps its figure in global state, paints its own background, writes control
characters of a title to the terminal, and has neither this ASCII form nor the axes that the SVG
shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from treadle.client.cli.display.curves.curve import (
    Axis,
    Curve,
    Point,
    line,
    loss_axis,
    step_axis,
    thin,
)

MIN_COLUMNS = 10
MIN_ROWS = 3
"""The smallest area that a curve is drawn in."""

HEAD_AND_FOOT = 4
"""Lines of title, axis, its labels and the legend."""

LEGEND_GAP = "   "
UNIT = "   (nats per token, by step)"

# The bits of the eight dots of a braille character, by row and column (Unicode, U+2800).
BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

TRAIN = "\x1b[36m"
VALID = "\x1b[33m"
BASELINE = "\x1b[2m"
RESET = "\x1b[0m"


@dataclass(frozen=True)
class Marks:
    """The characters of a drawing."""

    train: str
    """The training curve in the legend; in ASCII, also in the drawing."""
    valid: str
    baseline: str
    corner: str
    across: str
    up: str
    tick: str
    below: str


UNICODE = Marks("⠒⠒", "●", "┈", "└", "─", "│", "┤", "┬")
ASCII = Marks("*", "o", ".", "+", "-", "|", "+", "+")


class Area:
    """The rectangle that curves are drawn in, one colored character in each cell.

    Args:
        columns: Its columns.
        rows: Its rows.
        color: Whether to color it.
    """

    def __init__(self, columns: int, rows: int, *, color: bool) -> None:
        self.columns = columns
        self.rows = rows
        self._color = color
        self._cells = [[" "] * columns for _ in range(rows)]

    def put(self, column: int, row: int, text: str, color: str) -> None:
        """Puts a character into a cell."""
        self._cells[row][column] = f"{color}{text}{RESET}" if self._color else text

    def row(self, row: int) -> str:
        """Returns one row."""
        return "".join(self._cells[row])


def draw(curve: Curve, width: int, height: int, *, unicode: bool, color: bool) -> list[str]:
    """Draws a curve.

    Args:
        curve: The curve.
        width: Columns to fill.
        height: Lines to fill.
        unicode: Whether the terminal shows more than ASCII.
        color: Whether to color it.

    Returns:
        The lines, as wide and as many as requested, unless that is too small for a curve or
        for the legend.
    """
    marks = UNICODE if unicode else ASCII
    rows = max(MIN_ROWS, height - HEAD_AND_FOOT)
    losses = loss_axis(curve, max(3, rows // 3 + 1))
    label = max(map(len, losses.labels))
    columns = max(MIN_COLUMNS, width - label - 2)
    steps = step_axis(curve, max(1, columns // 14))
    area = Area(columns, rows, color=color)
    _draw_baseline(area, curve, losses, marks)
    _draw_train(area, thin(curve.train, steps.high, 2 * columns), steps, losses, unicode=unicode)
    for point in curve.valid:
        column, row = _cell(area, point, steps, losses, 1, 1)
        area.put(column, row, marks.valid, VALID)
    return [
        curve.title,
        *_with_losses(area, losses, label, marks),
        *_step_lines(steps, columns, label, marks),
        _legend(curve, marks, width, color=color),
    ]


def _cell(
    area: Area, point: Point, steps: Axis, losses: Axis, across: int, down: int
) -> tuple[int, int]:
    """Returns the dot of a point; `across` and `down` are the dots of a cell."""
    last_x = area.columns * across - 1
    last_y = area.rows * down - 1
    x = round(steps.place(point.step) * last_x)
    return x, round((1 - losses.place(point.loss)) * last_y)


def _draw_baseline(area: Area, curve: Curve, losses: Axis, marks: Marks) -> None:
    """Draws the baseline across the area."""
    if curve.baseline is not None:
        row = round((1 - losses.place(curve.baseline)) * (area.rows - 1))
        for column in range(area.columns):
            area.put(column, row, marks.baseline, BASELINE)


def _draw_train(
    area: Area, points: Sequence[Point], steps: Axis, losses: Axis, *, unicode: bool
) -> None:
    """Draws the training curve."""
    across = 2 if unicode else 1
    down = 4 if unicode else 1
    corners = [_cell(area, point, steps, losses, across, down) for point in points]
    bits: dict[tuple[int, int], int] = {}
    for (x0, y0), (x1, y1) in pairwise([*corners[:1], *corners]):
        for x, y in line(x0, y0, x1, y1):
            cell = (x // across, y // down)
            bits[cell] = bits.get(cell, 0) | BRAILLE[y % down][x % across]
    for (column, row), dots in bits.items():
        area.put(column, row, chr(0x2800 + dots) if unicode else ASCII.train, TRAIN)


def _with_losses(area: Area, losses: Axis, label: int, marks: Marks) -> list[str]:
    """Returns the rows with the axis of losses before them."""
    at_row = {
        round((1 - losses.place(tick)) * (area.rows - 1)): text
        for tick, text in zip(losses.ticks, losses.labels, strict=True)
    }
    return [
        f"{at_row.get(row, ''):>{label}} {marks.tick if row in at_row else marks.up}"
        + area.row(row).rstrip()
        for row in range(area.rows)
    ]


def _step_lines(steps: Axis, columns: int, label: int, marks: Marks) -> list[str]:
    """Draws the axis of steps and its labels."""
    axis = [marks.across] * columns
    below = [" "] * columns
    free = 0
    for tick, text in zip(steps.ticks, steps.labels, strict=True):
        column = round(steps.place(tick) * (columns - 1))
        axis[column] = marks.below
        start = max(0, min(column - len(text) // 2, columns - len(text)))
        if start >= free:
            below[start : start + len(text)] = text
            free = start + len(text) + 1
    indent = " " * (label + 2)
    return [indent[:-1] + marks.corner + "".join(axis), (indent + "".join(below)).rstrip()]


def _legend(curve: Curve, marks: Marks, width: int, *, color: bool) -> str:
    """Returns the legend; the unit is left out where the line would be too long."""
    items = [(TRAIN, marks.train, "train")]
    if curve.valid:
        items.append((VALID, marks.valid, curve.valid_name))
    if curve.baseline is not None:
        items.append((BASELINE, marks.baseline * 2, curve.baseline_name))
    plain = LEGEND_GAP.join(f"{mark} {name}" for _, mark, name in items)
    unit = UNIT if len(plain + UNIT) <= width else ""
    if not color:
        return plain + unit
    return LEGEND_GAP.join(f"{paint}{mark}{RESET} {name}" for paint, mark, name in items) + unit
