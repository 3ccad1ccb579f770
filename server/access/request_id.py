"""`current_request_id` is the id of the running call, which every line of the log about it shows.

A client may choose it (`x-request-id`), to find its calls in the logs of several services. It is
not the request id of a TrainSpec, by which a repeated upload is recognized.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from contextvars import ContextVar

from treadle.server.telemetry import tracing
from treadle.server.telemetry.json_log import JsonFormatter, log_what_python_prints

REQUEST_ID_KEY = "x-request-id"
"""The metadata that brings the id of a call, and the trailer that returns it."""

_MOST_CHARACTERS = 128

_current: ContextVar[str] = ContextVar("request_id", default="")

_caller: ContextVar[str] = ContextVar("logged_caller", default="")
"""Who is logged. A job is logged as its owner's, whatever call its task began in."""

_trace: ContextVar[str] = ContextVar("logged_trace", default="")


def current_request_id() -> str:
    """Returns the id of the running call, or of the call that the running job comes from.

    It is empty outside of calls and jobs.
    """
    return _current.get()


def set_request_id(request_id: str, caller: str = "") -> None:
    """Sets the id of the running call or job, in its task.

    Args:
        request_id: The id; one that is not valid becomes an empty one.
        caller: The name of who calls, or to whom the job belongs; empty: not known yet.
    """
    _current.set(request_id if _is_valid(request_id) else "")
    _caller.set(caller)


def set_logged_caller(caller: str) -> None:
    """Sets who makes the running call, for the log, once that is known."""
    _caller.set(caller)


def set_logged_trace(trace_id: str) -> None:
    """Sets the trace that the log shows, in a process that traces nothing itself."""
    _trace.set(trace_id)


def logged_caller() -> str:
    """Returns who makes the running call, or to whom the running job belongs; may be empty."""
    return _caller.get()


def request_id_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Returns the id that a client gave its call; a new one where it gave none that is valid.

    A valid one is up to 128 visible characters of ASCII. So it cannot look like another part of a
    line, or like another line.

    Args:
        metadata: The metadata of the call.
    """
    given = next((value for key, value in metadata if key == REQUEST_ID_KEY), "")
    if isinstance(given, str) and _is_valid(given):
        return given
    return secrets.token_hex(8)


def _is_valid(text: str) -> bool:
    visible = text.isascii() and text.isprintable() and " " not in text
    return visible and 0 < len(text) <= _MOST_CHARACTERS


class LogFormatter(logging.Formatter):
    """Formats lines of the log, with the id of the call that a line is about."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of a record."""
        request_id = current_request_id()
        record.request = f" [{request_id}]" if request_id else ""
        return super().format(record)


def log_to_stderr(level: str | int, form: str = "text") -> None:
    """Sends the log to standard error, in lines with the ids of calls.

    Args:
        level: The level of Treadle's own log; that of other packages is WARNING.
        form: `text`, or `json` for an object on each line.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    if form == "json":
        handler.setFormatter(JsonFormatter(_fields))
        log_what_python_prints()
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("treadle").setLevel(level)


def log_form() -> str:
    """Returns the form of the log of this process: `text` or `json`."""
    handlers = logging.getLogger().handlers
    is_json = any(isinstance(handler.formatter, JsonFormatter) for handler in handlers)
    return "json" if is_json else "text"


def _fields() -> dict[str, str]:
    """Returns what a line says of the running call."""
    trace_id = tracing.current_trace_id() or _trace.get()
    return {
        "request_id": current_request_id(),
        "caller": logged_caller(),
        "trace_id": trace_id,
    }
