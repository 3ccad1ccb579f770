"""`AuditedCall` collects what the audit log says of one call; it never sees what a text contains.

A call is written down where it changes something, when it does, or where it is refused: for its
credential, for its rights, also where these are hidden behind NOT_FOUND, or for a quota. Errors are
written as their status alone, since their texts may repeat a part of the request.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextvars import ContextVar
from itertools import islice
from typing import Any

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.server.access.audit.audit_log import AuditLog, Entry
from treadle.server.access.caller import Caller
from treadle.server.errors import StatusError, shorten
from treadle.server.names import is_name

CHANGING = frozenset(
    {
        "Train",
        "CancelJob",
        "PauseJob",
        "ResumeJob",
        "DeleteJob",
        "DeleteModel",
        "SetAlias",
        "DeleteAlias",
        "ExportModel",
        "UploadFile",
        "DeleteFile",
        "ImportModel",
    }
)
"""The methods of which every call is written down: they change something, or a model leaves the
server. LearnStream is where it publishes."""

_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

_MOST_BYTES = 200
"""Bytes of the longest text in an entry."""

_MOST_OF_A_LIST = 100

_INVALID = "(invalid)"
"""What an entry says instead of a name that nothing can have."""

_current: ContextVar[AuditedCall | None] = ContextVar("audited_call", default=None)


class AuditedCall:
    """What the audit log says of one call.

    Args:
        log: Where it is written.
        method: The method, such as `Train`.
        request_id: The id of the call.
        peer: The address of the client, as gRPC gives it.
    """

    def __init__(self, log: AuditLog, method: str, request_id: str, peer: str) -> None:
        self._log = log
        self._method = method
        self._request_id = request_id
        self._peer = peer
        self._began_s = time.monotonic()
        self._resource: Entry = {}
        self._written = False
        self._hides = False
        self.caller: Caller | None = None
        """Who calls; None as long as that is not known."""
        self.received = 0
        """Bytes of the requests so far."""
        self.sent = 0
        """Bytes of the replies so far."""

    def begin(self) -> None:
        """Makes this the audited call of the current task; see `audit_change`."""
        _current.set(self)

    def take(self, request: Any, size: int) -> None:
        """Counts a request; of the first one, notes the model or the job that it names.

        Args:
            request: The request. Nothing else of it is kept.
            size: Its bytes.
        """
        if not self.received and self._log.is_on:
            self._note_names(request)
        self.received += size

    def _note_names(self, request: Any) -> None:
        fields = request.DESCRIPTOR.fields_by_name
        if "spec" in fields:
            self._note_names(request.spec)
        for name in ("model", "version", "alias", "job", "file"):
            if name in fields and (value := getattr(request, name)):
                self._resource[name] = _value(value)

    def note(self, **resource: object) -> None:
        """Notes what the call is about; see `audit_change`."""
        for key, value in resource.items():
            if value in ("", 0):
                self._resource.pop(key, None)
            else:
                self._resource[key] = _value(value)

    def hides(self) -> None:
        """Has the call written down if it ends with NOT_FOUND; see `audit_hidden`."""
        self._hides = True

    def changed(self, **resource: object) -> None:
        """Writes the call down as one that has changed something; see `audit_change`."""
        self.note(**resource)
        self._write(grpc.StatusCode.OK.name)

    def refused(self, error: BaseException) -> bool:
        """Writes the call down if an error refuses it.

        Returns:
            Whether the error does.
        """
        if not isinstance(error, StatusError):
            return False
        quota = _quota(error)
        if error.code not in _REFUSALS and not quota:
            return False
        self._write(error.code.name, quota)
        return True

    def end(self, error: StatusError | None = None, cancelled: bool = False) -> None:
        """Writes the call down at its end, where that is still to be done.

        Args:
            error: The status that it ends with; None: OK.
            cancelled: Whether its client left, or its time was over.
        """
        if error is not None and self.refused(error):
            return
        hidden = self._hides and error is not None and error.code is grpc.StatusCode.NOT_FOUND
        if hidden or (self._method in CHANGING and not self._written):
            code = grpc.StatusCode.OK if error is None else error.code
            self._write(grpc.StatusCode.CANCELLED.name if cancelled else code.name)

    def _write(self, status: str, quota: str = "") -> None:
        self._written = True
        if not self._log.is_on:
            return
        caller = self.caller
        entry: Entry = {
            "request_id": self._request_id,
            "caller": None if caller is None else _text(caller.name),
            "role": None if caller is None else caller.role.title,
            "credential": None if caller is None else _text(caller.credential_id),
            "method": self._method,
            "resource": dict(self._resource),
            "status": status,
            "bytes_in": self.received,
            "bytes_out": self.sent,
            "peer": _text(self._peer),
            "duration_s": round(time.monotonic() - self._began_s, 6),
        }
        if quota:
            entry["quota"] = _text(quota)
        refused = (
            None if status == grpc.StatusCode.OK.name else "" if caller is None else caller.name
        )
        self._log.write(entry, refused)


def audit_request(request: Any, size: int) -> None:
    """Counts a request of the current call; see `AuditedCall.take`."""
    call = _current.get()
    if call is not None:
        call.take(request, size)


def audit_refusal(error: BaseException) -> None:
    """Writes the current call down if an error refuses a part of it, and the call continues."""
    call = _current.get()
    if call is not None:
        call.refused(error)


def audit_hidden() -> None:
    """Has the current call written down if it ends with NOT_FOUND.

    What it asks for does not exist, or belongs to others, which its caller must not learn. Nothing
    here depends on which it is, so that the time of the reply does not show it either.
    """
    call = _current.get()
    if call is not None:
        call.hides()


def audit_note(**resource: object) -> None:
    """Notes what the current call is about, in addition to what its first request names.

    Args:
        resource: Names, numbers and hashes of what is changed, such as `job` or `corpora`. What is
            empty or 0 is left out.
    """
    call = _current.get()
    if call is not None:
        call.note(**resource)


def audit_change(**resource: object) -> None:
    """Writes the current call down now, as one that has changed something.

    For calls that continue after their change: a line must not wait for their end.

    Args:
        resource: As for `audit_note`.
    """
    call = _current.get()
    if call is not None:
        call.changed(**resource)


def _quota(error: StatusError) -> str:
    """Returns the quota for which a call is refused; empty: it is not."""
    for detail in error.details:
        if isinstance(detail, error_details_pb2.QuotaFailure):
            return next((str(each.quota_id) for each in detail.violations), "")
    return ""


def _name(text: str) -> str:
    """Returns a name, or a model with an alias; what cannot be one is hidden, as it may be text."""
    name, mark, alias = text.partition("@")
    return text if is_name(name) and (is_name(alias) if mark else True) else _INVALID


def _text(text: str) -> str:
    return shorten(text, _MOST_BYTES)


def _value(value: object) -> object:
    if isinstance(value, str):
        return _name(value)
    if isinstance(value, Iterable):
        return [_value(each) for each in islice(value, _MOST_OF_A_LIST)]
    return value
