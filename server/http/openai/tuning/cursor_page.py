"""`cursor_page` is a page of a list that continues after the id of its last entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import QueryParams

from treadle.server.http.openai.openai_error import OpenAIError, invalid


@dataclass(frozen=True)
class Cursor:
    """Where a page begins, and how long it is."""

    after: str
    """The id of the last entry of the page before; empty: this is the first one."""
    limit: int
    """The most entries."""
    others: dict[str, str]
    """What else the query has."""


def read_cursor(query: QueryParams, default: int, most: int, others: Sequence[str] = ()) -> Cursor:
    """Returns the page that a query asks for.

    Args:
        query: The query.
        default: The entries of a page where it does not say.
        most: The most entries of a page.
        others: The names of what else it may have.

    Raises:
        OpenAIError: 400: something in it is unknown or wrong.
    """
    for name in query:
        if name not in ("after", "limit", *others):
            text = f"unrecognized query parameter: {name[:40]}; leave it out"
            raise OpenAIError(400, text, param=name[:40], code="unknown_parameter")
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= most):
        raise invalid("limit", f"limit must be a whole number from 1 to {most:,}")
    found = {name: query[name] for name in others if name in query}
    return Cursor(query.get("after", ""), int(text), found)


def cursor_page(entries: list[dict[str, Any]], cursor: Cursor) -> dict[str, Any]:
    """Returns one page of a list.

    Args:
        entries: All entries, each with its `id`.
        cursor: The page.

    Raises:
        OpenAIError: 400: there is no entry with the id that it follows.
    """
    start = 0
    if cursor.after:
        ids = [entry["id"] for entry in entries]
        if cursor.after not in ids:
            raise invalid("after", f"there is no entry {cursor.after[:60]!r} in this list")
        start = ids.index(cursor.after) + 1
    page = entries[start : start + cursor.limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + cursor.limit < len(entries),
    }
