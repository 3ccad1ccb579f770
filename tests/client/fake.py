"""A Treadle server with no model in it: it records what it is asked and answers by rote."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.rpc import status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1.health import HealthServicer  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from treadle.v1 import sequence_pb2 as v1
from treadle.v1.sequence_pb2_grpc import (
    SequenceServiceServicer,
    add_SequenceServiceServicer_to_server,
)

STUCK = "stuck"
"""A model whose calls never end by themselves."""


def a_model(name: str = "hello", version: int = 1) -> v1.Model:
    model = v1.Model(
        name=name,
        version=version,
        network=v1.NetworkSpec(
            cell=v1.CELL_LSTM, hidden_size=128, layers=2, embedding_size=64, dropout=0.2
        ),
        tokenizer=v1.TokenizerSpec(
            kind=v1.TOKENIZER_KIND_CHARACTERS, unknown_policy=v1.UNKNOWN_POLICY_ERROR
        ),
        layout=v1.CORPUS_LAYOUT_TEXT,
        vocabulary_size=4,
        parameter_count=12345,
        size_bytes=50_000,
        sha256="ab" * 32,
        training=v1.TrainingRecord(
            steps=200, tokens_seen=1000, train_loss=0.5, valid_loss=0.75, ended_by="max_steps"
        ),
    )
    model.create_time.FromSeconds(1_700_000_000)
    return model


def a_score(text: str, tokens: bool) -> v1.TextScore:
    score = v1.TextScore(
        total_log_probability=-float(len(text)),
        token_count=len(text),
        character_count=len(text),
    )
    if text:
        score.mean_nats, score.perplexity, score.bits_per_character = 1.0, 2.71828, 1.4427
    if tokens:
        score.tokens.extend(
            v1.Token(id=i, text=c, log_probability=-1.0 if i else None) for i, c in enumerate(text)
        )
    return score


class FakeService(SequenceServiceServicer):
    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.corpus = b""
        self.chunks: list[int] = []
        self.failure: Any = None
        """A google.rpc.Status that every call then ends with."""
        self.begun = threading.Event()
        """Whether a call has reached the service."""
        self.over = threading.Event()
        """Whether a call has ended, by itself or by its client."""
        self.trained = False
        """Whether a corpus arrived whole, with its end."""
        self.pages = 1

    def _begin(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        context.add_callback(self.over.set)
        self.begun.set()
        if self.failure is not None:
            context.abort_with_status(rpc_status.to_status(self.failure))

    def _stick(self, context: Any) -> None:
        """Waits until the client is gone."""
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait()

    def Train(  # noqa: N802
        self, requests: Iterator[v1.TrainRequest], context: Any
    ) -> Iterator[v1.TrainResponse]:
        spec = next(requests).spec
        self._begin(spec, context)
        size = 0
        try:
            for request in requests:
                if request.HasField("corpus_end"):
                    self.trained = request.corpus_end.size_bytes == size
                    break
                size += len(request.corpus_chunk)
                self.corpus += request.corpus_chunk
                self.chunks.append(len(request.corpus_chunk))
        except Exception:  # what gRPC raises here when the client cancels has no public type
            return
        if not self.trained:
            return
        yield v1.TrainResponse(
            sequence=1,
            started=v1.TrainingStarted(
                spec=spec,
                notices=["the batch was shrunk to 1"],
                train_tokens=len(self.corpus),
                vocabulary_size=4,
                parameter_count=12345,
                total_steps=200,
            ),
        )
        if spec.model == STUCK:
            self._stick(context)
            return
        yield v1.TrainResponse(
            sequence=2,
            progress=v1.TrainingProgress(
                step=100, epoch=1.5, train_loss=1.25, tokens_per_second=12_345, time_left_s=2.0
            ),
        )
        yield v1.TrainResponse(
            sequence=3,
            progress=v1.TrainingProgress(
                step=200, train_loss=0.5, valid_loss=0.75, sample="hello\x1b[31m\nhell"
            ),
        )
        yield v1.TrainResponse(sequence=4, completed=a_model(spec.model))

    def Generate(  # noqa: N802
        self, request: v1.GenerateRequest, context: Any
    ) -> Iterator[v1.GenerateResponse]:
        self._begin(request, context)
        for piece in ("el", "", "lo"):
            tokens = [v1.Token(id=1, text=c, log_probability=-0.5) for c in piece]
            yield v1.GenerateResponse(
                text=piece, tokens=tokens if request.log_probabilities else []
            )
        while request.model == "endless" and context.is_active():
            yield v1.GenerateResponse(text="more and more and more\n")
        if request.model == STUCK:
            self._stick(context)
            return
        yield v1.GenerateResponse(
            result=v1.GenerateResult(
                stop_reason=v1.STOP_REASON_MAX_NEW_TOKENS,
                seed=request.seed if request.HasField("seed") else 2**63,
                version=1,
                new_tokens=4,
                total_log_probability=-2.0,
            )
        )

    def Score(self, request: v1.ScoreRequest, context: Any) -> v1.ScoreResponse:  # noqa: N802
        self._begin(request, context)
        scores = [a_score(text, request.log_probabilities) for text in request.texts]
        return v1.ScoreResponse(scores=scores, version=7)

    def ListModels(  # noqa: N802
        self, request: v1.ListModelsRequest, context: Any
    ) -> v1.ListModelsResponse:
        self._begin(request, context)
        page = int(request.page_token or "1")
        return v1.ListModelsResponse(
            models=[a_model(f"model-{page}")] if self.pages else [],
            next_page_token=str(page + 1) if page < self.pages else "",
        )

    def GetModel(self, request: v1.GetModelRequest, context: Any) -> v1.GetModelResponse:  # noqa: N802
        self._begin(request, context)
        return v1.GetModelResponse(model=a_model(request.model, 2), versions=[1, 2])

    def DeleteModel(  # noqa: N802
        self, request: v1.DeleteModelRequest, context: Any
    ) -> v1.DeleteModelResponse:
        self._begin(request, context)
        return v1.DeleteModelResponse(versions=[request.version] if request.version else [1, 2])

    def GetServerInfo(  # noqa: N802
        self, request: v1.GetServerInfoRequest, context: Any
    ) -> v1.GetServerInfoResponse:
        self._begin(request, context)
        return v1.GetServerInfoResponse(version="0.1.0", threads=2, max_corpus_bytes=2**31)


class FakeServer:
    """The service, listening on this machine, on a free port unless told otherwise."""

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.service = FakeService()
        self.health = HealthServicer()
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        add_SequenceServiceServicer_to_server(self.service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        port = self._server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()


def status(code: int, message: str, *details: Any) -> Any:
    """Makes a google.rpc.Status."""
    made = status_pb2.Status(code=code, message=message)
    for detail in details:
        made.details.add().Pack(detail)
    return made
