"""`LiveRegion` is the part at the bottom of a terminal that is drawn again and again."""

from __future__ import annotations

from rich.console import RenderableType
from rich.live import Live
from rich.segment import Segment, SegmentLines
from rich.text import Text

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.terminal.rich_console import rich_console


class LiveRegion:
    """Lines that are drawn in place; what is printed meanwhile stays above them.

    There is no thread, so that nothing is written after a Ctrl-C.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rich = rich_console(console)
        self._live = Live(
            console=self._rich,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._widths: list[int] = []

    def open(self) -> None:
        """Begins to draw."""
        self._console.begin_live(self._live.stop)
        self._live.start()
        self._rich.show_cursor(True)  # so that it is there after Ctrl-Z and `kill -9`, too

    def draw(self, content: RenderableType, above: Text | None = None) -> None:
        """Draws the lines in place of those before.

        Args:
            content: The lines.
            above: What is printed above them, and stays.
        """
        self._take_back_wrapped()
        if above is not None:
            self._rich.print(above)
        lines = self._rich.render_lines(content, pad=False)[: max(1, self._rich.height - 1)]
        self._widths = [Segment.get_line_length(line) for line in lines]
        self._live.update(SegmentLines(lines, new_lines=True), refresh=True)

    def close(self) -> None:
        """Removes the lines."""
        self._take_back_wrapped()
        self._live.stop()
        self._console.end_live()

    @property
    def is_wrapped(self) -> bool:
        """Whether the terminal has become narrower than the lines."""
        return any(width > self._rich.width for width in self._widths)

    def _take_back_wrapped(self) -> None:
        """Clears the lines if a narrower terminal has wrapped them, and so made more of them.

        Afterwards the cursor is as many lines below the first one as rich expects.
        """
        if not self.is_wrapped:
            return
        columns = max(1, self._rich.width)
        rows = sum(max(1, -(-width // columns)) for width in self._widths)
        down = "\n" * (len(self._widths) - 1)
        self._console.out.write(f"\r\x1b[{rows - 1}A\x1b[J{down}")
        self._widths = [min(width, columns) for width in self._widths]
