"""`score_texts` and `embed_texts` send any number of texts in calls of limited size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from treadle.client.errors import InvalidArgumentError, text_at_fault
from treadle.client.messages.fields import make_request
from treadle.client.options import EmbedOptions, ScoreOptions, check_model_or_job, without_alias
from treadle.v1.sequence_pb2 import (
    Embedding,
    EmbedRequest,
    EmbedResponse,
    ScoreRequest,
    ScoreResponse,
    TextScore,
)

if TYPE_CHECKING:
    from treadle.client.connection import Connection

MAX_TEXTS = 1000
"""Texts in one call of Score."""

MAX_EMBEDDED = 250
"""Texts in one call of Embed: the vectors of 8 layers of 4,096 units fit into one reply."""

MAX_CHARACTERS = 64 * 1024
"""Code points in one call of several texts; a longer text is sent alone. A reply with every token
is some twenty times as large."""

LONG_CONTEXT = 4096
"""Characters of a context that is sent only once; later calls send the state after it."""

Response = TypeVar("Response")


def score_texts(
    connection: Connection, model: str, texts: str | Iterable[str], options: ScoreOptions
) -> Iterator[TextScore]:
    """Yields the score of each text; see `Client.score`."""
    check_model_or_job(model, options.get("job", ""))
    is_first = True

    def call(batch: list[str]) -> ScoreResponse:
        # A job has no version: its weights may be newer than those of the state.
        if not is_first and model and len(options.get("context", "")) > LONG_CONTEXT:
            options["state"] = _state_after_context(connection, model, options)
            options["context"] = ""
        request = make_request(ScoreRequest, model=model, texts=batch, **options)
        return connection.call(connection.stub.Score, request)

    for response in _responses(call, in_batches(texts, MAX_TEXTS)):
        if model:
            model = without_alias(model)
            options["version"] = response.version
        _keep_precision(options, response)
        is_first = False
        yield from response.scores


def _state_after_context(connection: Connection, model: str, options: ScoreOptions) -> bytes:
    """Returns the state after the context, from which texts score as after the context."""
    request = make_request(ScoreRequest, model=model, texts=[""], **options)
    request.log_probabilities = False
    request.ranks = False
    request.top_log_probabilities = 0
    request.return_states = True
    return connection.call(connection.stub.Score, request).scores[0].state


def embed_texts(
    connection: Connection, model: str, texts: str | Iterable[str], options: EmbedOptions
) -> Iterator[Embedding]:
    """Yields the vector of each text; see `Client.embeddings`."""
    check_model_or_job(model, options.get("job", ""))

    def call(batch: list[str]) -> EmbedResponse:
        request = make_request(EmbedRequest, model=model, texts=batch, **options)
        return connection.call(connection.stub.Embed, request)

    for response in _responses(call, in_batches(texts, MAX_EMBEDDED)):
        if model:
            model = without_alias(model)
            options["version"] = response.version
        _keep_precision(options, response)
        yield from response.embeddings


def _keep_precision(
    options: ScoreOptions | EmbedOptions, response: ScoreResponse | EmbedResponse
) -> None:
    """Keeps later calls to the precision of the first one, on whatever server they are."""
    if response.inference_precision:  # an older server does not say it
        options.setdefault("inference_precision", response.inference_precision)


def in_batches(texts: str | Iterable[str], max_texts: int) -> Iterator[list[str]]:
    """Gathers texts into batches, in order, and reads no further than the current batch.

    Args:
        texts: One text, or any number of them.
        max_texts: The most texts in a batch.

    Yields:
        Lists of at least one text. The texts before an error are yielded before it is raised.
    """
    batch: list[str] = []
    characters = 0
    remaining = iter([texts] if isinstance(texts, str) else texts)
    while True:
        try:
            text = next(remaining)
        except StopIteration:
            break
        except Exception:
            if batch:
                yield batch
            raise
        if batch and (len(batch) == max_texts or characters + len(text) > MAX_CHARACTERS):
            yield batch
            batch = []
            characters = 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _responses(
    call: Callable[[list[str]], Response], batches: Iterable[list[str]]
) -> Iterator[Response]:
    """Yields the response to each batch of texts.

    Raises:
        ServerError: A call failed. Where one text is at fault, the response to those before it
            was yielded.
    """
    for batch in batches:
        try:
            response = call(batch)
        except InvalidArgumentError as error:
            if before := text_at_fault(error):
                yield call(batch[:before])
            raise
        yield response
