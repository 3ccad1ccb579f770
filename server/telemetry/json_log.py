"""`JsonFormatter` formats each record of the log as a JSON object on a line of its own."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType

logger = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """Formats records for programs that collect logs.

    Args:
        fields: Returns further fields, such as the id of the running call; empty ones are left
            out.
    """

    def __init__(self, fields: Callable[[], Mapping[str, str]]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of a record, in ASCII."""
        moment = datetime.fromtimestamp(record.created, UTC)
        entry = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in self._fields().items() if value}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = self.formatStack(record.stack_info)
        return json.dumps(entry)


def log_what_python_prints() -> None:
    """Logs warnings, and exceptions that nothing catches, which Python prints on many lines."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_of_thread


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logger.critical("an error that nothing caught", exc_info=(kind, error, trace))


def _log_of_thread(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value
    if error is not None and not isinstance(error, SystemExit):
        name = arguments.thread.name if arguments.thread is not None else "unknown"
        logger.error(
            "an error that nothing caught ended the thread %s",
            name,
            exc_info=(type(error), error, error.__traceback__),
        )
