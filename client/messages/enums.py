"""`enum_number` and `enum_word` convert between an enum's words and its numbers on the wire.

The words are those that Python programs, the command line and JSON lines use: "lstm" is
CELL_LSTM. Every conversion of the client is in this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from treadle.client.errors import InputError


def enum_words(enum: EnumDescriptor) -> Sequence[str]:
    """Returns an enum's values as lower-case words, without the unset one: "rnn", "gru", ..."""
    return [enum_word(enum, value.number) for value in enum.values if value.number]


def enum_number(enum: EnumDescriptor, word: str, name: str) -> int:
    """Returns the number of an enum's word.

    Args:
        enum: The enum.
        word: One of its words, in upper or lower case.
        name: The argument that holds the word, for the error.

    Raises:
        InputError: The enum has no such word; the message lists those that it has.
    """
    for value in enum.values:
        if value.number and enum_word(enum, value.number) == word.lower():
            return int(value.number)
    words = ", ".join(enum_words(enum))
    raise InputError(f"{name} cannot be {word!r}: it is one of {words}", name)


def enum_word(enum: EnumDescriptor, number: int) -> str:
    """Returns the word of an enum's number: CELL_LSTM is "lstm"; an unknown number is itself."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(prefix).lower()


def field_word(message: Message, name: str) -> str:
    """Returns the value of one of a message's enum fields as its word."""
    enum = cast(Any, message.DESCRIPTOR.fields_by_name[name].enum_type)
    return enum_word(enum, getattr(message, name))


def enum_value(field: Any, value: Any) -> Any:
    """Returns what a message's enum field takes: a number, or a list of numbers.

    Args:
        field: The field's descriptor.
        value: A word or a number; for a repeated field several of them, or one alone.

    Raises:
        InputError: A word is unknown, or the value is neither a word nor a number.
    """
    if not field.is_repeated:
        return _number(field, value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        value = [value]
    return [_number(field, each) for each in value]


def _number(field: Any, value: Any) -> int:
    if isinstance(value, str):
        return enum_number(field.enum_type, value, field.name)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    words = ", ".join(enum_words(field.enum_type))
    raise InputError(f"{field.name} cannot be {value!r}: it is one of {words}")
