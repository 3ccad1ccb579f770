"""Models leave a server as files and arrive as versions, whole and unchanged, or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import save
from small_models import TEXT as LETTERS
from small_models import model_of

from treadle.model import Model
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind
from treadle.server.errors import StatusError
from treadle.server.failures import NoSpaceError
from treadle.server.inference.admission import Admission
from treadle.server.resources import thread_pools
from treadle.server.resources.upload_pace import UploadLimits
from treadle.server.storage.data_dir import DataDir
from treadle.server.transfer.export_handler import ExportHandler
from treadle.server.transfer.model_draft import ModelDraft
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Caller, Server, fields_of, tiny_spec, wait_for
from .samples import put_model
from .travel import fetch_model, send_model, sha256_of

Start = Callable[..., Server]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a small model."""
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    model_of().save(path)
    return path.read_bytes()


BUDGET = 1 << 25


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes and sends one file at once, and small ones."""
    folder = tmp_path_factory.mktemp("limited")
    server = Server(
        folder / "data",
        *("--audit-log", str(folder / "audit.jsonl")),
        *("--export-limit", "1", "--upload-limit", "1", "--upload-idle-s", "0.5"),
        *("--max-model-bytes", str(1 << 26), "--memory-budget", str(BUDGET)),
        *("--max-message-bytes", "65536", "--standby-workers", "0"),
    )
    yield server
    server.close()


def refusal(work: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        work()
    return caught.value


def send(caller: Caller, messages: list[pb.ImportModelRequest]) -> pb.ImportModelResponse:
    return caller.stub.ImportModel(iter(messages), timeout=PATIENCE_S)


def stored_names(server: Server) -> list[str]:
    return sorted(os.listdir(server.data_dir / "models"))


def left_over(server: Server) -> list[Path]:
    """Returns what unfinished transfers left; the file of the clock comes and goes by itself."""
    return [path for path in (server.data_dir / "tmp").iterdir() if path.name != "clock"]


# ------------------------------------------------------------------------ both ways


def test_a_model_that_has_travelled_is_the_same_one(server: Server, start: Start) -> None:
    home = server.caller
    spec = tiny_spec("traveller", max_steps=30)
    spec.data.novelty_index = True
    trained = home.trained(spec)
    first = home.generate("traveller", prompt="the", seed=3, max_new_tokens=20, return_state=True)
    model, data = fetch_model(home, "traveller")
    assert (model.version, model.size_bytes, model.sha256) == (1, len(data), sha256_of(data))
    path = server.data_dir / "models" / "traveller" / "1" / "model.safetensors"
    assert data == path.read_bytes()

    away = start().caller
    imported = send_model(away, data, "settled", alias="stable", sha256=model.sha256)
    assert (imported.model.name, imported.model.version) == ("settled", 1)
    assert list(imported.model.aliases) == ["stable"]
    assert imported.model.sha256 == model.sha256
    assert imported.model.novelty_index
    assert imported.model.training.steps == trained.training.steps
    assert not imported.reused
    assert fetch_model(away, "settled@stable")[1] == data

    request: dict[str, Any] = {"seed": 5, "max_new_tokens": 40, "log_probabilities": True}
    for fields in ({"prompt": "the "}, {"prompt": "x", "novelty": True, "unknown_policy": 2}):
        one = home.generate("traveller", **request, **fields)
        two = away.generate("settled", **request, **fields)
        assert tokens_of(one) == tokens_of(two)
        assert [reply.result.novelty for reply in one] == [reply.result.novelty for reply in two]
    state = first[-1].result.state
    assert state
    goes_on = [
        caller.generate(name, state=state, return_state=True, **request)
        for caller, name in ((home, "traveller"), (away, "settled"))
    ]
    assert tokens_of(goes_on[0]) == tokens_of(goes_on[1])
    assert goes_on[0][-1].result.state == goes_on[1][-1].result.state


def tokens_of(replies: list[pb.GenerateResponse]) -> list[tuple[int, str, float]]:
    return [
        (token.id, token.text, token.log_probability) for reply in replies for token in reply.tokens
    ]


# -------------------------------------------------------------------------- export


def test_a_file_is_sent_from_an_offset_on(caller: Caller, model: str) -> None:
    about, data = fetch_model(caller, model)
    for offset in (1, len(data) - 1, len(data)):
        again, rest = fetch_model(caller, model, offset=offset, sha256=about.sha256)
        assert again == about
        assert rest == data[offset:]


def test_wrong_exports_are_refused_by_field(caller: Caller, model: str) -> None:
    size = fetch_model(caller, model)[0].size_bytes
    for fields, named in (
        ({"offset": size + 1}, "offset"),
        ({"sha256": "A" * 64}, "sha256"),
        ({"sha256": "0"}, "sha256"),
    ):
        assert fields_of(refusal(partial(fetch_model, caller, model, **fields))) == [named]
    other = refusal(lambda: fetch_model(caller, model, sha256="0" * 64))
    assert other.code() is grpc.StatusCode.FAILED_PRECONDITION
    gone = refusal(lambda: fetch_model(caller, "none"))
    missing = refusal(
        lambda: caller.stub.GetModel(pb.GetModelRequest(model="none"), timeout=PATIENCE_S)
    )
    assert (gone.code(), gone.details()) == (missing.code(), missing.details())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a model of two megabytes, which no client reads at once."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    model_of(hidden_size=350).save(path)
    return path.read_bytes()


def test_a_version_that_is_deleted_meanwhile_is_sent_to_its_end(
    limited: Server, large: bytes
) -> None:
    caller = limited.caller
    send_model(caller, large, "gone", chunk_bytes=1 << 15)
    call = caller.stub.ExportModel(pb.ExportModelRequest(model="gone"), timeout=PATIENCE_S)
    assert next(call).model.version == 1
    deleting = pb.DeleteModelRequest(model="gone", all_versions=True)
    caller.stub.DeleteModel(deleting, timeout=PATIENCE_S)
    assert "gone" not in stored_names(limited)
    assert b"".join(reply.chunk for reply in call) == large


def test_so_many_files_are_sent_at_once(limited: Server, large: bytes) -> None:
    caller = limited.caller
    send_model(caller, large, "m", chunk_bytes=1 << 15)
    first = caller.stub.ExportModel(pb.ExportModelRequest(model="m"), timeout=PATIENCE_S)
    next(first)
    error = refusal(lambda: fetch_model(caller, "m"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 models that are exported" in (error.details() or "")
    first.cancel()

    def is_free() -> bool:
        try:
            fetch_model(caller, "m")
        except grpc.RpcError:
            return False
        return True

    wait_for(is_free)


def test_a_reader_that_is_too_slow_loses_its_place(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    admission = Admission(1, "exports")
    handler = ExportHandler(
        data_dir.models,
        lambda stored: pb.Model(name=stored.name, size_bytes=stored.size_bytes),
        UploadLimits(1, idle_s=0.05, min_rate=1e9),
        admission,
        1 << 10,
    )
    put_model(data_dir, "m")

    async def read_slowly() -> None:
        async for _ in handler.send(pb.ExportModelRequest(model="m")):
            assert admission.running == 1
            await asyncio.sleep(0.1)

    with pytest.raises(StatusError) as caught:
        asyncio.run(read_slowly())
    data_dir.close()
    thread_pools.EXPORTS.close()
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "the file came at" in caught.value.message
    assert admission.running == 0


def test_a_damaged_file_is_not_sent(server: Server, file: bytes) -> None:
    send_model(server.caller, file, "bad")
    path = server.data_dir / "models" / "bad" / "1" / "model.safetensors"
    path.write_bytes(b"")
    error = refusal(lambda: fetch_model(server.caller, "bad"))
    assert error.code() is grpc.StatusCode.DATA_LOSS


# -------------------------------------------------------------------------- import


def test_the_same_file_is_stored_once_where_that_is_asked(server: Server, file: bytes) -> None:
    caller = server.caller
    assert send_model(caller, file, "sent-twice").model.version == 1
    assert send_model(caller, file, "sent-twice").model.version == 2
    for fields in ({}, {"sha256": sha256_of(file)}):
        again = send_model(caller, file, "sent-twice", reuse_identical=True, alias="a", **fields)
        assert (again.model.version, again.reused) == (2, True)
        assert list(again.model.aliases) == ["a"]
    other = send_model(caller, file, "sent-elsewhere", reuse_identical=True)
    assert (other.model.version, other.reused) == (1, False)


def test_a_known_file_need_not_arrive(caller: Caller, file: bytes) -> None:
    send_model(caller, file, "known")
    spec = pb.ImportModelSpec(model="known", sha256=sha256_of(file), reuse_identical=True)
    silent = threading.Event()

    def requests() -> Iterator[pb.ImportModelRequest]:
        yield pb.ImportModelRequest(spec=spec)
        silent.wait(PATIENCE_S)

    try:
        assert caller.stub.ImportModel(requests(), timeout=PATIENCE_S).reused
    finally:
        silent.set()


def test_a_damaged_version_is_not_reused(server: Server, file: bytes) -> None:
    caller = server.caller
    send_model(caller, file, "spoilt")
    path = server.data_dir / "models" / "spoilt" / "1" / "model.safetensors"
    path.write_bytes(file[:-1] + bytes([file[-1] ^ 1]))
    assert send_model(caller, file, "spoilt", reuse_identical=True).model.version == 2


def broken(data: bytes) -> dict[str, tuple[bytes, str]]:
    """Files that are no models, each with words of its refusal."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    content = json.loads(header["__metadata__"]["treadle"])

    def changed(**fields: Any) -> bytes:
        new = {**header, "__metadata__": {"treadle": json.dumps(content | fields)}}
        text = json.dumps(new).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    nan = np.full(1, np.nan, np.float32).tobytes()
    return {
        "empty": (b"", "not a complete safetensors file"),
        "text": (b"hello " * 100, "it does not begin with the size of a header"),
        "cut": (data[:-1], "not a complete safetensors file"),
        "a large header": (b"\xff" * 8 + data[8:], "it does not begin with the size"),
        "no model": (save({"a": np.zeros(2, np.float32)}), "lacks the key treadle"),
        "another format": (changed(format="9"), "has format '9'"),
        "no network": (changed(network={"cell": "rnn", "hidden_size": 10**9}), "header"),
        "another cell": (changed(network={**content["network"], "cell": "gru"}), "tensors are"),
        "a strange record": (changed(training={"steps": "x"}), "training record"),
        "not a number": (data[:-4] + nan, "not a finite float32"),
    }


