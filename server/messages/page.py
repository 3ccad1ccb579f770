"""`Page` collects the items of one reply to a list, as many as fit into a message."""

from __future__ import annotations

from typing import Generic, TypeVar

from google.protobuf.message import Message

Item = TypeVar("Item", bound=Message)

_TOKEN_BYTES = 2048
"""Bytes that are kept free for the token of the next page and the rest of the reply."""

_ITEM_BYTES = 6
"""Bytes of the tag and the length of an item."""


class Page(Generic[Item]):
    """Collects items until their number or their bytes reach a limit.

    Args:
        most: The most items.
        max_message_bytes: Bytes of the largest reply.
    """

    def __init__(self, most: int, max_message_bytes: int) -> None:
        self.items: list[Item] = []
        """The items of the page."""
        self._most = most
        self._left = max_message_bytes - _TOKEN_BYTES

    def take(self, item: Item) -> bool:
        """Adds an item; returns False if it belongs on the next page. The first always fits."""
        size = item.ByteSize() + _ITEM_BYTES
        if len(self.items) == self._most or (self.items and size > self._left):
            return False
        self.items.append(item)
        self._left -= size
        return True
