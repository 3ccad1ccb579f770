"""`JobTrace` traces one job: a trace of its own, linked to the call that submitted the job.

Its spans are the states of the job, and within RUNNING what its processes report. The trace of a
job that an earlier server left begins again with the new server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from treadle.server.telemetry import tracing
from treadle.server.telemetry.tracing import TraceSpan

_MOST_PHASES = 2000
"""Phases of processes that the trace of one job holds: a job may run for days."""


class JobTrace:
    """The trace of one job, from the creation of this on; does nothing where nothing is traced.

    Args:
        job: The job's id.
        request_id: The id of the call that submitted it.
        state: Its state.
    """

    def __init__(self, job: str, request_id: str, state: str) -> None:
        self._phases = 0
        self._state = ""
        self._phase: TraceSpan | None = None
        self._root = tracing.begin_linked("training job", job_id=job, request_id=request_id)
        self.enter(state, is_final=False)

    @property
    def traceparent(self) -> str:
        """Names the span of the current state, for processes; empty: nothing is traced."""
        span = self._phase or self._root
        return "" if span is None else span.traceparent

    def attach(self) -> None:
        """Makes this the trace of the current task."""
        if self._root is not None:
            self._root.attach()

    def enter(self, state: str, *, is_final: bool) -> None:
        """Notes that the job enters a state.

        Args:
            state: The state.
            is_final: Whether the job never leaves it.
        """
        if self._root is None or state == self._state:
            return
        self._state = state
        if self._phase is not None:
            self._phase.end()
            self._phase = None
        if not is_final:
            self._phase = self._root.child(state)
            return
        if state == "failed":
            self._root.fail(state)
        self._root.set(state=state)
        self.close()

    def close(self) -> None:
        """Ends the trace: the job is over, or the server is."""
        for span in (self._phase, self._root):
            if span is not None:
                span.end()
        self._phase = None
        self._root = None

    def phase(self, name: str, began_s: float, ended_s: float) -> None:
        """Adds what a process did.

        Args:
            name: What it did.
            began_s: When it began that, in seconds since the epoch.
            ended_s: When it ended that.
        """
        if self._phase is not None and self._phases < _MOST_PHASES:
            self._phases += 1
            self._phase.child_between(name, round(began_s * 1e9), round(ended_s * 1e9))

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Traces that the end of the job is recorded, and its model stored, within."""
        parent = self._phase or self._root
        span = None if parent is None else parent.child("storing")
        try:
            yield
        finally:
            if span is not None:
                span.end()
