"""Calls that score texts and streams of text, and that give vectors for texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, Unpack

from treadle.client.batches import batches
from treadle.client.connection import Connection
from treadle.client.errors import InvalidArgumentError, text_at_fault
from treadle.client.options import (
    EmbedOptions,
    ScoreOptions,
    ScoreStreamOptions,
    check_one,
    make_request,
    pinned,
)
from treadle.client.pieces import AnyPiece, Mailbox, Source
from treadle.client.score_streams import ScoredPieces, ScoreStream, score_requests
from treadle.v1.sequence_pb2 import (
    Embedding,
    EmbedRequest,
    EmbedResponse,
    ScoreRequest,
    ScoreResponse,
    ScoreStreamRequest,
    ScoreStreamSpec,
    TextScore,
)

MAX_EMBEDDED = 250
"""Texts in one call of Embed: the vectors of 8 layers of 4,096 units fit into one reply."""


LONG_CONTEXT = 4096
"""Characters of a context beyond which it is sent once, and later calls send the state after it."""

Response = TypeVar("Response")


class Scoring(Connection):
    """The calls that read text and say something of it."""

    def score(
        self, model: str, texts: str | Iterable[str], **options: Unpack[ScoreOptions]
    ) -> Iterator[TextScore]:
        """Scores texts. Many are sent as several calls, all to the same version of the model.

        A long context is not sent again with each of them: they go on from the state after it.
        The weights of a job that runs may be newer from one of these calls to the next.

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
        check_one(model, options.get("job", ""))

        again = False

        def call(some: list[str]) -> ScoreResponse:
            # Of a job there is no version: its weights may be newer than those of the state.
            if again and model and len(options.get("context", "")) > LONG_CONTEXT:
                options["state"] = self._state_after(model, options)
                options["context"] = ""
            request = make_request(ScoreRequest, model=model, texts=some, **options)
            return self._call(self._stub.Score, request)

        for response in _answers(call, batches([texts] if isinstance(texts, str) else texts)):
            if model:
                model, options["version"] = pinned(model), response.version
            again = True
            yield from response.scores

    def _state_after(self, model: str, options: ScoreOptions) -> bytes:
        """Returns the state after the context, from which texts score as after the context."""
        request = make_request(ScoreRequest, model=model, texts=[""], **options)
        request.log_probabilities = request.ranks = False
        request.top_log_probabilities = 0
        request.return_states = True
        return self._call(self._stub.Score, request).scores[0].state

    def score_text(self, model: str, text: str, **options: Unpack[ScoreOptions]) -> TextScore:
        """Scores one text; see `score`.

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
        """Scores a stream of text as it comes, however long.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            pieces: Texts, or `Piece(text, end)`; they are taken and sent in the background.
            timeout_s: The longest that the call may take.
            **options: The other fields of ScoreStreamSpec: `ranks=True, state=..., ...`.
                `on_error="skip"` continues after a piece that cannot be read, which is answered
                with an `error`, as if it had not been sent; by default it ends the call.

        Returns:
            The scores: iterate over them, one a piece, then call `result()`.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
        """
        check_one(model, options.get("job", ""))
        spec = make_request(ScoreStreamSpec, model=model, **options)
        source = Source(score_requests(spec, pieces))
        call = self._stub.ScoreStream(source.requests(), timeout=timeout_s)
        return ScoredPieces(source, call, self.address)

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
            timeout_s: The longest that the call may take.
            **options: The other fields of ScoreStreamSpec.

        Returns:
            The stream: `send(text, end=False)` scores a piece, `finish()` ends it.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
        """
        check_one(model, options.get("job", ""))
        spec = make_request(ScoreStreamSpec, model=model, **options)
        mailbox = Mailbox(ScoreStreamRequest(spec=spec))
        call = self._stub.ScoreStream(mailbox.requests(), timeout=timeout_s)
        return ScoreStream(mailbox, call, self.address)

    def embeddings(
        self, model: str, texts: str | Iterable[str], **options: Unpack[EmbedOptions]
    ) -> Iterator[Embedding]:
        """Yields the vector of each text, with the tokens read; see `embed`."""
        check_one(model, options.get("job", ""))
        found = batches([texts] if isinstance(texts, str) else texts, MAX_EMBEDDED)

        def call(some: list[str]) -> EmbedResponse:
            request = make_request(EmbedRequest, model=model, texts=some, **options)
            return self._call(self._stub.Embed, request)

        for response in _answers(call, found):
            if model:
                model, options["version"] = pinned(model), response.version
            yield from response.embeddings

    def embed(
        self, model: str, texts: str | Iterable[str], **options: Unpack[EmbedOptions]
    ) -> list[list[float]]:
        """Gives the hidden state after each text as a vector.

        Many texts are sent as several calls, all to the same version of the model.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            texts: One text, or any number of them.
            **options: The other fields of EmbedRequest; `all_layers=True` gives the states of
                all layers, lowest first, one after the other.

        Returns:
            One list for each text, of hidden_size numbers a layer between -1 and 1.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
            ServerError: A call failed.
        """
        return [list(each.values) for each in self.embeddings(model, texts, **options)]


def _answers(
    call: Callable[[list[str]], Response], texts: Iterable[list[str]]
) -> Iterator[Response]:
    """Yields the response to each batch of texts.

    Raises:
        ServerError: A call failed. Where one text is at fault, the response to those before it
            was yielded.
    """
    for batch in texts:
        try:
            response = call(batch)
        except InvalidArgumentError as error:
            if before := text_at_fault(error):
                yield call(batch[:before])
            raise
        yield response
