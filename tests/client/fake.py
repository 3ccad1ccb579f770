"""A Treadle server with no model in it: it records what it is asked and answers by rote."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.rpc import (  # type: ignore[import-untyped]
    error_details_pb2,
    status_pb2,
)
from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1.health import HealthServicer  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from treadle.v1 import sequence_pb2 as v1
from treadle.v1.sequence_pb2_grpc import add_SequenceServiceServicer_to_server

from .fake_files import FakeFiles
from .fake_travel import FakeTravel

STUCK = "stuck"
"""A model whose calls never end by themselves."""

PAUSED = "paused"
"""A model whose jobs pause after their second event."""

FAULT = "?"
"""A piece that a stream cannot read, whole or with the line's end, and a text that is refused."""

FORBIDDEN = "forbidden"
"""A name that no model can have."""

UNKNOWN = "#"
"""A character that no vocabulary has."""

STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


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


def a_token(text: str, request: Any, first: bool = False, index: int = 1) -> v1.Token:
    """A token with the fields that a request asks for; the first of a text has no value."""
    token = v1.Token(id=index, text=text)
    if first:
        return token
    token.log_probability = -0.5 if isinstance(request, v1.GenerateRequest) else -1.0
    if request.ranks:
        token.rank = ord(text) % 16
    for place in range(request.top_log_probabilities):
        token.alternatives.add(id=place, text="abc"[place % 3], log_probability=-0.25 * (place + 1))
    return token


def tells_tokens(request: Any) -> bool:
    return bool(request.log_probabilities or request.ranks or request.top_log_probabilities)


def a_result(request: v1.GenerateRequest, stop: str) -> v1.GenerateResult:
    return v1.GenerateResult(
        stop_reason=v1.STOP_REASON_STOP_SEQUENCE if stop else v1.STOP_REASON_MAX_NEW_TOKENS,
        stop_sequence=stop,
        seed=request.seed if request.HasField("seed") else 2**63,
        version=request.version or 1,
        new_tokens=4,
        total_log_probability=-2.0,
    )


def a_score(text: str, request: Any = None) -> v1.TextScore:
    score = v1.TextScore(
        total_log_probability=-float(len(text)),
        token_count=len(text),
        character_count=len(text),
    )
    if text:
        score.mean_nats = 1.0
        score.perplexity = 2.71828
        score.bits_per_character = 1.4427
    if score_unknown := text.count(UNKNOWN):
        score.unknown_count = score_unknown
        score.ClearField("bits_per_character")
    if request is not None and tells_tokens(request):
        score.tokens.extend(a_token(c, request, i == 0, i) for i, c in enumerate(text))
    return score


def a_piece_score(piece: v1.TextPiece, whole: str, spec: Any) -> v1.PieceScore:
    """A nat a character."""
    score = v1.PieceScore(
        total_log_probability=-float(len(piece.text)), token_count=len(piece.text)
    )
    if tells_tokens(spec):
        score.tokens.extend(a_token(c, spec) for c in piece.text)
    if piece.end:
        score.whole.CopyFrom(a_score(whole))
    return score


def events_of(job: str, spec: v1.TrainSpec, corpus_bytes: int) -> list[v1.JobEvent]:
    """The events of a job: five, unless its model is a special one."""
    started = v1.TrainingStarted(
        spec=spec,
        notices=["the batch was shrunk to 1"],
        train_tokens=corpus_bytes,
        vocabulary_size=4,
        parameter_count=12345,
        total_steps=200,
    )
    half = v1.TrainingProgress(
        step=100, epoch=1.5, train_loss=1.25, tokens_per_second=12_345, time_left_s=2.0
    )
    end = v1.TrainingProgress(
        step=200, train_loss=0.5, valid_loss=0.75, sample="hello\x1b[31m\nhell"
    )
    paused = v1.JobStateChange(state=v1.JOB_STATE_PAUSED, reason="the disk is full")
    events = [
        v1.JobEvent(state=v1.JobStateChange(state=v1.JOB_STATE_QUEUED)),
        v1.JobEvent(started=started),
        v1.JobEvent(progress=half),
        v1.JobEvent(progress=end),
        v1.JobEvent(completed=a_model(spec.model)),
    ]
    if spec.model == STUCK:
        events = events[:2]
    if spec.model == PAUSED:
        events[2:] = [v1.JobEvent(state=paused)]
    for number, event in enumerate(events, 1):
        event.sequence = number
        event.job = job
    return events


