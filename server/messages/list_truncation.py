"""`shorten_item` cuts the description of a job or a model so that it fits into a list.

Most fields of a description are bounded when they arrive. Only the sentences of a run or a model
file may be of any number and length.
"""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from treadle.server.errors import shorten

ITEM_BYTES = 32 << 10
"""The most bytes of one job or one model in a reply."""

_TEXT_BYTES = (4000, 1000, 250)
"""Bytes to which each text is cut, one after the other, until the item fits."""
_TEXTS = 20
"""Entries of a list of texts that are kept."""


def shorten_item(item: Message, size: int = ITEM_BYTES) -> None:
    """Cuts the texts of a message, and lists of texts, until it takes at most `size` bytes."""
    for most in _TEXT_BYTES:
        if item.ByteSize() <= size:
            return
        _cut(item, most)


def _cut(item: Message, most: int) -> None:
    for field, value in item.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated:
            _cut(value, most)
        elif field.type == FieldDescriptor.TYPE_STRING and field.is_repeated:
            if len(value) > _TEXTS + 1:
                left_out = len(value) - _TEXTS
                del value[_TEXTS:]
                value.append(f"... and {left_out:,} more")
            for place, text in enumerate(value):
                value[place] = shorten(text, most)
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(item, field.name, shorten(value, most))
