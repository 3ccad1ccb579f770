"""`AccessToken` is the bearer token of a caller: an id, and a secret that is stored nowhere.

Its text is `treadle_ID_SECRET`. The callers file has the id and the SHA-256 of the whole text. A
secret has 256 random bits, so that its hash needs neither salt nor stretching.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field

PREFIX = "treadle_"
"""What every token begins with, so that scanners find one that was published by mistake."""

ID = re.compile(r"[0-9a-f]{16}")
"""The form of an id."""

_TEXT = re.compile(rf"{PREFIX}({ID.pattern})_[0-9a-f]{{64}}")
_SECRETS = re.compile(rf"({PREFIX}{ID.pattern}_)\w{{8,}}|\beyJ[\w-]{{8,}}\.[\w-]+\.[\w-]*")
_PASSWORD = re.compile(r"(://[^\s:@/]*:)[^\s/]*(?=@)")
"""The password in a URL."""
_ID_BYTES = 8
_SECRET_BYTES = 32


@dataclass(frozen=True)
class AccessToken:
    """A bearer token; its text is shown once, to the one who made it."""

    id: str
    """Names it in the callers file, in commands and in logs."""
    text: str = field(repr=False)
    """The whole token, which is secret."""

    @property
    def sha256(self) -> bytes:
        """The SHA-256 of its text, which the callers file has."""
        return hashlib.sha256(self.text.encode()).digest()


def new_access_token() -> AccessToken:
    """Returns a token with a new id and a new secret."""
    id_ = secrets.token_hex(_ID_BYTES)
    return AccessToken(id_, f"{PREFIX}{id_}_{secrets.token_hex(_SECRET_BYTES)}")


def read_access_token(text: str) -> AccessToken | None:
    """Returns the token with a text; None if the text has not the form of a token."""
    found = _TEXT.fullmatch(text)
    return AccessToken(found[1], text) if found else None


def without_secrets(text: str) -> str:
    """Returns a text in which no token and no password can be read, for messages that repeat words.

    Args:
        text: The text. JSON Web Tokens and passwords of URLs are hidden as well.
    """
    text = _PASSWORD.sub(r"\1********", text)
    return _SECRETS.sub(lambda found: f"{found[1] or ''}********", text)
