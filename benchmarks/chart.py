"""`svg` draws ratios as bars, readable on a light page and on a dark one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from treadle.benchmarks.race import Row
from treadle.benchmarks.summary import is_rltools

WIDTH = 720
LEFT = 150
RIGHT = 70
BAR = 16
GAP = 6
HEAD = 34
FOOT = 14

PANELS = (
    ("train", "pytorch", "Training, against PyTorch"),
    ("decode", "pytorch", "Decoding one session, against PyTorch"),
    ("decode", "jax", "Decoding one session, against JAX"),
    ("score", "onnxruntime", "Scoring, against ONNX Runtime"),
    ("numpy", "numpy_float32", "Training, against NumPy in float32"),
)
"""Section, rival and title of each panel."""

# Colours from the system that GitHub's pages use, for either scheme.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 13px }
.bar { fill: #2f6fb5 } .behind { fill: #bc4c00 } .one { stroke: #1f2328; stroke-dasharray: 2 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .bar { fill: #6cb0f5 } .behind { fill: #f0883e } .one { stroke: #e6edf3 }
}
"""


@dataclass(frozen=True)
class Panel:
    """Bars that share a title and a scale."""

    title: str
    bars: tuple[tuple[str, float], ...]
    """Label and ratio of each."""

    @property
    def height(self) -> int:
        """Its height in pixels."""
        return HEAD + len(self.bars) * (BAR + GAP) + FOOT


def panels(results: Mapping[str, Any]) -> list[Panel]:
    """Returns a panel for every section and rival that was measured."""
    made = []
    for section, rival, title in PANELS:
        rows: Sequence[Row] = results.get(section) or []
        bars = tuple(
            (_label(row), float(row["ratios"][rival]))
            for row in rows
            if row["ratios"].get(rival) is not None
        )
        if bars:
            made.append(Panel(title, bars))
    return made


def _label(row: Row) -> str:
    return f"{row['label']} RLtools" if is_rltools(row) else str(row["label"])


def _text(x: float, y: float, text: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(text)}</text>'


def _draw(panel: Panel, top: int) -> list[str]:
    """Draws one panel; its widest bar fills the width, a dashed line stands at 1."""
    scale = (WIDTH - LEFT - RIGHT) / max(1.0, *(ratio for _, ratio in panel.bars))
    parts = [_text(8, top + 20, f"{panel.title} (times its speed)", ' class="title"')]
    for number, (label, ratio) in enumerate(panel.bars):
        y = top + HEAD + number * (BAR + GAP)
        kind = "bar" if ratio >= 1 else "behind"
        width = ratio * scale
        parts.append(_text(LEFT - 8, y + 12, label, ' text-anchor="end"'))
        parts.append(
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
        )
        parts.append(_text(LEFT + width + 6, y + 12, f"{ratio:.2f}"))
    x = LEFT + scale
    bottom = top + panel.height - FOOT
    parts.append(
        f'<line class="one" x1="{x:.1f}" y1="{top + HEAD - 4}" x2="{x:.1f}" y2="{bottom}"/>'
    )
    return parts


def svg(results: Mapping[str, Any]) -> str:
    """Returns the whole chart."""
    drawn = []
    top = 8
    for panel in panels(results):
        drawn += _draw(panel, top)
        top += panel.height
    if not drawn:
        drawn = [_text(8, 28, "Nothing was measured next to a rival.")]
        top = 48
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" '
        f'height="{top}" role="img" aria-label="Speed of Treadle in units of its rivals\'">'
    )
    return "\n".join([head, f"<style>{STYLE}</style>", *drawn, "</svg>", ""])


def write(results: Mapping[str, Any], path: Path) -> None:
    """Writes the chart to a file."""
    path.write_text(svg(results), encoding="utf-8")
