r"""`read_vocabulary` reads the vocabulary of a PyTorch module from a file.

A `.json` file is a list of tokens in the order of their ids, or an object of tokens with their ids.
Any other file is text in UTF-8 with one token on each line, in that order. There the lines `\n`,
`\r`, `\t` and `\\` are a line feed, a carriage return, a tab and a backslash.
"""

from __future__ import annotations

import json
import os

from treadle.client.errors import InputError
from treadle.client.files.paths import display_path, open_file

MOST_BYTES = 64 << 20
"""Bytes of the largest file that is read."""

_ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\\": "\\"}


def read_vocabulary(path: str | os.PathLike[str]) -> list[str]:
    """Reads a vocabulary.

    Args:
        path: The file.

    Returns:
        The tokens, in the order of their ids.

    Raises:
        InputError: The file cannot be read, or is no vocabulary.
    """
    with open_file(path) as file:
        try:
            data = file.readall()[: MOST_BYTES + 1]
            if len(data) > MOST_BYTES:
                raise InputError(f"{display_path(path)} is too large for a vocabulary")
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"byte {error.start:,}"
            raise InputError(f"{display_path(path)} is not UTF-8 text at {where}") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot read {display_path(path)}: {reason}") from error
    if os.fspath(path).lower().endswith(".json"):
        return _from_json(text, path)
    lines = text.split("\n")
    if lines[-1] == "":  # the end of the last line
        lines.pop()
    return [_ESCAPES.get(line, line) for line in lines]


def _from_json(text: str, path: str | os.PathLike[str]) -> list[str]:
    name = display_path(path)
    form = "a list of tokens, or an object of tokens and their ids"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {error}") from error
    if isinstance(content, dict):
        if sorted(map(str, content.values())) != sorted(map(str, range(len(content)))):
            raise InputError(f"the ids in {name} must be 0 to {len(content) - 1:,}, each once")
        content = sorted(content, key=lambda token: int(content[token]))
    if not isinstance(content, list) or not all(isinstance(token, str) for token in content):
        raise InputError(f"{name} must be {form}")
    return content