def an_accepted_job(job: str, spec: v1.TrainSpec, corpus_bytes: int) -> v1.Job:
    events = events_of(job, spec, corpus_bytes)
    state = {STUCK: v1.JOB_STATE_RUNNING, PAUSED: v1.JOB_STATE_PAUSED}.get(
        spec.model, v1.JOB_STATE_SUCCEEDED
    )
    made = v1.Job(
        id=job,
        model=spec.model,
        state=state,
        spec=spec,
        last_sequence=len(events),
        started=events[1].started,
        corpus_bytes=corpus_bytes,
        version=int(state == v1.JOB_STATE_SUCCEEDED),
    )
    if state == v1.JOB_STATE_SUCCEEDED:
        made.progress.CopyFrom(events[3].progress)
    made.create_time.FromSeconds(1_700_000_000)
    return made


def _refuse_fault(request: v1.ScoreRequest | v1.EmbedRequest, context: Any) -> None:
    """Refuses all the texts of a request where one of them is FAULT."""
    if FAULT in request.texts:
        field = f"texts[{list(request.texts).index(FAULT)}]"
        text = "'?' is unknown: set unknown_policy to 'skip'"
        failure = status_pb2.Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message=text)
        detail = error_details_pb2.BadRequest()
        detail.field_violations.add(field=field, description=text)
        failure.details.add().Pack(detail)
        context.abort_with_status(rpc_status.to_status(failure))


