"""A spec that no corpus could make work, and a corpus of nothing, get no job."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from treadle.server.errors import StatusError
from treadle.server.messages import requests
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Caller, fields_of, tiny_spec

MODEL = "impossible"

SPECS: list[tuple[dict[str, Any], list[str]]] = [
    ({"data": {"encoding": "klingon"}}, ["spec.data.encoding"]),
    ({"data": {"encoding": "rot13"}}, ["spec.data.encoding"]),
    (
        {"data": {"validation_fraction": 0.9, "test_fraction": 0.2}},
        ["spec.data.test_fraction"],
    ),
    (
        {"tokenizer": {"kind": "TOKENIZER_KIND_SUBWORDS", "max_vocabulary_size": 100}},
        ["spec.tokenizer.max_vocabulary_size"],
    ),
    ({"network": {"tied_weights": True}}, ["spec.network.tied_weights"]),
    ({"limits": {"max_memory_bytes": 1000}}, ["spec.network.hidden_size"]),
    ({"limits": {"max_memory_bytes": 0}}, ["spec.limits.max_memory_bytes"]),
    (
        {"init_from": "shared", "data": {"layout": "CORPUS_LAYOUT_LINES"}},
        ["spec.data.layout"],
    ),
    ({"init_from": "shared", "data": {"format": "CORPUS_FORMAT_CSV"}}, ["spec.data.format"]),
    (
        {"init_from": "shared", "tokenizer": {"unknown_policy": "UNKNOWN_POLICY_UNKNOWN"}},
        ["spec.tokenizer.unknown_policy"],
    ),
    (
        {"data": {"encoding": "x"}, "network": {"tied_weights": True, "layers": 1}},
        ["spec.data.encoding", "spec.network.tied_weights"],
    ),
]


@pytest.mark.usefixtures("model")  # "shared", which reads text
@pytest.mark.parametrize(("settings", "fields"), SPECS)
def test_a_spec_that_cannot_work_gets_no_job(
    caller: Caller, settings: dict[str, Any], fields: list[str]
) -> None:
    spec = json_format.ParseDict({"model": MODEL, **settings}, pb.TrainSpec())
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(spec, TEXT))
    assert fields_of(caught.value) == fields
    assert list(caller.jobs(model=MODEL)) == []


def test_a_spec_is_refused_before_its_corpus_is_read(caller: Caller) -> None:
    spec = tiny_spec(MODEL)
    spec.data.encoding = "klingon"

    def endless() -> Iterator[pb.TrainRequest]:
        yield pb.TrainRequest(spec=spec)
        yield from itertools.repeat(pb.TrainRequest(corpus_chunk=TEXT))

    with pytest.raises(grpc.RpcError) as caught:
        list(caller.stub.Train(endless(), timeout=PATIENCE_S))
    assert fields_of(caught.value) == ["spec.data.encoding"]


def test_subwords_without_their_package_get_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    spec = tiny_spec(MODEL)
    spec.tokenizer.kind = pb.TOKENIZER_KIND_SUBWORDS
    with pytest.raises(StatusError, match="needs the package tokenizers"):
        requests.train_config(spec)


EMPTY: list[list[pb.TrainRequest]] = [
    [],
    [pb.TrainRequest(corpus_file=pb.CorpusFile(name="nothing"))],
    [
        pb.TrainRequest(corpus_file=pb.CorpusFile(name="a")),
        pb.TrainRequest(corpus_file=pb.CorpusFile(name="b")),
        pb.TrainRequest(corpus_file=pb.CorpusFile(name="v", role=pb.CORPUS_ROLE_VALID)),
        pb.TrainRequest(corpus_chunk=TEXT),
    ],
]


@pytest.mark.parametrize("messages", EMPTY)
def test_a_corpus_without_a_byte_to_train_on_gets_no_job(
    caller: Caller, messages: list[pb.TrainRequest]
) -> None:
    size = sum(len(message.corpus_chunk) for message in messages)
    end = pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=size))
    spec = tiny_spec(MODEL)
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(spec, source=[pb.TrainRequest(spec=spec), *messages, end]))
    assert fields_of(caught.value) == ["corpus_chunk"]
    assert "the corpus is empty" in str(caught.value.details())
    assert list(caller.jobs(model=MODEL)) == []


def test_an_empty_file_beside_others_is_no_fault(caller: Caller) -> None:
    spec = tiny_spec("next-to", max_steps=1)
    source = [
        pb.TrainRequest(spec=spec),
        pb.TrainRequest(corpus_file=pb.CorpusFile(name="empty")),
        pb.TrainRequest(corpus_file=pb.CorpusFile(name="full")),
        pb.TrainRequest(corpus_chunk=TEXT),
        pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(TEXT))),
    ]
    assert list(caller.train(spec, source=source))[-1].completed.version == 1
