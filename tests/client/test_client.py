"""The Python client against a server that answers by rote."""

from __future__ import annotations

import gc
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from treadle.client import (
    Client,
    InputError,
    InternalError,
    InvalidArgumentError,
    TreadleError,
    UnavailableError,
)
from treadle.client.connection import channel_options
from treadle.client.files.corpus import CHUNK_BYTES
from treadle.v1 import sequence_pb2 as v1

from .fake import STUCK, FakeServer, FakeService, status

PATIENCE_S = 120.0


class TestTrain:
    def test_events_come_one_by_one_and_the_model_last(self, client: Client) -> None:
        with client.train("hello", model="hello") as run:
            kinds = [event.WhichOneof("event") for event in run]
            assert kinds == ["state", "started", "progress", "progress", "completed"]
            assert run.job == "a1-job"
            assert run.started is not None
            assert run.started.train_tokens == 5
            assert run.progress is not None
            assert run.progress.step == 200
            assert run.result().name == "hello"

    def test_result_alone_is_enough(self, client: Client, service: FakeService) -> None:
        assert client.train(b"hello", model="m").result().version == 1
        assert service.corpus == b"hello"

    @pytest.mark.parametrize(
        "make",
        [
            lambda path: path.read_text(),
            lambda path: path.read_bytes(),
            lambda path: bytearray(path.read_bytes()),
            lambda path: memoryview(path.read_bytes()),
            lambda path: path,
            lambda path: io.BytesIO(path.read_bytes()),
            lambda path: io.StringIO(path.read_text()),
            lambda path: path.read_text().splitlines(keepends=True),
            lambda path: (line.encode() for line in path.read_text().splitlines(keepends=True)),
        ],
        ids=[
            "text",
            "bytes",
            "bytearray",
            "memoryview",
            "path",
            "file",
            "textfile",
            "lines",
            "generator",
        ],
    )
    def test_any_kind_of_corpus_arrives_whole(
        self, client: Client, service: FakeService, tmp_path: Path, make: Callable[[Path], Any]
    ) -> None:
        path = tmp_path / "corpus.txt"
        path.write_text("Schöne Grüße\n" * 50_000)
        client.train(make(path), model="m").result()
        assert service.corpus == path.read_bytes()
        assert max(service.chunks) <= CHUNK_BYTES

    def test_a_large_corpus_is_cut_into_chunks(self, client: Client, service: FakeService) -> None:
        data = bytes(range(256)) * 4096
        client.train([data, b"", b"x"], model="m").result()
        assert service.corpus == data + b"x"
        assert service.chunks == [CHUNK_BYTES] * 4 + [1]

    def test_an_open_file_is_read_from_where_it_stands_and_left_open(
        self, client: Client, service: FakeService
    ) -> None:
        file = io.BytesIO(b"skip hello")
        file.seek(5)
        client.train(file, model="m").result()
        assert service.corpus == b"hello"
        assert not file.closed

    def test_options_become_the_spec(self, client: Client, service: FakeService) -> None:
        spec = v1.TrainSpec(model="old", seed=3, data=v1.DataSpec(window=9))
        client.train(
            "x",
            model="new",
            spec=spec,
            tokenizer="words",
            unknown_policy="skip",
            layout="lines",
            cell="gru",
            hidden_size=32,
            embedding_size=0,
            optimizer="sgd",
            schedule="constant",
            learning_rate=0.5,
            max_steps=7,
            sample_tokens=0,
            seed=4,
        ).result()
        assert service.requests == [
            v1.TrainSpec(
                model="new",
                tokenizer=v1.TokenizerSpec(
                    kind=v1.TOKENIZER_KIND_WORDS, unknown_policy=v1.UNKNOWN_POLICY_SKIP
                ),
                data=v1.DataSpec(layout=v1.CORPUS_LAYOUT_LINES, window=9),
                network=v1.NetworkSpec(cell=v1.CELL_GRU, hidden_size=32, embedding_size=0),
                optimizer=v1.OptimizerSpec(
                    optimizer=v1.OPTIMIZER_SGD,
                    schedule=v1.SCHEDULE_CONSTANT,
                    learning_rate=0.5,
                ),
                limits=v1.LimitsSpec(max_steps=7),
                report=v1.ReportSpec(sample_tokens=0),
                seed=4,
            )
        ]
        assert spec.model == "old"

    def test_leaving_the_block_cancels_the_run(self, client: Client, service: FakeService) -> None:
        with client.train("hello", model=STUCK) as run:
            next(run)
        assert service.over.wait(PATIENCE_S)
        assert list(run) == []
        with pytest.raises(InternalError):
            run.result()

    def test_dropping_the_run_cancels_it(self, client: Client, service: FakeService) -> None:
        next(client.train("hello", model=STUCK))
        gc.collect()
        assert service.over.wait(PATIENCE_S)

    def test_closing_from_another_thread_ends_the_iteration(
        self, client: Client, service: FakeService
    ) -> None:
        run = client.train("hello", model=STUCK)
        assert [next(run).sequence, next(run).sequence] == [1, 2]
        closer = threading.Timer(0.1, run.close)
        closer.start()
        assert list(run) == []
        closer.join()

    def test_a_corpus_that_breaks_is_never_taken_for_a_whole_one(
        self, client: Client, service: FakeService
    ) -> None:
        def breaking() -> Iterator[bytes]:
            yield bytes(CHUNK_BYTES)
            service.begun.wait(PATIENCE_S)
            raise ZeroDivisionError("the source broke")

        with pytest.raises(ZeroDivisionError, match="the source broke"):
            client.train(breaking(), model="m").result()
        assert service.over.wait(PATIENCE_S)
        assert not service.trained

    def test_a_refused_spec_ends_an_upload_under_way(
        self, client: Client, service: FakeService
    ) -> None:
        service.failure = status(3, "hidden_size must be 1 to 4,096")
        blocked = threading.Event()

        def slow() -> Iterator[bytes]:
            yield b"hello"
            blocked.wait(PATIENCE_S)

        with pytest.raises(InvalidArgumentError, match="hidden_size"):
            client.train(slow(), model="m").result()
        blocked.set()

    @pytest.mark.parametrize(
        ("corpus", "message"),
        [
            (Path("no/such/file"), "cannot read no/such/file: No such file or directory"),
            (Path(), "Is a directory"),
            (5, "not int"),
        ],
    )
    def test_a_corpus_that_cannot_be_read(self, client: Client, corpus: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            client.train(corpus, model="m")

    def test_a_corpus_with_lone_surrogates(self, client: Client) -> None:
        with pytest.raises(InputError, match="surrogates"):
            client.train("\udcff", model="m").result()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"cell": "lstn"}, "cell cannot be 'lstn': it is one of rnn, gru, lstm"),
            ({"hidden_size": -1}, "hidden_size cannot be -1"),
            ({"hidden_size": "many"}, "hidden_size cannot be 'many'"),
            ({"hidden_sise": 1}, "no training option 'hidden_sise'"),
        ],
    )
    def test_wrong_options(self, client: Client, options: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            client.train("x", model="m", **options)

    def test_a_timeout(self, client: Client) -> None:
        with pytest.raises(TreadleError, match="longer than the timeout"):
            client.train("x", model=STUCK, timeout_s=0.2).result()


class TestGenerate:
    def test_pieces_come_as_they_are_made_and_the_result_last(self, client: Client) -> None:
        with client.generate("hello", "h", log_probabilities=True) as generation:
            assert list(generation) == ["el", "lo"]
            assert generation.text == "ello"
            assert [token.text for token in generation.tokens] == ["e", "l", "l", "o"]
            assert generation.result().seed == 2**63
            assert list(generation) == []

    def test_the_whole_text(self, client: Client) -> None:
        assert client.generate_text("hello", "h") == "ello"

    def test_options_become_the_request(self, client: Client, service: FakeService) -> None:
        client.generate_text(
            "m",
            "p",
            version=2,
            temperature=0,
            top_k=5,
            top_p=0.5,
            min_p=0.25,
            seed=0,
            max_new_tokens=0,
            stop_sequences=["a", "b"],
            unknown_policy="skip",
        )
        client.generate_text("m", stop_sequences="end")
        assert service.requests == [
            v1.GenerateRequest(
                model="m",
                version=2,
                prompt="p",
                temperature=0,
                top_k=5,
                top_p=0.5,
                min_p=0.25,
                seed=0,
                max_new_tokens=0,
                stop_sequences=["a", "b"],
                unknown_policy=v1.UNKNOWN_POLICY_SKIP,
            ),
            v1.GenerateRequest(model="m", stop_sequences=["end"]),
        ]

    def test_leaving_early_cancels(self, client: Client, service: FakeService) -> None:
        with client.generate(STUCK) as generation:
            for _ in generation:
                break
        assert service.over.wait(PATIENCE_S)

    def test_dropping_the_iterator_cancels(self, client: Client, service: FakeService) -> None:
        pieces = iter(client.generate(STUCK))
        next(pieces)
        del pieces
        gc.collect()
        assert service.over.wait(PATIENCE_S)

    def test_a_closed_generation_has_no_result(self, client: Client) -> None:
        generation = client.generate(STUCK)
        generation.close()
        with pytest.raises(InternalError):
            generation.result()

    def test_wrong_options(self, client: Client) -> None:
        with pytest.raises(InputError, match="no field 'heat'"):
            client.generate("m", heat=1)  # type: ignore[call-arg]
        with pytest.raises(InputError, match="prompt is not text"):
            client.generate("m", "\udcff")


class TestScore:
    def test_one_text_and_several(self, client: Client) -> None:
        assert client.score_text("m", "abc").total_log_probability == -3
        assert [s.token_count for s in client.score("m", "abc")] == [3]
        assert [s.token_count for s in client.score("m", ["a", "", "abc"])] == [1, 0, 3]
        assert list(client.score("m", [])) == []

    def test_many_texts_are_sent_in_batches_to_one_version(
        self, client: Client, service: FakeService
    ) -> None:
        texts = ["x" * (i % 7) for i in range(2500)]
        scores = client.score("m", iter(texts), context="c", log_probabilities=True)
        assert [len(s.tokens) for s in scores] == [len(text) for text in texts]
        assert [len(r.texts) for r in service.requests] == [1000, 1000, 500]
        assert [r.version for r in service.requests] == [0, 7, 7]
        assert {r.context for r in service.requests} == {"c"}

    def test_later_calls_keep_to_the_precision_of_the_first_one(
        self, client: Client, service: FakeService
    ) -> None:
        texts = ["x"] * 2500
        service.precision = v1.INFERENCE_PRECISION_INT8
        for make in (client.score, client.embeddings):
            service.requests.clear()
            list(make("m", texts))
            first, *later = [request.inference_precision for request in service.requests]
            assert first == v1.INFERENCE_PRECISION_UNSPECIFIED
            assert set(later) == {v1.INFERENCE_PRECISION_INT8}
            service.requests.clear()
            list(make("m", texts, inference_precision="fp32"))
            asked = {request.inference_precision for request in service.requests}
            assert asked == {v1.INFERENCE_PRECISION_FP32}
        assert client.score_text("m", "x").inference_precision == v1.INFERENCE_PRECISION_INT8
        (vector,) = client.embeddings("m", "x")
        assert vector.inference_precision == v1.INFERENCE_PRECISION_INT8
        with pytest.raises(InputError, match="it is one of fp32, int8"):
            client.generate("m", inference_precision="bf16")  # type: ignore[arg-type]

    def test_a_long_context_is_sent_once_and_then_the_state_after_it(
        self, client: Client, service: FakeService
    ) -> None:
        context = "c" * 5000
        options: Any = {"context": context, "state": b"s", "ranks": True}
        scores = client.score("m@a", ["x"] * 2500, **options)
        assert [len(s.tokens) for s in scores] == [1] * 2500
        first, asked, *later = service.requests
        assert (len(first.texts), first.context, first.state) == (1000, context, b"s")
        assert (list(asked.texts), asked.context, asked.state) == ([""], context, b"s")
        assert (asked.return_states, asked.ranks, asked.model, asked.version) == (
            True,
            False,
            "m",
            7,
        )
        assert [(len(r.texts), r.context, r.version) for r in later] == [
            (1000, "", 7),
            (500, "", 7),
        ]
        assert {r.state for r in later} == {b"s" + context.encode()}

    def test_the_context_is_sent_each_time_where_the_weights_may_change(
        self, client: Client, service: FakeService
    ) -> None:
        list(client.score("", ["x"] * 1500, context="c" * 5000, job="j"))
        assert [len(r.context) for r in service.requests] == [5000, 5000]

    def test_long_texts_go_in_their_own_requests(
        self, client: Client, service: FakeService
    ) -> None:
        texts = ["a" * 200_000, "b" * 200_000, "c" * 300_000, "d"]
        assert [s.token_count for s in client.score("m", texts)] == [len(t) for t in texts]
        assert [len(r.texts) for r in service.requests] == [1, 1, 1, 1]

    def test_scores_come_while_texts_still_do(self, client: Client) -> None:
        def texts() -> Iterator[str]:
            yield from ["a"] * 1001
            raise ZeroDivisionError

        scores = client.score("m", texts())
        assert next(scores).token_count == 1


class TestModels:
    def test_all_pages_are_walked(self, client: Client, service: FakeService) -> None:
        service.pages = 3
        names = [model.name for model in client.models(page_size=1)]
        assert names == ["model-1", "model-2", "model-3"]
        assert [r.page_size for r in service.requests] == [1, 1, 1]

    def test_get_and_delete(self, client: Client, service: FakeService) -> None:
        assert list(client.get_model("m", version=2).versions) == [1, 2]
        assert list(client.delete_model("m", all_versions=True).versions) == [1, 2]
        assert list(client.delete_model("m", version=2).versions) == [2]
        assert service.requests[0] == v1.GetModelRequest(model="m", version=2)

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"version": None},
            {"version": 0},
            {"version": -1},
            {"version": ""},
            {"version": 1.0},
            {"version": 0, "all_versions": True},
            {"version": 2, "all_versions": True},
            {"all_versions": False},
        ],
    )
    def test_a_deletion_says_what_it_means(
        self, client: Client, service: FakeService, arguments: dict[str, Any]
    ) -> None:
        with pytest.raises(InputError, match="version"):
            client.delete_model("m", **arguments)
        assert service.requests == []

    def test_server_info(self, client: Client) -> None:
        assert client.server_info().version == "0.1.0"


