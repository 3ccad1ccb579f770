"""`Client` is the connection to a Treadle server or several: one method for each call."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, Unpack

from treadle.client.access.bearer_token import TokenSource
from treadle.client.access.credentials import Credentials
from treadle.client.access.tls import AnyPath
from treadle.client.address import check_address
from treadle.client.connection import DEFAULT_ADDRESS, Connection
from treadle.client.errors import InputError, ServerError
from treadle.client.files.corpus import Corpora, is_repeatable
from treadle.client.generate_many import Items
from treadle.client.generation import GeneratedTexts, Generation
from treadle.client.learn_stream import LearnedPieces, LearnStep, LearnStream, learn_requests
from treadle.client.messages.fields import make_request
from treadle.client.options import (
    EmbedOptions,
    GenerateOptions,
    LearnStreamOptions,
    ScoreOptions,
    ScoreStreamOptions,
    StateDictOptions,
    TrainOptions,
    check_model_or_job,
)
from treadle.client.replicas.resumable_generation import ResumableGeneration
from treadle.client.replicas.retry import RECONNECT_S, Retry, ignore
from treadle.client.score_stream import ScoredPieces, ScoreStream, score_requests
from treadle.client.scoring import embed_texts, score_texts
from treadle.client.session import Session
from treadle.client.streaming import AnyPiece, BackgroundRequests, Call, RequestQueue
from treadle.client.training_run import TrainingRun, WatchedEvents
from treadle.client.transfer.model_download import ModelDownload
from treadle.client.transfer.model_files import (
    ModelFile,
    OnProgress,
    Writable,
    no_progress,
    save_model,
    write_chunks,
)
from treadle.client.transfer.model_upload import Import, PassedModel, send_model, state_dict_spec
from treadle.client.upload import Upload, choose_format, make_spec, open_parts
from treadle.v1.sequence_pb2 import (
    CancelJobRequest,
    DeleteAliasRequest,
    DeleteJobRequest,
    DeleteModelRequest,
    DeleteModelResponse,
    Embedding,
    ExportModelRequest,
    ExportModelResponse,
    GenerateRequest,
    GenerateResponse,
    GetJobRequest,
    GetModelRequest,
    GetModelResponse,
    GetServerInfoRequest,
    GetServerInfoResponse,
    ImportModelRequest,
    ImportModelResponse,
    ImportModelSpec,
    Job,
    JobEvent,
    LearnStreamRequest,
    LearnStreamSpec,
    ListJobsRequest,
    ListModelsRequest,
    Model,
    PauseJobRequest,
    ResumeJobRequest,
    ScoreStreamRequest,
    ScoreStreamSpec,
    SetAliasRequest,
    TextScore,
    TrainSpec,
    WatchJobRequest,
    WatchJobResponse,
)

if TYPE_CHECKING:
    from treadle.client.sweep.spec import SweepSpec
    from treadle.client.sweep.sweep import Sweep

__all__ = ["DEFAULT_ADDRESS", "Client"]

State: TypeAlias = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"] | int
"""A job's state: a word, or the number of a `treadle.v1.JobState`."""


