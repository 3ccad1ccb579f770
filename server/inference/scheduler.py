"""`Scheduler` shares a few threads fairly among everything that generates, scores or learns.

Kernels release Python's lock, so threads are enough, and the event loop stays free. Work is done
in turns of a few milliseconds. The caller that has used the least time gets the next one, whatever
it and the others ask for: two hundred streams of one caller get as much time as a single stream of
another. Of a caller's tasks, the one that has used the least time goes first; sequences that decode
together count as many. So a call waits for as many turns as there are other callers and other calls
of its own caller, and a cancelled call is gone within a turn.

Callers without a name are one caller here: where nobody has a name, turns go round by calls.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import sys
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakValueDictionary

from treadle.server.inference.sharing.share import TURN_S, JointShare, Share, Task
from treadle.server.telemetry import metrics

logger = logging.getLogger(__name__)

LONG_TURN_S = 0.02
"""About as long as one turn takes while no task waits: fewer switches between threads."""

_NICE = 6
"""How much the niceness of the scheduler's threads is raised; that of training processes is
higher."""

_MAX_CREDIT_S = 0.1
"""Seconds by which a caller may be behind: one that cannot use its share, since one call runs in
one thread at a time, gets no more than this back at once."""

_KEPT_SHARES = 1024
"""Callers whose time is remembered though no task of theirs is left."""


class _Turn(NamedTuple):
    """A turn that a task takes."""

    task: Task
    share: Share
    """The share that it was taken from."""
    turn_s: float
    """Seconds that it should take at most."""
    expected_s: float
    """Seconds that the share was charged in advance."""
    share_weight: float
    task_weight: int


class Scheduler:
    """Threads that tasks take turns on.

    Args:
        threads: How many turns run at once.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        """How many turns run at once."""
        self._waiting: list[tuple[float, int, Share]] = []  # shares with ready tasks, as a heap
        self._ready = 0  # tasks
        self._numbers = itertools.count(1)  # of equal times, the first one goes first
        self._shares: WeakValueDictionary[str, Share] = WeakValueDictionary()
        self._kept: deque[Share] = deque(maxlen=_KEPT_SHARES)
        self._changed = threading.Condition()
        self._clock_s = 0.0
        self._closed = False
        self._nobody = self.share("")
        for number in range(threads):
            threading.Thread(target=self._serve, name=f"turn-{number}", daemon=True).start()

    @property
    def waiting(self) -> int:
        """How many tasks wait for a turn."""
        return self._ready

    def share(self, caller: str) -> Share:
        """Returns the share of a caller, which is the same one as long as anybody holds it.

        Args:
            caller: The name of the caller.
        """
        with self._changed:
            share = self._shares.get(caller)
            if share is None:
                share = self._shares[caller] = Share()
                self._kept.append(share)
            return share

    def wake(self, task: Task) -> None:
        """Gives a turn to a task that has none coming; unused time of the past is lost."""
        with self._changed:
            self._enter(task)

    def combine(self, joint: JointShare, members: Counter[Share]) -> None:
        """Sets for whom a joint share works; see `JointShare.combine`."""
        with self._changed:
            joint.combine(members)

    def close(self) -> None:
        """Ends the threads after their current turns, whose results are dropped."""
        with self._changed:
            self._closed = True
            for _, _, share in self._waiting:
                share.ready.clear()
            self._waiting.clear()
            self._changed.notify_all()

    def _enter(self, task: Task, before: Share | None = None) -> None:
        """Puts a task among those of its share; `before`: the share that its last turn was of."""
        if self._closed:
            return
        share = task.share or self._nobody
        if before is not None:  # with another share, what was used up stays used up
            share.used_s = max(share.used_s, before.used_s)
        elif not share.load:
            share.used_s = max(share.used_s, self._clock_s)
        if task.counted_in is not share:
            task.counted_in = share
            task.used_s = share.clock_s
        task.used_s = max(task.used_s, share.clock_s)
        share.load += task.weight
        task.ready_s = time.monotonic()
        heapq.heappush(share.ready, (task.used_s, next(self._numbers), task))
        self._ready += 1
        self._place(share)
        self._changed.notify()

    def _place(self, share: Share) -> None:
        """Gives a share the place among the others that its used time asks for."""
        share.place = next(self._numbers)
        heapq.heappush(self._waiting, (share.used_s, share.place, share))

    def _serve(self) -> None:
        _lower_priority()
        while (turn := self._next()) is not None:
            began_s = time.monotonic()
            metrics.TURN_WAIT_SECONDS.observe(began_s - turn.task.ready_s)
            again = False
            try:
                again = turn.task.take_turn(turn.turn_s)
            except BaseException:  # the thread serves other tasks as well, and must not end
                logger.exception("a turn failed; its task gets no other")
            self._end(turn, time.monotonic() - began_s, again)
            del turn  # a thread that waits must not keep a task alive

    def _next(self) -> _Turn | None:
        with self._changed:
            while not self._ready and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            share = self._first()
            _, _, task = heapq.heappop(share.ready)
            self._ready -= 1
            share.clock_s = max(share.clock_s, task.used_s)
            weight = share.weight
            # Charged now, so that meanwhile no other thread takes the same caller for the next one.
            share.used_s += task.expected_s / weight
            if share.ready:
                self._place(share)
            turn_s = TURN_S if self._ready else LONG_TURN_S
            return _Turn(task, share, turn_s, task.expected_s, weight, task.weight)

    def _first(self) -> Share:
        """Takes the place of the share that goes next; some share has a task that is ready."""
        while True:
            used_s, place, share = heapq.heappop(self._waiting)
            if place == share.place and share.ready:
                self._clock_s = max(self._clock_s, used_s)
                share.used_s = max(used_s, self._clock_s - _MAX_CREDIT_S)
                return share

    def _end(self, turn: _Turn, took_s: float, again: bool) -> None:
        """Charges for a turn what it took, and puts its task back if it wants another one."""
        task = turn.task
        share = turn.share
        with self._changed:
            share.used_s += (took_s - turn.expected_s) / turn.share_weight
            share.load -= turn.task_weight
            task.used_s += took_s / turn.task_weight
            task.expected_s = took_s
            if share.ready and not self._closed:
                self._place(share)
            if again:
                self._enter(task, share)


def _lower_priority() -> None:
    """Lets the event loop and gRPC's threads run before this thread on a busy processor.

    They need the processor often but for moments only. If they had to wait for the time slice of
    a kernel to end, every call would wait. On Linux a thread has a niceness of its own; elsewhere
    nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)