@pytest.mark.parametrize("name", broken(save({}, {"treadle": '{"network": {}}'})))
def test_what_is_no_model_is_refused(server: Server, file: bytes, name: str) -> None:
    data, words = broken(file)[name]
    error = refusal(lambda: send_model(server.caller, data, "refused"))
    assert fields_of(error) == ["chunk"]
    assert words in (error.details() or "")
    assert "refused" not in stored_names(server)
    wait_for(lambda: not left_over(server))


def test_wrong_imports_are_refused_by_field(server: Server, file: bytes) -> None:
    caller = server.caller
    sha = sha256_of(file)
    size = len(file)
    too_much = caller.info().max_model_bytes + 1
    end = pb.ImportModelEnd
    for fields, named in (
        ({"model": "../up"}, ["spec.model"]),
        ({"alias": "latest"}, ["spec.alias"]),
        ({"sha256": "0" * 63}, ["spec.sha256"]),
        ({"sha256": "0" * 64}, ["spec.sha256"]),
        ({"size_bytes": too_much}, ["spec.size_bytes"]),
        ({"size_bytes": size + 1}, ["spec.size_bytes"]),
        ({"end": end(size_bytes=size - 1, sha256=sha)}, ["end.size_bytes"]),
        ({"end": end(size_bytes=size, sha256="0" * 64)}, ["end.sha256"]),
        ({"end": end(size_bytes=size)}, ["end.sha256"]),
        ({"vocabulary": ["a"]}, ["vocabulary"]),
    ):
        sent: dict[str, Any] = {"model": "refused", **fields}
        error = refusal(partial(send_model, caller, file, **sent))
        assert fields_of(error) == named, fields
    spec = pb.ImportModelRequest(spec=pb.ImportModelSpec(model="refused"))
    for messages, named in (
        ([], ["spec"]),
        ([pb.ImportModelRequest(chunk=b"a")], ["spec"]),
        ([spec, spec], ["spec"]),
        ([spec, pb.ImportModelRequest(chunk=b"")], ["chunk"]),
        ([spec, pb.ImportModelRequest()], ["chunk"]),
        ([spec, pb.ImportModelRequest(chunk=file)], ["end"]),
    ):
        error = refusal(partial(send, caller, messages))
        assert fields_of(error) == named, messages
    assert "refused" not in stored_names(server)
    wait_for(lambda: not left_over(server))


