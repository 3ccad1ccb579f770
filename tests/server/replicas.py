"""Several servers over one database and one store of blobs, and those who follow their jobs."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import grpc

from treadle.model import Model
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Caller, Server

ERRORS = ("Traceback", "Fatal", "internal error", "never retrieved")
"""What no log of a server contains."""


def exported_weights(caller: Caller, model: str, version: int = 0) -> bytes:
    """Returns the numbers of a stored model, from the file that a server exports."""
    request = pb.ExportModelRequest(model=model, version=version)
    with tempfile.NamedTemporaryFile() as file:
        for reply in caller.stub.ExportModel(request, timeout=PATIENCE_S):
            file.write(reply.chunk)
        file.flush()
        return Model.load(Path(file.name)).parameters.flat.tobytes()


class Replicas:
    """Servers that share a database and blobs.

    Args:
        root: Where their data directories are.
        database_url: The database.
        blobs_url: The store of the blobs.
        count: How many servers there are.
        flags: Their flags besides.
        environment: Variables besides those of this process.
    """

    def __init__(
        self,
        root: Path,
        database_url: str,
        blobs_url: str,
        count: int,
        *flags: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._root = root
        self._flags = (
            *("--database-url", database_url, "--blobs-url", blobs_url),
            *("--standby-workers", "0", *flags),
        )
        self._environment = environment
        self._lock = threading.Lock()
        self._ended: list[Server] = []
        self._addresses = ["127.0.0.1:0"] * count
        self.servers: list[Server | None] = [None] * count
        """The servers; None: it was killed, and does not answer yet."""
        for place in range(count):
            self.start(place)

    def start(self, place: int) -> None:
        """Starts the server of a place, with data directory and address of the one before."""
        folder = self._root / f"replica-{place}"
        flags = ("--address", self._addresses[place], *self._flags)
        server = Server(folder, *flags, environment=self._environment)
        self._addresses[place] = server.address
        with self._lock:
            self.servers[place] = server

    def kill(self, place: int) -> bool:
        """Kills a server with SIGKILL; returns whether there was one."""
        with self._lock:
            server = self.servers[place]
            self.servers[place] = None
        if server is None:
            return False
        server.end(signal.SIGKILL)
        self._ended.append(server)
        return True

    def kill_worker(self, place: int) -> bool:
        """Kills a training process of a server; returns whether there was one."""
        server = self.servers[place]
        workers = [] if server is None else server.workers()
        for pid in workers[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    @property
    def address(self) -> str:
        """The address of all servers, as a client takes it."""
        return ",".join(self._addresses)

    def any(self) -> Caller:
        """Returns the caller of a server that runs, each time of another one."""
        while True:
            with self._lock:
                found = [server for server in self.servers if server is not None]
            if found:
                return random.choice(found).caller
            time.sleep(0.05)

    def close(self) -> None:
        """Ends all servers, and checks what they have logged."""
        for server in filter(None, self.servers):
            server.end()
            self._ended.append(server)
        for server in self._ended:
            server.close()
            for sign in ERRORS:
                assert sign not in server.log, server.log[-5000:]


class Follower(threading.Thread):
    """Follows a job from any server to any other, wherever one still answers."""

    def __init__(self, replicas: Replicas, job: str) -> None:
        super().__init__(daemon=True)
        self._replicas = replicas
        self._job = job
        self.events: list[pb.JobEvent] = []
        """The events, in the order in which they came."""
        self.reconnections = 0
        """How often it began again."""
        self.ended = False
        """Whether a watch came to its end."""

    def run(self) -> None:
        end = time.monotonic() + 10 * PATIENCE_S
        while time.monotonic() < end:
            after = self.events[-1].sequence if self.events else 0
            try:
                for event in self._replicas.any().watch(self._job, after):
                    self.events.append(event)
            except (grpc.RpcError, ValueError) as error:  # the latter: of a closed channel
                if isinstance(error, grpc.RpcError) and error.code() not in _PASSING:
                    raise
                self.reconnections += 1
                time.sleep(0.1)
                continue
            self.ended = True
            return

    @property
    def faults(self) -> list[str]:
        """What is wrong with what it saw, in sentences."""
        numbers = [event.sequence for event in self.events]
        found = [] if self.ended else [f"job {self._job} did not end"]
        if numbers != list(range(1, len(numbers) + 1)):
            found.append(f"events of job {self._job} are lost or doubled: {numbers}")
        ends = sum(event.HasField("completed") for event in self.events)
        if ends != 1:
            found.append(f"job {self._job} has ended {ends} times")
        steps = [event.progress.step for event in self.events if event.HasField("progress")]
        if steps != sorted(steps):
            found.append(f"the progress of job {self._job} went backwards: {steps}")
        return found


_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    # On a busy machine a job may wait for longer than a call.
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
