"""A loss curve as a PNG, written with zlib alone (ISO/IEC 15948)."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

from treadle.client.bitmap_font import dots, text_width
from treadle.client.curve import Axis, Curve, Point, line, loss_axis, step_axis, thin

SIGNATURE = b"\x89PNG\r\n\x1a\n"

Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
INK: Color = (31, 35, 40)
GRID: Color = (209, 217, 224)
TRAIN: Color = (47, 111, 181)
VALID: Color = (188, 76, 0)


class Canvas:
    """Pixels of 8 bits a color, white at first.

    Args:
        width: Pixels across.
        height: Pixels down.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._pixels = bytearray(bytes(WHITE) * (width * height))

    def box(self, x: int, y: int, width: int, height: int, color: Color) -> None:
        """Fills a rectangle, as far as it lies on the canvas."""
        left, right = max(0, x), min(self.width, x + width)
        if left >= right:
            return
        run = bytes(color) * (right - left)
        for row in range(max(0, y), min(self.height, y + height)):
            start = 3 * (row * self.width + left)
            self._pixels[start : start + len(run)] = run

    def text(self, x: int, y: int, text: str, scale: int, color: Color = INK) -> None:
        """Writes a text whose top left dot is at (x, y), `scale` pixels a dot."""
        for column, row in dots(text):
            self.box(x + column * scale, y + row * scale, scale, scale, color)

    def text_up(self, x: int, y: int, text: str, scale: int) -> None:
        """Writes a text that reads from the bottom up, begun at (x, y)."""
        for column, row in dots(text):
            self.box(x + row * scale, y - column * scale, scale, scale, INK)

    def png(self) -> bytes:
        """Returns the picture as a file's bytes."""
        stride = 3 * self.width
        rows = b"".join(
            b"\0" + self._pixels[start : start + stride]  # each row unfiltered
            for start in range(0, len(self._pixels), stride)
        )
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        return b"".join([
            SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(rows, 9)),
            _chunk(b"IEND", b""),
        ])  # fmt: skip


def _chunk(kind: bytes, data: bytes) -> bytes:
    """Frames one part of a PNG: its length, its kind, its data and their checksum."""
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(curve: Curve, width: int, height: int) -> bytes:
    """Returns the drawing as a PNG file's bytes.

    Args:
        curve: What to draw.
        width: Pixels across.
        height: Pixels down.
    """
    return _Drawing(curve, width, height).draw()


class _Drawing:
    """One curve on one canvas; margins and lines grow with the letters."""

    def __init__(self, curve: Curve, width: int, height: int) -> None:
        self._curve = curve
        self._canvas = Canvas(width, height)
        self._scale = scale = 2 if width >= 720 and height >= 360 else 1
        self._left, self._top = 48 * scale, 34 * scale
        self._right, self._bottom = width - 12 * scale, height - 30 * scale
        self._steps = step_axis(curve, max(1, (self._right - self._left) // (60 * scale)))
        self._losses = loss_axis(curve, max(1, (self._bottom - self._top) // (24 * scale)))

    def draw(self) -> bytes:
        self._canvas.text(self._left, 6 * self._scale, self._curve.title, self._scale)
        self._axes()
        self._baseline()
        self._line(self._curve.train, TRAIN)
        self._line(self._curve.valid, VALID)
        for point in self._curve.valid:
            x, y = self._place(point)
            size = 2 * self._scale + 1
            self._canvas.box(x - self._scale, y - self._scale, size, size, VALID)
        self._legend()
        return self._canvas.png()

    def _place(self, point: Point) -> tuple[int, int]:
        x = self._left + self._steps.place(point.step) * (self._right - self._left)
        return round(x), self._y(point.loss)

    def _y(self, loss: float) -> int:
        return round(self._bottom - self._losses.place(loss) * (self._bottom - self._top))

    def _line(self, points: tuple[Point, ...], color: Color) -> None:
        """Draws a curve."""
        kept = thin(points, self._steps.high, self._canvas.width)
        for first, second in pairwise([self._place(point) for point in [*kept[:1], *kept]]):
            for x, y in line(*first, *second):
                self._canvas.box(x, y, self._scale, self._scale, color)

    def _baseline(self) -> None:
        """Draws the baseline, dotted."""
        if self._curve.baseline is None:
            return
        y = self._y(self._curve.baseline)
        for x in range(self._left, self._right, 4 * self._scale):
            self._canvas.box(x, y, min(2 * self._scale, self._right - x), self._scale, INK)

    def _axes(self) -> None:
        """Draws both axes with their marks, labels and names."""
        scale, canvas = self._scale, self._canvas
        for tick, label in _marks(self._losses):
            y = self._y(tick)
            canvas.box(self._left, y, self._right - self._left, 1, GRID)
            canvas.text(self._left - (text_width(label) + 4) * scale, y - 3 * scale, label, scale)
        for tick, label in _marks(self._steps):
            x, _ = self._place(Point(int(tick), self._losses.low))
            canvas.box(x, self._bottom, scale, 3 * scale, INK)
            start = min(
                x - text_width(label) * scale // 2, canvas.width - text_width(label) * scale
            )
            canvas.text(start, self._bottom + 6 * scale, label, scale)
        canvas.box(self._left, self._bottom, self._right - self._left, scale, INK)
        canvas.box(self._left, self._top, scale, self._bottom - self._top, INK)
        middle = (self._left + self._right - text_width("step") * scale) // 2
        canvas.text(middle, self._bottom + 18 * scale, "step", scale)
        name = "nats a token"
        start = (self._top + self._bottom + text_width(name) * scale) // 2
        canvas.text_up(3 * scale, start, name, scale)

    def _legend(self) -> None:
        """Draws what each line is, side by side below the title."""
        curve, scale = self._curve, self._scale
        items: list[tuple[str, Color]] = [("train", TRAIN)]
        if curve.valid:
            items.append((curve.valid_name, VALID))
        if curve.baseline is not None:
            items.append((curve.baseline_name, INK))
        x, y = self._left, 20 * scale
        for name, color in items:
            gap = 4 * scale if color == INK else 2 * scale
            for start in range(x, x + 16 * scale, gap):
                self._canvas.box(start, y + 3 * scale, 2 * scale, scale, color)
            self._canvas.text(x + 20 * scale, y, name, scale)
            x += (20 + text_width(name) + 14) * scale


def _marks(axis: Axis) -> list[tuple[float, str]]:
    return list(zip(axis.ticks, axis.labels, strict=True))
