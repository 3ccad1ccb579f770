"""Any value of any field of any request gets an answer that is not an internal error.

The requests come from the descriptors of the contract, so a new field is among them by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Server, tiny_spec

LONG = "long " * 2_000

METHODS = {
    method.name: method for method in pb.DESCRIPTOR.services_by_name["SequenceService"].methods
}

WHOLE = [0, 1, 100, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1]
NUMBERS = [0.0, -0.0, -1.0, 0.5, 1.0, 5e-324, 1e308, math.inf, -math.inf, math.nan]
RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
TEXTS = [
    "",
    " ",
    "\0",
    "a\0b",
    "\x1f",
    "é☃😀",
    "\u2028\ufeff",
    "..",
    "/etc/passwd",
    "a@b",
    "@",
    "m@",
    "%s{}",
    "idna",
    "(",
    "[a-z]{1,9}",
    "x" * 101,
    LONG,
]
BYTES = [b"", b"\0", b"\xff" * 100, bytes(range(256)) * 40]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two models, one of them of lines."""
    root: Path = tmp_path_factory.mktemp("asked") / "data"
    flags = ["--max-new-tokens-limit", "1000", "--max-call-s", "20", "--standby-workers", "0"]
    server = Server(root, *flags)
    spec = tiny_spec("m")
    spec.request_id = "known"
    server.caller.trained(spec)
    lines = tiny_spec("lines")
    lines.data.layout = pb.CORPUS_LAYOUT_LINES
    server.caller.trained(lines, b"one two\nthree\n" * 50)
    yield server
    server.close()


def bases(job: str, state: bytes) -> Iterator[tuple[str, list[Message]]]:
    """Yields, by method, the messages of a request that does something."""
    tiny: dict[str, Any] = {"model": "m", "seed": 1, "max_new_tokens": 3}
    yield "Train", [pb.TrainRequest(spec=tiny_spec("new"))]
    yield "Train", [pb.TrainRequest(corpus_file=pb.CorpusFile(name="f", sha256="0" * 64))]
    yield "Train", [pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=1))]
    yield "WatchJob", [pb.WatchJobRequest(job=job)]
    for name in ("GetJob", "CancelJob", "PauseJob", "ResumeJob"):
        yield name, [getattr(pb, f"{name}Request")(job=job)]
    yield "DeleteJob", [pb.DeleteJobRequest(job="none")]
    yield "ListJobs", [pb.ListJobsRequest(page_size=2)]
    yield "Generate", [pb.GenerateRequest(prompt="the", state=b"", **tiny)]
    yield "Generate", [pb.GenerateRequest(state=state, return_state=True, n=2, **tiny)]
    yield "Generate", [pb.GenerateRequest(model="lines", prompt="one", best_of=2, max_new_tokens=3)]
    yield "Score", [pb.ScoreRequest(model="m", texts=["the fox"], context="a", ranks=True)]
    yield "Score", [pb.ScoreRequest(model="m", texts=["the"], state=state, return_states=True)]
    yield "Embed", [pb.EmbedRequest(model="m", texts=["the fox"])]
    yield "ScoreStream", [pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="m"))]
    yield "ScoreStream", [pb.ScoreStreamRequest(piece=pb.TextPiece(text="the", end=True))]
    yield "LearnStream", [pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m"))]
    for field in ("learn", "predict"):
        piece = pb.TextPiece(text="the fox", end=True)
        yield "LearnStream", [pb.LearnStreamRequest(**{field: piece})]  # type: ignore[arg-type]
    publish = pb.Publish(model="m", alias="a", validate_only=True)
    yield "LearnStream", [pb.LearnStreamRequest(publish=publish)]
    yield "ListModels", [pb.ListModelsRequest(page_size=2)]
    yield "GetModel", [pb.GetModelRequest(model="m", version=1)]
    yield "DeleteModel", [pb.DeleteModelRequest(model="none", version=1)]
    yield "SetAlias", [pb.SetAliasRequest(model="m", alias="a")]
    yield "DeleteAlias", [pb.DeleteAliasRequest(model="m", alias="b")]
    yield "ExportModel", [pb.ExportModelRequest(model="m", offset=1, sha256="0" * 64)]
    state_dict = pb.StateDictSpec(tokenizer=pb.TokenizerSpec(), layout=pb.CORPUS_LAYOUT_TEXT)
    spec = pb.ImportModelSpec(model="new", size_bytes=1, sha256="0" * 64, state_dict=state_dict)
    yield "ImportModel", [pb.ImportModelRequest(spec=spec)]
    yield "ImportModel", [pb.ImportModelRequest(vocabulary=pb.VocabularyPart(tokens=["a"]))]
    yield "ImportModel", [pb.ImportModelRequest(end=pb.ImportModelEnd(size_bytes=1))]
    yield "UploadFile", [pb.UploadFileRequest(spec=pb.FileSpec(name="f"))]
    yield "UploadFile", [pb.UploadFileRequest(chunk=b"abc")]
    yield "UploadFile", [pb.UploadFileRequest(end=pb.FileEnd(size_bytes=1))]
    yield "ListFiles", [pb.ListFilesRequest(page_size=2)]
    for name in ("GetFile", "ReadFile", "DeleteFile"):
        yield name, [getattr(pb, f"{name}Request")(file="none")]
    yield "GetServerInfo", [pb.GetServerInfoRequest()]


FIRST: dict[str, Message] = {
    "Train": pb.TrainRequest(spec=tiny_spec("new")),
    "UploadFile": pb.UploadFileRequest(spec=pb.FileSpec()),
    "ImportModel": pb.ImportModelRequest(
        spec=pb.ImportModelSpec(model="new", state_dict=pb.StateDictSpec())
    ),
    "ScoreStream": pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="m")),
    "LearnStream": pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m")),
}
"""What comes before a message of a stream that is not its first one."""


