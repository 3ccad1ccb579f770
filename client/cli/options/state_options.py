"""`save_path` reads the file of --save-state, which will hold a state as raw bytes."""

from __future__ import annotations

from typing import Any

from treadle.client.cli.display.output_file import check_output


def save_path(options: dict[str, Any], field: str) -> str | None:
    """Turns the file of --save-state among the options into the request's field.

    Returns:
        The file's path; None where no state is to be kept.

    Raises:
        InputError: It cannot be written.
    """
    if field not in options:
        return None
    path = str(options[field])
    options[field] = True
    check_output(path)
    return path
