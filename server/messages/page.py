"""`Page`: the items of one reply to a list, as many as were asked for and as a message may hold."""

from __future__ import annotations

from typing import Generic, TypeVar

from google.protobuf.message import Message

Item = TypeVar("Item", bound=Message)

_TOKEN_BYTES = 2048
"""Room for the token of the next page and what else a reply has."""

_ITEM_BYTES = 6
"""Tag and length of an item."""


class Page(Generic[Item]):
    """Takes items until there are enough of them, or they have enough bytes.

    Args:
        most: The most items.
        max_message_bytes: The largest reply.
    """

    def __init__(self, most: int, max_message_bytes: int) -> None:
        self.items: list[Item] = []
        """The items taken."""
        self._most = most
        self._room = max_message_bytes - _TOKEN_BYTES

    def take(self, item: Item) -> bool:
        """Takes an item; returns False where it belongs on the next page. The first always fits."""
        size = item.ByteSize() + _ITEM_BYTES
        if len(self.items) == self._most or (self.items and size > self._room):
            return False
        self.items.append(item)
        self._room -= size
        return True
