"""`Ranks` connects the processes of one run, which may be on many machines, through MPI.

Rank 0 leads: it reads and writes all files, decides everything, and commands the other ranks to
compute. These follow: they have the weights, but no corpus and no clock. Whatever a rank waits for,
it waits in short looks between which other processes get the processor: MPI's own calls keep it
busy, and a rank may wait for as long as rank 0 validates or writes a checkpoint.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from treadle.model.errors import ModelError

_COMMAND = 1
_ANSWER = 2

_YIELDING_S = 0.002
_NAPS = ((0.02, 50e-6), (1.0, 0.0002), (float("inf"), 0.002))
"""How long a wait has lasted, and how long the sleep between two looks then is, in seconds."""

_FAREWELL_S = 0.5
"""Seconds before all processes are ended at once."""

_LOST_S = 300.0
"""For so long rank 0 waits for another rank at least, in seconds."""

_LOST_AFTER_PREPARING_S = 900.0
"""The same where the other ranks may compile kernels first."""

_PATIENCE = 50.0
"""Rank 0 waits so many times as long as its longest step has lasted."""

_LONGEST_LOOK_S = 1.0
"""The most that counts as waited between two looks: a process that was stopped did not wait."""


class LostRankError(ModelError):
    """Another rank does not answer any more: it or its machine hangs, or is out of reach."""


class Ranks:
    """The processes of a run.

    Args:
        world: The communicator of mpi4py that they share.
    """

    def __init__(self, world: Any) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._world = world.Dup()
        self._sent: list[tuple[Any, Any]] = []
        """Sends of commands that may be under way, with what they send."""
        self.rank: int = world.Get_rank()
        """This process' number, from 0."""
        self.size: int = world.Get_size()
        """How many processes there are."""
        self.host = socket.gethostname()
        """The machine of this process."""
        self.on_this_host = 1
        """How many of the processes are on this machine."""
        self.is_broken = False
        """Whether an exchange failed midway, so that nothing can be exchanged any more."""
        self._commanded_at = time.perf_counter()
        self._longest_s = 0.0
        """The longest time from a command until what it computes was exchanged, as in a step."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    # ------------------------------------------------------------ commands

    def command(self, command: str, *arguments: Any) -> None:
        """Gives every other rank a command; only rank 0 does.

        Args:
            command: The name of a method of `Follower`.
            arguments: Its arguments, which are pickled.
        """
        self.command_each(command, [arguments] * (self.size - 1))

    def command_each(self, command: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """Gives every other rank a command, with arguments of its own.

        Args:
            command: The name of a method of `Follower`.
            arguments: The arguments of ranks 1, 2, ...
        """
        self._commanded_at = time.perf_counter()
        with self.together():
            self.wait([request for request, _ in self._sent])
            self._sent.clear()
            last: tuple[Any, ...] | None = None
            message = b""
            for rank, own in enumerate(arguments, start=1):
                if own is not last:
                    message = pickle.dumps((command, own), pickle.HIGHEST_PROTOCOL)
                    last = own
                self._sent.append((self._world.Isend(message, rank, _COMMAND), message))

    def next_command(self) -> tuple[str, tuple[Any, ...]]:
        """Waits for a command of rank 0; returns its name and its arguments."""
        return self._receive_object(0, _COMMAND)  # type: ignore[no-any-return]

    def answer(self, fault: Exception | None) -> None:
        """Reports to rank 0 whether a command could be followed; `check` waits for it.

        Args:
            fault: Why it could not; None: it could.
        """
        message = pickle.dumps(fault, pickle.HIGHEST_PROTOCOL)
        self.wait([self._world.Isend(message, 0, _ANSWER)])

    def check(self) -> None:
        """Waits until every other rank has answered.

        Nothing can be exchanged after a fault: ranks without one continue with the command.

        Raises:
            Exception: What the first of them could not be followed for.
            LostRankError: One does not answer.
        """
        with self.together():
            answers = [self._receive_object(rank, _ANSWER) for rank in range(1, self.size)]
            for fault in answers:
                if fault is not None:
                    raise fault

    def _receive_object(self, rank: int, tag: int) -> Any:
        status = self._mpi.Status()
        found: list[Any] = []

        def look() -> bool:
            message = self._world.Improbe(rank, tag, status)
            if message is not None:
                found.append(message)
            return bool(found)

        self._await(look, _LOST_AFTER_PREPARING_S)
        buffer = bytearray(status.Get_count(self._mpi.BYTE))
        found[0].Recv([buffer, self._mpi.BYTE])
        return pickle.loads(buffer)

    # ------------------------------------------------------------ arrays

    def send(self, array: npt.NDArray[Any], rank: int, tag: int) -> Any:
        """Begins to send a contiguous array; it must stay as it is until `wait` returns.

        Args:
            array: What to send.
            rank: To whom.
            tag: What the receiver knows it by.

        Returns:
            The request, for `wait`.
        """
        return self._world.Isend(array, rank, tag)

    def receive(self, array: npt.NDArray[Any], rank: int, tag: int) -> Any:
        """Begins to receive what `send` sends into a contiguous array.

        Args:
            array: Where it is written.
            rank: From whom.
            tag: As the sender gave it.

        Returns:
            The request, for `wait`.
        """
        return self._world.Irecv(array, rank, tag)

    def wait(self, requests: Sequence[Any]) -> None:
        """Waits until what was begun is done.

        Raises:
            LostRankError: This is rank 0, and another one does not answer.
        """
        if requests:
            pending = list(requests)
            self._await(lambda: bool(self._mpi.Request.Testall(pending)), _LOST_S)
            took_s = time.perf_counter() - self._commanded_at
            self._longest_s = max(self._longest_s, took_s)

    def _await(self, is_done: Callable[[], bool], least_s: float) -> None:
        """Waits; rank 0 gives up once another rank is lost, which MPI may not notice.

        The other ranks wait for as long as rank 0 works, and it ends them.
        """
        if not self.leads:
            _patiently(is_done)
            return
        own_s = time.perf_counter() - self._commanded_at
        limit_s = max(least_s, _PATIENCE * max(own_s, self._longest_s))
        if not _patiently(is_done, limit_s):
            self.is_broken = True
            raise LostRankError(
                f"another process of the run has not answered for {limit_s:,.0f} s: it or its "
                "machine hangs, or is out of reach"
            )

    def is_done(self, requests: Sequence[Any]) -> bool:
        """Returns whether what was begun is done; MPI moves on with it meanwhile."""
        return bool(self._mpi.Request.Testall(list(requests)))

    def broadcast(self, array: npt.NDArray[Any]) -> None:
        """Gives rank 0's array to all ranks, which call this together."""
        with self.together():
            self.wait([self._world.Ibcast(array, 0)])

    def all_gather(self, array: npt.NDArray[np.float32], slices: Sequence[slice]) -> None:
        """Gives every rank's slice of an array to all ranks, which call this together.

        Args:
            array: Of all elements; those of other ranks are written.
            slices: The slices of the ranks, in order.
        """
        counts = [each.stop - each.start for each in slices]
        places = [each.start for each in slices]
        whole = [array, counts, places, self._mpi.FLOAT]
        self.wait([self._world.Iallgatherv(self._mpi.IN_PLACE, whole)])

    # ------------------------------------------------------------ all together

    def exchange_objects(self, own: Any) -> list[Any]:
        """Returns an object of every rank, in order; all ranks call this together."""
        return list(self._world.allgather(own))

    def meet(self) -> None:
        """Waits until every rank has come to this call."""
        with self.together():
            self.wait([self._world.Ibarrier()])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Notes that nothing can be exchanged any more where what happens within fails."""
        if self.is_broken:
            raise RuntimeError("the ranks of the run no longer work together")
        try:
            yield
        except BaseException:
            self.is_broken = True
            raise

    def leave(self) -> None:
        """Ends the run on all ranks; the last call of rank 0."""
        if not self.is_broken:
            try:
                self.command("quit")
                self.wait([request for request, _ in self._sent])
                self.meet()  # the end of MPI itself waits for a rank that hangs, and for ever
            except LostRankError as error:
                print(error, file=sys.stderr)
            else:
                return
        sys.stderr.flush()
        time.sleep(_FAREWELL_S)  # mpirun still forwards what this process has written
        self.abort(1)

    def abort(self, code: int) -> NoReturn:
        """Ends the processes of all ranks at once.

        Args:
            code: The exit code of this one.
        """
        self._world.Abort(code)
        os._exit(code)  # MPI_Abort does not return


def _patiently(is_done: Callable[[], bool], limit_s: float = float("inf")) -> bool:
    """Looks again and again, less often the longer it takes; returns False at the limit."""
    if is_done():
        return True
    waited = 0.0
    before = time.perf_counter()
    while not is_done():
        now = time.perf_counter()
        waited += min(now - before, _LONGEST_LOOK_S)
        before = now
        if waited >= limit_s:
            return False
        if waited < _YIELDING_S:
            os.sched_yield()
        else:
            time.sleep(next(nap for most, nap in _NAPS if waited < most))
    return True