def test_a_file_that_is_too_large_is_refused_while_it_arrives(limited: Server) -> None:
    chunk = pb.ImportModelRequest(chunk=bytes(60_000))
    spec = pb.ImportModelRequest(spec=pb.ImportModelSpec(model="refused"))
    error = refusal(lambda: send(limited.caller, [spec, *[chunk] * 1200]))
    assert fields_of(error) == ["chunk"]
    assert "--max-model-bytes" in (error.details() or "")


def test_an_import_needs_memory_that_there_may_be(limited: Server) -> None:
    error = refusal(lambda: send_model(limited.caller, b"", "refused", size_bytes=BUDGET))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "--memory-budget" in (error.details() or "")


def test_an_import_leaves_the_space_that_is_to_stay_free(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path, min_free_bytes=1 << 60)
    draft = ModelDraft(data_dir.models, lambda _: None)
    with pytest.raises(NoSpaceError):
        draft.open(1)
    draft.close()
    data_dir.close()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_draft_that_is_opened_after_its_end_leaves_nothing(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    counted: list[int] = []
    draft = ModelDraft(data_dir.models, counted.append)
    draft.close()
    draft.open(1)
    data_dir.close()
    assert not list((tmp_path / "tmp").iterdir())
    assert sum(counted) == 0


def test_a_silent_import_ends_and_frees_its_place(limited: Server, file: bytes) -> None:
    caller = limited.caller
    silent = threading.Event()

    def requests() -> Iterator[pb.ImportModelRequest]:
        yield pb.ImportModelRequest(spec=pb.ImportModelSpec(model="silent"))
        yield pb.ImportModelRequest(chunk=file[:10])
        silent.wait(PATIENCE_S)

    call = caller.stub.ImportModel.future(requests(), timeout=PATIENCE_S)
    wait_for(lambda: left_over(limited))
    full = refusal(lambda: send_model(caller, file, "n"))
    assert full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = refusal(call.result)
    silent.set()
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: not left_over(limited))
    assert send_model(caller, file, "n").model.version == 1