class TestHealth:
    def test_serving_or_not(self, client: Client, server: FakeServer) -> None:
        assert client.health()
        server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert not client.health()

    def test_waiting_until_it_serves(self, client: Client, server: FakeServer) -> None:
        server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        serve = threading.Timer(
            0.3, server.health.set, ("", health_pb2.HealthCheckResponse.SERVING)
        )
        serve.start()
        client.wait_ready(PATIENCE_S)
        serve.join()

    def test_waiting_until_it_listens(self) -> None:
        first = FakeServer()
        address = first.address
        first.stop()
        made: list[FakeServer] = []

        def start_again() -> None:
            server = FakeServer(address)
            made.append(server)

        starter = threading.Timer(0.3, start_again)
        starter.start()
        with Client(address) as client:
            client.wait_ready(PATIENCE_S)
        starter.join()
        made[0].stop()

    def test_waiting_in_vain(self, client: Client, server: FakeServer) -> None:
        server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(UnavailableError, match=r"within 0\.2 s"):
            client.wait_ready(0.2)
        with Client("127.0.0.1:1") as nobody, pytest.raises(UnavailableError):
            nobody.wait_ready(0.2)


@pytest.mark.parametrize(
    ("address", "direct"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("unix:/tmp/treadle", True),
        ("10.0.0.7:50051", False),
        ("treadle.example:50051", False),
        ("dns:///treadle:1", False),
    ],
)
def test_no_proxy_stands_before_this_machine(address: str, direct: bool) -> None:
    assert (("grpc.enable_http_proxy", 0) in channel_options(address)) is direct


def test_a_proxy_in_the_environment_does_not_matter(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Client(server.address) as client:
        assert client.health()
