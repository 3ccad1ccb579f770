"""Inputs that once failed from outside, by every way in: a file, standard input, Python, the wire.

The bytes are made here. A checkout that has the folder of cases next to it is held against it,
so that no case stays without a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from treadle.client import Client, InvalidArgumentError
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

from .shell import PATIENCE_S, complaint, objects, run

CASES = Path(__file__).parents[3] / "shared" / "cases"


@dataclass(frozen=True)
class Case:
    """What training does with one input: an error with these words, or items and notices."""

    data: bytes
    spec: dict[str, str]
    tokens: int = 0
    notice: str = ""
    error: str = ""


TRAINED = {
    "cr_only.csv": Case(b"text\rhello\rworld\r", {"format": "csv"}, tokens=10),
    "long_header_line.csv": Case(
        b"x" * 140_000 + b",text\n1,hello\n2,world\n", {"format": "csv"}, tokens=10
    ),
    "header_with_newline.csv": Case(
        b'id,"long\nname"\n111,x\n222,y\n', {"format": "csv", "column": "id"}, tokens=6
    ),
    "nested_list.jsonl": Case(
        b'{"text": "emma"}\n{"text": ' + b"[" * 400 + b"1" + b"]" * 400 + b"}\n",
        {"format": "jsonl"},
        error="line 2: nested too deeply",
    ),
    "bom_names.txt": Case(b"\xef\xbb\xbfemma\nolivia\nava\n", {"layout": "lines"}, tokens=13),
    "broken_line.jsonl": Case(
        b'{"text":"emma"}\n{"te\n{"text":"olivia"}\n', {"format": "jsonl"}, error="line 2: "
    ),
    "utf16le_no_bom.txt": Case(
        "hello world\nhello again\n".encode("utf-16-le"), {}, tokens=48, notice="UTF-16"
    ),
    "sep_first.csv": Case(
        b"sep=;\r\nid;text\r\n1;hello\r\n2;world\r\n", {"format": "csv"}, tokens=10
    ),
    "comma_in_header.tsv": Case(
        b"id\ttext\tlast, first\n1\thello\ta\n2\tworld\tb\n", {"format": "csv"}, tokens=10
    ),
    "open_quote.csv": Case(
        b'id,text\n1,"never closed\n' + b"".join(b"%d,word\n" % i for i in range(2, 40)),
        {"format": "csv"},
        error="line 2",
    ),
    "nulls.jsonl": Case(
        b'{"text":"emma"}\n{"text":null}\n{"text":"ava"}\n', {"format": "jsonl"}, error="line 2: "
    ),
    "nulls.jsonl, skipped": Case(
        b'{"text":"emma"}\n{"text":null}\n{"text":"ava"}\n',
        {"format": "jsonl", "missing": "skip"},
        tokens=7,
        notice="1 row left out",
    ),
}

Outcome = tuple[Any, str]
"""The `started` event as plain values, or None; and the error's sentence."""


def by_command(address: str, case: Case, *words: str, data: bytes = b"") -> Outcome:
    flags = [word for name, value in case.spec.items() for word in (f"--{name}", value)]
    limits = ["--model", "case", "--max-steps", "1", "--json"]
    done = run(address, "train", *words, *limits, *flags, data=data)
    if done.returncode:
        return None, complaint(done, 1)
    assert done.stderr == b""
    events = objects(done.stdout.decode())
    return next(event["started"] for event in events if "started" in event), ""


def by_file(address: str, case: Case, path: Path) -> Outcome:
    path.write_bytes(case.data)
    return by_command(address, case, str(path))


def by_standard_input(address: str, case: Case, _: Path) -> Outcome:
    return by_command(address, case, "-", data=case.data)


def by_python(address: str, case: Case, path: Path) -> Outcome:
    path.write_bytes(case.data)
    options: dict[str, Any] = dict(case.spec)
    with Client(address) as client:
        try:
            events = list(client.train(path, model="case", max_steps=1, **options))
        except InvalidArgumentError as error:
            return None, str(error)
    return as_words(next(event.started for event in events if event.HasField("started"))), ""


