"""`svg` draws a loss curve as an SVG, for light and dark pages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.sax.saxutils import escape

from treadle.client.cli.display.curves.curve import Axis, Curve, Point, loss_axis, step_axis, thin

LEFT = 64
RIGHT = 20
TOP = 58
BOTTOM = 46
"""Margins in pixels."""

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 13px }
.grid { stroke: #d1d9e0 } .axis { stroke: #59636e }
.train, .valid, .baseline { fill: none; stroke-width: 1.5; stroke-linejoin: round }
.train { stroke: #2f6fb5 } .valid { stroke: #bc4c00 }
.baseline { stroke: #1f2328; stroke-dasharray: 2 3 }
.dot { fill: #bc4c00 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .grid { stroke: #30363d } .axis { stroke: #9198a1 }
  .train { stroke: #6cb0f5 } .valid { stroke: #f0883e } .baseline { stroke: #e6edf3 }
  .dot { fill: #f0883e }
}
"""

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot write."""


def svg(curve: Curve, width: int, height: int) -> str:
    """Returns the drawing.

    Args:
        curve: The curve.
        width: Pixels across, more than the margins take.
        height: Pixels down, more than the margins take.
    """
    steps = step_axis(curve, max(1, (width - LEFT - RIGHT) // 90))
    losses = loss_axis(curve, max(1, (height - TOP - BOTTOM) // 45))
    plot = _Plot(steps, losses, width, height)
    title = _clean(curve.title)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        f"aria-label={_quoted(title)}>"
    )
    parts = [head, f"<style>{STYLE}</style>", _text(LEFT, 22, curve.title, ' class="title"')]
    parts += _legend(curve)
    parts += plot.axes()
    if curve.baseline is not None:
        y = plot.y(curve.baseline)
        parts.append(_line("baseline", LEFT, y, width - RIGHT, y))
    parts.append(plot.polyline("train", curve.train))
    parts.append(plot.polyline("valid", curve.valid))
    parts += plot.dots(curve.valid)
    return "\n".join([*(part for part in parts if part), "</svg>", ""])


class _Plot:
    """Converts steps and losses to pixels of the drawing."""

    def __init__(self, steps: Axis, losses: Axis, width: int, height: int) -> None:
        self._steps = steps
        self._losses = losses
        self._width = width
        self._height = height

    def x(self, step: float) -> float:
        return LEFT + self._steps.place(step) * (self._width - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        return self._height - BOTTOM - self._losses.place(loss) * (self._height - TOP - BOTTOM)

    def polyline(self, kind: str, points: tuple[Point, ...]) -> str:
        """Draws points as one line; nothing where there are none."""
        kept = thin(points, self._steps.high, self._width)
        corners = " ".join(f"{self.x(p.step):.1f},{self.y(p.loss):.1f}" for p in kept)
        return f'<polyline class="{kind}" points="{corners}"/>' if kept else ""

    def dots(self, points: Iterable[Point]) -> list[str]:
        """Draws each point, since a curve of a single one would be invisible otherwise."""
        return [
            f'<circle class="dot" cx="{self.x(p.step):.1f}" cy="{self.y(p.loss):.1f}" r="2.5"/>'
            for p in points
        ]

    def axes(self) -> list[str]:
        """Draws both axes with their marks, labels and names."""
        right = self._width - RIGHT
        bottom = self._height - BOTTOM
        parts = []
        for tick, label in zip(self._losses.ticks, self._losses.labels, strict=True):
            y = self.y(tick)
            parts.append(_line("grid", LEFT, y, right, y))
            parts.append(_text(LEFT - 8, y + 4, label, ' text-anchor="end"'))
        for tick, label in zip(self._steps.ticks, self._steps.labels, strict=True):
            x = self.x(tick)
            parts.append(_line("axis", x, bottom, x, bottom + 4))
            parts.append(_text(x, bottom + 18, label, ' text-anchor="middle"'))
        parts.append(_line("axis", LEFT, bottom, right, bottom))
        parts.append(_line("axis", LEFT, TOP, LEFT, bottom))
        middle = (LEFT + right) / 2
        parts.append(_text(middle, bottom + 38, "step", ' text-anchor="middle"'))
        y = (TOP + bottom) / 2
        turn = f' text-anchor="middle" transform="rotate(-90 16 {y:.1f})"'
        parts.append(_text(16, y, "nats per token", turn))
        return parts


def _legend(curve: Curve) -> list[str]:
    """Draws the legend, side by side below the title."""
    items = [("train", "train")]
    if curve.valid:
        items.append(("valid", curve.valid_name))
    if curve.baseline is not None:
        items.append(("baseline", curve.baseline_name))
    parts = []
    x = float(LEFT)
    for kind, name in items:
        parts.append(_line(kind, x, 40, x + 22, 40))
        parts.append(_text(x + 28, 44, name))
        x += 28 + 7 * len(name) + 18
    return parts


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(_clean(text))}</text>'


def _quoted(text: str) -> str:
    """Writes an attribute's value."""
    return '"' + escape(text, {'"': "&quot;"}) + '"'


def _clean(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
