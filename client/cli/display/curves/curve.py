"""`Curve` holds the losses of a job; `step_axis` and `loss_axis` make its axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from treadle.client.cli.display.numbers import number_text


class Point(NamedTuple):
    """A loss at a step."""

    step: int
    """Optimizer steps done."""
    loss: float
    """Nats a token."""


@dataclass(frozen=True)
class Curve:
    """The losses of one job."""

    title: str
    """The heading of the drawing."""
    train: tuple[Point, ...]
    """Training losses, by step."""
    valid: tuple[Point, ...]
    """Validation losses, by step."""
    valid_name: str = "valid"
    """Their name in the legend: "valid (the last 10 %)"."""
    baseline: float | None = None
    """The n-gram's validation loss."""
    baseline_name: str = ""
    """Its name in the legend: "5-gram 1.669"."""

    @property
    def points(self) -> tuple[Point, ...]:
        """The training and validation losses."""
        return self.train + self.valid


def append_point(points: list[Point], point: Point) -> None:
    """Adds a finite point; a job that resumes from a checkpoint repeats some steps."""
    while points and points[-1].step >= point.step:
        points.pop()
    if math.isfinite(point.loss):
        points.append(point)


class Axis(NamedTuple):
    """A range of values and its marks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    """Values to mark, at least one."""
    labels: tuple[str, ...]
    """The label of each."""

    def place(self, value: float) -> float:
        """Returns the place of a value: 0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def step_axis(curve: Curve, most: int) -> Axis:
    """Returns the axis of steps, from 0 on, with at most `most` + 1 marks."""
    high = max((point.step for point in curve.points), default=1) or 1
    step = max(1.0, tick_step(high, most))
    marks = tuple(step * i for i in range(int(high / step) + 1))
    return Axis(0.0, float(high), marks, tuple(f"{mark:,.0f}" for mark in marks))


def loss_axis(curve: Curve, most: int) -> Axis:
    """Returns the axis of losses, a little wider than they are, with at most `most` + 1 marks."""
    losses = [point.loss for point in curve.points]
    if curve.baseline is not None and math.isfinite(curve.baseline):
        losses.append(curve.baseline)
    low = min(losses, default=0.0)
    high = max(losses, default=1.0)
    spread = high - low
    if spread < 1e-6 * max(1.0, abs(high)):  # one value has no spread
        spread = max(1.0, abs(high))
    margin = 0.04 * spread
    low -= margin
    high += margin
    step = tick_step(high - low, most)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    marks = tuple(step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)) or (
        low,
    )
    return Axis(low, high, marks, tuple(number_text(mark, digits) for mark in marks))


def tick_step(span: float, most: int) -> float:
    """Returns the smallest 1, 2 or 5 times a power of ten that fits at most `most` times."""
    raw = span / max(1, most)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= raw * (1 - 1e-9))


def thin(points: Sequence[Point], high: float, columns: int) -> list[Point]:
    """Leaves out points that would be invisible.

    Args:
        points: Points by step.
        high: The step at the right end.
        columns: Columns of the drawing.

    Returns:
        Of each column the first, the lowest, the highest and the last point, by step.
    """
    by_column: dict[int, list[Point]] = {}
    for point in points:
        by_column.setdefault(int(point.step / high * columns), []).append(point)
    kept: list[Point] = []
    for group in by_column.values():
        least = min(group, key=lambda point: point.loss)
        most = max(group, key=lambda point: point.loss)
        kept += sorted({group[0], least, most, group[-1]})
    return kept


def line(x0: int, y0: int, x1: int, y1: int) -> Iterator[tuple[int, int]]:
    """Yields the dots of a straight line, both ends included (Bresenham 1965)."""
    dx = abs(x1 - x0)
    dy = -abs(y1 - y0)
    right = 1 if x0 < x1 else -1
    down = 1 if y0 < y1 else -1
    error = dx + dy
    while True:
        yield x0, y0
        if (x0, y0) == (x1, y1):
            return
        twice = 2 * error
        if twice >= dy:
            error += dy
            x0 += right
        if twice <= dx:
            error += dx
            y0 += down