def by_wire(address: str, case: Case, _: Path) -> Outcome:
    spec = pb.TrainSpec(model="case", limits=pb.LimitsSpec(max_steps=1))
    spec.data.column = case.spec.get("column", "")
    if "format" in case.spec:
        spec.data.format = pb.CorpusFormat.Value(f"CORPUS_FORMAT_{case.spec['format'].upper()}")
    if "layout" in case.spec:
        spec.data.layout = pb.CorpusLayout.Value(f"CORPUS_LAYOUT_{case.spec['layout'].upper()}")
    if "missing" in case.spec:
        spec.data.missing = pb.MissingPolicy.Value(f"MISSING_POLICY_{case.spec['missing'].upper()}")
    messages = [
        pb.TrainRequest(spec=spec),
        pb.TrainRequest(corpus_chunk=case.data),
        pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(case.data))),
    ]
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        try:
            events = list(stub.Train(iter(messages), timeout=PATIENCE_S))
        except grpc.RpcError as error:
            refused = error.code() is grpc.StatusCode.INVALID_ARGUMENT
            return None, error.details() or "" if refused else str(error.code())
    return as_words(next(event.started for event in events if event.HasField("started"))), ""


def as_words(started: pb.TrainingStarted) -> dict[str, Any]:
    return {
        "train_tokens": started.train_tokens,
        "valid_tokens": started.valid_tokens,
        "notices": list(started.notices),
    }


@pytest.mark.parametrize("way", [by_file, by_standard_input, by_python, by_wire])
@pytest.mark.parametrize("name", TRAINED)
def test_training_reads_or_refuses(
    real_server: str, tmp_path: Path, name: str, way: Callable[[str, Case, Path], Outcome]
) -> None:
    case = TRAINED[name]
    started, error = way(real_server, case, tmp_path / name.partition(",")[0])
    if case.error:
        assert started is None
        assert case.error in error
        return
    assert error == ""
    assert started["train_tokens"] + started.get("valid_tokens", 0) == case.tokens
    assert case.notice in " ".join(started["notices"])


@pytest.fixture(scope="module")
def names(real_server: str) -> str:
    """A server with a model of the names of the file with a byte order mark."""
    with Client(real_server) as client:
        data = TRAINED["bom_names.txt"].data
        client.train(data, model="names", layout="lines", max_steps=1).result()
    return real_server


READERS = {
    "score": ["score", "names", "FILE", "--per-line", "--json"],
    "score-stream": ["score-stream", "names", "FILE", "--json"],
    "embed": ["embed", "names", "--per-line", "FILE"],
}


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_what_trained_is_read_everywhere(
    names: str, tmp_path: Path, reader: str, piped: bool
) -> None:
    data = TRAINED["bom_names.txt"].data
    path = tmp_path / "bom_names.txt"
    path.write_bytes(data)
    words = [("-" if piped else str(path)) if w == "FILE" else w for w in READERS[reader]]
    done = run(names, *words, data=data if piped else b"")
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [row for row in objects(done.stdout.decode()) if "total" not in row]
    assert len(rows) == 3


def test_a_prompt_file_is_read_as_training_reads(names: str, tmp_path: Path) -> None:
    (tmp_path / "bom_names.txt").write_bytes(b"\xef\xbb\xbfemm")
    words = ["generate", "names", "--prompt-file", str(tmp_path / "bom_names.txt"), "--seed", "1"]
    plain = run(names, "generate", "names", "--prompt", "emm", "--seed", "1")
    marked = run(names, *words)
    assert (marked.returncode, marked.stderr) == (0, b"")
    assert marked.stdout == plain.stdout


@pytest.mark.parametrize("name", ["broken_line.jsonl", "nested_list.jsonl", "nulls.jsonl"])
@pytest.mark.parametrize("piped", [False, True])
def test_a_stream_marks_the_bad_line_and_scores_the_good_ones(
    names: str, tmp_path: Path, name: str, piped: bool
) -> None:
    data = TRAINED[name].data
    (tmp_path / name).write_bytes(data)
    source = "-" if piped else str(tmp_path / name)
    words = ["score-stream", "names", source, "--format", "jsonl", "--on-error", "skip", "--json"]
    done = run(names, *words, data=data if piped else b"")
    assert done.returncode == 0
    *rows, total = objects(done.stdout.decode())
    assert total["error_count"] == 1
    assert len(rows) == data.count(b"\n")
    assert ["error" in row for row in rows] == [index == 1 for index in range(len(rows))]
    assert "1 line could not be read and was skipped; the first: line 2: " in done.stderr.decode()


@pytest.mark.skipif(not CASES.is_dir(), reason="the folder of cases is not next to this checkout")
def test_every_case_has_a_test() -> None:
    found = {path.name for path in CASES.iterdir()} - {"README.md"}
    assert found <= set(TRAINED)
    for name in found - {"long_header_line.csv", "nested_list.jsonl", "open_quote.csv"}:
        assert (CASES / name).read_bytes() == TRAINED[name].data
