"""A real `treadle-server` process and a caller of it, for the tests of this folder."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

PATIENCE_S = 120.0
"""Seconds after which a test fails because something hangs. Nothing should come near it."""

NO_PROXY = [("grpc.enable_http_proxy", 0)]
"""gRPC obeys $http_proxy even for this machine, where no proxy can help."""

TEXT = b"the quick brown fox jumps over the lazy dog. " * 20


def tiny_spec(model: str, **limits: float) -> pb.TrainSpec:
    """Returns a spec that trains in well under a second."""
    return pb.TrainSpec(
        model=model,
        network=pb.NetworkSpec(hidden_size=8, embedding_size=4),
        data=pb.DataSpec(batch_size=2, window=8),
        limits=pb.LimitsSpec(**(limits or {"max_steps": 4})),  # type: ignore[arg-type]
        report=pb.ReportSpec(sample_tokens=4),
    )


def long_spec(model: str) -> pb.TrainSpec:
    """Returns a spec that trains until it is stopped."""
    spec = tiny_spec(model, max_steps=10**12)
    spec.report.progress_interval_s = 0.05
    spec.report.validation_interval_steps = 10**12
    return spec


def requests(spec: pb.TrainSpec, *chunks: bytes) -> Iterator[pb.TrainRequest]:
    """Yields the messages of an upload."""
    yield pb.TrainRequest(spec=spec)
    for chunk in chunks:
        yield pb.TrainRequest(corpus_chunk=chunk)
    yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=sum(map(len, chunks))))


def first_progress(events: Iterator[pb.JobEvent]) -> pb.JobEvent:
    """Reads until the run is under way."""
    return next(event for event in events if event.HasField("progress"))


def wait_for(condition: Callable[[], object]) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.02)


async def until(condition: Callable[[], object]) -> None:
    """Waits until a condition holds, while other tasks continue."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "this never came true"
        await asyncio.sleep(0.005)


def detail_of(error: grpc.RpcError, kind: str) -> object:
    """Returns the detail of a given type that an error carries."""
    status = rpc_status.from_call(error)
    detail = getattr(error_details_pb2, kind)()
    for packed in status.details:
        if packed.Unpack(detail):
            return detail
    raise AssertionError(f"no {kind} in {status}")


def fields_of(error: grpc.RpcError) -> list[str]:
    """Returns the fields that an INVALID_ARGUMENT names."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    request = detail_of(error, "BadRequest")
    return [violation.field for violation in request.field_violations]  # type: ignore[attr-defined]


class Caller:
    """Calls one server.

    Args:
        address: Its address.
        credentials: What the channel connects with; None: without TLS.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.channel = (
            grpc.insecure_channel(address, NO_PROXY)
            if credentials is None
            else grpc.secure_channel(address, credentials, NO_PROXY)
        )
        self.stub = sequence_pb2_grpc.SequenceServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def train(
        self, spec: pb.TrainSpec, *chunks: bytes, source: Iterable[pb.TrainRequest] | None = None
    ) -> Iterator[pb.JobEvent]:
        """Begins a run and returns its events as they come."""
        stream = iter(requests(spec, *chunks) if source is None else source)
        return self.stub.Train(stream, timeout=PATIENCE_S)

    def watch(self, job: str, after: int = 0) -> Iterator[pb.JobEvent]:
        """Follows a job from any event on."""
        request = pb.WatchJobRequest(job=job, after_sequence=after)
        return (reply.event for reply in self.stub.WatchJob(request, timeout=PATIENCE_S))

    def watch_now(self, job: str) -> list[pb.JobEvent]:
        """Returns the events that a job has had so far."""
        last = self.job(job).last_sequence
        return [event for event, _ in zip(self.watch(job), range(last), strict=False)]

    def job(self, job: str) -> pb.Job:
        """Describes a job."""
        return self.stub.GetJob(pb.GetJobRequest(job=job), timeout=PATIENCE_S).job

    def jobs(self, **fields: object) -> Iterator[pb.Job]:
        """Lists jobs, page after page."""
        token = ""
        while True:
            request = pb.ListJobsRequest(page_token=token, **fields)  # type: ignore[arg-type]
            page = self.stub.ListJobs(request, timeout=PATIENCE_S)
            yield from page.jobs
            token = page.next_page_token
            if not token:
                return

    def trained(self, spec: pb.TrainSpec, *chunks: bytes) -> pb.Model:
        """Trains to the end and returns the model."""
        return list(self.train(spec, *(chunks or (TEXT,))))[-1].completed

    def generate(self, model: str, **fields: object) -> list[pb.GenerateResponse]:
        """Returns all replies of a generation."""
        request = pb.GenerateRequest(model=model, **fields)  # type: ignore[arg-type]
        return list(self.stub.Generate(request, timeout=PATIENCE_S))

    def text(self, model: str, **fields: object) -> str:
        """Returns the whole text of a generation."""
        return "".join(reply.text for reply in self.generate(model, **fields))

    def score(self, model: str, texts: list[str], **fields: object) -> pb.ScoreResponse:
        """Scores texts."""
        request = pb.ScoreRequest(model=model, texts=texts, **fields)  # type: ignore[arg-type]
        return self.stub.Score(request, timeout=PATIENCE_S)

    def info(self) -> pb.GetServerInfoResponse:
        """Describes the server."""
        return self.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=PATIENCE_S)

    def serving(self, service: str = "") -> bool:
        """True if the server says that it is healthy."""
        request = health_pb2.HealthCheckRequest(service=service)
        reply = self.health.Check(request, timeout=PATIENCE_S)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        self.channel.close()


class Server:
    """One server process, started and ready.

    Args:
        data_dir: Its data directory.
        flags: Its flags besides.
        prefix: A command that runs its command line.
        environment: Variables besides those of this process.
        credentials: What its caller connects with; None: without TLS.
    """

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.log_path = data_dir.with_name(data_dir.name + f"-{time.monotonic_ns()}.log")
        self._log: IO[bytes] = self.log_path.open("wb")
        command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [*prefix, *command, "--data-dir", str(data_dir), *flags],
            env=os.environ | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        assert self.line, self.log
        self.address = self.line.split()[-1]
        self.http_url = ""
        """Where its HTTP address is, if it has one."""
        if "--http-address" in flags:
            self.http_url = self.process.stdout.readline().split()[-1]
        self.caller = Caller(self.address, credentials)

    @property
    def log(self) -> str:
        """What the server logged so far."""
        return self.log_path.read_text()

    def workers(self) -> list[int]:
        """Returns the ids of the server's child processes.

        A new one may still be a copy of the server, whose program, variables and niceness
        it has until it runs its own: wait for these.
        """
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread may end meanwhile
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal, waits for the end and returns the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Waits for the end and returns the exit code."""
        code = self.process.wait(PATIENCE_S)
        self.close()
        return code

    def close(self) -> None:
        """Ends the process if it still runs, and lets go of everything."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.caller.close()
        self._log.close()


def is_running(pid: int) -> bool:
    """True while a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def niceness(pid: int) -> int:
    """Returns how far a process stands back for others."""
    return os.getpriority(os.PRIO_PROCESS, pid)
