"""`set_field` and `make_request` turn keyword arguments into fields of a request."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from treadle.client.errors import InputError
from treadle.client.messages.enums import enum_value
from treadle.client.messages.tokens import token_biases, token_references

AnyMessage = TypeVar("AnyMessage", bound=Message)

_NEVER_ZERO = frozenset(
    (
        "accumulation_steps",
        "batch_size",
        "best_of",
        "column",
        "encoding",
        "hidden_size",
        "init_from",
        "layers",
        "max_vocabulary_size",
        "min_frequency",
        "plateau_patience",
        "regex",
        "request_id",
        "window",
    )
)
"""Fields that the contract takes as not set at 0 or empty, and for which neither is legal.

A caller who gives 0 means something else than the default, so 0 must not be taken for it.
"""

_POSITIVE = frozenset(("max_memory_bytes", "max_steps", "max_tokens", "validation_interval", "n"))
"""Further numbers that must not be 0; the server refuses it."""

_GREATEST = {
    FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1,
    FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1,
}
"""The greatest numbers that unsigned fields can hold, by the type of the field."""


def make_request(kind: type[AnyMessage], **values: Any) -> AnyMessage:
    """Makes a request from the values of its fields.

    Args:
        kind: The message's class.
        **values: The fields by name.

    Returns:
        The request.

    Raises:
        InputError: A field is unknown, or its value is of the wrong type or out of range.
    """
    request = kind()
    for name, value in values.items():
        set_field(request, name, value)
    return request


def set_field(message: Message, name: str, value: Any) -> None:
    """Sets one scalar, enum or repeated field, those that hold tokens among them.

    Args:
        message: The message, which is changed.
        name: The field's name.
        value: The value; an enum's is a word or a number, a token's its number, text or `END`.

    Raises:
        InputError: There is no such field, or the value is of the wrong type or out of range.
    """
    field = cast(Any, message.DESCRIPTOR.fields_by_name.get(name))
    if field is None:
        raise InputError(f"{message.DESCRIPTOR.name} has no field {name!r}")
    if name in _NEVER_ZERO and isinstance(value, int | str) and not value:
        raise InputError(f"{name} cannot be {value!r}: leave it out for the default", name)
    if field.enum_type is not None:
        value = enum_value(field, value)
    try:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, name).update(value)
        elif field.message_type is not None:
            getattr(message, name).extend(_token_messages(field, value))
        elif field.is_repeated:
            getattr(message, name).extend([value] if isinstance(value, str) else value)
        else:
            setattr(message, name, value)
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not text: it holds bytes that are not UTF-8", name) from error
    except (TypeError, ValueError) as error:
        fault = f"{name} cannot be {value!r}"
        most = _GREATEST.get(field.cpp_type)
        if most is not None and not field.is_repeated:
            least = 1 if name in _NEVER_ZERO | _POSITIVE else 0
            fault += f": it must be a whole number from {least} to {most:,}"
        raise InputError(fault, name) from error


def _token_messages(field: Any, value: Any) -> Any:
    """Returns the messages for tokens, or for a mapping from tokens to biases."""
    if field.message_type.name == "TokenBias":
        return token_biases(value, field.name)
    return token_references(value, field.name)
