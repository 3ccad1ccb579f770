"""`work_owner` is the name of the caller for whom work runs, so that queues go round by callers."""

from __future__ import annotations

from contextvars import ContextVar

_current: ContextVar[str] = ContextVar("work_owner", default="")


def work_owner() -> str:
    """Returns the name of the caller of the running call; empty: it has none."""
    return _current.get()


def set_work_owner(name: str) -> None:
    """Sets the name of the caller of the running call, in its task."""
    _current.set(name)