def values_of(field: FieldDescriptor) -> list[Any]:
    """Returns values of a field that is no message."""
    if field.cpp_type in RANGES:
        least, most = RANGES[field.cpp_type]
        return [value for value in [*WHOLE, least, most] if least <= value <= most]
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return list(BYTES if field.type == FieldDescriptor.TYPE_BYTES else TEXTS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return [False, True]
    return NUMBERS


def variants(message: Any) -> Iterator[Message]:
    """Yields copies of a message that differ from it in one field, however deep it is."""
    for field in message.DESCRIPTOR.fields:
        cleared = copy(message)
        cleared.ClearField(field.name)
        yield cleared
        if field.is_repeated:
            yield from variants_of_list(message, field)
        elif field.message_type is not None:
            for inner in [
                type(getattr(message, field.name))(),
                *variants(getattr(message, field.name)),
            ]:
                made = copy(message)
                getattr(made, field.name).CopyFrom(inner)
                getattr(made, field.name).SetInParent()
                yield made
        else:
            for value in values_of(field):
                made = copy(message)
                setattr(made, field.name, value)
                yield made


def variants_of_list(message: Any, field: FieldDescriptor) -> Iterator[Message]:
    if field.message_type is None:
        for value in values_of(field):
            for count in (1, 3):
                made = copy(message)
                getattr(made, field.name).extend([value] * count)
                yield made
        return
    if field.message_type.GetOptions().map_entry:
        texts = [text for text in TEXTS if isinstance(text, str)]
        for entry in [
            dict.fromkeys(map(str, range(2000)), ""),
            *({text: "a"} for text in texts),
            *({"a": text} for text in texts),
        ]:
            made = copy(message)
            getattr(made, field.name).update(entry)
            yield made
        return
    empty = type(getattr(copy(message), field.name).add())()
    for entries in [[empty] * 2000, *([entry] for entry in variants(empty))]:
        made = copy(message)
        getattr(made, field.name).extend(entries)
        yield made


def copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def outcome(server: Server, name: str, messages: list[Message]) -> grpc.StatusCode:
    """Sends a request and reads all of its replies."""
    method = getattr(server.caller.stub, name)
    streams = METHODS[name].client_streaming
    try:
        reply = method(iter(messages) if streams else messages[0], timeout=PATIENCE_S)
        if METHODS[name].server_streaming:
            list(reply)
    except grpc.RpcError as error:
        hangs = error.details() == "Deadline Exceeded"  # not the server's own words
        return grpc.StatusCode.UNKNOWN if hangs else error.code()
    return grpc.StatusCode.OK


def test_every_method_is_asked() -> None:
    assert {name for name, _ in bases("", b"")} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_no_value_of_a_field_is_a_fault_of_the_server(asked: Server, name: str) -> None:
    caller = asked.caller
    job = next(caller.jobs(model="m")).id
    [*_, last] = caller.generate("m", max_new_tokens=3, return_state=True)
    requests = [
        [*([FIRST[name]] if name in FIRST and not message.HasField("spec") else []), variant]
        for base, [message] in bases(job, last.result.state)
        if base == name
        for variant in [message, *variants(message)]
    ]
    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(lambda request: outcome(asked, name, request), requests))
    bad = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
    wrong = [
        f"{code.name}: {str(request[-1])[:300]}"
        for request, code in zip(requests, codes, strict=True)
        if code in bad
    ]
    assert wrong == []
    assert caller.serving()
    for sign in ("Traceback", "internal error", "Fatal", "never retrieved"):
        assert sign not in asked.log
