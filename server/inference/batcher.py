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
from treadle.model.generation.constraint import Constraint
from treadle.model.generation.decoding_batch import MOST_ROWS, Group
from treadle.model.generation.sequence import Piece, Session
from treadle.server.inference.generation_bytes import piece_bytes
from treadle.server.inference.scheduler import Scheduler, Taker

_MESSAGE_S = 0.02
"""What was made in this time goes out as one message: a message costs the same at any size."""

_MESSAGE_S_A_TEXT, _LONGEST_MESSAGE_S = 0.00125, 0.2
"""The same for each text on the server, where that is more, so that messages do not take the
time that tokens and other calls need; and the most that it comes to."""

_CHUNK_S = 0.006
"""About as long as a chunk of tokens takes to draw."""

_LEAST_CHUNK, _MOST_CHUNK = 4, 64

_FIRST_CHUNK = 16
"""Tokens drawn at most when somebody has just joined, who waits for a first text."""

_MOST_TOLD = 4096
"""Tokens and alternatives that a chunk may give: what is done with each takes longer than its draw
and keeps the event loop waiting."""

_LARGE_TABLE = 1 << 18
"""Elements of an automaton's table from which it is large."""

_MOST_UNREAD = 64
"""Messages that may wait for a client that reads slowly, before its texts pause."""


