"""`Company` is a real server with TLS whose callers have different roles, models and jobs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from certificates import Authority, channel_credentials

from treadle.server.access.callers.access_token import new_access_token
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.job_files import BEST_FILE, LAST_FILE
from treadle.server.storage.schema import FileRow
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

from .harness import PATIENCE_S, Server, requests
from .samples import job_row, put_model, tiny_model

CALLERS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "reader": ("reader", ("team-a-*",), ()),
    "user": ("user", ("team-a-*",), ()),
    "ann": ("trainer", ("shared*",), ("team-a-*",)),
    "mate": ("trainer", ("shared*",), ("team-a-*",)),
    "bob": ("trainer", ("shared*",), ("team-b-*",)),
    "root": ("admin", (), ()),
}
"""The role of each caller, the models that it may read, and those that it may write.

Everything is Ann's: Bob belongs to another team, and her mate to the same one.
"""

MODELS = ("shared", "shared-2", "team-a-names", "team-a-other", "team-b-mine", "team-b-more")

CORPUS = b"what only the members of team a may know. " * 30
SHA256 = hashlib.sha256(CORPUS).hexdigest()
"""A corpus of Ann's and its hash."""

NO_MODEL_SHA256 = hashlib.sha256(b"no model").hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What a caller gets to see of a call."""

    code: grpc.StatusCode
    """The status; OK where the call succeeded."""
    details: str
    """The message of the status."""
    trailers: tuple[tuple[str, bytes], ...]
    """The trailing metadata, but for the id of the call."""
    replies: tuple[bytes, ...]
    """The replies before the end, serialized."""

    def renamed(self, old: str, new: str) -> Outcome:
        """Returns the same for a thing with another name of the same length."""
        assert len(old) == len(new)
        before = old.encode()
        after = new.encode()
        return Outcome(
            self.code,
            self.details.replace(old, new),
            tuple((key, value.replace(before, after)) for key, value in self.trailers),
            tuple(reply.replace(before, after) for reply in self.replies),
        )

    def shows(self, text: str) -> bool:
        """Returns whether a text appears anywhere in it."""
        seen = [self.details.encode(), *(value for _, value in self.trailers), *self.replies]
        return any(text.encode() in data for data in seen)


class Tenant:
    """One caller of the server.

    Args:
        company: The server and its callers.
        name: The caller's name.
    """

    def __init__(self, company: Company, name: str) -> None:
        self.name = name
        self.stub = sequence_pb2_grpc.SequenceServiceStub(company.server.caller.channel)
        self._metadata = (("authorization", f"Bearer {company.tokens[name]}"),)

    def call(self, method: str, request: Any) -> Any:
        """Calls a method; returns the only reply, or the iterator of many."""
        call = getattr(self.stub, method)
        return call(request, metadata=self._metadata, timeout=PATIENCE_S)

    def outcome(self, method: str, request: Any) -> Outcome:
        """Calls a method, reads to the end, and returns what can be seen."""
        replies = list[bytes]()
        code = grpc.StatusCode.OK
        details = ""
        trailers: Any = ()
        try:
            found = self.call(method, request)
            for reply in found if hasattr(found, "__next__") else [found]:
                replies.append(reply.SerializeToString())
        except grpc.RpcError as error:
            code = error.code()
            details = str(error.details())
            trailers = error.trailing_metadata()
        kept = [
            (str(key), value if isinstance(value, bytes) else value.encode())
            for key, value in trailers
            if key != "x-request-id"
        ]
        return Outcome(code, details, tuple(sorted(kept)), tuple(replies))

    def code(self, method: str, request: Any) -> grpc.StatusCode:
        """Calls a method and returns the status."""
        return self.outcome(method, request).code

    def trained(self, spec: pb.TrainSpec, *chunks: bytes) -> list[pb.JobEvent]:
        """Trains to the end; returns the events."""
        return [*self.call("Train", requests(spec, *chunks))]

    def models(self, **fields: Any) -> Iterator[pb.ListModelsResponse]:
        """Yields the pages of the list of models."""
        yield from self._pages("ListModels", pb.ListModelsRequest, fields)

    def jobs(self, **fields: Any) -> Iterator[pb.ListJobsResponse]:
        """Yields the pages of the list of jobs."""
        yield from self._pages("ListJobs", pb.ListJobsRequest, fields)

    def _pages(self, method: str, kind: Any, fields: dict[str, Any]) -> Iterator[Any]:
        while True:
            page = self.call(method, kind(**fields))
            yield page
            if not page.next_page_token:
                return
            fields = fields | {"page_token": page.next_page_token}


class Company:
    """A server with TLS and the callers above, and what they have.

    Args:
        folder: Where everything is.
        jobs: The owner and the state of each job by its id, besides those that are made later.
        flags: More flags of the server.
    """

    def __init__(self, folder: Path, jobs: dict[str, tuple[str, str]], *flags: str) -> None:
        self.data_dir = folder / "data"
        self.tokens = dict[str, str]()
        self._fill(jobs)
        self.authority = Authority(folder / "authority")
        pair = self.authority.server()
        callers_file = folder / "callers.toml"
        callers_file.touch(mode=0o600)
        callers_file.write_text("".join(map(self._table, CALLERS)))
        state_key_file = folder / "state.key"
        state_key_file.touch(mode=0o600)
        state_key_file.write_bytes(os.urandom(32))
        self.server = Server(
            self.data_dir,
            *("--standby-workers", "0", "--training-slots", "2", "--log-level", "debug"),
            *("--callers-file", str(callers_file), "--state-key-file", str(state_key_file)),
            *("--tls-cert-file", str(pair.cert_file), "--tls-key-file", str(pair.key_file)),
            *flags,
            credentials=channel_credentials(self.authority),
        )
        self._tenants = {name: Tenant(self, name) for name in CALLERS}

    def __getitem__(self, name: str) -> Tenant:
        return self._tenants[name]

    def close(self) -> None:
        """Ends the server, and checks what it logged."""
        self.server.close()
        for sign in ("Traceback", "internal error", *self.tokens.values()):
            assert sign not in self.server.log

    def _table(self, name: str) -> str:
        """Returns the part of the callers file about one caller."""
        role, read, write = CALLERS[name]
        token = new_access_token()
        self.tokens[name] = token.text
        lines = [f"[callers.{name}]", f'role = "{role}"']
        if read:
            lines.append(f"read_models = {json.dumps(read)}")
        if write:
            lines.append(f"write_models = {json.dumps(write)}")
        lines += [f"[[callers.{name}.tokens]]", f'id = "{token.id}"']
        return "\n".join([*lines, f'sha256 = "{token.sha256.hex()}"', "", ""])

    def _fill(self, jobs: dict[str, tuple[str, str]]) -> None:
        """Makes models, jobs with weights, and a corpus, as an earlier server may have left."""
        data_dir = DataDir(self.data_dir)
        for name in MODELS:
            put_model(data_dir, name)
        data_dir.database.set_alias("team-a-names", "prod", 1)
        for name in CALLERS:
            put_model(data_dir, f"team-a-for-{name}")
            data_dir.database.set_alias("team-a-other", f"for-{name}", 1)
        (self.data_dir / "corpora" / SHA256).write_bytes(CORPUS)
        data_dir.database.touch_corpus(SHA256, len(CORPUS), 1e9)
        for name in ("of-ann", *(f"for-{caller}" for caller in CALLERS)):
            row = FileRow(f"file-{name}", "ann", name, SHA256, len(CORPUS), 1e9)
            data_dir.database.add_file(row)
        for number, (job, (owner, state)) in enumerate(jobs.items()):
            add_job(data_dir, job, owner, state, created_s=1e9 + number)
        data_dir.close()


def add_job(data_dir: DataDir, job: str, owner: str, state: str, **fields: Any) -> None:
    """Adds a job with an event and live weights, of Ann on CORPUS."""
    spec = pb.TrainSpec(model="team-a-names", request_id=fields.get("request_id", ""))
    file = {"sha256": SHA256, "name": "corpus", "role": "train", "weight": 1.0}
    row = job_row(job, owner=owner, state=state, model=spec.model, spec=spec.SerializeToString())
    files = json.dumps([file | {"size": len(CORPUS)}] if owner == "ann" else [])
    event = pb.JobEvent(state=pb.JobStateChange(reason=f"the event of {job}"))
    row = dataclasses.replace(row, files=files, **fields)
    data_dir.database.add_job(row, event.SerializeToString())
    directory = data_dir.jobs.directory(job)
    for name in (LAST_FILE, BEST_FILE):
        tiny_model().save(directory / name)


def drain(source: Iterable[Any]) -> list[Any]:
    """Returns everything that an iterator yields."""
    return [*source]


def upload(spec: pb.TrainSpec, *files: pb.CorpusFile | bytes) -> Iterator[pb.TrainRequest]:
    """Yields the messages of an upload of files by their hashes, and of bytes."""
    yield pb.TrainRequest(spec=spec)
    for file in files:
        if isinstance(file, bytes):
            yield pb.TrainRequest(corpus_chunk=file)
        else:
            yield pb.TrainRequest(corpus_file=file)
    size = sum(len(file) for file in files if isinstance(file, bytes))
    yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=size))


def stored(text: str, name: str = "") -> Iterator[pb.UploadFileRequest]:
    """Yields the messages of an upload of a file."""
    data = text.encode()
    return iter(
        [
            pb.UploadFileRequest(spec=pb.FileSpec(name=name)),
            pb.UploadFileRequest(chunk=data),
            pb.UploadFileRequest(end=pb.FileEnd(size_bytes=len(data))),
        ]
    )


def stream(kind: Any, *messages: dict[str, Any]) -> Iterator[Any]:
    """Yields the requests of a stream."""
    return iter([kind(**fields) for fields in messages])


Probe = Callable[[str], tuple[str, Any]]
"""Returns a method and its request about a thing of a name."""

_BEST = pb.JOB_WEIGHTS_BEST
_PIECE = pb.TextPiece(text="abc", end=True)

READ_PROBES: dict[str, Callable[..., tuple[str, Any]]] = {
    "GetModel": lambda **ref: ("GetModel", pb.GetModelRequest(**ref)),
    "Generate": lambda **ref: ("Generate", pb.GenerateRequest(max_new_tokens=2, seed=1, **ref)),
    "Score": lambda **ref: ("Score", pb.ScoreRequest(texts=["abc"], **ref)),
    "ExportModel": lambda **ref: ("ExportModel", pb.ExportModelRequest(**ref)),
    "Embed": lambda **ref: ("Embed", pb.EmbedRequest(texts=["abc"], **ref)),
    "ScoreStream": lambda **ref: (
        "ScoreStream",
        stream(pb.ScoreStreamRequest, {"spec": pb.ScoreStreamSpec(**ref)}, {"piece": _PIECE}),
    ),
    "LearnStream": lambda **ref: (
        "LearnStream",
        stream(pb.LearnStreamRequest, {"spec": pb.LearnStreamSpec(**ref)}, {"learn": _PIECE}),
    ),
}
"""Calls that read a model, by the fields that name it."""

JOB_PROBES: dict[str, Probe] = {
    "GetJob": lambda job: ("GetJob", pb.GetJobRequest(job=job)),
    "WatchJob": lambda job: ("WatchJob", pb.WatchJobRequest(job=job)),
    "CancelJob": lambda job: ("CancelJob", pb.CancelJobRequest(job=job)),
    "PauseJob": lambda job: ("PauseJob", pb.PauseJobRequest(job=job)),
    "ResumeJob": lambda job: ("ResumeJob", pb.ResumeJobRequest(job=job)),
    "DeleteJob": lambda job: ("DeleteJob", pb.DeleteJobRequest(job=job)),
    "Generate (job)": lambda job: READ_PROBES["Generate"](job=job),
    "Generate (job, best)": lambda job: READ_PROBES["Generate"](job=job, job_weights=_BEST),
    "Score (job)": lambda job: READ_PROBES["Score"](job=job),
    "Score (job, best)": lambda job: READ_PROBES["Score"](job=job, job_weights=_BEST),
    "ScoreStream (job)": lambda job: READ_PROBES["ScoreStream"](job=job),
    "Embed (job)": lambda job: READ_PROBES["Embed"](job=job),
}
"""Calls that name a job."""

FILE_PROBES: dict[str, Probe] = {
    "GetFile": lambda file: ("GetFile", pb.GetFileRequest(file=file)),
    "ReadFile": lambda file: ("ReadFile", pb.ReadFileRequest(file=file)),
    "DeleteFile": lambda file: ("DeleteFile", pb.DeleteFileRequest(file=file)),
}
"""Calls that name a file."""

WRITE_PROBES: dict[str, Probe] = {
    "Train": lambda model: ("Train", upload(pb.TrainSpec(model=model), b"")),
    "DeleteModel": lambda model: (
        "DeleteModel",
        pb.DeleteModelRequest(model=model, version=1, force=True),
    ),
    "DeleteModel (all)": lambda model: (
        "DeleteModel",
        pb.DeleteModelRequest(model=model, all_versions=True, force=True),
    ),
    "SetAlias": lambda model: ("SetAlias", pb.SetAliasRequest(model=model, alias="prod")),
    "DeleteAlias": lambda model: ("DeleteAlias", pb.DeleteAliasRequest(model=model, alias="prod")),
    "ImportModel": lambda model: (
        "ImportModel",
        stream(
            pb.ImportModelRequest,
            {"spec": pb.ImportModelSpec(model=model)},
            {"chunk": b"no model"},
            {"end": pb.ImportModelEnd(size_bytes=8, sha256=NO_MODEL_SHA256)},
        ),
    ),
    "LearnStream": lambda model: (
        "LearnStream",
        stream(
            pb.LearnStreamRequest,
            {"spec": pb.LearnStreamSpec(model="shared")},
            {"publish": pb.Publish(model=model)},
        ),
    ),
    "LearnStream (check)": lambda model: (
        "LearnStream",
        stream(
            pb.LearnStreamRequest,
            {"spec": pb.LearnStreamSpec(model="shared")},
            {"publish": pb.Publish(model=model, validate_only=True)},
        ),
    ),
}
"""Calls that write a model of a name."""
