"""`duration`, `size` and the others read the values of options."""

from __future__ import annotations

import argparse
import re

from treadle.client.files.paths import display_path

UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Seconds in each unit of a duration."""

SIZES = {
    "": 1,
    "b": 1,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
"""Bytes in each unit of a size."""


def duration(text: str) -> float:
    """Reads a duration: "180s", "3m", "1.5h", "250ms", or plain seconds.

    Returns:
        Seconds.

    Raises:
        argparse.ArgumentTypeError: The text has another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 3m or 1h")
    return float(match[1]) * UNITS[match[2]]


def size(text: str) -> int:
    """Reads a size: "500MB", "2g", "1.5GiB", or plain bytes.

    Returns:
        Bytes.

    Raises:
        argparse.ArgumentTypeError: The text has another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in SIZES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB or 2GB")
    return round(float(match[1]) * SIZES[match[2]])


def version_number(text: str) -> int:
    """Reads a model's version.

    Returns:
        The version, 1 or more.

    Raises:
        argparse.ArgumentTypeError: The text is no version.
    """
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version: versions count from 1")
    return int(text)


def weight(text: str) -> tuple[str, float]:
    """Reads "FILE=W".

    Returns:
        The file's name and its weight.

    Raises:
        argparse.ArgumentTypeError: The text has another form.
    """
    path, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not path or not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not FILE=W with W above 0, up to 100")
    return path, value


def tag(text: str) -> tuple[str, str]:
    """Reads "KEY=VALUE".

    Returns:
        The tag's name and its value, which may be empty.

    Raises:
        argparse.ArgumentTypeError: The text has another form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not a tag such as team=search")
    return name, value


def read_state(path: str) -> bytes:
    """Reads a state file.

    Returns:
        The bytes of the state.

    Raises:
        argparse.ArgumentTypeError: It cannot be read, or is empty.
    """
    try:
        with open(path, "rb") as file:
            state = file.read()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"cannot read {display_path(path)}: {error.strerror}"
        ) from error
    except ValueError as error:  # a NUL in the name
        raise argparse.ArgumentTypeError(f"cannot read {path!r}: {error}") from error
    if not state:
        raise argparse.ArgumentTypeError(f"{display_path(path)} is empty, and not a state")
    return state
