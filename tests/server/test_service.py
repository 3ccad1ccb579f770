"""Every RPC, with good input and with bad, on a running server."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection_pb2,
    reflection_pb2_grpc,
)

from treadle.model import Model, compiled_for
from treadle.server.storage.model_version import MODEL_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Caller, Server, detail_of, fields_of, requests, tiny_spec

NAMES = b"anna\nbob\nclara\ndora\nemil\nfritz\n" * 8


def refused(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


# Describing


def test_the_processor_is_the_one_that_kernels_are_compiled_for(caller: Caller) -> None:
    assert caller.info().cpu_target == compiled_for()


def test_only_the_model_room_is_asked_about_the_compiler() -> None:
    sources = [path.read_text() for path in (Path(__file__).parents[2] / "server").glob("*.py")]
    assert not any("import numba" in s or "from numba" in s or "llvmlite" in s for s in sources)


# Training


def test_hello(caller: Caller) -> None:
    events = list(caller.train(pb.TrainSpec(model="hello"), b"hello"))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["state", "state", "started", *["progress"] * (len(events) - 4), "completed"]
    assert len(kinds) > 4
    started = events[2].started
    assert started.train_tokens == 5
    assert started.spec.data.batch_size < 32
    assert any("batch size" in notice for notice in started.notices)
    assert any("window" in notice for notice in started.notices)
    model = events[-1].completed
    assert (model.name, model.version) == ("hello", 1)
    assert model.training.steps == started.total_steps
    assert model.training.spec == started.spec
    assert caller.text("hello", prompt="h", temperature=0, max_new_tokens=4) == "ello"


@pytest.mark.parametrize("cell", [pb.CELL_RNN, pb.CELL_GRU, pb.CELL_LSTM])
def test_every_cell_trains_generates_and_scores(caller: Caller, cell: pb.Cell.ValueType) -> None:
    spec = tiny_spec(f"cell-{cell}")
    spec.network.cell = cell
    spec.network.layers = 2
    assert caller.trained(spec).network.cell == cell
    assert len(caller.text(spec.model, prompt="the", max_new_tokens=7)) == 7
    assert caller.score(spec.model, ["the fox"]).scores[0].token_count == 6


def test_chunks_may_cut_characters(caller: Caller) -> None:
    corpus = "äöü€😀 ".encode() * 40
    one = caller.trained(tiny_spec("whole"), corpus)
    many = caller.trained(tiny_spec("cut"), *(bytes([byte]) for byte in corpus))
    assert one.vocabulary_size == many.vocabulary_size == 6
    request = {"prompt": "ä", "seed": 5, "max_new_tokens": 30}
    assert caller.text("whole", **request) == caller.text("cut", **request)


def test_a_name_in_use_gets_a_new_version(caller: Caller) -> None:
    for version in (1, 2):
        assert caller.trained(tiny_spec("again")).version == version
    reply = caller.stub.GetModel(pb.GetModelRequest(model="again"))
    assert list(reply.versions) == [1, 2]
    assert reply.model.version == 2


def test_lines_and_words_train_too(caller: Caller) -> None:
    spec = tiny_spec("lines")
    spec.data.layout = pb.CORPUS_LAYOUT_LINES
    model = caller.trained(spec, NAMES)
    assert model.layout == pb.CORPUS_LAYOUT_LINES
    assert caller.score("lines", ["anna"]).scores[0].token_count == 5
    words = tiny_spec("words")
    words.tokenizer.kind = pb.TOKENIZER_KIND_WORDS
    words.tokenizer.max_vocabulary_size = 5
    model = caller.trained(words)
    assert model.tokenizer.unknown_policy == pb.UNKNOWN_POLICY_UNKNOWN
    assert caller.score("words", ["the zebra jumps"]).scores[0].token_count > 0


def test_bytes_take_anything(caller: Caller) -> None:
    spec = tiny_spec("bytes")
    spec.tokenizer.kind = pb.TOKENIZER_KIND_BYTES
    caller.trained(spec, bytes(range(256)) * 4)
    assert caller.score("bytes", ["héllo"]).scores[0].token_count == 5


@pytest.mark.parametrize(
    ("corpus", "complaint"),
    [(b"", "empty"), (b"x", "corpus"), (b"abc\xff\xfedef" * 9, "UTF-8"), (b"\n\n\n", "")],
)
def test_a_corpus_that_cannot_be_learnt(caller: Caller, corpus: bytes, complaint: str) -> None:
    spec = tiny_spec("never")
    if not complaint:
        spec.data.layout = pb.CORPUS_LAYOUT_LINES
    error = refused(lambda: list(caller.train(spec, corpus)))
    assert fields_of(error) == ["corpus_chunk"]
    assert complaint in (error.details() or "")
    missing = refused(lambda: caller.stub.GetModel(pb.GetModelRequest(model="never")))
    assert missing.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "spec"),
        ([pb.TrainRequest(corpus_chunk=b"x")], "spec"),
        ([pb.TrainRequest(spec=pb.TrainSpec(model="m"))] * 2, "spec"),
        ([pb.TrainRequest(spec=pb.TrainSpec(model="a/b"))], "spec.model"),
        ([pb.TrainRequest(spec=pb.TrainSpec())], "spec.model"),
        (list(requests(pb.TrainSpec(model="m"), TEXT))[:-1], "corpus_end"),
        (
            [
                pb.TrainRequest(spec=pb.TrainSpec(model="m")),
                pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=7)),
            ],
            "corpus_end.size_bytes",
        ),
    ],
)
def test_uploads_out_of_order(caller: Caller, messages: list[pb.TrainRequest], field: str) -> None:
    spec = pb.TrainSpec()
    error = refused(lambda: list(caller.train(spec, source=messages)))
    assert fields_of(error) == [field]


def test_a_spec_out_of_range_names_every_field(caller: Caller) -> None:
    spec = pb.TrainSpec(model="m", network=pb.NetworkSpec(hidden_size=5000, layers=99))
    error = refused(lambda: list(caller.train(spec, TEXT)))
    assert fields_of(error) == ["spec.network.hidden_size", "spec.network.layers"]


def test_a_loss_that_explodes_is_told(caller: Caller) -> None:
    spec = tiny_spec("explodes", max_steps=200)
    spec.optimizer.optimizer = pb.OPTIMIZER_SGD
    spec.optimizer.learning_rate = 1e300
    spec.optimizer.clip_norm = 0
    spec.optimizer.schedule = pb.SCHEDULE_CONSTANT
    spec.optimizer.warmup_steps = 0
    error = refused(lambda: list(caller.train(spec, TEXT)))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "step" in (error.details() or "")


# Generating


def test_a_generation_streams_and_ends_with_its_result(caller: Caller, model: str) -> None:
    replies = caller.generate(model, prompt="the ", max_new_tokens=50, seed=7)
    assert [reply.HasField("result") for reply in replies] == [
        *[False] * (len(replies) - 1),
        True,
    ]
    result = replies[-1].result
    assert result.stop_reason == pb.STOP_REASON_MAX_NEW_TOKENS
    assert (result.seed, result.prompt_tokens, result.new_tokens) == (7, 4, 50)
    assert result.version == 1
    assert result.total_log_probability < 0
    assert not any(reply.tokens for reply in replies)
    assert len("".join(reply.text for reply in replies)) == 50


def test_the_same_seed_gives_the_same_text_and_the_seed_used_is_returned(
    caller: Caller, model: str
) -> None:
    first = caller.generate(model, max_new_tokens=40)
    seed = first[-1].result.seed
    text = "".join(reply.text for reply in first)
    assert caller.text(model, max_new_tokens=40, seed=seed) == text
    assert caller.text(model, max_new_tokens=40, seed=seed + 1) != text


def test_tokens_come_with_log_probabilities(caller: Caller, model: str) -> None:
    replies = caller.generate(model, max_new_tokens=30, log_probabilities=True, seed=1)
    tokens = [token for reply in replies for token in reply.tokens]
    assert len(tokens) == 30
    assert "".join(token.text for token in tokens) == "".join(reply.text for reply in replies)
    total = sum(token.log_probability for token in tokens)
    assert total == pytest.approx(replies[-1].result.total_log_probability, rel=1e-5)


def test_a_stop_sequence_ends_the_text_before_it(caller: Caller, model: str) -> None:
    replies = caller.generate(model, prompt="the", stop_sequences=[" "], seed=3)
    result = replies[-1].result
    assert result.stop_reason == pb.STOP_REASON_STOP_SEQUENCE
    assert result.stop_sequence == " "
    assert " " not in "".join(reply.text for reply in replies)


def test_an_item_ends_with_its_end_token(caller: Caller) -> None:
    spec = tiny_spec("items", max_steps=150)
    spec.data.layout = pb.CORPUS_LAYOUT_LINES
    caller.trained(spec, b"ab\n" * 50)
    replies = caller.generate("items", temperature=0)
    assert "".join(reply.text for reply in replies) == "ab"
    assert replies[-1].result.stop_reason == pb.STOP_REASON_END_TOKEN


def test_no_tokens_may_be_asked_for(caller: Caller, model: str) -> None:
    (reply,) = caller.generate(model, max_new_tokens=0)
    assert (reply.text, reply.result.new_tokens) == ("", 0)


def test_an_unknown_symbol_in_a_prompt(caller: Caller, model: str) -> None:
    error = refused(lambda: caller.generate(model, prompt="the ß"))
    assert fields_of(error) == ["prompt"]
    assert "ß" in (error.details() or "")
    assert caller.text(model, prompt="the ß", unknown_policy=pb.UNKNOWN_POLICY_SKIP)
    error = refused(
        lambda: caller.generate(model, prompt="ß", unknown_policy=pb.UNKNOWN_POLICY_UNKNOWN)
    )
    assert fields_of(error) == ["unknown_policy"]


def test_faults_of_a_generate_request(caller: Caller, model: str) -> None:
    wrong = {"temperature": -1, "top_p": 2, "min_p": -0.1, "max_new_tokens": 10**9}
    error = refused(lambda: caller.generate(model, **wrong))
    assert sorted(fields_of(error)) == ["max_new_tokens", "min_p", "temperature", "top_p"]


@pytest.mark.parametrize("version", [0, 1, 2**64 - 1])
def test_an_unknown_model(caller: Caller, version: int) -> None:
    calls: list[Callable[[], object]] = [
        lambda: caller.generate("nobody", version=version),
        lambda: caller.score("nobody", ["x"], version=version),
        lambda: caller.stub.GetModel(pb.GetModelRequest(model="nobody", version=version)),
        lambda: caller.stub.DeleteModel(
            pb.DeleteModelRequest(model="nobody", version=version, all_versions=not version)
        ),
    ]
    for call in calls:
        error = refused(call)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "'nobody'" in (error.details() or "")
        resource = detail_of(error, "ResourceInfo")
        assert isinstance(resource, error_details_pb2.ResourceInfo)
        assert resource.resource_name.split("/")[0] == "nobody"


def test_an_unknown_version(caller: Caller, model: str) -> None:
    error = refused(lambda: caller.generate(model, version=99))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "version 99" in (error.details() or "")


def test_generations_side_by_side_are_those_alone(caller: Caller, model: str) -> None:
    seeds = range(12)
    alone = [caller.text(model, seed=seed, max_new_tokens=300) for seed in seeds]
    calls = [
        caller.stub.Generate(pb.GenerateRequest(model=model, seed=seed, max_new_tokens=300))
        for seed in seeds
    ]
    assert ["".join(reply.text for reply in call) for call in calls] == alone


# Scoring


def test_scores(caller: Caller, model: str) -> None:
    texts = ["the quick brown fox", "xof nworb kciuq eht", "t", ""]
    reply = caller.score(model, texts, log_probabilities=True)
    assert reply.version == 1
    good, shuffled, single, empty = reply.scores
    assert good.mean_nats < shuffled.mean_nats
    assert good.token_count == good.character_count == 18
    assert len(good.tokens) == 19
    assert not good.tokens[0].HasField("log_probability")
    total = sum(token.log_probability for token in good.tokens[1:])
    assert total == pytest.approx(good.total_log_probability, rel=1e-5)
    for nothing in (single, empty):
        assert nothing.token_count == 0
        assert not nothing.HasField("mean_nats")
        assert not nothing.HasField("perplexity")
        assert not nothing.HasField("bits_per_character")


def test_a_context_is_read_but_not_scored(caller: Caller, model: str) -> None:
    whole = caller.score(model, ["the fox"])
    part = caller.score(model, ["fox"], context="the ")
    assert part.scores[0].token_count == 3
    assert part.scores[0].total_log_probability > whole.scores[0].total_log_probability


def test_the_field_that_cannot_be_scored_is_named(caller: Caller, model: str) -> None:
    assert fields_of(refused(lambda: caller.score(model, []))) == ["texts"]
    assert fields_of(refused(lambda: caller.score(model, ["a", "ß"]))) == ["texts[1]"]
    assert fields_of(refused(lambda: caller.score(model, ["a"], context="ß"))) == ["context"]
    skipped = caller.score(model, ["aßb"], unknown_policy=pb.UNKNOWN_POLICY_SKIP)
    assert skipped.scores[0].token_count == 1


def test_a_reply_too_large_to_send_says_what_to_do(caller: Caller, model: str) -> None:
    texts = ["the quick brown fox " * 2_000] * 12
    assert len(caller.score(model, texts).scores) == 12
    error = refused(lambda: caller.score(model, texts, log_probabilities=True))
    assert fields_of(error) == ["log_probabilities"]


# Models


def test_models_are_listed_described_and_deleted(server: Server, caller: Caller) -> None:
    for name in ("z1", "z2", "z3"):
        caller.trained(tiny_spec(name))
    trained = caller.trained(tiny_spec("z2"))
    listed = []
    token = ""
    first = True
    while token or first:
        reply = caller.stub.ListModels(pb.ListModelsRequest(page_size=2, page_token=token))
        listed += [model for model in reply.models if model.name.startswith("z")]
        token = reply.next_page_token
        first = False
    assert [(model.name, model.version) for model in listed] == [("z1", 1), ("z2", 2), ("z3", 1)]
    assert listed[1] == trained
    got = caller.stub.GetModel(pb.GetModelRequest(model="z2", version=1))
    assert (got.model.version, list(got.versions)) == (1, [1, 2])
    path = server.data_dir / "models" / "z2" / "2" / MODEL_FILE
    assert hashlib.sha256(path.read_bytes()).hexdigest() == trained.sha256
    assert trained.size_bytes == path.stat().st_size
    assert trained.create_time.ToSeconds() == pytest.approx(time.time(), abs=3600)
    gone = caller.stub.DeleteModel(pb.DeleteModelRequest(model="z2", version=1))
    assert list(gone.versions) == [1]
    caller.stub.DeleteModel(pb.DeleteModelRequest(model="z2", all_versions=True))
    error = refused(lambda: caller.generate("z2"))
    assert error.code() is grpc.StatusCode.NOT_FOUND


def test_a_stored_file_is_a_model_by_itself(server: Server, caller: Caller, model: str) -> None:
    loaded = Model.load(server.data_dir / "models" / model / "1" / MODEL_FILE)
    text = caller.text(model, prompt="the", seed=2, max_new_tokens=20)
    assert loaded.generate("the", seed=2, max_new_tokens=20) == text


def test_a_retrained_name_does_not_answer_with_the_deleted_model(caller: Caller) -> None:
    caller.trained(tiny_spec("twice"), b"abab" * 30)
    assert set(caller.text("twice", seed=1)) <= set("ab")
    caller.stub.DeleteModel(pb.DeleteModelRequest(model="twice", all_versions=True))
    assert caller.trained(tiny_spec("twice"), b"xyxy" * 30).version == 1
    assert set(caller.text("twice", seed=1)) <= set("xy")


def test_names_that_lead_elsewhere(caller: Caller) -> None:
    calls: list[Callable[[], object]] = [
        lambda: caller.generate("../shared"),
        lambda: caller.score("a/b", ["x"]),
        lambda: caller.stub.GetModel(pb.GetModelRequest(model="..")),
        lambda: caller.stub.DeleteModel(pb.DeleteModelRequest(model="/", version=1)),
        lambda: caller.stub.DeleteModel(pb.DeleteModelRequest(version=1)),
    ]
    for call in calls:
        assert fields_of(refused(call)) == ["model"]


# The server itself


def test_the_server_describes_itself(caller: Caller) -> None:
    info = caller.info()
    assert info.version
    assert info.cpu_target
    assert info.threads >= 1
    assert info.training_slots == 2
    assert info.uptime_s > 0
    assert (info.max_corpus_bytes, info.max_message_bytes) == (1 << 30, 4 << 20)


def test_health_knows_the_server_and_the_service(server: Server, caller: Caller) -> None:
    assert caller.serving()
    assert caller.serving("treadle.v1.SequenceService")
    error = refused(lambda: caller.serving("nobody"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    command = [sys.executable, "-m", "treadle.server", "--check-health", server.address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{server.address}: SERVING\n")


def test_reflection_lists_the_services(caller: Caller) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (reply,) = stub.ServerReflectionInfo(iter([asked]), timeout=PATIENCE_S)
    names = {service.name for service in reply.list_services_response.service}
    assert {"treadle.v1.SequenceService", "grpc.health.v1.Health"} <= names


def test_a_message_too_large_is_refused(caller: Caller, model: str) -> None:
    error = refused(lambda: caller.generate(model, prompt="x" * (5 << 20)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_garbage_instead_of_a_message(caller: Caller) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes]
    call = caller.channel.unary_unary("/treadle.v1.SequenceService/Score")
    error = refused(lambda: call(b"\xff\xff\xff", timeout=PATIENCE_S))
    assert fields_of(error) == []
    stream: grpc.StreamStreamMultiCallable[bytes, bytes]
    stream = caller.channel.stream_stream("/treadle.v1.SequenceService/Train")
    error = refused(lambda: list(stream(iter([b"\n\x02\n\xff"]), timeout=PATIENCE_S)))
    assert fields_of(error) == []
    call = caller.channel.unary_unary("/treadle.v1.SequenceService/Sing")
    error = refused(lambda: call(b"", timeout=PATIENCE_S))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_upload_larger_than_any_message(caller: Caller) -> None:
    chunk = TEXT * 1_000
    spec = tiny_spec("large", max_steps=2)
    spec.data.validation_fraction = 0
    count = (6 << 20) // len(chunk) + 1
    events = list(caller.train(spec, source=requests(spec, *itertools.repeat(chunk, count))))
    started = next(event.started for event in events if event.HasField("started"))
    assert started.train_tokens == count * len(chunk)
    assert events[-1].HasField("completed")


def test_the_log_of_all_this_has_no_traceback(server: Server) -> None:
    # The last test of this file on purpose: nothing above was an error of the server's.
    assert "Traceback" not in server.log
    assert "internal error" not in server.log
