"""`asked_precision` and its neighbours read and write the precision of calls that compute."""

from __future__ import annotations

from treadle.model.enums import InferencePrecision
from treadle.server.errors import Violation
from treadle.server.messages.enums import number_of, word_of
from treadle.v1 import sequence_pb2 as pb

PreciseRequest = pb.GenerateRequest | pb.ScoreRequest | pb.ScoreStreamSpec | pb.EmbedRequest
"""A request that may say how precisely to compute."""

_KIND = pb.InferencePrecision.DESCRIPTOR

_NUMBERS = {precision: number_of(_KIND, precision.value) for precision in InferencePrecision}
"""The numbers of the precisions in the contract."""

PRECISION_WORDS = tuple(precision.value for precision in InferencePrecision)
"""The words of the precisions."""

_PRECISIONS = {number: precision for precision, number in _NUMBERS.items()}


def precision_violations(request: PreciseRequest) -> list[Violation]:
    """Returns the violations of the field `inference_precision`."""
    number = request.inference_precision
    if not number or number in _PRECISIONS:
        return []
    names = ", ".join(_KIND.values_by_number[known].name for known in _PRECISIONS)
    text = f"inference_precision must be {names} or unset, not {number}"
    return [("inference_precision", text)]


def asked_precision(request: PreciseRequest) -> InferencePrecision | None:
    """Returns the precision that a request asks for; None where it leaves that open."""
    return _PRECISIONS.get(request.inference_precision)


def precision_number(precision: InferencePrecision) -> pb.InferencePrecision.ValueType:
    """Returns the number of a precision in the contract."""
    return pb.InferencePrecision.ValueType(_NUMBERS[precision])


def precision_word(number: int) -> str:
    """Returns the word of a precision of the contract, such as `int8`."""
    return str(word_of(_KIND, number))
