"""`Compilers` are processes that compile kernels into the disk cache, several at a time.

Compiling holds the interpreter lock, so threads do not share the work. Each process gets the number
of one task at a time (see `groups`). It ends when its input does, and Linux kills it when this
process dies.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress

from treadle.model.warmup.groups import TASKS, KernelGroup

_PROGRAM = "from treadle.model.warmup.compilers import obey; obey()"

_MOST = 4
"""Processes at most; there is not more to do at the same time."""

_PR_SET_PDEATHSIG = 1

_waiting: list[subprocess.Popen[bytes]] = []
"""Processes that were started before there is anything to tell them."""


def useful_processes() -> int:
    """Returns how many processes shorten the time until everything is compiled."""
    return min(len(os.sched_getaffinity(0)), _MOST)


def start_early() -> None:
    """Starts the processes of the next `Compilers`, for as long as this one still imports."""
    with suppress(OSError):  # then `Compilers` meets the same error
        while len(_waiting) < useful_processes():
            _waiting.append(_begin())


class Compilers:
    """Compiles all kernels, group by group, and keeps them on disk."""

    def __init__(self, count: int) -> None:
        """Starts processes; they begin at once.

        Args:
            count: How many.

        Raises:
            OSError: No process can be started.
        """
        self._processes: list[subprocess.Popen[bytes]] = []
        self._left: deque[tuple[str, Future[None]]] = deque()
        self._taking = threading.Lock()
        self._tasks: dict[KernelGroup, list[Future[None]]] = {}
        try:
            for _ in range(count):
                self._start()
        except OSError:
            self.close()
            raise
        for group, tasks in TASKS.items():
            self._tasks[group] = [Future() for _ in tasks]
            for number, task in enumerate(self._tasks[group]):
                self._left.append((f"{group.name} {number}\n", task))
        for process in self._processes:
            threading.Thread(target=self._feed, args=(process,), daemon=True).start()

    def wait(self, group: KernelGroup) -> None:
        """Waits until the kernels of a group are on disk.

        Those that could not be compiled there are compiled by who needs them, who gets the error.
        """
        for task in self._tasks[group]:
            task.result()

    def close(self) -> None:
        """Ends the processes, finished or not."""
        with self._taking:
            while self._left:
                self._left.pop()[1].cancel()
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def _start(self) -> None:
        self._processes.append(_waiting.pop() if _waiting else _begin())

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """Gives a process one task after the other."""
        while (taken := self._take(process)) is not None:
            command, task = taken
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(OSError, ValueError):  # it has ended, or `close` was called
                process.stdin.write(command.encode())
                process.stdout.readline()
            task.set_result(None)

    def _take(self, process: subprocess.Popen[bytes]) -> tuple[str, Future[None]] | None:
        """Takes the next task for a process.

        One that has ended gets none, as long as another one has not: it would seem to do all that
        are left at once.

        Returns:
            The command and the task; None where it gets no task.
        """
        with self._taking:
            ended = process.poll() is not None
            if not self._left or (ended and any(each.poll() is None for each in self._processes)):
                return None
            return self._left.popleft()


def end_waiting() -> None:
    """Ends processes that `start_early` has started and that nobody gives a task."""
    while _waiting:
        process = _waiting.pop()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _begin() -> subprocess.Popen[bytes]:
    """Starts a process that waits for tasks."""
    # In a session of its own: Ctrl-C is for this process, which then ends the others.
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )


def obey() -> None:
    """Runs the tasks that are named on the standard input, and says when each is done.

    The only argument of the process is the number of the one that started it.
    """
    _die_with(int(sys.argv[1]))
    gc.disable()  # see `no_collection`; a process that lives this shortly needs none at all
    os.nice(5)  # calls that can be answered already come first
    for line in sys.stdin:
        group, number = line.split()
        with suppress(Exception):  # who needs the kernels gets the error
            TASKS[KernelGroup[group]][int(number)]()
        print("done", flush=True)


def _die_with(parent: int) -> None:
    """Asks Linux to kill this process when its parent dies; ends it if that has happened."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