class Client:
    """A connection to a Treadle server, or to several of the same models, opened by the first call.

    Threads may share a client. Use it in a `with` block, or call `close()`. Every call raises a
    `ServerError` where it fails, and an `InputError` where an argument is of the wrong type.

    Args:
        address: `HOST:PORT`, `unix:/PATH`, `unix-abstract:NAME`, or another target that gRPC
            knows. Several servers are `HOST:PORT,HOST:PORT` or a name that has all of their
            addresses, `dns:///NAME:PORT`: calls take turns between those that serve, and move to
            another one where a connection breaks.
        timeout_s: The longest that a call may take, in seconds, generation included. Training and
            streams have a `timeout_s` of their own. None sets no limit.
        tls: True: TLS, False: none, None: TLS where one of the files is given.
        ca_file: The certificate authorities to trust, in PEM. None: those that this machine
            trusts, or, where it has none, those that come with gRPC.
        cert_file: The certificate that this client shows, with its chain, in PEM.
        key_file: Its private key, in PEM and not encrypted. Files are read here and not again: a
            renewed certificate needs a new client.
        token: The token that each call carries, or a function that returns it and is called for
            each call, for tokens that are renewed. `TokenFile(path)` reads it from a file.
        allow_plaintext_token: Whether the token may be sent to another machine without TLS, which
            lets everybody on the way read it.

    Raises:
        InputError: The address has none of these forms, a file cannot be used, or the token would
            be sent to another machine without TLS.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float | None = None,
        tls: bool | None = None,
        ca_file: AnyPath | None = None,
        cert_file: AnyPath | None = None,
        key_file: AnyPath | None = None,
        token: TokenSource | None = None,
        allow_plaintext_token: bool = False,
    ) -> None:
        check_address(address)
        credentials = Credentials(
            address,
            tls=tls,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            token=token,
            allow_plaintext_token=allow_plaintext_token,
        )
        self._connection = Connection(credentials, timeout_s)

    @classmethod
    def from_profile(cls, profile: str = "", *, timeout_s: float | None = None) -> Self:
        """Returns the client that the command line would use: from environment and profile.

        Args:
            profile: A profile of `~/.config/treadle/config.toml`, as with `treadle --profile`.
                Empty: the one of TREADLE_PROFILE, or the file's default, if there is one.
            timeout_s: As in the constructor.

        Returns:
            The client. Environment variables such as TREADLE_SERVER and TREADLE_TOKEN take
            precedence over the profile.

        Raises:
            InputError: There is no such profile, or a setting is wrong.
        """
        from treadle.client.settings.connection_settings import resolve_settings

        settings = resolve_settings({}, os.environ, profile)
        for warning in settings.warnings():
            warnings.warn(warning, stacklevel=2)
        return cls(timeout_s=timeout_s, **settings.arguments())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way are cancelled. Closing twice is legal."""
        self._connection.close()

    @property
    def address(self) -> str:
        """The server's address."""
        return self._connection.peer.address

    # ------------------------------------------------------------------ training

    def train(
        self,
        corpus: Corpora,
        *,
        model: str = "",
        spec: TrainSpec | None = None,
        timeout_s: float | None = None,
        reconnect_s: float = RECONNECT_S,
        **options: Unpack[TrainOptions],
    ) -> TrainingRun:
        """Trains a model on a corpus, which is read and sent in the background.

        Args:
            corpus: The text or bytes themselves, a `Path`, an open file, or an iterable of
                pieces. A `str` is text, never a file's name. Several files, or files with a
                role, are a list of `CorpusFile`.
            model: The model's name; a name in use gets a new version.
            spec: A whole spec; `model` and `options` are set on top of it.
            timeout_s: The longest that the call may take, in seconds, waiting for a slot
                included.
            reconnect_s: How long to try to reconnect where the connection breaks after the job
                was accepted, in seconds. No event is missed then. With a `request_id`, a corpus
                that can be read again is also sent again where it breaks before. 0 never tries.
            **options: The spec's fields, flat: `hidden_size=256, max_time_s=60, ...`. With a
                `request_id` the call is safe to repeat: it then follows the first one's job.
                Where no `format` is set, paths that end in .jsonl, .ndjson, .csv or .tsv are read
                as that; `format="plain"` reads them as plain text.

        Returns:
            The run: iterate over its events, call `result()` for the model, or `detach()` to
            leave the job to the server.

        Raises:
            InputError: The corpus cannot be opened, or an option is wrong.
        """
        whole_spec = make_spec(model, spec, options)
        choose_format(whole_spec, corpus)

        def begin(timeout_s: float | None) -> tuple[Call[JobEvent], Upload]:
            upload = Upload(whole_spec, open_parts(corpus))
            stub = self._connection.stub
            call = self._connection.stream(stub.Train, upload.requests(), timeout_s)
            upload.attach(call)
            return call, upload

        call, upload = begin(timeout_s)
        is_safe = whole_spec.request_id != "" and is_repeatable(corpus)
        return TrainingRun(
            call,
            self._watch,
            upload=upload,
            repeat=begin if is_safe else None,
            reconnect_s=reconnect_s,
            timeout_s=timeout_s,
        )

    def watch(
        self,
        job: str,
        after: int = 0,
        *,
        reconnect_s: float = RECONNECT_S,
        timeout_s: float | None = None,
    ) -> TrainingRun:
        """Follows a job: its events so far, and those to come.

        Args:
            job: The job's id.
            after: The number of the last event already known; 0 yields all events.
            reconnect_s: How long to try to reconnect where the connection breaks, in seconds.
            timeout_s: The longest to watch, in seconds.

        Returns:
            The run, as `train` returns it. Closing it does not stop the job.

        Raises:
            InputError: An argument is of the wrong type.
        """
        return TrainingRun(
            WatchedEvents(self._watch(job, after, timeout_s)),
            self._watch,
            job=job,
            after=after,
            reconnect_s=reconnect_s,
            timeout_s=timeout_s,
        )

    def _watch(self, job: str, after: int, timeout_s: float | None) -> Call[WatchJobResponse]:
        """Calls WatchJob."""
        request = make_request(WatchJobRequest, job=job, after_sequence=after)
        return self._connection.stream(self._connection.stub.WatchJob, request, timeout_s)

    def sweep(
        self,
        spec: SweepSpec | AnyPath | Mapping[str, Any],
        *,
        reconnect_s: float = RECONNECT_S,
    ) -> Sweep:
        """Trains a model with many settings, and finds the best ones.

        Args:
            spec: What to do: the path of a file in TOML (see docs/sweep.md), or the tables of one
                as a dict, in which paths are relative to the current folder.
            reconnect_s: How long to try to reconnect where the connection breaks, in seconds.

        Returns:
            The sweep: iterate over its events, or call `result()` for the trials, the best one
            first. The same sweep, made again after an interruption, continues.

        Raises:
            InputError: A file cannot be read, or a key of it is at fault.
        """
        from treadle.client.sweep.spec_reader import load_spec, read_spec
        from treadle.client.sweep.sweep import Sweep

        if isinstance(spec, Mapping):
            spec = read_spec(spec, Path())
        elif isinstance(spec, str | os.PathLike):
            spec = load_spec(spec)
        return Sweep(self, spec, reconnect_s=reconnect_s)

    # ---------------------------------------------------------------- generation

    def generate(
        self,
        model: str = "",
        prompt: str = "",
        *,
        reconnect_s: float = RECONNECT_S,
        on_break: Callable[[ServerError], None] = ignore,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Continues a prompt.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            prompt: The text to continue from.
            reconnect_s: How long to try to reconnect where the connection breaks after the text
                has begun, in seconds. The text then continues to the same bytes, on whatever
                server answers; it is an error where it cannot. 0 never tries.
            on_break: Called with the error of a broken connection, before it is made again.
            **options: The other fields of GenerateRequest: `temperature=0.8, seed=1, ...`;
                `job="..."` takes the weights of a job, running or not, the last ones or,
                with `job_weights="best"`, the best ones. A token is its number, its text, or
                `END`: `banned_tokens=["e", END]`, `token_biases={"a": -1.5}`.

        Returns:
            The generation: iterate over its pieces of text as they are generated, then call
            `result()` for the stop reason, the seed and the counts.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
        """
        check_model_or_job(model, options.get("job", ""))
        if "n" in options:
            raise InputError("generate makes one text: generate_many(..., n=...) makes several")
        request = make_request(GenerateRequest, model=model, prompt=prompt, **options)
        return Generation(self._resumable(request, reconnect_s, on_break))

    def _resumable(
        self, request: GenerateRequest, reconnect_s: float, on_break: Callable[[ServerError], None]
    ) -> Call[GenerateResponse]:
        """Begins a Generate call that continues where its connection breaks."""
        timeout_s = self._connection.timeout_s
        if reconnect_s <= 0:
            return self._generate(request, timeout_s)
        return ResumableGeneration(self._generate, request, Retry(reconnect_s, on_break, timeout_s))

    def _generate(
        self, request: GenerateRequest, timeout_s: float | None
    ) -> Call[GenerateResponse]:
        """Calls Generate."""
        return self._connection.stream(self._connection.stub.Generate, request, timeout_s)

    def generate_text(
        self,
        model: str = "",
        prompt: str = "",
        *,
        reconnect_s: float = RECONNECT_S,
        on_break: Callable[[ServerError], None] = ignore,
        **options: Unpack[GenerateOptions],
    ) -> str:
        """Continues a prompt and returns the whole text; see `generate`.

        Returns:
            The text, without the prompt.

        Raises:
            InputError: An option is wrong.
            ServerError: The call failed.
        """
        generation = self.generate(
            model, prompt, reconnect_s=reconnect_s, on_break=on_break, **options
        )
        with generation:
            return "".join(generation)

    def generate_many(
        self,
        model: str = "",
        prompt: str = "",
        n: int = 20,
        *,
        unique: bool = False,
        novel: bool = False,
        max_tries: int | None = None,
        reconnect_s: float = RECONNECT_S,
        on_break: Callable[[ServerError], None] = ignore,
        **options: Unpack[GenerateOptions],
    ) -> Items:
        """Continues a prompt n times, all at once.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            prompt: The text to continue from.
            n: The number of texts; more than 256 are several calls.
            unique: Only texts that differ from each other: more are generated until there are n.
            novel: Only texts that are new (`result.novelty.is_new`), likewise. Needs a model
                with a novelty index.
            max_tries: With `unique` or `novel`: the most texts to generate. Default: 10 n.
            reconnect_s: As in `generate`.
            on_break: As in `generate`.
            **options: As `generate` takes them. The seeds of later calls are derived from the
                first one's, so the same seed gives the same texts.

        Returns:
            The texts: iterate over them; `missing` is then the number of texts that could not be
            found.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
        """
        check_model_or_job(model, options.get("job", ""))
        fields: dict[str, Any] = {"model": model, "prompt": prompt, **options}
        make_request(GenerateRequest, **fields)  # raises here, not at the first iteration

        def call(count: int, offset: int, fields: dict[str, Any]) -> GeneratedTexts:
            request = make_request(GenerateRequest, n=count, **fields)
            return GeneratedTexts(self._resumable(request, reconnect_s, on_break), offset)

        return Items(call, n, unique=unique, novel=novel, max_tries=max_tries, options=fields)

    def session(
        self,
        model: str,
        *,
        reconnect_s: float = RECONNECT_S,
        on_break: Callable[[ServerError], None] = ignore,
        **options: Unpack[GenerateOptions],
    ) -> Session:
        """Begins a conversation whose state the caller keeps, or continues from a stored one.

        Args:
            model: The model's name, or NAME@ALIAS.
            reconnect_s: As in `generate`, for every reply.
            on_break: As in `generate`.
            **options: Options of every reply. `state=` continues from a stored state, and
                `version=` is the version that it belongs to (default: the newest).

        Returns:
            The session; the server is called by the first `send`.

        Raises:
            InputError: No stored model is named.
        """
        return Session(self, model, options, reconnect_s, on_break)

    # ------------------------------------------------------------------- scoring

    def score(
        self, model: str, texts: str | Iterable[str], **options: Unpack[ScoreOptions]
    ) -> Iterator[TextScore]:
        """Scores texts. Many are sent as several calls, all to the same version of the model.

        A long context is sent once: later calls continue from the state after it. The weights of
        a running job may change between two of these calls.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            texts: One text, or any number of them.
            **options: The other fields of ScoreRequest: `context="...", ranks=True, ...`.

        Yields:
            One score for each text, in their order.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
            ServerError: A call failed. Where a text is at fault, the scores of all texts before
                it were yielded.
        """
        yield from score_texts(self._connection, model, texts, options)

    def score_text(self, model: str, text: str, **options: Unpack[ScoreOptions]) -> TextScore:
        """Scores one text; see `score`.

        Returns:
            The score of the text.

        Raises:
            InputError: An option is wrong.
            ServerError: The call failed.
        """
        return next(self.score(model, text, **options))

    def score_stream(
        self,
        model: str,
        pieces: Iterable[AnyPiece],
        *,
        timeout_s: float | None = None,
        **options: Unpack[ScoreStreamOptions],
    ) -> ScoredPieces:
        """Scores a stream of text of any length as it arrives.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            pieces: Texts, or `StreamPiece(text, end)`; they are read and sent in the background.
            timeout_s: The longest that the call may take, in seconds.
            **options: The other fields of ScoreStreamSpec: `ranks=True, state=..., ...`.
                `on_error="skip"` continues after a piece that cannot be read, which is answered
                with an `error`, as if it had not been sent; by default it ends the call.

        Returns:
            The scores: iterate over them, one for each piece, then call `result()`.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
        """
        check_model_or_job(model, options.get("job", ""))
        spec = make_request(ScoreStreamSpec, model=model, **options)
        requests = BackgroundRequests(score_requests(spec, pieces))
        call = self._connection.stream(
            self._connection.stub.ScoreStream, requests.requests(), timeout_s
        )
        return ScoredPieces(requests, call)

    def open_score_stream(
        self,
        model: str = "",
        *,
        timeout_s: float | None = None,
        **options: Unpack[ScoreStreamOptions],
    ) -> ScoreStream:
        """Begins to score a stream whose pieces are sent one by one; use it in a `with` block.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            timeout_s: The longest that the call may take, in seconds.
            **options: The other fields of ScoreStreamSpec.

        Returns:
            The stream: `send(text, end=False)` scores a piece, `finish()` ends it.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
        """
        check_model_or_job(model, options.get("job", ""))
        spec = make_request(ScoreStreamSpec, model=model, **options)
        queue = RequestQueue(ScoreStreamRequest(spec=spec))
        call = self._connection.stream(
            self._connection.stub.ScoreStream, queue.requests(), timeout_s
        )
        return ScoreStream(queue, call)

    def embeddings(
        self, model: str, texts: str | Iterable[str], **options: Unpack[EmbedOptions]
    ) -> Iterator[Embedding]:
        """Yields the vector of each text, with the number of its tokens; see `embed`."""
        yield from embed_texts(self._connection, model, texts, options)

    def embed(
        self, model: str, texts: str | Iterable[str], **options: Unpack[EmbedOptions]
    ) -> list[list[float]]:
        """Returns the hidden state after each text as a vector.

        Many texts are sent as several calls, all to the same version of the model.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            texts: One text, or any number of them.
            **options: The other fields of EmbedRequest; `all_layers=True` gives the states of
                all layers, lowest first, one after the other.

        Returns:
            One list for each text, of hidden_size numbers between -1 and 1 for each layer.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
            ServerError: A call failed.
        """
        return [list(each.values) for each in self.embeddings(model, texts, **options)]

    # ------------------------------------------------------------------ learning

    def learn_stream(
        self,
        model: str,
        pieces: Iterable[LearnStep],
        *,
        timeout_s: float | None = None,
        **options: Unpack[LearnStreamOptions],
    ) -> LearnedPieces:
        """Predicts a stream as it arrives and learns from it, on a copy of the model.

        Args:
            model: The model to begin with: NAME or NAME@ALIAS.
            pieces: Texts, or `StreamPiece(text, end)`, to predict and then to learn from; they
                are read and sent in the background. `Snapshot()`, `RollBack()` and `Publish()`
                of the contract may stand between them.
            timeout_s: The longest that the call may take, in seconds.
            **options: The other fields of LearnStreamSpec: `learning_rate=0.1, ranks=True, ...`.
                `on_error="skip"` continues after a piece that cannot be read, which is answered
                with an `error`, as if it had not been sent; `"stop"` reads nothing more and can
                still publish; by default the call ends, and what was learned is lost.

        Returns:
            The scores: iterate over them, one for each piece.

        Raises:
            InputError: An option is wrong.
        """
        spec = make_request(LearnStreamSpec, model=model, **options)
        requests = BackgroundRequests(learn_requests(spec, pieces))
        call = self._connection.stream(
            self._connection.stub.LearnStream, requests.requests(), timeout_s
        )
        return LearnedPieces(requests, call)

    def open_learn_stream(
        self,
        model: str,
        *,
        timeout_s: float | None = None,
        **options: Unpack[LearnStreamOptions],
    ) -> LearnStream:
        """Begins to learn from a stream whose pieces are sent one by one; use it with `with`.

        Args:
            model: The model to begin with: NAME or NAME@ALIAS.
            timeout_s: The longest that the call may take, in seconds.
            **options: The other fields of LearnStreamSpec.

        Returns:
            The stream: `learn`, `predict`, `snapshot`, `roll_back` and `publish`.

        Raises:
            InputError: An option is wrong.
        """
        spec = make_request(LearnStreamSpec, model=model, **options)
        queue = RequestQueue(LearnStreamRequest(spec=spec))
        call = self._connection.stream(
            self._connection.stub.LearnStream, queue.requests(), timeout_s
        )
        return LearnStream(queue, call)

    # -------------------------------------------------------------------- models

    def models(self, *, page_size: int = 0) -> Iterator[Model]:
        """Yields the newest version of every model by name, page after page.

        Args:
            page_size: Models in one reply, up to 1,000; 0 leaves it to the server.
        """

        def request(token: str) -> ListModelsRequest:
            return make_request(ListModelsRequest, page_size=page_size, page_token=token)

        for page in self._connection.pages(self._connection.stub.ListModels, request):
            yield from page.models

    def get_model(self, model: str, *, version: int = 0) -> GetModelResponse:
        """Describes a model and lists its versions.

        Args:
            model: The model's name, or NAME@ALIAS.
            version: The version; 0 takes the newest.

        Returns:
            The model's description, and its versions.
        """
        request = make_request(GetModelRequest, model=model, version=version)
        return self._connection.call(self._connection.stub.GetModel, request)

    def delete_model(
        self,
        model: str,
        *,
        version: int | None = None,
        all_versions: bool = False,
        force: bool = False,
    ) -> DeleteModelResponse:
        """Deletes one version of a model, or all of them.

        Args:
            model: The model's name, without an alias.
            version: The version to delete, from 1.
            all_versions: Delete all versions instead of one.
            force: Delete versions that have an alias as well, and their aliases.

        Returns:
            The deleted versions.

        Raises:
            InputError: Neither `version` nor `all_versions` is given, or both, or the version
                is less than 1.
            FailedPreconditionError: One of the versions has an alias; nothing was deleted.
        """
        if (version is None) == (not all_versions):
            raise InputError("give either the version to delete, or all_versions=True")
        if version is not None and not (isinstance(version, int) and version >= 1):
            raise InputError(f"version cannot be {version!r}: versions count from 1")
        request = make_request(
            DeleteModelRequest,
            model=model,
            version=version or 0,
            all_versions=all_versions,
            force=force,
        )
        return self._connection.call(self._connection.stub.DeleteModel, request)

    def set_alias(self, model: str, alias: str, *, version: int = 0) -> Model:
        """Gives a version of a model an alias, or moves the alias there, in one step.

        Args:
            model: The model's name.
            alias: The alias; requests may then ask for `MODEL@ALIAS`.
            version: The version; 0 takes the newest.

        Returns:
            The version.
        """
        request = make_request(SetAliasRequest, model=model, alias=alias, version=version)
        return self._connection.call(self._connection.stub.SetAlias, request).model

    def delete_alias(self, model: str, alias: str) -> None:
        """Removes an alias from a version of a model; the version stays."""
        request = make_request(DeleteAliasRequest, model=model, alias=alias)
        self._connection.call(self._connection.stub.DeleteAlias, request)

    def export_model(
        self,
        model: str,
        target: AnyPath | Writable,
        *,
        version: int = 0,
        overwrite: bool = False,
        on_progress: OnProgress = no_progress,
        on_break: Callable[[ServerError], None] = ignore,
        retry_s: float = RECONNECT_S,
        timeout_s: float | None = None,
    ) -> Model:
        """Fetches the file of a version of a model, and checks its hash.

        Args:
            model: The model's name, or NAME@ALIAS.
            target: The path of the file to write, or an open file of bytes. Until it is whole, the
                file has the end `.part`; what an interrupted download has left there is not
                fetched again.
            version: The version; 0 takes the newest.
            overwrite: Whether to replace a file that exists.
            on_progress: Called with the bytes that are there and with those of the whole file.
            on_break: Called with the error of a broken connection, before it is made again.
            retry_s: How long to try to reconnect where the connection breaks, in seconds. The
                download then continues. 0 never tries.
            timeout_s: The longest that one call may take, in seconds.

        Returns:
            The version.

        Raises:
            InputError: The file exists, or cannot be written.
        """

        def download(start: Callable[[], Iterator[bytes]] | None = None) -> ModelDownload:
            return self._download(model, version, Retry(retry_s, on_break), timeout_s, start)

        if isinstance(target, str | os.PathLike):
            return save_model(download, target, overwrite, on_progress)
        fetching = download()
        with closing(fetching):
            found = fetching.open()
            write_chunks(fetching, target, "the file", on_progress)
        return found

    def _download(
        self,
        model: str,
        version: int,
        retry: Retry,
        timeout_s: float | None,
        start: Callable[[], Iterator[bytes]] | None = None,
    ) -> ModelDownload:
        """Begins the download of a file."""

        def export(request: ExportModelRequest) -> Call[ExportModelResponse]:
            return self._connection.stream(self._connection.stub.ExportModel, request, timeout_s)

        request = make_request(ExportModelRequest, model=model, version=version)
        return ModelDownload(export, request, retry, start)

    def import_model(
        self,
        path: AnyPath,
        *,
        model: str,
        alias: str = "",
        reuse_identical: bool = True,
        on_progress: OnProgress = no_progress,
        on_break: Callable[[ServerError], None] = ignore,
        retry_s: float = RECONNECT_S,
        timeout_s: float | None = None,
    ) -> ImportModelResponse:
        """Sends the file of a model, which becomes a version.

        Args:
            path: The file, as `export_model` or `treadle.model.Model.save` writes it.
            model: The model's name; a name in use gets a new version.
            alias: An alias for the version.
            reuse_identical: Whether to take a version of this model that is the same file instead
                of storing another one. Without it the file is not sent again once it was sent
                whole, as it might be stored twice.
            on_progress: Called with the bytes that were sent and with those of the whole file.
            on_break: Called with the error of a broken connection, before the file is sent again.
            retry_s: How long to try to reconnect where the connection breaks, in seconds.
            timeout_s: The longest that one call may take, in seconds.

        Returns:
            The version (`model`), and whether it existed (`reused`).

        Raises:
            InputError: The file cannot be read.
        """
        spec = make_request(
            ImportModelSpec, model=model, alias=alias, reuse_identical=reuse_identical
        )
        return self._send(path, spec, Retry(retry_s, on_break), on_progress, timeout_s)

    def _send(
        self,
        path: AnyPath,
        spec: ImportModelSpec,
        retry: Retry,
        on_progress: OnProgress,
        timeout_s: float | None,
        vocabulary: Sequence[str] = (),
    ) -> ImportModelResponse:
        """Sends a file that becomes a version."""
        file = ModelFile(path)
        spec.size_bytes = file.size_bytes
        spec.sha256 = file.sha256
        return send_model(self._import(timeout_s), spec, file, retry, on_progress, vocabulary)

    def _import(self, timeout_s: float | None) -> Import:
        """Returns what calls ImportModel."""

        def call(requests: Iterator[ImportModelRequest]) -> ImportModelResponse:
            background = BackgroundRequests(requests)
            stub = self._connection.stub
            return self._connection.upload(stub.ImportModel, background, timeout_s)

        return call

    def import_state_dict(
        self,
        path: AnyPath,
        *,
        model: str,
        vocabulary: Sequence[str] = (),
        alias: str = "",
        reuse_identical: bool = True,
        on_progress: OnProgress = no_progress,
        on_break: Callable[[ServerError], None] = ignore,
        retry_s: float = RECONNECT_S,
        timeout_s: float | None = None,
        **options: Unpack[StateDictOptions],
    ) -> ImportModelResponse:
        """Sends the weights of a PyTorch module, which the server makes a model of.

        Args:
            path: The `state_dict` of the module, as safetensors has saved it. Cell, layers and
                sizes follow from the names and shapes of its tensors.
            model: The model's name; a name in use gets a new version.
            vocabulary: The tokens in the order of their ids. Bytes need none.
            alias: As in `import_model`.
            reuse_identical: As in `import_model`.
            on_progress: As in `import_model`.
            on_break: As in `import_model`.
            retry_s: As in `import_model`.
            timeout_s: As in `import_model`.
            **options: `tokenizer="words"`, `layout="lines"`, `unknown_policy="unknown"`,
                `lower_case=True`, `tied_weights=True`; see StateDictSpec.

        Returns:
            The version (`model`), whether it existed (`reused`), and `notices` about it.

        Raises:
            InputError: The file cannot be read, or an option is wrong.
        """
        spec = make_request(
            ImportModelSpec, model=model, alias=alias, reuse_identical=reuse_identical
        )
        spec.state_dict.CopyFrom(state_dict_spec(options))
        retry = Retry(retry_s, on_break)
        return self._send(path, spec, retry, on_progress, timeout_s, vocabulary)

    def copy_model(
        self,
        model: str,
        to: Client,
        *,
        version: int = 0,
        name: str = "",
        alias: str = "",
        reuse_identical: bool = True,
        on_progress: OnProgress = no_progress,
        on_break: Callable[[ServerError], None] = ignore,
        retry_s: float = RECONNECT_S,
    ) -> ImportModelResponse:
        """Copies a version of a model to another server; the file passes through in pieces.

        Args:
            model: The model's name here, or NAME@ALIAS.
            to: The client of the other server, or of the same one.
            version: The version; 0 takes the newest.
            name: The model's name there. Default: its name here.
            alias: An alias for the version there.
            reuse_identical: As in `import_model`.
            on_progress: Called with the bytes that were sent and with those of the whole file.
            on_break: Called with the error of a broken connection, before the file is sent again.
            retry_s: How long to try to reconnect where a connection breaks, in seconds.

        Returns:
            The version there (`model`), and whether it existed (`reused`).

        Raises:
            InputError: An option is wrong.
        """
        spec = make_request(
            ImportModelSpec, model=name, alias=alias, reuse_identical=reuse_identical
        )

        def download() -> ModelDownload:
            retry = Retry(retry_s, on_break)
            return self._download(model, version, retry, self._connection.timeout_s)

        with closing(PassedModel(download)) as source:
            spec.model = name or source.model.name
            spec.size_bytes = source.model.size_bytes
            spec.sha256 = source.model.sha256
            retry = Retry(retry_s, on_break)
            timeout_s = to._connection.timeout_s
            return send_model(to._import(timeout_s), spec, source, retry, on_progress)

    # ---------------------------------------------------------------------- jobs

    def jobs(
        self,
        states: State | Sequence[State] = (),
        *,
        model: str = "",
        tags: Mapping[str, str] | None = None,
        page_size: int = 0,
    ) -> Iterator[Job]:
        """Yields jobs, newest first, page after page.

        Args:
            states: Only jobs in this state, or in one of these: `"running"`, ...
            model: Only jobs that train this model.
            tags: Only jobs that have all of these tags, each with this value.
            page_size: Jobs in one reply, up to 1,000; 0 leaves it to the server.
        """
        chosen_states = [states] if isinstance(states, str | int) else list(states)

        def request(token: str) -> ListJobsRequest:
            return make_request(
                ListJobsRequest,
                states=chosen_states,
                model=model,
                tags=tags or {},
                page_size=page_size,
                page_token=token,
            )

        for page in self._connection.pages(self._connection.stub.ListJobs, request):
            yield from page.jobs

    def get_job(self, job: str) -> Job:
        """Describes a job."""
        request = make_request(GetJobRequest, job=job)
        return self._connection.call(self._connection.stub.GetJob, request).job

    def cancel_job(self, job: str) -> Job:
        """Ends a job for good; if it has trained, its model is stored.

        Returns:
            The job within a second: ended, or still running for a moment.
        """
        request = make_request(CancelJobRequest, job=job)
        return self._connection.call(self._connection.stub.CancelJob, request).job

    def pause_job(self, job: str) -> Job:
        """Pauses a job: its whole state is kept on disk until it is resumed.

        Returns:
            The job within a second: paused, or still running for a moment.
        """
        request = make_request(PauseJobRequest, job=job)
        return self._connection.call(self._connection.stub.PauseJob, request).job

    def resume_job(self, job: str) -> Job:
        """Puts a paused job back into the queue; it continues as if it had never paused."""
        request = make_request(ResumeJobRequest, job=job)
        return self._connection.call(self._connection.stub.ResumeJob, request).job

    def delete_job(self, job: str) -> None:
        """Deletes a job that has ended or is paused; stored versions of models stay."""
        request = make_request(DeleteJobRequest, job=job)
        self._connection.call(self._connection.stub.DeleteJob, request)

    # -------------------------------------------------------------------- server

    def server_info(self) -> GetServerInfoResponse:
        """Describes the server: version, limits, threads and load."""
        return self._connection.call(self._connection.stub.GetServerInfo, GetServerInfoRequest())

    def health(self) -> bool:
        """Asks the standard health service whether the server serves."""
        return self._connection.check_health(self._connection.timeout_s, wait=False)

    def starting(self) -> str:
        """Describes the work of a server that is up but does not serve yet.

        Returns:
            "it is compiling its kernels (12 of 99)"; empty where the server does not say.
        """
        return self._connection.start_progress()

    def wait_ready(
        self, timeout_s: float = 30.0, on_wait: Callable[[str], None] | None = None
    ) -> None:
        """Waits until the server is up and serves.

        Args:
            timeout_s: The longest to wait, in seconds.
            on_wait: Called with the work of a server that is up but does not serve yet, each time
                that it changes: "it is compiling its kernels (12 of 99)".

        Raises:
            UnavailableError: It does not serve by then.
            ServerError: The server has no health service, or refuses the call.
        """
        self._connection.wait_ready(timeout_s, on_wait)
