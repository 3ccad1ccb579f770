"""`BearerToken` is the token that a client proves its name with; `TokenFile` reads one from a file.

A token is a secret: no message, `repr` or log line of this module holds any part of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TypeAlias

from treadle.client.errors import InputError

TokenSource: TypeAlias = str | Callable[[], str]
"""A token, or a function that returns the token of the next call."""

MAX_TOKEN_CHARACTERS = 8000
"""The longest token that is sent: gRPC limits all metadata of a call to 8 KiB."""

_TOKEN = re.compile(r"[\x21-\x7e]+")
"""Visible ASCII, which is all that a header may hold."""

_TREADLE_TOKEN = re.compile(r"treadle_([A-Za-z0-9-]+)_\S+")

_SECRETS = re.compile(r"(treadle_[0-9a-f]{16}_)\w{8,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*")
"""Tokens of a Treadle server, and JSON Web Tokens, within other text."""


class BearerToken:
    """The token of a connection.

    Args:
        source: The token, or a function that is called before each call and returns it, for tokens
            that are renewed. Space around a token is left out.

    Raises:
        InputError: The source is neither, or its token cannot be sent.
    """

    def __init__(self, source: TokenSource) -> None:
        self._source = source if callable(source) else _returning(check_token(source))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def header(self) -> str:
        """Returns the value of the header `authorization`.

        Raises:
            InputError: The function of the caller returned no token.
        """
        return f"Bearer {check_token(self._source())}"


class TokenFile:
    """Reads a token from a file, and again whenever the file has changed.

    Pass it as `Client(token=TokenFile(path))`. A program that renews tokens, such as Kubernetes
    with its service accounts, may replace the file at any time.

    Args:
        path: The file, which holds the token alone.

    Raises:
        InputError: The file cannot be read, or holds no token.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        """The file."""
        self._read_as: tuple[int, ...] = ()
        self._token = ""
        self()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def __call__(self) -> str:
        """Returns the token that the file holds now.

        Raises:
            InputError: The file cannot be read, or holds no token.
        """
        try:
            status = os.stat(self.path)
            found = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if found != self._read_as:
                with open(self.path, encoding="ascii") as file:
                    text = file.read(2 * MAX_TOKEN_CHARACTERS)
                self._token = check_token(text, f"token_file {self.path!r}")
                self._read_as = found
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not ASCII"
            raise InputError(
                f"token_file {self.path!r} cannot be read: {reason}", argument="token_file"
            ) from None
        return self._token


def _returning(token: str) -> Callable[[], str]:
    """Returns a function that returns a token, so that no attribute shows it."""
    return lambda: token


def check_token(token: object, name: str = "token") -> str:
    """Checks the form of a token.

    Args:
        token: The token.
        name: Where it comes from, for the message.

    Returns:
        The token without space around it.

    Raises:
        InputError: It is no text, is empty, too long, or holds what a header cannot hold.
    """
    if not isinstance(token, str):
        raise InputError(f"{name} cannot be of the type {type(token).__name__}: it is a text")
    token = token.strip()
    if not token:
        raise InputError(f"{name} is empty: give a token, or leave it out", argument="token")
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise InputError(
            f"{name} is longer than {MAX_TOKEN_CHARACTERS:,} characters", argument="token"
        )
    if token.lower().startswith("bearer "):
        raise InputError(
            f"{name} begins with the word Bearer: give what follows it", argument="token"
        )
    if not _TOKEN.fullmatch(token):
        raise InputError(
            f"{name} holds white space or characters that are not ASCII: give one token alone",
            argument="token",
        )
    return token


def masked(token: str) -> str:
    """Returns a token for display: its public id, if it has one, and asterisks.

    Args:
        token: The token: `treadle_<id>_<secret>`, or another one.
    """
    found = _TREADLE_TOKEN.fullmatch(token)
    return f"treadle_{found[1]}_********" if found else "********"


def without_secrets(text: str) -> str:
    """Returns a text in which no token can be read, for messages that repeat words of a command.

    Args:
        text: The text.
    """
    return _SECRETS.sub(lambda found: f"{found[1] or ''}********", text)
