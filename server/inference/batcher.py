"""`Batcher` lets the sequences of all calls decode together, in one or more batches per model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import suppress

from treadle.model import Model
from treadle.model.generation.constraint import Constraint
from treadle.model.generation.decoding_batch import MAX_SEQUENCES, DecodingBatch
from treadle.model.generation.output import Piece
from treadle.model.generation.sequence import Sequence
from treadle.server.inference.memory_costs import piece_bytes
from treadle.server.inference.scheduler import Scheduler, Task

_MESSAGE_S = 0.02
"""Minimum seconds between two messages of a sequence: a message costs the same at any size."""

_MESSAGE_S_PER_SEQUENCE = 0.00125
"""Minimum interval per active sequence; used when larger than `_MESSAGE_S`, so that messages do not
take the time that tokens and other calls need."""

_MAX_MESSAGE_S = 0.2
"""Upper bound of the scaled interval."""

_CHUNK_S = 0.006
"""Approximate seconds that drawing a chunk of tokens takes."""

_MIN_CHUNK = 4
_MAX_CHUNK = 64
"""Tokens of a chunk, unless the sequences need fewer."""

_FIRST_CHUNK = 16
"""Chunk limit right after a sequence joins, for low first-token latency."""

_MAX_DETAILS = 4096
"""Tokens and alternatives that a chunk may report: each takes longer to report than to draw, and
keeps the event loop waiting."""

_LARGE_TABLE = 1 << 18
"""Automaton tables with more elements than this are large."""

_MAX_UNREAD = 64
"""Messages that may wait for a client that reads slowly, before its sequences pause."""


class PieceQueue:
    """Carries the pieces of a call's sequences from the threads to the event loop.

    Args:
        max_bytes: Bytes that may wait for the reader before the sequences pause.
    """

    def __init__(self, max_bytes: int) -> None:
        self.closed = False
        """Whether the reader is gone."""
        self.loop = asyncio.get_running_loop()
        """The event loop on which it is read."""
        self._filled = asyncio.Event()
        self._batches: deque[tuple[int, list[Piece]] | BaseException] = deque()
        self._lock = threading.Lock()
        self._max_bytes = max_bytes
        self.unread_bytes = 0
        """Bytes of all pieces that were made and that the reader has not finished with."""
        self._paused: list[_QueuedSequence] = []

    async def read(self, count: int) -> AsyncGenerator[tuple[int, list[Piece]]]:
        """Yields the pieces of each sequence, with its index, as they come.

        Args:
            count: How many sequences there are; each ends with a result.

        Raises:
            ModelError: A sequence could not continue.
        """
        while count:
            await self._filled.wait()
            self._filled.clear()
            while self._batches:
                batch = self._batches.popleft()
                if isinstance(batch, BaseException):
                    raise batch
                count -= batch[1][-1].result is not None
                yield batch
                with self._lock:
                    self.unread_bytes -= sum(map(piece_bytes, batch[1]))
            self._resume()

    def count(self, piece: Piece) -> None:
        """Counts the memory of a piece that is `put` now or later."""
        with self._lock:
            self.unread_bytes += piece_bytes(piece)

    def put(self, batch: tuple[int, list[Piece]] | BaseException) -> None:
        """Adds counted pieces of one sequence, or an error; `wake` then wakes the reader."""
        self._batches.append(batch)

    def wake(self) -> None:
        """Wakes the reader, on the event loop."""
        self._filled.set()

    def pause(self, sequence: _QueuedSequence) -> bool:
        """Returns whether a sequence has to wait for the reader, which then resumes it."""
        if len(self._batches) < _MAX_UNREAD and self.unread_bytes < self._max_bytes:
            return False
        sequence.flush()  # the pieces that it holds back count as well
        with self._lock:
            self._paused.append(sequence)
        self.loop.call_soon_threadsafe(self.wake)  # all of it may have been read just now
        return True

    def _resume(self) -> None:
        with self._lock:
            paused = self._paused
            self._paused = []
        for sequence in paused:
            sequence.resume()


class _QueuedSequence:
    """One sequence, the queue of its call, and its pieces that are not sent yet."""

    def __init__(self, sequence: Sequence, queue: PieceQueue, index: int, task: _BatchTask) -> None:
        self.sequence = sequence
        self.queue = queue
        self._index = index
        self._task = task
        self._pieces: list[Piece] = []
        self._sent_s = 0.0

    def add(self, piece: Piece, now_s: float, message_s: float, may_send: bool) -> bool:
        """Takes a piece; returns whether there is something for the reader now.

        Args:
            piece: The piece.
            now_s: When it was made.
            message_s: Minimum seconds between messages.
            may_send: Whether a message may go out now that is neither the first nor the last.

        Returns:
            Whether there is something for the reader now.
        """
        if piece.text or piece.tokens or piece.result:
            self._pieces.append(piece)
            self.queue.count(piece)
        is_first = not self._sent_s
        is_due = may_send and now_s - self._sent_s >= message_s
        if not self._pieces or not (is_first or is_due or piece.result is not None):
            return False
        self.flush()
        self._sent_s = now_s
        return True

    def flush(self) -> None:
        """Sends the pieces that are not sent yet."""
        if self._pieces:
            pieces = self._pieces
            self._pieces = []
            self.queue.put((self._index, pieces))

    def fail(self, error: BaseException) -> None:
        """Ends the call with an error."""
        self.queue.put(error)

    def resume(self) -> None:
        """Continues where it paused."""
        self._task.join([self])


class _BatchTask(Task):
    """Steps one `DecodingBatch` in the scheduler's turns."""

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        key: tuple[int, int],
        total: Callable[[], int],
        on_empty: Callable[[_BatchTask], None],
    ) -> None:
        self.model = model
        self.key = key
        """The key that its sequences share; see `Batcher`."""
        self._scheduler = scheduler
        self._total = total
        self._on_empty = on_empty
        self._batch = self._new_batch()
        self._members: dict[Sequence, _QueuedSequence] = {}
        self._arrivals: list[_QueuedSequence] = []
        self._joining: list[_QueuedSequence] = []
        self._active = False
        self._lock = threading.Lock()
        self._has_joined = False
        self._stepped_s = 0.0
        self._token_s = _CHUNK_S / _FIRST_CHUNK

    def _new_batch(self) -> DecodingBatch:
        return DecodingBatch(self.model.trained)

    @property
    def size(self) -> int:
        """The number of its sequences, including those that wait to join."""
        with self._lock:
            return len(self._members) + len(self._joining) + len(self._arrivals)

    def join(self, sequences: Collection[_QueuedSequence]) -> None:
        """Adds sequences from the next turn on."""
        with self._lock:
            self._arrivals += sequences
            if self._active:
                return
            self._active = True
        self._scheduler.wake(self)

    def take_turn(self, turn_s: float) -> bool:
        """Draws a chunk for all its sequences; see `Task`."""
        try:
            self._exchange()
            if self._members:
                self._step()
        except BaseException as error:  # nothing else would reach the callers that wait
            self._fail(error)
        with self._lock:
            # Read under the lock: once it is free, a call may join and wake this task again.
            again = self._active = bool(self._members or self._arrivals)
        if not again:
            self._on_empty(self)
        return again

    def _fail(self, error: BaseException) -> None:
        """Ends all sequences with an error, and replaces the batch, which may be inconsistent."""
        with self._lock:
            lost = [*self._members.values(), *self._joining, *self._arrivals]
            self._members = {}
            self._joining = []
            self._arrivals = []
        for member in lost:
            member.fail(error)
        self._batch = self._new_batch()
        self._wake({member.queue for member in lost})

    def _exchange(self) -> None:
        """Removes sequences whose reader is gone or slow, and adds those that arrived."""
        members = self._members.values()
        leaving = {m.sequence for m in members if m.queue.closed or m.queue.pause(m)}
        with self._lock:
            waiting = [member for member in self._arrivals if not member.queue.closed]
            # A sequence that has paused may be among them again.
            free = MAX_SEQUENCES - (len(self._members) - len(leaving))
            self._joining = waiting[:free]
            self._arrivals = waiting[free:]
        self._has_joined = bool(self._joining)
        if leaving or self._joining:
            self._batch.replace(leaving, [member.sequence for member in self._joining])
            with self._lock:
                staying = {s: m for s, m in self._members.items() if s not in leaving}
                self._members = staying | {member.sequence: member for member in self._joining}
                self._joining = []
        self.weight = max(1, len(self._members))

    def _step(self) -> None:
        """Draws a chunk, and sends the messages that are due."""
        began_s = time.monotonic()
        chunk = self._chunk()
        pieces = self._batch.step(chunk)
        now_s = time.monotonic()
        message_s = min(max(_MESSAGE_S, _MESSAGE_S_PER_SEQUENCE * self._total()), _MAX_MESSAGE_S)
        # Spreads due messages over turns: all at once would delay other work of the event loop.
        due = 1 + round(len(self._members) * (now_s - self._stepped_s) / message_s)
        self._stepped_s = now_s
        filled = set()
        over = set()
        failed = []
        for sequence, piece in pieces:
            member = self._members[sequence]
            try:
                if isinstance(piece, BaseException):
                    raise piece
                if member.add(piece, now_s, message_s, due > 0):
                    filled.add(member.queue)
                    due -= 1
                if piece.result is not None:
                    over.add(sequence)
            except BaseException as error:  # it concerns no other call
                member.fail(error)
                filled.add(member.queue)
                over.add(sequence)
                failed.append(sequence)
        if failed:
            self._batch.remove(failed)
        if over:
            with self._lock:
                self._members = {s: m for s, m in self._members.items() if s not in over}
        # Reporting counts, too: alternatives take longer to report than to draw.
        took_s = time.monotonic() - began_s
        self._token_s += 0.2 * (took_s / chunk - self._token_s)
        self._wake(filled)

    def _chunk(self) -> int:
        """Returns how many tokens to draw now."""
        chunk = min(_MAX_CHUNK, max(_MIN_CHUNK, round(_CHUNK_S / self._token_s)))
        details = max(self._batch.details_per_step, 1)
        chunk = min(chunk, max(1, _MAX_DETAILS // details), self._batch.max_left)
        return min(chunk, _FIRST_CHUNK) if self._has_joined else chunk

    def _wake(self, queues: set[PieceQueue]) -> None:
        """Wakes the readers that have something to read: one call to each event loop."""
        for loop in {queue.loop for queue in queues}:
            with suppress(RuntimeError):  # it is closed: the reader is gone
                loop.call_soon_threadsafe(_wake_all, [q for q in queues if q.loop is loop])


def _wake_all(queues: list[PieceQueue]) -> None:
    for queue in queues:
        queue.wake()


class Batcher:
    """Gives every sequence a place in a batch of its model.

    Args:
        scheduler: Gives the turns.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._tasks: dict[tuple[int, int], list[_BatchTask]] = {}
        self._lock = threading.Lock()

    def begin(self, model: Model, sequences: Collection[Sequence], queue: PieceQueue) -> None:
        """Lets sequences decode from now on.

        Args:
            model: The model that generates.
            sequences: The sequences.
            queue: Gets their pieces, with their place among `sequences` as the index.
        """
        for index, sequence in enumerate(sequences):
            only_piece = sequence.nothing_to_draw()
            if only_piece is not None:
                queue.count(only_piece)
                queue.put((index, [only_piece]))
                queue.wake()
                continue
            with self._lock:
                task = self._smallest(model, sequence.slot.sampling.constraint)
                task.join([_QueuedSequence(sequence, queue, index, task)])

    def _smallest(self, model: Model, constraint: Constraint | None) -> _BatchTask:
        """Returns the smallest batch; a new one while threads are idle or all are full."""
        # A batch combines the automata of its sequences; a large one gets a batch of its own.
        large = constraint is not None and constraint.table.size > _LARGE_TABLE
        key = id(model), id(constraint) if large else 0
        tasks = self._tasks.setdefault(key, [])
        smallest = min(tasks, key=lambda task: task.size, default=None)
        if smallest is not None and smallest.size == 0:
            return smallest
        has_idle_threads = len(tasks) < self._scheduler.threads
        if smallest is None or has_idle_threads or smallest.size >= MAX_SEQUENCES:
            smallest = _BatchTask(model, self._scheduler, key, self._total, self._forget)
            tasks.append(smallest)
        return smallest

    def _total(self) -> int:
        """Returns the number of active sequences."""
        return sum(task.size for tasks in [*self._tasks.values()] for task in [*tasks])

    def _forget(self, task: _BatchTask) -> None:
        """Drops a task without sequences, and so its reference to the model."""
        with self._lock:
            tasks = self._tasks.get(task.key, [])
            if task.size == 0 and task in tasks:
                tasks.remove(task)
            if not tasks:
                self._tasks.pop(task.key, None)
