"""`Batcher` lets the sequences of all calls decode together, in one or more batches per model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import suppress

from treadle.model import Model
from treadle.model.errors import ModelError
from treadle.model.generation.constraint import Constraint
from treadle.model.generation.decoding_batch import MAX_SEQUENCES, DecodingBatch
from treadle.model.generation.output import Piece
from treadle.model.generation.sequence import Sequence
from treadle.server.inference.memory_costs import piece_bytes
from treadle.server.inference.scheduler import Scheduler
from treadle.server.inference.sharing.decoding_groups import DecodingGroups, Group, GroupedCaller
from treadle.server.inference.sharing.share import NO_MEMBERS, JointShare, Share, Task
from treadle.server.telemetry import metrics

_MESSAGE_S = 0.02
"""Minimum seconds between two messages of a sequence: a message costs the same at any size."""

_MESSAGE_S_PER_SEQUENCE = 0.00125
"""Minimum interval per active sequence; used when larger than `_MESSAGE_S`, so that messages do not
take the time that tokens and other calls need. See `Batcher.message_s`."""

_MAX_MESSAGE_S = 0.2
"""Upper bound of the scaled interval of a caller that is alone."""

_MAX_SHARED_S = 0.5
"""The same while other callers have sequences: one with many leaves them time for their own."""

_CHUNK_S = 0.006
"""Approximate seconds that drawing a chunk of tokens takes."""

_MIN_CHUNK = 4
_MAX_CHUNK = 64
"""Tokens of a chunk, unless the sequences need fewer."""

_MAX_SHARED_CHUNK = 256
"""The same next to other callers' sequences: after every chunk a thread waits for Python's lock,
and few sequences with short chunks would lose more of their time by that than many."""

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

    @property
    def is_full(self) -> bool:
        """Whether as much waits for the reader as may."""
        return len(self._batches) >= _MAX_UNREAD or self.unread_bytes >= self._max_bytes

    def pause(self, sequence: _QueuedSequence) -> bool:
        """Returns whether a sequence has to wait for the reader, which then resumes it.

        A batch must have let go of it before.
        """
        if not self.is_full:
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

    def __init__(
        self,
        sequence: Sequence,
        queue: PieceQueue,
        index: int,
        model: Model,
        key: tuple[int, int],
        caller: str,
        share: Share,
        resume: Callable[[_QueuedSequence], None],
    ) -> None:
        self.sequence = sequence
        self.queue = queue
        self.model = model
        """The model that generates."""
        self.key = key
        """Sequences with equal ones could decode together; see `Batcher`."""
        self.caller_name = caller
        """The name of its caller."""
        self.share = share
        """The share of its caller."""
        self.caller: GroupedCaller[_BatchTask]
        """Its caller, once it has a place in a batch."""
        self._index = index
        self._resume = resume
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
        if piece.text or piece.tokens or piece.result or piece.resume:
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
        self._resume(self)


class _BatchTask(Task):
    """Steps one `DecodingBatch` in the scheduler's turns."""

    def __init__(self, model: Model, group: Group[_BatchTask], batcher: Batcher) -> None:
        self.model = model
        self.group = group
        """Whose sequences it is for."""
        self._batcher = batcher
        self._scheduler = batcher.scheduler
        self._joint = JointShare()
        self._batch = self._new_batch()
        self._members: dict[Sequence, _QueuedSequence] = {}
        self._shares: Counter[Share] = Counter()  # of the members
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

    def join(self, sequence: _QueuedSequence) -> None:
        """Adds a sequence from the next turn on."""
        with self._lock:
            self._arrivals.append(sequence)
            if self._active:
                return
            self._active = True
            self.share = sequence.share
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
            self._choose_share()
        if not again:
            self._batcher.forget(self)
        return again

    def _choose_share(self) -> None:
        """Lets the next turn be of the time of those whom it is for."""
        self.weight = max(1, len(self._members))
        together = self._shares if len(self._shares) > 1 else NO_MEMBERS
        if together is not self._joint.members:
            self._scheduler.combine(self._joint, together)
        if together:
            self.share = self._joint
        else:
            waiting = [member.share for member in self._arrivals]
            self.share = next(iter([*self._shares, *waiting]), None)

    def _set_members(self, members: dict[Sequence, _QueuedSequence]) -> None:
        """Sets its sequences, under the lock."""
        self._members = members
        self._shares = Counter([member.share for member in members.values()])

    def _fail(self, error: BaseException) -> None:
        """Ends all sequences with an error, and replaces the batch, which may be inconsistent."""
        with self._lock:
            lost = [*self._members.values(), *self._joining, *self._arrivals]
            self._set_members({})
            self._joining = []
            self._arrivals = []
        self._batcher.leave(lost)
        for member in lost:
            member.fail(error)
        self._batch = self._new_batch()
        self._wake({member.queue for member in lost})

    def _exchange(self) -> None:
        """Lets go of sequences that pause, moved or have no reader, and adds those that arrived."""
        members = self._members.values()
        leaving = [m for m in members if m.queue.closed or m.queue.is_full or self._lost(m)]
        with self._lock:
            waiting = [m for m in self._arrivals if not (m.queue.closed or self._lost(m))]
            elsewhere = [m for m in self._arrivals if m.queue.closed or self._lost(m)]
            free = MAX_SEQUENCES - (len(self._members) - len(leaving))
            self._joining = waiting[:free]
            self._arrivals = waiting[free:]
        self._let_go(elsewhere)
        self._refuse_unusable()
        self._has_joined = bool(self._joining)
        if leaving or self._joining:
            gone = {member.sequence for member in leaving}
            self._batch.replace(gone, [member.sequence for member in self._joining])
            with self._lock:
                staying = {s: m for s, m in self._members.items() if s not in gone}
                joined = {member.sequence: member for member in self._joining}
                self._set_members(staying | joined)
                self._joining = []
            self._let_go(leaving)

    def _refuse_unusable(self) -> None:
        """Ends the calls whose sequences cannot join; they concern no other call."""
        for member in list(self._joining):
            try:
                self._batch.check(member.sequence)
            except ModelError as error:
                with self._lock:
                    self._joining.remove(member)
                self._batcher.leave([member])
                member.fail(error)
                self._wake({member.queue})

    def _lost(self, member: _QueuedSequence) -> bool:
        """Returns whether a sequence belongs elsewhere by now."""
        return member.caller.group is not self.group

    def _let_go(self, members: Collection[_QueuedSequence]) -> None:
        """Pauses, forgets or moves sequences that are not in the batch any more."""
        for member in members:
            try:
                if member.queue.closed or member.queue.is_full:
                    self._batcher.leave([member])
                    # Only now: once it is paused, it may join another batch at any moment.
                    if not member.queue.closed and not member.queue.pause(member):
                        self._batcher.join(member)
                else:
                    self._batcher.place(member)
            except BaseException as error:  # it concerns no other call
                member.fail(error)
                self._wake({member.queue})

    def _step(self) -> None:
        """Draws a chunk, and sends the messages that are due."""
        began_s = time.monotonic()
        chunk = self._chunk()
        metrics.BATCH_SEQUENCES.observe(len(self._members))
        pieces = self._batch.step(chunk)
        now_s = time.monotonic()
        message_s = {share: self._batcher.message_s(share) for share in self._shares}
        # Spreads due messages over turns: all at once would delay other work of the event loop.
        per_second = sum(count / message_s[share] for share, count in self._shares.items())
        due = 1 + round(per_second * (now_s - self._stepped_s))
        self._stepped_s = now_s
        filled = set()
        over = set()
        failed = []
        for sequence, piece in pieces:
            member = self._members[sequence]
            try:
                if isinstance(piece, BaseException):
                    raise piece
                if member.add(piece, now_s, message_s[member.share], due > 0):
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
                ended = [member for sequence, member in self._members.items() if sequence in over]
                self._set_members({s: m for s, m in self._members.items() if s not in over})
            self._batcher.leave(ended)
        # Reporting counts, too: alternatives take longer to report than to draw.
        took_s = time.monotonic() - began_s
        self._token_s += 0.2 * (took_s / chunk - self._token_s)
        self._wake(filled)

    def _chunk(self) -> int:
        """Returns how many tokens to draw now."""
        details = self._batch.details_per_step
        most = _MAX_CHUNK if details or self._batcher.callers < 2 else _MAX_SHARED_CHUNK
        chunk = min(most, max(_MIN_CHUNK, round(_CHUNK_S / self._token_s)))
        chunk = min(chunk, max(1, _MAX_DETAILS // max(details, 1)), self._batch.max_left)
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
        self.scheduler = scheduler
        """Gives the turns."""
        self._models: dict[tuple[int, int], DecodingGroups[_BatchTask]] = {}
        self._sequences: Counter[Share] = Counter()
        """How many sequences of each caller decode."""
        self._lock = threading.Lock()

    @property
    def callers(self) -> int:
        """How many callers have sequences that decode."""
        return len(self._sequences)

    def begin(
        self, model: Model, sequences: Collection[Sequence], queue: PieceQueue, caller: str
    ) -> None:
        """Lets sequences decode from now on.

        Args:
            model: The model that generates.
            sequences: The sequences.
            queue: Gets their pieces, with their place among `sequences` as the index.
            caller: The name of the caller, whose time they take.
        """
        share = self.scheduler.share(caller)
        for index, sequence in enumerate(sequences):
            only_piece = sequence.nothing_to_draw()
            if only_piece is not None:
                queue.count(only_piece)
                queue.put((index, [only_piece]))
                queue.wake()
                continue
            key = _key(model, sequence.slot.sampling.constraint)
            self.join(_QueuedSequence(sequence, queue, index, model, key, caller, share, self.join))

    def join(self, member: _QueuedSequence) -> None:
        """Lets a sequence decode that is in no batch."""
        with self._lock:
            groups = self._models.setdefault(member.key, DecodingGroups())
            member.caller = groups.add(member.caller_name)
            self._sequences[member.share] += 1
            try:
                self._place(member)
            except BaseException:
                self._remove(member)
                raise

    def leave(self, members: Collection[_QueuedSequence]) -> None:
        """Forgets sequences that have left their batch, or are about to, and join no other one."""
        with self._lock:
            for member in members:
                self._remove(member)

    def place(self, member: _QueuedSequence) -> None:
        """Lets a sequence that has left its batch join one of those where it belongs now.

        Raises:
            BaseException: No batch can take it, and it is forgotten.
        """
        with self._lock:
            try:
                self._place(member)
            except BaseException:
                self._remove(member)
                raise

    def forget(self, task: _BatchTask) -> None:
        """Drops a task without sequences, and so its reference to the model."""
        with self._lock:
            if task.size == 0 and task in task.group.batches:
                task.group.batches.remove(task)

    def message_s(self, share: Share) -> float:
        """Returns the minimum seconds between two messages of each sequence of a caller.

        The event loop's time is shared like that of the turns: each caller may send as many
        messages as any other.
        """
        callers = self.callers
        scaled_s = _MESSAGE_S_PER_SEQUENCE * callers * self._sequences[share]
        return min(max(_MESSAGE_S, scaled_s), _MAX_SHARED_S if callers > 1 else _MAX_MESSAGE_S)

    def _place(self, member: _QueuedSequence) -> None:
        """Adds a sequence to the smallest batch; a new one while threads are idle or all full."""
        group = member.caller.group
        smallest = min(group.batches, key=lambda task: task.size, default=None)
        size = 0 if smallest is None else smallest.size
        has_idle_threads = len(group.batches) < self.scheduler.threads
        if smallest is None or size >= MAX_SEQUENCES or (size and has_idle_threads):
            smallest = _BatchTask(member.model, group, self)
            group.batches.append(smallest)
        smallest.join(member)

    def _remove(self, member: _QueuedSequence) -> None:
        groups = self._models[member.key]
        groups.remove(member.caller)
        if not groups.groups:
            del self._models[member.key]
        self._sequences[member.share] -= 1
        if not self._sequences[member.share]:
            del self._sequences[member.share]


def _key(model: Model, constraint: Constraint | None) -> tuple[int, int]:
    """Returns what sequences that could decode together have in common."""
    # A batch combines the automata of its sequences; a large one gets a batch of its own.
    large = constraint is not None and constraint.table.size > _LARGE_TABLE
    # A model in another precision has other weights.
    return id(model.trained), id(constraint) if large else 0
