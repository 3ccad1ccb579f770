"""The client: one object for one server, one method for one call."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from treadle.client.batches import batches
from treadle.client.corpus import Corpus, open_corpus
from treadle.client.errors import DeadlineExceededError, UnavailableError, from_rpc_error
from treadle.client.options import (
    GenerateOptions,
    ScoreOptions,
    TrainOptions,
    make_request,
    make_spec,
)
from treadle.client.streams import Generation, TrainingRun, Upload
from treadle.client.wire import integer
from treadle.v1.sequence_pb2 import (
    DeleteModelRequest,
    DeleteModelResponse,
    GenerateRequest,
    GetModelRequest,
    GetModelResponse,
    GetServerInfoRequest,
    GetServerInfoResponse,
    ListModelsRequest,
    Model,
    ScoreRequest,
    TextScore,
    TrainSpec,
)
from treadle.v1.sequence_pb2_grpc import SequenceServiceStub

DEFAULT_ADDRESS = "127.0.0.1:50051"

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
SERVING = 1
"""grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING"""

POLL_S = 0.1
"""Seconds between two health checks of a server that is up but not ready."""

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""The largest reply taken: the tokens of a scored text weigh about twenty times the text."""

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Client:
    """A connection to one Treadle server, made when the first call needs it.

    It may be shared by threads. Use it in a `with` block, or call `close()`.

    Args:
        address: `HOST:PORT`, or any other target that gRPC knows, such as `unix:PATH`.
        timeout_s: The longest that a call may take, generation included, training not.
            None waits as long as it takes.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout_s: float | None = None) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, _channel_options(address))
        self._stub = SequenceServiceStub(self._channel)
        self._health: Callable[..., bytes] = self._channel.unary_unary(HEALTH_CHECK)

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
        """Closes the connection; calls under way are cancelled."""
        self._channel.close()

    def train(
        self,
        corpus: Corpus,
        *,
        model: str = "",
        spec: TrainSpec | None = None,
        timeout_s: float | None = None,
        **options: Unpack[TrainOptions],
    ) -> TrainingRun:
        """Trains a model on a corpus, which is read and sent in the background.

        Args:
            corpus: The text or bytes themselves, a `Path`, an open file, or an iterable of
                pieces. A `str` is text, never a file's name.
            model: The model's name; a name in use gets a new version.
            spec: A whole spec, on top of which `model` and `options` are laid.
            timeout_s: The longest that the call may take, waiting for a slot included.
            **options: The spec's fields, flat: `hidden_size=256, max_time_s=60, ...`.

        Returns:
            The run: iterate over its events, or call `result()` for the model.

        Raises:
            InputError: The corpus cannot be opened, or an option is wrong.
        """
        made = make_spec(model, spec, options)
        upload = Upload(made, open_corpus(corpus))
        call = self._stub.Train(upload.requests(), timeout=timeout_s)
        upload.attach(call)
        return TrainingRun(call, self.address, upload)

    def generate(
        self, model: str, prompt: str = "", **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Continues a prompt.

        Args:
            model: The model's name.
            prompt: The text to go on from.
            **options: The other fields of GenerateRequest: `temperature=0.8, seed=1, ...`.

        Returns:
            The generation: iterate over its pieces of text as they are made, then call
            `result()` for the stop reason, the seed and the counts.

        Raises:
            InputError: An option is wrong.
        """
        request = make_request(GenerateRequest, model=model, prompt=prompt, **options)
        return Generation(self._stub.Generate(request, timeout=self._timeout_s), self.address)

    def generate_text(
        self, model: str, prompt: str = "", **options: Unpack[GenerateOptions]
    ) -> str:
        """Continues a prompt and returns the whole text; see `generate`.

        Raises:
            InputError: An option is wrong.
            ServerError: The call failed.
        """
        with self.generate(model, prompt, **options) as generation:
            return "".join(generation)

    def score(
        self, model: str, texts: str | Iterable[str], **options: Unpack[ScoreOptions]
    ) -> Iterator[TextScore]:
        """Scores texts. Many are sent as several calls, all to the same version of the model.

        Args:
            model: The model's name.
            texts: One text, or any number of them.
            **options: The other fields of ScoreRequest: `context="...", ...`.

        Yields:
            One score for each text, in their order.

        Raises:
            InputError: An option is wrong.
            ServerError: A call failed.
        """
        for batch in batches([texts] if isinstance(texts, str) else texts):
            request = make_request(ScoreRequest, model=model, texts=batch, **options)
            response = self._call(self._stub.Score, request)
            options["version"] = response.version
            yield from response.scores

    def score_text(self, model: str, text: str, **options: Unpack[ScoreOptions]) -> TextScore:
        """Scores one text; see `score`.

        Raises:
            InputError: An option is wrong.
            ServerError: The call failed.
        """
        return next(self.score(model, text, **options))

    def models(self, *, page_size: int = 0) -> Iterator[Model]:
        """Yields the newest version of every model by name, fetching page after page."""
        token = ""
        while True:
            request = make_request(ListModelsRequest, page_size=page_size, page_token=token)
            page = self._call(self._stub.ListModels, request)
            yield from page.models
            token = page.next_page_token
            if not token:
                return

    def get_model(self, model: str, *, version: int = 0) -> GetModelResponse:
        """Describes a model, and lists its versions."""
        request = make_request(GetModelRequest, model=model, version=version)
        return self._call(self._stub.GetModel, request)

    def delete_model(self, model: str, *, version: int = 0) -> DeleteModelResponse:
        """Deletes one version of a model, or all of them where `version` is 0."""
        request = make_request(DeleteModelRequest, model=model, version=version)
        return self._call(self._stub.DeleteModel, request)

    def server_info(self) -> GetServerInfoResponse:
        """Describes the server: version, limits, threads and load."""
        return self._call(self._stub.GetServerInfo, GetServerInfoRequest())

    def health(self) -> bool:
        """Asks the standard health service whether the server serves.

        Raises:
            ServerError: The call failed.
        """
        return self._check_health(self._timeout_s, wait=False)

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Waits until the server is up and serves.

        Args:
            timeout_s: The longest to wait.

        Raises:
            UnavailableError: It is not serving by then.
            ServerError: The server has no health service, or refuses the call.
        """
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self._check_health(left, wait=True):
                    return
            except (DeadlineExceededError, UnavailableError):
                pass
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
        raise UnavailableError(
            f"no Treadle server was ready at {self.address} within {timeout_s:g} s",
            code="UNAVAILABLE",
        )

    def _check_health(self, timeout_s: float | None, *, wait: bool) -> bool:
        """Calls Health.Check for the server as a whole: an empty request."""
        try:
            reply = self._health(b"", timeout=timeout_s, wait_for_ready=wait)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error
        return integer(reply, 1) == SERVING

    def _call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Reply], request: Request
    ) -> Reply:
        """Makes a call of one request and one reply."""
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error


def _channel_options(address: str) -> list[tuple[str, int]]:
    """Chooses gRPC's settings for one server."""
    options = [
        ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
        # gRPC's own pauses between tries grow from 1 s to 2 minutes: too long for someone
        # who waits for a server that starts.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    if _is_local(address):
        # gRPC obeys $http_proxy even for this machine, where no proxy can help.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _is_local(address: str) -> bool:
    """Tells whether an address is this machine by its form."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost" or address.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
