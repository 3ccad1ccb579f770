"""`FuzzedServer` is a server process with models and jobs, which requests are thrown at.

Its limits are small, so that a flood of requests neither fills a disk nor takes hours.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.server.access.callers.access_token import new_access_token
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.model_version import MODEL_FILE
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

from . import subjects
from .metadata import Metadata
from .mutate import Mutator
from .requests import Known

START_S = 600.0
"""Seconds within which a call to a healthy server must end, on however busy a machine."""

NO_PROXY = [("grpc.enable_http_proxy", 0)]

BUDGET_BYTES = 256 << 20
"""What the server may keep for its callers."""

MEMORY_BYTES = 768 << 20
"""What the process may take above what it takes once it has started: its budget, the models in
memory, the messages that gRPC has read ahead, and what the allocator keeps."""

_UNCOLLECTED_BYTES = 1 << 20
"""What may still be counted of models that were dropped and wait for the garbage collector."""

TEXT = b"abc cab bca, a cab abc!\n" * 20

_FLAGS = {
    "--threads": "2",
    "--memory-budget": str(BUDGET_BYTES),
    "--model-cache-bytes": str(32 << 20),
    "--max-new-tokens-limit": "200",
    "--max-call-s": "10",
    "--max-training-s": "1",
    "--max-training-bytes": str(512 << 20),
    "--training-queue-limit": "6",
    "--standby-workers": "1",
    "--checkpoint-interval-s": "1",
    "--max-corpus-bytes": str(1 << 20),
    "--model-limit": "60",
    "--version-limit": "30",
    "--alias-limit": "20",
    "--min-free-bytes": "0",
    "--stream-idle-s": "5",
    "--first-message-s": "5",
    "--upload-idle-s": "5",
    "--job-retention-s": "120",
    "--corpus-retention-s": "120",
}

_SIGNS = re.compile(r"Traceback|Fatal|internal error|never retrieved|[Ee]xception")
"""What no request may put into the log."""


class FuzzedServer:
    """A server process of its own.

    Args:
        folder: Takes its data directory and its log; empty.
        flags: Flags besides.
        credentials: Whether it knows its callers.
    """

    def __init__(self, folder: Path, *flags: str, credentials: bool = False) -> None:
        self.metadata: Metadata = ()
        """What a call has to send to be accepted, as an admin."""
        if credentials:
            token = new_access_token()
            self.metadata = (("authorization", f"Bearer {token.text}"),)
            path = folder / "callers.toml"
            path.write_text(
                f'[callers.root]\nrole = "admin"\n[[callers.root.tokens]]\nid = "{token.id}"\n'
                f'sha256 = "{token.sha256.hex()}"\n'
            )
            path.chmod(0o600)
            flags += ("--callers-file", str(path), "--audit-log", str(folder / "audit"))
        self._data_dir = folder / "data"
        _store_models(self._data_dir)
        self._log_path = folder / "log"
        self._log = self._log_path.open("wb")
        self._read = 0
        options = [part for flag in _FLAGS.items() for part in flag]
        command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
        self._process = subprocess.Popen(
            [*command, "--data-dir", str(self._data_dir), *options, *flags],
            env=os.environ | {"RUST_BACKTRACE": "0"},
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self._log_path.read_text())
        self.address = line.split()[-1]
        self.channel = grpc.insecure_channel(self.address, NO_PROXY)
        self.stub = sequence_pb2_grpc.SequenceServiceStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)
        self.known = self._known()
        self._example = self._generated()
        self.began_bytes = self._memory("VmRSS")

    @property
    def limit_bytes(self) -> int:
        """The most bytes of memory that the process may take."""
        return self.began_bytes + MEMORY_BYTES

    def peak_bytes(self) -> int:
        """Returns the most bytes of memory that the process has taken."""
        return self._memory("VmHWM")

    def faults(self) -> list[str]:
        """Returns what is wrong with the server now; empty where nothing is."""
        if self._process.poll() is not None:
            return [f"the server ended with status {self._process.returncode}", *self._logged()]
        faults = self._logged()
        try:
            request = health_pb2.HealthCheckRequest()
            reply = self._health.Check(
                request, timeout=START_S, metadata=self.metadata, wait_for_ready=True
            )
            if reply.status != health_pb2.HealthCheckResponse.SERVING:
                faults.append("the server says that it does not serve")
            if self._generated() != self._example:
                faults.append("the same request does not get the same text any more")
            faults += self._failed_jobs()
        except grpc.RpcError as error:
            faults.append(f"a simple call failed: {error}")
        if self.peak_bytes() > self.limit_bytes:
            faults.append(f"the server took {self.peak_bytes():,} of {self.limit_bytes:,} bytes")
        return faults

    def left_behind(self) -> list[str]:
        """Returns what calls have left that are over."""
        info = self.stub.GetServerInfo(
            pb.GetServerInfoRequest(), timeout=START_S, metadata=self.metadata
        )
        counts = {
            name: getattr(info, name)
            for name in (
                "inference_running",
                "sessions_running",
                "score_streams_running",
                "learning_running",
            )
        }
        # A model that was dropped may wait for the garbage collector.
        kept = max(0, info.memory_used_bytes - info.models_loaded_bytes)
        counts["memory_used_bytes"] = kept if kept > _UNCOLLECTED_BYTES else 0
        return [f"{name} is still {count}" for name, count in counts.items() if count]

    def _failed_jobs(self) -> list[str]:
        """Returns jobs that failed as none may, and learns their ids."""
        request = pb.ListJobsRequest(page_size=1000)
        jobs = self.stub.ListJobs(request, timeout=START_S, metadata=self.metadata).jobs
        self.known.jobs[len(self._first_jobs) :] = [job.id for job in jobs[:6]]
        codes = (grpc.StatusCode.INTERNAL.value[0], grpc.StatusCode.UNKNOWN.value[0])
        faults = [f"job {job.id}: {job.reason}" for job in jobs if job.error_code in codes]
        return faults + [f"job {job.id} is damaged: {job.damage}" for job in jobs if job.damage]

    def _known(self) -> Known:
        """Makes jobs, and returns all that requests may name."""
        names = [f"m-{number}" for number in range(len(subjects.models()))]
        states = [
            model.state_bytes(subjects.state_of(model, Mutator(number)))
            for number, model in enumerate(subjects.models())
        ]
        waiting = self._job("waiting", 10**12)
        self.stub.PauseJob(pb.PauseJobRequest(job=waiting), timeout=START_S, metadata=self.metadata)
        done = self._job("done", 3)
        for reply in self.stub.WatchJob(
            pb.WatchJobRequest(job=done), timeout=START_S, metadata=self.metadata
        ):
            last = reply.event
        assert last.HasField("completed"), last
        self._first_jobs = [waiting, done]
        page = self.stub.ListModels(
            pb.ListModelsRequest(page_size=1), timeout=START_S, metadata=self.metadata
        )
        jobs_page = self.stub.ListJobs(
            pb.ListJobsRequest(page_size=1), timeout=START_S, metadata=self.metadata
        )
        corpora = sorted(path.name for path in (self._data_dir / "corpora").iterdir())
        tokens = [page.next_page_token, jobs_page.next_page_token]
        return Known(names, list(self._first_jobs), states, corpora, tokens)

    def _job(self, model: str, steps: int) -> str:
        spec = pb.TrainSpec(
            model=model,
            network=pb.NetworkSpec(hidden_size=4, embedding_size=3),
            data=pb.DataSpec(batch_size=2, window=8),
            limits=pb.LimitsSpec(max_steps=steps),
            report=pb.ReportSpec(sample_tokens=2),
        )
        messages = (
            pb.TrainRequest(spec=spec),
            pb.TrainRequest(corpus_chunk=TEXT),
            pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(TEXT))),
        )
        call = self.stub.Train(iter(messages), timeout=START_S, metadata=self.metadata)
        job = next(iter(call)).job
        call.cancel()
        return job

    def _generated(self) -> str:
        request = pb.GenerateRequest(model="m-0", version=1, seed=1, max_new_tokens=20)
        return "".join(
            reply.text
            for reply in self.stub.Generate(request, timeout=START_S, metadata=self.metadata)
        )

    def _memory(self, name: str) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(name))
        return int(line.split()[1]) << 10

    def _logged(self) -> list[str]:
        """Returns what is new in the log and should not be in it."""
        with self._log_path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        text = new.decode(errors="replace")
        found = _SIGNS.search(text)
        return [f"in the log: {text[max(0, found.start() - 300) :][:3000]}"] if found else []

    def close(self) -> list[str]:
        """Ends the server; returns what was wrong with its end."""
        faults = []
        self.channel.close()
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(60)
            if status:
                faults.append(f"the server ended with status {status}")
        except subprocess.TimeoutExpired:
            faults.append("the server did not end")
            self._process.kill()
            self._process.wait()
        faults += self._logged()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        return faults


def _store_models(root: Path) -> None:
    """Makes a data directory of the models that requests name."""
    data_dir = DataDir(root)
    try:
        for number, model in enumerate(subjects.models()):
            draft = data_dir.models.new_draft()
            model.save(draft / MODEL_FILE)
            data_dir.models.claim(f"m-{number}", draft)
    finally:
        data_dir.close()