def test_models_that_come_and_go_are_in_the_audit_log(limited: Server, file: bytes) -> None:
    caller = limited.caller
    send_model(caller, file, "audited", alias="live")
    fetch_model(caller, "audited@live")
    refusal(lambda: send_model(caller, b"no model", "audited"))
    audit = limited.data_dir.with_name("audit.jsonl")

    def entries() -> list[tuple[str, str, dict[str, Any]]]:
        lines = map(json.loads, audit.read_text().splitlines())
        mine = [line for line in lines if line["resource"].get("model") == "audited"]
        return [(line["method"], line["status"], line["resource"]) for line in mine]

    stored = {"model": "audited", "version": 1}
    wait_for(lambda: len(entries()) == 3)
    assert entries() == [
        ("ImportModel", "OK", stored | {"alias": "live"}),
        ("ExportModel", "OK", stored),
        ("ImportModel", "INVALID_ARGUMENT", {"model": "audited"}),
    ]


def test_a_killed_server_shows_nothing_of_an_import(start: Start, file: bytes) -> None:
    server = start()
    silent = threading.Event()

    def requests() -> Iterator[pb.ImportModelRequest]:
        spec = pb.ImportModelSpec(model="m", sha256=sha256_of(file), reuse_identical=True)
        yield pb.ImportModelRequest(spec=spec)
        yield pb.ImportModelRequest(chunk=file * 400)
        silent.wait(PATIENCE_S)

    call = server.caller.stub.ImportModel.future(requests(), timeout=PATIENCE_S)
    wait_for(lambda: [path for part in left_over(server) for path in part.iterdir()])
    server.process.send_signal(signal.SIGKILL)
    assert refusal(call.result).code() is grpc.StatusCode.UNAVAILABLE
    silent.set()
    server.wait()
    again = start()
    assert not left_over(again)
    assert not list(again.caller.stub.ListModels(pb.ListModelsRequest()).models)
    assert send_model(again.caller, file, "m", reuse_identical=True).model.version == 1
    assert fetch_model(again.caller, "m")[1] == file