class Outlet:
    """Where the pieces of a call's texts come out: made in threads, read on the event loop.

    Args:
        most_bytes: What may wait for the reader before the texts pause.
    """

    def __init__(self, most_bytes: int) -> None:
        self.gone = False
        """Whether nobody reads any more."""
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._batches: deque[tuple[int, list[Piece]] | BaseException] = deque()
        self._lock = threading.Lock()
        self._most_bytes = most_bytes
        self.unread_bytes = 0
        """What pieces take that were made and that the reader is not done with."""
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
                if isinstance(batch, BaseException):
                    raise batch
                texts -= batch[1][-1].result is not None
                yield batch
                with self._lock:
                    self.unread_bytes -= sum(map(piece_bytes, batch[1]))
            self._resume()

    def count(self, piece: Piece) -> None:
        """Counts a piece that is `put` now or later."""
        with self._lock:
            self.unread_bytes += piece_bytes(piece)

    def put(self, batch: tuple[int, list[Piece]] | BaseException) -> None:
        """Adds pieces of one text, each of which was counted; `wake` tells the reader."""
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
        if len(self._batches) < _MOST_UNREAD and self.unread_bytes < self._most_bytes:
            return False
        member.flush()  # what it holds back counts as well
        with self._lock:
            self._paused.append(member)
        self._loop.call_soon_threadsafe(self.wake)  # it may all have been read just now
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

    def add(self, piece: Piece, now_s: float, message_s: float, room: bool) -> bool:
        """Takes a piece; returns whether there is something for the reader now.

        Args:
            piece: The piece.
            now_s: When it was made.
            message_s: What was made in this time goes out together.
            room: Whether a message may go out now that is neither the first nor the last.
        """
        if piece.text or piece.tokens or piece.result:
            self._pieces.append(piece)
            self.outlet.count(piece)
        self.over = piece.result is not None
        due = room and now_s - self._sent_s >= message_s
        if not self._pieces or not (self.over or due or not self._sent_s):
            return False
        self.flush()
        self._sent_s = now_s
        return True

    def flush(self) -> None:
        """Hands out what is not sent yet."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self.outlet.put((self._index, pieces))

    def fail(self, error: BaseException) -> None:
        """Ends it with an error."""
        self.over = True
        self.outlet.put(error)

    def rejoin(self) -> None:
        """Goes on where it paused."""
        self._runner.join([self])


class _Runner(Taker):
    """Some texts of one model, drawn together."""

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        key: tuple[int, int],
        texts: Callable[[], int],
        left: Callable[[_Runner], None],
    ) -> None:
        self.model = model
        self.key = key
        """What its texts have in common."""
        self._scheduler = scheduler
        self._texts = texts
        self._left = left
        self._group = Group(model.parameters.shape, model.weights)
        self._members: list[_Member] = []
        self._arrivals: list[_Member] = []
        self._joining = 0
        self._entering: list[_Member] = []
        self._active = False
        self._lock = threading.Lock()
        self._joined = False
        self._drawn_s = 0.0
        self._step_s = _CHUNK_S / _FIRST_CHUNK

    @property
    def size(self) -> int:
        """Texts that are or will be in it."""
        with self._lock:
            return len(self._members) + self._joining + len(self._arrivals)

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
        except BaseException as error:  # nobody else would tell those who wait
            self._give_up(error)
        with self._lock:
            # Kept: from when the lock is free, somebody may join and wake this runner again.
            again = self._active = bool(self._members or self._arrivals)
        if not again:
            self._left(self)
        return again

    def _give_up(self, error: BaseException) -> None:
        """Ends all texts with an error, and starts over: the group may have stopped halfway."""
        with self._lock:
            lost = self._members + self._entering + self._arrivals
            self._members, self._entering, self._arrivals, self._joining = [], [], [], 0
        for member in lost:
            member.fail(error)
        self._group = Group(self.model.parameters.shape, self.model.weights)
        self._wake({member.outlet for member in lost})

    def _change(self) -> None:
        """Lets out who is over, gone or has to wait, and lets in who came."""
        leaving = [m for m in self._members if m.over or m.outlet.gone or m.outlet.pause(m)]
        with self._lock:
            waiting = [member for member in self._arrivals if not member.outlet.gone]
            room = MOST_ROWS - (len(self._members) - len(leaving))  # who paused may come back
            arrivals, self._arrivals = waiting[:room], waiting[room:]
            self._entering, self._joining = arrivals, len(arrivals)
        self._joined = bool(arrivals)
        if leaving or arrivals:
            self._group.change(
                {member.session.seat for member in leaving},
                [member.session.seat for member in arrivals],
            )
            with self._lock:
                self._members = [m for m in self._members if m not in leaving] + arrivals
                self._entering, self._joining = [], 0
            self.weight = max(1, len(self._members))

    def _draw(self) -> None:
        """Draws a chunk, and hands out what is due."""
        began_s = time.monotonic()
        chunk = self._group.decode(self._chunk())
        now_s = time.monotonic()
        message_s = min(max(_MESSAGE_S, _MESSAGE_S_A_TEXT * self._texts()), _LONGEST_MESSAGE_S)
        # Due messages leave a few a turn: all at once would hold up all others who need the loop.
        due = 1 + round(len(self._members) * (now_s - self._drawn_s) / message_s)
        self._drawn_s = now_s
        filled = set()
        for m, member in enumerate(self._members):
            try:
                piece = member.session.take(chunk, m, partial(self._group.state_of, m))
                if member.add(piece, now_s, message_s, due > 0):
                    filled.add(member.outlet)
                    due -= 1
            except BaseException as error:  # of this text alone
                member.fail(error)
                filled.add(member.outlet)
        # What tokens are told with counts: alternatives take longer than the draw.
        took_s = time.monotonic() - began_s
        self._step_s += 0.2 * (took_s / len(chunk.tokens[0]) - self._step_s)
        self._wake(filled)

    def _chunk(self) -> int:
        """Returns how many tokens to draw now."""
        left = max(member.session.left for member in self._members)
        chunk = min(_MOST_CHUNK, max(_LEAST_CHUNK, round(_CHUNK_S / self._step_s)))
        weight = sum(member.session.weight for member in self._members)
        chunk = min(chunk, max(1, _MOST_TOLD // max(weight, 1)))
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
        self._runners: dict[tuple[int, int], list[_Runner]] = {}
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
                outlet.count(only)
                outlet.put((index, [only]))
                outlet.wake()
                continue
            with self._lock:
                runner = self._roomiest(model, session.seat.choices.constraint)
                runner.join([_Member(session, outlet, index, runner)])

    def _roomiest(self, model: Model, constraint: Constraint | None) -> _Runner:
        """Returns a runner with room: a new one while threads would idle, or all are full."""
        # A group lays its texts' automata one below the other; a large one has a group of its own.
        large = constraint is not None and constraint.table.size > _LARGE_TABLE
        key = id(model), id(constraint) if large else 0
        runners = self._runners.setdefault(key, [])
        least = min(runners, key=lambda runner: runner.size, default=None)
        if least is not None and least.size == 0:
            return least
        if least is None or len(runners) < self._scheduler.threads or least.size >= MOST_ROWS:
            least = _Runner(model, self._scheduler, key, self._texts, self._forget)
            runners.append(least)
        return least

    def _texts(self) -> int:
        """Returns how many texts are being drawn."""
        return sum(runner.size for runners in [*self._runners.values()] for runner in [*runners])

    def _forget(self, runner: _Runner) -> None:
        """Drops a runner that has nobody left, and with it its hold on the model."""
        with self._lock:
            runners = self._runners.get(runner.key, [])
            if runner.size == 0 and runner in runners:
                runners.remove(runner)
            if not runners:
                self._runners.pop(runner.key, None)
