"""`from_status` turns the error of an RPC into one that OpenAI's clients expect."""

from __future__ import annotations

import re
from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.server.errors import MODEL_RESOURCE, StatusError
from treadle.server.http.errors import error_headers, http_message, http_status
from treadle.server.http.openai.openai_error import OpenAIError

_STATUSES = {grpc.StatusCode.ABORTED: 503}
"""Statuses that differ from the Connect protocol's: the client repeats the request after these."""

_LASTING_QUOTAS = frozenset({"model_bytes", "corpus_bytes"})
"""Quotas that a retry does not help against: something has to be deleted."""

_FIELD = re.compile(r"[a-z_]+")


def from_status(error: StatusError, names: Mapping[str, str] | None = None) -> OpenAIError:
    """Returns the error of an RPC in the words of the request.

    Args:
        error: What the RPC ended with.
        names: The fields of the request by those of the RPC; None: none has another name.
    """
    names = names or {}
    status = _STATUSES.get(error.code) or http_status(error)
    param = None
    code = None
    headers = error_headers(error)
    message = http_message(error)
    for detail in map(_unpacked, error.details):
        if isinstance(detail, error_details_pb2.BadRequest) and detail.field_violations:
            param = _param(detail.field_violations[0].field, names)
            message = _FIELD.sub(lambda match: names.get(match[0], match[0]), message)
        elif isinstance(detail, error_details_pb2.ResourceInfo):
            if error.code is grpc.StatusCode.NOT_FOUND and detail.resource_type == MODEL_RESOURCE:
                param = "model"
                code = "model_not_found"
        elif isinstance(detail, error_details_pb2.QuotaFailure) and (
            {violation.quota_id for violation in detail.violations} & _LASTING_QUOTAS
        ):
            code = "insufficient_quota"
            headers["x-should-retry"] = "false"
    return OpenAIError(status, message, param=param, code=code, headers=headers)


def _param(field: str, names: Mapping[str, str]) -> str | None:
    """Returns the field of the request that a violation is about."""
    first = _FIELD.match(field.removeprefix("spec."))
    if first is None:
        return None
    return names.get(first[0], first[0])


def _unpacked(detail: Message) -> Message:
    """Returns a detail as a message of its own type."""
    if not isinstance(detail, any_pb2.Any):
        return detail
    for name in ("BadRequest", "ResourceInfo", "QuotaFailure"):
        message: Message = getattr(error_details_pb2, name)()
        if detail.Unpack(message):
            return message
    return detail