# --------------------------------------------------------------------- state dicts


def state_dict(path: Path, model: Model) -> bytes:
    """Returns the weights of a model as PyTorch's safetensors would save them."""
    model.save(path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    del header["__metadata__"]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize("cell", Cell)
@pytest.mark.parametrize("sizes", [{"embedding_size": 0}, {"layers": 2}, {"tied_weights": True}])
def test_a_state_dict_becomes_the_model_that_it_is(
    caller: Caller, tmp_path: Path, cell: Cell, sizes: dict[str, Any]
) -> None:
    if sizes.get("tied_weights"):
        sizes |= {"embedding_size": 5}
    model = model_of(cell=cell, **sizes)
    data = state_dict(tmp_path / "m.safetensors", model)
    how = pb.StateDictSpec(tied_weights=bool(sizes.get("tied_weights")))
    symbols = [model.tokenizer.token_text(token) for token in range(model.vocabulary_size)]
    name = f"torch-{cell.value}-{len(data)}"
    reply = send_model(caller, data, name, state_dict=how, vocabulary=symbols)
    assert not reply.notices
    assert fetch_model(caller, name)[1] == (tmp_path / "m.safetensors").read_bytes()
    again = send_model(caller, data, name, state_dict=how, vocabulary=symbols, reuse_identical=True)
    assert (again.model.version, again.reused) == (1, True)
    text = caller.text(name, prompt="abc", seed=1, max_new_tokens=10)
    assert text == model.generate("abc", seed=1, max_new_tokens=10)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (TokenizerKind.BYTES, pb.TOKENIZER_KIND_BYTES),
        (TokenizerKind.WORDS, pb.TOKENIZER_KIND_WORDS),
        (TokenizerKind.EVENTS, pb.TOKENIZER_KIND_EVENTS),
    ],
)
def test_other_kinds_of_tokens(
    caller: Caller, tmp_path: Path, kind: TokenizerKind, number: pb.TokenizerKind.ValueType
) -> None:
    model = model_of(kind, CorpusLayout.LINES)
    tokenizer = model.tokenizer
    data = state_dict(tmp_path / "m.safetensors", model)
    how = pb.StateDictSpec(tokenizer=pb.TokenizerSpec(kind=number), layout=pb.CORPUS_LAYOUT_LINES)
    is_bytes = kind is TokenizerKind.BYTES
    words = [] if is_bytes else [tokenizer.token_text(each) for each in range(tokenizer.ordinary)]
    name = f"torch-{kind.value}"
    reply = send_model(caller, data, name, state_dict=how, vocabulary=words)
    assert (reply.model.vocabulary_size, reply.model.layout) == (
        tokenizer.vocabulary_size,
        pb.CORPUS_LAYOUT_LINES,
    )
    assert not reply.notices


def test_names_and_numbers_that_others_write_are_read(caller: Caller) -> None:
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "module.encoder.weight": np.ones((3, 2), np.float64),
        "module.gru.weight_ih_l0": np.ones((12, 2), np.float16),
        "module.gru.weight_hh_l0": np.ones((12, 4), np.float16),
        "module.decoder.weight": np.ones((3, 4), np.float32),
    }
    reply = send_model(
        caller, save(tensors), "torch-names", state_dict=pb.StateDictSpec(), vocabulary="abc"
    )
    assert reply.model.network.cell == pb.CELL_GRU
    assert caller.text("torch-names", prompt="a", max_new_tokens=2, temperature=0) == "aa"


def test_tokens_that_no_text_is_read_as_are_named(caller: Caller) -> None:
    words = ["a", "b c", "<pad>"]
    how = pb.StateDictSpec(
        tokenizer=pb.TokenizerSpec(
            kind=pb.TOKENIZER_KIND_WORDS, unknown_policy=pb.UNKNOWN_POLICY_SKIP
        )
    )
    data = save(rnn_of(3))
    (notice,) = send_model(caller, data, "torch-unread", state_dict=how, vocabulary=words).notices
    assert "2 tokens of the vocabulary" in notice
    assert "'b c', '<pad>'" in notice


