"""`input_file` and `exit_code` end a script with one sentence where its input cannot be used."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from treadle.model.errors import ModelError


def input_file(text: str) -> Path:
    """Returns the path of a file that can be read: the `type` of an argument of argparse.

    Raises:
        ArgumentTypeError: It cannot be read.
    """
    path = Path(text)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text}: {error.strerror}") from error


def exit_code(main: Callable[[], int]) -> int:
    """Runs the main function of a script.

    Args:
        main: Returns the exit code.

    Returns:
        Its exit code; 2 after a sentence where the model's code refuses a file or a setting.
    """
    try:
        return main()
    except ModelError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
