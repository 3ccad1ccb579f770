"""The client: one object for one server, one method for one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Unpack

from treadle.client.batches import batches
from treadle.client.connection import DEFAULT_ADDRESS
from treadle.client.corpus import Corpora
from treadle.client.errors import InputError
from treadle.client.management import Management
from treadle.client.options import (
    GenerateOptions,
    ScoreOptions,
    TrainOptions,
    make_request,
    make_spec,
)
from treadle.client.runs import RECONNECT_S, Events, TrainingRun
from treadle.client.streams import Call, Generation
from treadle.client.upload import Upload, open_parts
from treadle.v1.sequence_pb2 import (
    GenerateRequest,
    ScoreRequest,
    TextScore,
    TrainSpec,
    WatchJobRequest,
    WatchJobResponse,
)

__all__ = ["DEFAULT_ADDRESS", "Client"]


class Client(Management):
    """A connection to one Treadle server, made when the first call needs it.

    It may be shared by threads. Use it in a `with` block, or call `close()`.

    Args:
        address: `HOST:PORT`, or any other target that gRPC knows, such as `unix:PATH`.
        timeout_s: The longest that a call may take, generation included, training not.
            None waits as long as it takes.
    """

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
            spec: A whole spec, on top of which `model` and `options` are laid.
            timeout_s: The longest that the call may take, waiting for a slot included.
            reconnect_s: Where the connection breaks after the job was accepted, the run comes
                back to it and misses no event; this is how long it tries. 0 never tries.
            **options: The spec's fields, flat: `hidden_size=256, max_time_s=60, ...`. With a
                `request_id` the call is safe to repeat: it then follows the first one's job.

        Returns:
            The run: iterate over its events, call `result()` for the model, or `detach()` to
            leave the job to the server.

        Raises:
            InputError: The corpus cannot be opened, or an option is wrong.
        """
        made = make_spec(model, spec, options)
        upload = Upload(made, open_parts(corpus))
        call = self._stub.Train(upload.requests(), timeout=timeout_s)
        upload.attach(call)
        return TrainingRun(
            call,
            self.address,
            self._watch,
            upload=upload,
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
        """Follows a job from any of its events on, those to come included.

        Args:
            job: The job's id.
            after: The number of the last event already known; 0 yields all events.
            reconnect_s: How long to try to come back where the connection breaks.
            timeout_s: The longest to watch.

        Returns:
            The run, as `train` returns it. Leaving it leaves the job alone.

        Raises:
            InputError: An argument is of the wrong type.
        """
        return TrainingRun(
            Events(self._watch(job, after, timeout_s)),
            self.address,
            self._watch,
            job=job,
            after=after,
            reconnect_s=reconnect_s,
            timeout_s=timeout_s,
        )

    def _watch(self, job: str, after: int, timeout_s: float | None) -> Call[WatchJobResponse]:
        """Calls WatchJob."""
        request = make_request(WatchJobRequest, job=job, after_sequence=after)
        return self._stub.WatchJob(request, timeout=timeout_s)

    def generate(
        self, model: str = "", prompt: str = "", **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Continues a prompt.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            prompt: The text to go on from.
            **options: The other fields of GenerateRequest: `temperature=0.8, seed=1, ...`;
                `job="..."` takes the weights of a job, running or not, the last ones or,
                with `job_weights="best"`, the best ones.

        Returns:
            The generation: iterate over its pieces of text as they are made, then call
            `result()` for the stop reason, the seed and the counts.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
        """
        _check_one(model, options.get("job", ""))
        request = make_request(GenerateRequest, model=model, prompt=prompt, **options)
        return Generation(self._stub.Generate(request, timeout=self._timeout_s), self.address)

    def generate_text(
        self, model: str = "", prompt: str = "", **options: Unpack[GenerateOptions]
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

        The weights of a job that runs may be newer from one of these calls to the next.

        Args:
            model: The model's name, or NAME@ALIAS; empty where `job=` names a job.
            texts: One text, or any number of them.
            **options: The other fields of ScoreRequest: `context="...", ...`.

        Yields:
            One score for each text, in their order.

        Raises:
            InputError: An option is wrong, or both a model and a job are named, or neither.
            ServerError: A call failed.
        """
        _check_one(model, options.get("job", ""))
        for batch in batches([texts] if isinstance(texts, str) else texts):
            request = make_request(ScoreRequest, model=model, texts=batch, **options)
            response = self._call(self._stub.Score, request)
            if model:
                options["version"] = response.version
            yield from response.scores

    def score_text(self, model: str, text: str, **options: Unpack[ScoreOptions]) -> TextScore:
        """Scores one text; see `score`.

        Raises:
            InputError: An option is wrong.
            ServerError: The call failed.
        """
        return next(self.score(model, text, **options))


def _check_one(model: str, job: str) -> None:
    """Checks that it is told whose weights to use.

    Raises:
        InputError: Neither a model nor a job is named, or both.
    """
    if bool(model) == bool(job):
        raise InputError("name either a model or a job=, whose weights are to be used")