class FakeService(FakeTravel, FakeFiles):
    describe = staticmethod(a_model)

    def __init__(self) -> None:
        super().__init__()
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
        self.files: list[v1.CorpusFile] = []
        """What was said of each file of a corpus."""
        self.jobs: dict[str, v1.Job] = {}
        self.events: dict[str, list[v1.JobEvent]] = {}
        self.requested: dict[str, str] = {}
        """The jobs of request ids."""
        self.breaks: list[tuple[int, int, str]] = []
        """Event numbers, each with a code and details that the stream breaks with behind it."""
        self.refusals: dict[str, Any] = {}
        """Prompts, each with the google.rpc.Status that they are refused with."""
        self.novelty_index = False
        """Of every model."""
        self.novel: dict[str, bool] = {}
        """The texts that several generations draw from, each with whether it is new."""
        self.stuck_prompts: set[str] = set()
        """Prompts whose replies never end."""
        self.lost: set[int] = set()
        """The numbers of texts that end without a result, where several are made."""
        self.layout = v1.CORPUS_LAYOUT_TEXT
        """Of every model."""
        self.precision: v1.InferencePrecision.ValueType = v1.INFERENCE_PRECISION_UNSPECIFIED
        """That of requests without one; unset, as of servers that do not tell it."""
        self.pieces: list[v1.TextPiece] = []
        """What came in ScoreStream calls."""
        self.steps: list[v1.LearnStreamRequest] = []
        """What came in LearnStream calls behind the spec."""

        self.caller: v1.CallerInfo | None = None
        """Who calls, as GetServerInfo describes it."""

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
    ) -> Iterator[v1.JobEvent]:
        spec = next(requests).spec
        self._begin(spec, context)
        size = 0
        try:
            for request in requests:
                if request.HasField("corpus_end"):
                    self.trained = request.corpus_end.size_bytes == size
                    break
                if request.HasField("corpus_file"):
                    self.files.append(request.corpus_file)
                size += len(request.corpus_chunk)
                self.corpus += request.corpus_chunk
                self.chunks.append(len(request.corpus_chunk))
        except Exception:  # what gRPC raises here when the client cancels has no public type
            return
        if not self.trained:
            return
        job = self.accept(spec, len(self.corpus))
        yield from self._events(job, 0, context)

    def accept(self, spec: v1.TrainSpec, corpus_bytes: int = 5) -> str:
        """Makes a job whose corpus has arrived, and returns its id."""
        if spec.request_id in self.requested:
            return self.requested[spec.request_id]
        job = f"{len(self.jobs) + 0xA1:x}-job"
        self.jobs[job] = an_accepted_job(job, spec, corpus_bytes)
        self.events[job] = events_of(job, spec, corpus_bytes)
        if spec.request_id:
            self.requested[spec.request_id] = job
        return job

    def _events(self, job: str, after: int, context: Any) -> Iterator[v1.JobEvent]:
        """Yields a job's events as they stand, and ends as the job does."""
        for event in self.events[job][after:]:
            yield event
            if self.breaks and event.sequence == self.breaks[0][0]:
                _, code, details = self.breaks.pop(0)
                context.abort(STATUS_CODES[code], details)
        model = self.jobs[job].model
        if model == STUCK:
            self._stick(context)
        elif model == PAUSED:
            context.abort(grpc.StatusCode.ABORTED, f"job {job} is paused: the disk is full")

    def _job(self, request: Any, context: Any) -> v1.Job:
        self._begin(request, context)
        if request.job not in self.jobs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no job '{request.job}'")
        return self.jobs[request.job]

    def WatchJob(  # noqa: N802
        self, request: v1.WatchJobRequest, context: Any
    ) -> Iterator[v1.WatchJobResponse]:
        job = self._job(request, context)
        for event in self._events(job.id, request.after_sequence, context):
            yield v1.WatchJobResponse(event=event)

    def GetJob(self, request: v1.GetJobRequest, context: Any) -> v1.GetJobResponse:  # noqa: N802
        return v1.GetJobResponse(job=self._job(request, context))

    def ListJobs(self, request: v1.ListJobsRequest, context: Any) -> v1.ListJobsResponse:  # noqa: N802
        self._begin(request, context)
        found = [
            job
            for job in reversed(self.jobs.values())
            if (not request.states or job.state in request.states)
            and (not request.model or job.model == request.model)
            and dict(request.tags).items() <= dict(job.spec.tags).items()
        ]
        start = int(request.page_token or "0")
        end = start + (request.page_size or 2)
        return v1.ListJobsResponse(
            jobs=found[start:end], next_page_token=str(end) if end < len(found) else ""
        )

    def CancelJob(self, request: v1.CancelJobRequest, context: Any) -> v1.CancelJobResponse:  # noqa: N802
        job = self._job(request, context)
        job.state = v1.JOB_STATE_CANCELLED
        job.reason = "its client asked for it"
        return v1.CancelJobResponse(job=job)

    def PauseJob(self, request: v1.PauseJobRequest, context: Any) -> v1.PauseJobResponse:  # noqa: N802
        job = self._job(request, context)
        answer = v1.PauseJobResponse(job=job)
        answer.job.state = v1.JOB_STATE_RUNNING
        answer.job.reason = "pausing on request"
        job.state = v1.JOB_STATE_PAUSED  # which takes longer than the answer
        return answer

    def ResumeJob(self, request: v1.ResumeJobRequest, context: Any) -> v1.ResumeJobResponse:  # noqa: N802
        job = self._job(request, context)
        job.state = v1.JOB_STATE_QUEUED
        return v1.ResumeJobResponse(job=job)

    def DeleteJob(self, request: v1.DeleteJobRequest, context: Any) -> v1.DeleteJobResponse:  # noqa: N802
        del self.jobs[self._job(request, context).id]
        return v1.DeleteJobResponse()

    def SetAlias(self, request: v1.SetAliasRequest, context: Any) -> v1.SetAliasResponse:  # noqa: N802
        self._begin(request, context)
        model = a_model(request.model, request.version or 2)
        model.aliases.append(request.alias)
        return v1.SetAliasResponse(model=model)

    def DeleteAlias(  # noqa: N802
        self, request: v1.DeleteAliasRequest, context: Any
    ) -> v1.DeleteAliasResponse:
        self._begin(request, context)
        return v1.DeleteAliasResponse()

    def Generate(  # noqa: N802
        self, request: v1.GenerateRequest, context: Any
    ) -> Iterator[v1.GenerateResponse]:
        self._begin(request, context)
        if request.prompt in self.refusals:
            context.abort_with_status(rpc_status.to_status(self.refusals[request.prompt]))
        if request.n:
            yield from self._several(request, context)
            return
        none = request.HasField("max_new_tokens") and not request.max_new_tokens
        pieces = () if none else ("el", "", "lo")
        for piece in pieces:
            tokens = [a_token(c, request) for c in piece] if tells_tokens(request) else []
            yield v1.GenerateResponse(text=piece, tokens=tokens)
        while request.model == "endless" and context.is_active():
            yield v1.GenerateResponse(text="more and more and more\n")
        if request.model == STUCK or request.prompt in self.stuck_prompts:
            self._stick(context)
            return
        stop = request.stop_sequences[0] if request.stop_sequences else ""
        result = a_result(request, stop)
        result.inference_precision = request.inference_precision or self.precision
        if request.return_state:
            result.state = (
                request.state
                + request.prompt.encode()
                + b"".join(piece.encode() for piece in pieces)
            )
        yield v1.GenerateResponse(result=result)

    def _several(self, request: v1.GenerateRequest, context: Any) -> Iterator[v1.GenerateResponse]:
        """Texts drawn from `self.novel`, the last one ending first; pieces of all in turns."""
        texts = [self.item(request, index) for index in range(request.n)]
        for index, text in enumerate(texts):
            yield v1.GenerateResponse(text=text[:1], index=index)
        order = [0] if request.model == STUCK else list(reversed(range(request.n)))
        for index in order:
            if index in self.lost:
                continue
            result = a_result(request, "")
            result.inference_precision = request.inference_precision or self.precision
            result.stop_reason = v1.STOP_REASON_END_TOKEN
            result.total_log_probability = -float(len(texts[index]))
            if request.novelty:
                result.novelty.is_new = self.novel.get(texts[index], True)
                result.novelty.longest_overlap = 2
            yield v1.GenerateResponse(text=texts[index][1:], index=index, result=result)
        if request.model == STUCK:
            self._stick(context)

    def item(self, request: v1.GenerateRequest, index: int) -> str:
        """The text that a seed draws at a place: the same one each time."""
        names = list(self.novel) or ["amy"]
        drawn = hashlib.sha256(f"{request.seed} {index}".encode()).digest()
        return names[drawn[0] % len(names)]

    def Score(self, request: v1.ScoreRequest, context: Any) -> v1.ScoreResponse:  # noqa: N802
        self._begin(request, context)
        _refuse_fault(request, context)
        scores = [a_score(text, request) for text in request.texts]
        precision = request.inference_precision or self.precision
        for text, score in zip(request.texts, scores, strict=True):
            score.inference_precision = precision
            if request.return_states:
                score.state = request.state + request.context.encode() + text.encode()
        return v1.ScoreResponse(scores=scores, version=7, inference_precision=precision)

    def ScoreStream(  # noqa: N802
        self, requests: Iterator[v1.ScoreStreamRequest], context: Any
    ) -> Iterator[v1.ScoreStreamResponse]:
        spec = next(requests).spec
        self._begin(spec, context)
        whole = ""
        every = ""
        items = 0
        for request in requests:
            piece = request.piece
            self.pieces.append(piece)
            if piece.text.strip() == FAULT:
                yield v1.ScoreStreamResponse(piece=self._skipped(spec, context))
                continue
            whole += piece.text
            every += piece.text
            items += piece.end
            yield v1.ScoreStreamResponse(piece=a_piece_score(piece, whole, spec))
            whole = "" if piece.end else whole
        result = v1.ScoreStreamResult(total=a_score(every), item_count=items, version=7)
        result.inference_precision = spec.inference_precision or self.precision
        result.total.inference_precision = result.inference_precision
        if spec.return_state:
            result.state = spec.state + whole.encode()
        yield v1.ScoreStreamResponse(result=result)

    def _skipped(self, spec: Any, context: Any) -> v1.PieceScore:
        """The answer to a piece that cannot be read; ends the call unless `on_error` is set."""
        if not spec.on_error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there is no '?'")
        return v1.PieceScore(error=v1.StreamError(code=3, message="there is no '?'"))

    def LearnStream(  # noqa: N802
        self, requests: Iterator[v1.LearnStreamRequest], context: Any
    ) -> Iterator[v1.LearnStreamResponse]:
        spec = next(requests).spec
        self._begin(spec, context)
        updates = 0
        kept = 0
        version = spec.version or 1
        for request in requests:
            self.steps.append(request)
            kind = request.WhichOneof("message")
            response = v1.LearnStreamResponse()
            if kind in ("learn", "predict"):
                piece = request.learn if kind == "learn" else request.predict
                if piece.text.strip() == FAULT:
                    skipped = self._skipped(spec, context)
                    yield v1.LearnStreamResponse(piece=skipped, updates=updates)
                    continue
                updates += kind == "learn"
                response.piece.CopyFrom(a_piece_score(piece, piece.text, spec))
            elif kind == "snapshot":
                kept = updates
                response.snapshot.SetInParent()
            elif kind == "roll_back":
                updates = kept
                response.roll_back.SetInParent()
            elif request.publish.model == FORBIDDEN:
                response.error.code = 3
                response.error.message = "publish.model must be another"
            elif request.publish.validate_only:
                response.published.name = request.publish.model or spec.model
            else:
                version += 1
                response.published.CopyFrom(a_model(request.publish.model or spec.model, version))
            response.updates = updates
            yield response

    def Embed(self, request: v1.EmbedRequest, context: Any) -> v1.EmbedResponse:  # noqa: N802
        self._begin(request, context)
        _refuse_fault(request, context)
        layers = 2 if request.all_layers else 1
        precision = request.inference_precision or self.precision
        return v1.EmbedResponse(
            embeddings=[
                v1.Embedding(
                    values=[0.5, -0.25] * layers,
                    token_count=len(text),
                    inference_precision=precision,
                )
                for text in request.texts
            ],
            version=7,
            inference_precision=precision,
        )

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
        model = a_model(request.model, 2)
        model.layout = self.layout
        model.novelty_index = self.novelty_index
        return v1.GetModelResponse(model=model, versions=[1, 2])

    def DeleteModel(  # noqa: N802
        self, request: v1.DeleteModelRequest, context: Any
    ) -> v1.DeleteModelResponse:
        self._begin(request, context)
        return v1.DeleteModelResponse(versions=[request.version] if request.version else [1, 2])

    def GetServerInfo(  # noqa: N802
        self, request: v1.GetServerInfoRequest, context: Any
    ) -> v1.GetServerInfoResponse:
        self._begin(request, context)
        return v1.GetServerInfoResponse(
            caller=self.caller,
            version="0.1.0",
            threads=2,
            max_corpus_bytes=2**31,
            sessions_running=3,
            session_limit=512,
            score_streams_running=2,
            score_stream_limit=6,
            learning_running=1,
            learning_limit=4,
            models_loaded=2,
            models_loaded_bytes=5_000_000,
            memory_budget_bytes=2_000_000_000,
            memory_used_bytes=7_000_000,
            inference_precision=self.precision,
        )


class Recorder(grpc.ServerInterceptor):
    """Records the metadata of every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.calls.append((details.method.rpartition("/")[2], dict(details.invocation_metadata)))
        return continuation(details)


class FakeServer:
    """The service, listening on this machine, on a free port by default."""

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        service: FakeService | None = None,
        credentials: Any = None,
    ) -> None:
        self.service = service or FakeService()
        self.health = HealthServicer()
        recorder = Recorder()
        self.calls = recorder.calls
        """The methods that were called, each with its metadata."""
        self._pool = ThreadPoolExecutor(8)
        options = [("grpc.so_reuseport", 0)]
        self._server = grpc.server(self._pool, interceptors=[recorder], options=options)
        add_SequenceServiceServicer_to_server(self.service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
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
