"""Every field of every request: what 0 and the empty string do, and that the contract says so.

A field with `optional` may be 0: that is a value of its own, or it is refused. A field without
takes 0 as "not set": then its comment says what holds, or the request is refused.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from treadle.server.errors import StatusError
from treadle.server.messages import requests as convert
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Caller, fields_of, tiny_spec
from .travel import send_model, sha256_of

PROTO = Path(__file__).parents[2] / "proto"
NAMES_A_DEFAULT = re.compile(r"default|\bempty\b|\b0\b|unset", re.IGNORECASE)


def requests_of_the_contract() -> Iterator[Descriptor]:
    """Yields every message that a request is or holds, each once."""
    service = pb.DESCRIPTOR.services_by_name["SequenceService"]
    left = [method.input_type for method in service.methods]
    seen: set[str] = set()
    while left:
        message = left.pop(0)
        if message.name in seen:
            continue
        seen.add(message.name)
        yield message
        parts = [field.message_type for field in message.fields if field.message_type]
        left += [part for part in parts if not part.GetOptions().map_entry]


def scalars(optional: bool) -> dict[str, FieldDescriptor]:
    """Returns the fields that are numbers or texts, those with `optional` or those without."""
    return {
        f"{message.name}.{field.name}": field
        for message in requests_of_the_contract()
        for field in message.fields
        if field.message_type is None and not field.is_repeated and field.has_presence == optional
    }


def comments(folder: Path) -> dict[str, str]:
    """Returns the comment of each field of the contract; the folder is for a file."""
    out = folder / "contract"
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", "--include_source_info"),
            *(f"--descriptor_set_out={out}", "treadle/v1/sequence.proto"),
        ],
        check=True,
    )
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    said = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    return {
        f"{message.name}.{field.name}": said[4, number, 2, place]
        for number, message in enumerate(file.message_type)
        for place, field in enumerate(message.field)
    }


Refusal = Callable[[Caller], object]


def call(name: str, **fields: Any) -> Refusal:
    """Returns a call of a method with one request."""
    kind = getattr(pb, f"{name}Request")

    def make(caller: Caller) -> object:
        reply = getattr(caller.stub, name)(kind(**fields), timeout=PATIENCE_S)
        return list(reply) if name in ("ExportModel", "Generate", "ReadFile", "WatchJob") else reply

    return make


def stream(name: str, **fields: Any) -> Refusal:
    """Returns a call of a method with a stream of nothing but its spec."""
    kind = getattr(pb, f"{name}Request")
    spec = getattr(pb, f"{name}Spec")

    def make(caller: Caller) -> object:
        requests = iter([kind(spec=spec(**fields))])
        return list(getattr(caller.stub, name)(requests, timeout=PATIENCE_S))

    return make


REQUIRED: dict[str, Refusal] = {
    "TrainSpec.model": lambda caller: list(caller.train(tiny_spec(""), TEXT)),
    "WatchJobRequest.job": call("WatchJob"),
    "GetJobRequest.job": call("GetJob"),
    "CancelJobRequest.job": call("CancelJob"),
    "PauseJobRequest.job": call("PauseJob"),
    "ResumeJobRequest.job": call("ResumeJob"),
    "DeleteJobRequest.job": call("DeleteJob"),
    "GenerateRequest.model": call("Generate"),
    "ScoreRequest.model": call("Score", texts=["a"]),
    "ScoreStreamSpec.model": stream("ScoreStream"),
    "LearnStreamSpec.model": stream("LearnStream"),
    "EmbedRequest.model": call("Embed", texts=["a"]),
    "GetModelRequest.model": call("GetModel"),
    "DeleteModelRequest.model": call("DeleteModel", all_versions=True, force=True),
    "DeleteModelRequest.version": call("DeleteModel", model="shared"),
    "SetAliasRequest.model": call("SetAlias", alias="a"),
    "SetAliasRequest.alias": call("SetAlias", model="shared"),
    "ExportModelRequest.model": call("ExportModel"),
    "ImportModelSpec.model": stream("ImportModel"),
    "ImportModelEnd.size_bytes": lambda caller: send_model(
        caller, b"a", "m", end=pb.ImportModelEnd(sha256=sha256_of(b"a"))
    ),
    "ImportModelEnd.sha256": lambda caller: send_model(
        caller, b"a", "m", end=pb.ImportModelEnd(size_bytes=1)
    ),
    "FileEnd.size_bytes": lambda caller: caller.stub.UploadFile(
        iter(
            [
                pb.UploadFileRequest(spec=pb.FileSpec()),
                pb.UploadFileRequest(chunk=b"a"),
                pb.UploadFileRequest(end=pb.FileEnd()),
            ]
        ),
        timeout=PATIENCE_S,
    ),
    "GetFileRequest.file": call("GetFile"),
    "ReadFileRequest.file": call("ReadFile"),
    "DeleteFileRequest.file": call("DeleteFile"),
    "DeleteAliasRequest.model": call("DeleteAlias", alias="a"),
    "DeleteAliasRequest.alias": call("DeleteAlias", model="shared"),
}
"""Fields without a default, each with a call that leaves it out."""


def test_what_0_stands_for_is_said_where_it_is_not_refused(tmp_path: Path) -> None:
    said = comments(tmp_path)
    fields = scalars(optional=False)
    flags = {name for name, field in fields.items() if field.type == field.TYPE_BOOL}
    free = fields.keys() - flags - REQUIRED.keys()
    assert [name for name in sorted(free) if not NAMES_A_DEFAULT.search(said[name])] == []


@pytest.mark.parametrize("name", REQUIRED)
def test_a_call_without_what_it_needs_is_refused(caller: Caller, model: str, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        REQUIRED[name](caller)
    if caught.value.code() is not grpc.StatusCode.NOT_FOUND:
        named = [field.removeprefix("spec.") for field in fields_of(caught.value)]
        assert [field.removeprefix("end.") for field in named] == [name.partition(".")[2]]
    assert list(caller.stub.GetModel(pb.GetModelRequest(model=model)).versions) == [1]


VALUES = {
    "DataSpec.validation_fraction",
    "NetworkSpec.embedding_size",
    "OptimizerSpec.warmup_steps",
    "OptimizerSpec.beta1",
    "OptimizerSpec.beta2",
    "OptimizerSpec.clip_norm",
    "ReportSpec.sample_tokens",
    "GenerateRequest.temperature",
    "GenerateRequest.seed",
    "GenerateRequest.max_new_tokens",
    "LearnStreamSpec.learning_rate",
    "LearnStreamSpec.clip_norm",
    "TokenReference.id",
}
"""Fields with `optional` of which 0 is a value; all others refuse it."""

PARTS = {
    "DataSpec": "data",
    "NetworkSpec": "network",
    "OptimizerSpec": "optimizer",
    "LimitsSpec": "limits",
    "ReportSpec": "report",
}
"""The messages within a TrainSpec."""


def explicit(message: Message, field: str) -> None:
    """Sets a field to 0 or to nothing, so that it counts as set."""
    setattr(message, field, type(getattr(message, field))())
    assert message.HasField(field)


def spec_faults(part: str, field: str) -> list[str]:
    """Returns the fields that a TrainSpec is refused for whose field is 0."""
    spec = pb.TrainSpec(model="m")
    explicit(getattr(spec, part), field)
    try:
        convert.train_config(spec)
    except StatusError as error:
        (request,) = error.details
        return [violation.field for violation in request.field_violations]  # type: ignore[attr-defined]
    return []


def request_faults(caller: Caller, kind: str, field: str) -> list[str]:
    """Returns the fields that a call is refused for one field of which is 0."""
    call: Callable[[], object]
    if kind == "GenerateRequest":
        request = pb.GenerateRequest(model="shared", max_new_tokens=1)
        explicit(request, field)
        call = lambda: list(caller.stub.Generate(request, timeout=PATIENCE_S))  # noqa: E731
    elif kind == "TokenReference":
        request = pb.GenerateRequest(model="shared", max_new_tokens=1)
        explicit(request.banned_tokens.add(), field)
        call = lambda: list(caller.stub.Generate(request, timeout=PATIENCE_S))  # noqa: E731
    elif kind == "LearnStreamSpec":
        spec = pb.LearnStreamSpec(model="shared")
        explicit(spec, field)
        messages = [pb.LearnStreamRequest(spec=spec)]
        call = lambda: list(caller.stub.LearnStream(iter(messages), timeout=PATIENCE_S))  # noqa: E731
    elif kind == "CorpusFile":
        head = pb.CorpusFile()
        explicit(head, field)
        upload = [pb.TrainRequest(spec=tiny_spec("z")), pb.TrainRequest(corpus_file=head)]
        call = lambda: list(caller.train(tiny_spec("z"), source=upload))  # noqa: E731
    else:
        raise AssertionError(f"{kind}.{field} is new: say here how to send it")
    try:
        call()
    except grpc.RpcError as error:
        return fields_of(error)
    return []


@pytest.mark.parametrize(
    "name",
    sorted(
        scalars(optional=True).keys()
        - {"TrainRequest.corpus_chunk", "ImportModelRequest.chunk", "UploadFileRequest.chunk"}
    ),
)
def test_an_explicit_0_is_a_value_or_is_refused(caller: Caller, model: str, name: str) -> None:
    kind, _, field = name.partition(".")
    part = PARTS.get(kind)
    faults = request_faults(caller, kind, field) if part is None else spec_faults(part, field)
    if name in VALUES:
        assert faults == []
    else:
        assert len(faults) == 1
        assert field in faults[0] or kind == "TokenReference"


def test_an_empty_chunk_is_refused(caller: Caller) -> None:
    source = [pb.TrainRequest(spec=tiny_spec("z")), pb.TrainRequest(corpus_chunk=b"")]
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(tiny_spec("z"), source=source))
    assert fields_of(caught.value) == ["corpus_chunk"]