def rnn_of(vocabulary: int, hidden: int = 4) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "rnn.weight_ih_l0": np.ones((hidden, vocabulary), np.float32),
        "rnn.weight_hh_l0": np.ones((hidden, hidden), np.float32),
        "output.weight": np.ones((vocabulary, hidden), np.float32),
    }


@pytest.mark.parametrize(
    ("change", "fields", "named", "words"),
    [
        ({"x": 1}, {}, "chunk", "'x' is not a parameter"),
        ({"rnn.weight_hh_l0": 5}, {}, "chunk", "fits no cell"),
        ({"output.weight": 3}, {}, "chunk", "has shape"),
        ({"rnn.weight_ih_l0_reverse": 4}, {}, "chunk", "bidirectional"),
        ({"rnn.weight_hr_l0": 4}, {}, "chunk", "projections"),
        ({}, {"vocabulary": "ab"}, "chunk", "the network has 3 tokens, but the tokenizer 2"),
        ({}, {"vocabulary": "aba"}, "vocabulary.tokens", "token 2 of the vocabulary"),
        ({}, {"vocabulary": ["a", "b", ""]}, "vocabulary.tokens", "is empty"),
        ({}, {"vocabulary": ["a", "b", "<pad>"]}, "vocabulary.tokens", "is not one character"),
        ({}, {"vocabulary": []}, "vocabulary.tokens", "not known without its vocabulary"),
        ({}, {"kind": pb.TOKENIZER_KIND_BYTES}, "vocabulary.tokens", "send no vocabulary"),
        ({}, {"kind": pb.TOKENIZER_KIND_SUBWORDS}, "spec.state_dict.tokenizer.kind", "merges"),
        ({}, {"kind": 99}, "spec.state_dict.tokenizer.kind", "kind"),
        ({}, {"layout": 99}, "spec.state_dict.layout", "no layout"),
        ({}, {"tied_weights": True}, "chunk", "tied"),
    ],
)
def test_what_fits_no_network_is_refused_by_name(
    server: Server, change: dict[str, int], fields: dict[str, Any], named: str, words: str
) -> None:
    tensors = rnn_of(3)
    for name, rows in change.items():
        tensors[name] = np.ones((rows, 7), np.float32)
    vocabulary = fields.pop("vocabulary", "abc")
    how = pb.StateDictSpec(tokenizer=pb.TokenizerSpec(kind=fields.pop("kind", 0)), **fields)
    error = refusal(
        lambda: send_model(
            server.caller, save(tensors), "refused", state_dict=how, vocabulary=vocabulary
        )
    )
    assert fields_of(error) == [named]
    assert words in (error.details() or "")
    assert "refused" not in stored_names(server)


def test_a_model_is_not_taken_for_a_state_dict(caller: Caller, file: bytes) -> None:
    how = pb.StateDictSpec()
    error = refusal(
        lambda: send_model(caller, file, "refused", state_dict=how, vocabulary=sorted({*LETTERS}))
    )
    assert "is a model of Treadle already" in (error.details() or "")


def test_a_vocabulary_has_bounds_and_a_place(caller: Caller) -> None:
    spec = pb.ImportModelSpec(model="refused", state_dict=pb.StateDictSpec())
    long = pb.ImportModelRequest(vocabulary=pb.VocabularyPart(tokens=["x" * (3 << 20)]))
    many = pb.ImportModelRequest(vocabulary=pb.VocabularyPart(tokens=["x"] * 10_001))
    late = pb.ImportModelRequest(vocabulary=pb.VocabularyPart(tokens=["x"]))
    empty = pb.ImportModelRequest(vocabulary=pb.VocabularyPart())
    for messages, field in (
        ([long] * 6, "vocabulary.tokens"),
        ([many], "vocabulary.tokens"),
        ([empty], "vocabulary.tokens"),
        ([pb.ImportModelRequest(chunk=b"a"), late], "vocabulary"),
    ):
        sent = [pb.ImportModelRequest(spec=spec), *messages]
        assert fields_of(refusal(partial(send, caller, sent))) == [field]
