"""All texts of a model are drawn together, joining and leaving between two chunks of tokens."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from functools import partial

from treadle.model import Model
from treadle.model.group import MOST_ROWS, Group
from treadle.model.session import Piece, Session
from treadle.server.scheduler import Scheduler, Taker

_MESSAGE_S = 0.02
"""What was made in this time goes out as one message: a message costs the same at any size."""

_LONG_MESSAGE_S = 0.05
"""The same where many texts are drawn together."""

_FEW = 16
"""Texts drawn together that are not many."""

_CHUNK_S = 0.004
"""About as long as a chunk of tokens takes to draw."""

_LEAST_CHUNK, _MOST_CHUNK = 4, 64

_FIRST_CHUNK = 8
"""Tokens drawn at most when somebody has just joined, who waits for a first text."""

_MOST_UNREAD = 64
"""Messages that may wait for a client that reads slowly, before its texts pause."""


class Outlet:
    """Where the pieces of a call's texts come out: made in threads, read on the event loop."""

    def __init__(self) -> None:
        self.gone = False
        """Whether nobody reads any more."""
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._batches: deque[tuple[int, list[Piece]] | Exception] = deque()
        self._lock = threading.Lock()
        self._paused: list[_Member] = []

    async def read(self, texts: int) -> AsyncGenerator[tuple[int, list[Piece]]]:
        """Yields the pieces of each text, with its index, as they come.

        Args:
            texts: How many texts there are; each ends with a result.

        Raises:
            ModelError: A text could not go on.
        """
        while texts:
            await self._filled.wait()
            self._filled.clear()
            while self._batches:
                batch = self._batches.popleft()
                if isinstance(batch, Exception):
                    raise batch
                texts -= batch[1][-1].result is not None
                yield batch
            self._resume()

    def put(self, batch: tuple[int, list[Piece]] | Exception) -> None:
        """Adds pieces of one text; `wake` tells the reader."""
        self._batches.append(batch)

    def wake(self) -> None:
        """Tells the reader that there is something; on the event loop."""
        self._filled.set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where it is read."""
        return self._loop

    def pause(self, member: _Member) -> bool:
        """Notes a text that should go on once this is read; returns whether it has to wait."""
        if len(self._batches) < _MOST_UNREAD:
            return False
        with self._lock:
            self._paused.append(member)
        self._loop.call_soon_threadsafe(self.wake)  # lest it was all read just now
        return True

    def _resume(self) -> None:
        with self._lock:
            paused, self._paused = self._paused, []
        for member in paused:
            member.rejoin()


class _Member:
    """One text, its place in a runner, and what of it is not sent yet."""

    def __init__(self, session: Session, outlet: Outlet, index: int, runner: _Runner) -> None:
        self.session = session
        self.outlet = outlet
        self._index = index
        self._runner = runner
        self._pieces: list[Piece] = []
        self._sent_s = 0.0
        self.over = False
        """Whether it has a result or an error, or nobody reads it."""

    def add(self, piece: Piece, now_s: float, message_s: float) -> bool:
        """Takes a piece; returns whether there is something for the reader now."""
        if piece.text or piece.tokens or piece.result:
            self._pieces.append(piece)
        self.over = piece.result is not None
        if not self._pieces or not (self.over or now_s - self._sent_s >= message_s):
            return False
        self.outlet.put((self._index, self._pieces))
        self._pieces, self._sent_s = [], now_s
        return True

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        self.over = True
        self.outlet.put(error)

    def rejoin(self) -> None:
        """Goes on where it paused."""
        self._runner.join([self])


class _Runner(Taker):
    """Some texts of one model, drawn together."""

    def __init__(self, model: Model, scheduler: Scheduler, left: Callable[[_Runner], None]) -> None:
        self.model = model
        self._scheduler = scheduler
        self._left = left
        self._group = Group(model.parameters.shape, model.weights)
        self._members: list[_Member] = []
        self._arrivals: list[_Member] = []
        self._active = False
        self._lock = threading.Lock()
        self._joined = False
        self._step_s = _CHUNK_S / _FIRST_CHUNK

    @property
    def size(self) -> int:
        """Texts that are or will be in it."""
        return len(self._members) + len(self._arrivals)

    def join(self, members: Sequence[_Member]) -> None:
        """Takes texts in from the next turn on."""
        with self._lock:
            self._arrivals += members
            if self._active:
                return
            self._active = True
        self._scheduler.wake(self)

    def take_turn(self, turn_s: float) -> bool:
        """Draws a chunk for everybody; see `Taker`."""
        try:
            self._change()
            if self._members:
                self._draw()
        except Exception as error:  # nobody else would tell those who wait
            for member in self._members:
                member.fail(error)
            self._wake({member.outlet for member in self._members})
        with self._lock:
            self._active = bool(self._members or self._arrivals)
        if not self._active:
            self._left(self)
        return self._active

    def _change(self) -> None:
        """Lets out who is over, gone or has to wait, and lets in who came."""
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
        leaving = [m for m in self._members if m.over or m.outlet.gone or m.outlet.pause(m)]
        arrivals = [member for member in arrivals if not member.outlet.gone]
        self._joined = bool(arrivals)
        if leaving or arrivals:
            self._group.change(
                {member.session.seat for member in leaving},
                [member.session.seat for member in arrivals],
            )
            self._members = [m for m in self._members if m not in leaving] + arrivals
            self.weight = max(1, len(self._members))

    def _draw(self) -> None:
        """Draws a chunk, and hands out what is due."""
        began_s = time.monotonic()
        drawn = self._group.decode(self._chunk())
        now_s = time.monotonic()
        self._step_s += 0.2 * ((now_s - began_s) / len(drawn.tokens) - self._step_s)
        message_s = _MESSAGE_S if len(self._members) <= _FEW else _LONG_MESSAGE_S
        filled = set()
        for m, member in enumerate(self._members):
            try:
                piece = member.session.take(drawn, m, partial(self._group.state_of, m))
                if member.add(piece, now_s, message_s):
                    filled.add(member.outlet)
            except Exception as error:  # of this text alone
                member.fail(error)
                filled.add(member.outlet)
        self._wake(filled)

    def _chunk(self) -> int:
        """Returns how many tokens to draw now."""
        left = max(member.session.left for member in self._members)
        chunk = min(_MOST_CHUNK, max(_LEAST_CHUNK, round(_CHUNK_S / self._step_s)))
        return min(left, min(chunk, _FIRST_CHUNK) if self._joined else chunk)

    def _wake(self, outlets: set[Outlet]) -> None:
        """Tells readers that there is something for them: one trip to each event loop."""
        for loop in {outlet.loop for outlet in outlets}:
            with suppress(RuntimeError):  # it is closed: nobody reads any more
                loop.call_soon_threadsafe(_wake_all, [o for o in outlets if o.loop is loop])


def _wake_all(outlets: list[Outlet]) -> None:
    for outlet in outlets:
        outlet.wake()


class Batcher:
    """Gives every text a place among others of its model.

    Args:
        scheduler: Gives the turns.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._runners: dict[int, list[_Runner]] = {}
        self._lock = threading.Lock()

    def begin(self, model: Model, sessions: Sequence[Session], outlet: Outlet) -> None:
        """Has texts drawn from now on.

        Args:
            model: Whose they are.
            sessions: The texts.
            outlet: Where their pieces go, with their place among `sessions` as the index.
        """
        for index, session in enumerate(sessions):
            only = session.nothing_to_draw()
            if only is not None:
                outlet.put((index, [only]))
                outlet.wake()
                continue
            with self._lock:
                runner = self._roomiest(model)
                runner.join([_Member(session, outlet, index, runner)])

    def _roomiest(self, model: Model) -> _Runner:
        """Returns a runner with room: a new one while threads would idle, or all are full."""
        runners = self._runners.setdefault(id(model), [])
        least = min(runners, key=lambda runner: runner.size, default=None)
        if least is not None and least.size == 0:
            return least
        if least is None or len(runners) < self._scheduler.threads or least.size >= MOST_ROWS:
            least = _Runner(model, self._scheduler, self._forget)
            runners.append(least)
        return least

    def _forget(self, runner: _Runner) -> None:
        """Drops a runner that has nobody left, and with it its hold on the model."""
        with self._lock:
            runners = self._runners.get(id(runner.model), [])
            if runner.size == 0 and runner in runners:
                runners.remove(runner)
            if not runners:
                self._runners.pop(id(runner.model), None)
