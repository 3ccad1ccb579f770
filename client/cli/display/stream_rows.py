"""`Rows` prints the output of `treadle score-stream`, a row for each line, event or chunk."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from treadle.client.argument_names import rename_fields
from treadle.client.cli.display.console import Console, one_line
from treadle.client.cli.display.notices import print_unknown_share
from treadle.client.cli.display.numbers import number_text
from treadle.client.cli.display.tables import fit, print_tokens

if TYPE_CHECKING:
    from treadle.client.cli.input.stream_input import Unit
    from treadle.v1.sequence_pb2 import PieceScore, ScoreStreamResult

INDENT = " " * 12


class Rows:
    """Prints the scores of units, or of the requested ones among them.

    Args:
        args: The command line.
        console: The output.
    """

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self._console = console
        self._threshold = -math.inf if args.threshold is None else args.threshold
        self._top_g: int | None = args.top_g
        self._only_flagged: bool = args.only_flagged
        self._json: bool = getattr(args, "json", False)
        self._tokens: bool = bool(
            getattr(args, "log_probabilities", False)
            or getattr(args, "ranks", False)
            or getattr(args, "top_log_probabilities", 0)
        )

    def print(self, unit: Unit, score: PieceScore) -> None:
        """Prints the row of a unit, unless it is below the threshold or not flagged."""
        nats = -score.total_log_probability + 0.0  # no -0
        worst = max((token.rank for token in score.tokens), default=0)
        flagged = self._top_g is not None and worst > self._top_g
        if not nats > self._threshold or (self._only_flagged and not flagged):
            return
        if self._json:
            self._print_json(unit, score, nats, worst, flagged)
            return
        cells = [number_text(nats).rjust(10)]
        if self._top_g is not None:
            cells.append(f"{worst or '-':>6} {'!' if flagged else ' '}")
        row = "  ".join([*cells, ""])
        self._print_row(row, unit.text)
        if self._tokens:
            print_tokens(score.tokens, self._console, INDENT)

    def _print_json(
        self, unit: Unit, score: PieceScore, nats: float, worst: int, flagged: bool
    ) -> None:
        """Prints a unit as an object, with its tokens where requested."""
        from treadle.client.cli.display.json_lines import as_json, to_line

        row: dict[str, Any] = {"line": unit.number, "text": unit.text, "nats": nats}
        if self._top_g is not None:
            row |= {"worst_rank": worst, "flagged": flagged}
        fields = as_json(score)
        if not self._tokens:
            fields.pop("tokens", None)
        self._console.line(to_line(row | fields))

    def _print_row(self, row: str, text: str) -> None:
        """Prints a row and its text, cut to the width of a terminal."""
        self._console.line((row + fit(self._console, text, len(row))).rstrip())

    def print_fault(self, unit: Unit, fault: str) -> None:
        """Prints the row of a unit that could not be read, whichever rows were requested."""
        from treadle.client.cli.display.json_lines import to_line

        fault = rename_fields(fault, self._console.argument_names())
        if self._json:
            fields = {"line": unit.number, "text": unit.text, "error": fault}
            self._console.line(to_line(fields))
            return
        row = f"{'error':>10}  {one_line(fault)}: "
        self._print_row(row, unit.text)

    def print_total(self, result: ScoreStreamResult, errors: int) -> None:
        """Prints the score of the whole stream, as JSON only, and the share of unknown tokens."""
        from treadle.client.cli.display.json_lines import as_json, to_line

        if self._json:
            total = {
                "total": as_json(result.total),
                "item_count": result.item_count,
                "error_count": errors,
            }
            self._console.line(to_line(total))
        print_unknown_share(result.total.unknown_count, result.total.token_count)


def add_up(whole: PieceScore, part: PieceScore) -> None:
    """Adds the score of a unit's next piece to those before it; an error replaces them."""
    if part.HasField("error"):
        whole.CopyFrom(part)
        return
    whole.total_log_probability += part.total_log_probability
    whole.token_count += part.token_count
    whole.tokens.extend(part.tokens)
    if part.HasField("whole"):
        whole.whole.CopyFrom(part.whole)
