"""`make` and `read` convert the position of the next page of a list to a token and back.

A token is a text that callers return unchanged. It holds the name of the list, a digest of the
list's filters, the position of the last entry of the page, and a checksum. It holds no secret,
since it leads to nothing but entries of the list.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from treadle.server.errors import invalid

_CHECKSUM_BYTES = 8

Place = Sequence[str | float]
"""The position at which a page ends: the sort keys of its last entry."""

_KINDS = {"models": [str], "jobs": [float, str], "files": [float, str]}
"""The types of the sort keys of each list."""

_NOT_OURS = "page_token must be a next_page_token of an earlier reply"


def make(listing: str, filters: Sequence[str], place: Place) -> str:
    """Returns the token of the page that begins after a position.

    Args:
        listing: The name of the list, such as "models".
        filters: The filters of the list, in a fixed order.
        place: The position of the last entry of this page.
    """
    payload = json.dumps([listing, _digest(filters), list(place)], separators=(",", ":")).encode()
    return _encoded(_checksum(payload) + payload)


def read(token: str, listing: str, filters: Sequence[str]) -> list[Any]:
    """Returns the position after which the page of a token begins; empty for an empty token.

    Raises:
        StatusError: INVALID_ARGUMENT: `make` did not make the token for this list and these
            filters.
    """
    if not token:
        return []
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError:
        data = b""
    payload = data[_CHECKSUM_BYTES:]
    if data[:_CHECKSUM_BYTES] != _checksum(payload) or _encoded(data) != token:
        raise _refused(_NOT_OURS)
    made_for, digest, place = _parts(payload)
    if made_for != listing:
        raise _refused(f"page_token is that of a list of {made_for}, not of {listing}")
    if digest != _digest(filters):
        raise _refused("page_token is that of a list with another filter: begin without it")
    return list(place)


def _parts(payload: bytes) -> tuple[str, str, list[Any]]:
    """Returns the list, the digest and the position of a payload.

    It checks their types, since anybody can compute the checksum.
    """
    try:
        listing, digest, place = json.loads(payload)
        whole = [type(key) for key in place] == _KINDS.get(str(listing))
    except (ValueError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise _refused(_NOT_OURS)
    return listing, digest, place


def _refused(text: str) -> Exception:
    return invalid([("page_token", text)])


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:_CHECKSUM_BYTES]


def _digest(filters: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(filters)).encode()).hexdigest()[:16]
