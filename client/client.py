"""The client: one object for one server, one method for one call."""

from __future__ import annotations

from typing import Unpack

from treadle.client.connection import DEFAULT_ADDRESS
from treadle.client.corpus import Corpora
from treadle.client.generating import Generating
from treadle.client.learning import Learning
from treadle.client.management import Management
from treadle.client.options import TrainOptions, make_request, make_spec
from treadle.client.runs import RECONNECT_S, Events, TrainingRun
from treadle.client.scoring import Scoring
from treadle.client.streams import Call
from treadle.client.upload import Upload, choose_format, open_parts
from treadle.v1.sequence_pb2 import TrainSpec, WatchJobRequest, WatchJobResponse

__all__ = ["DEFAULT_ADDRESS", "Client"]


class Client(Management, Generating, Scoring, Learning):
    """A connection to one Treadle server, made when the first call needs it.

    It may be shared by threads. Use it in a `with` block, or call `close()`.

    Args:
        address: `HOST:PORT`, `unix:/PATH`, `unix-abstract:NAME`, or another target that gRPC
            knows, such as `dns:///NAME:PORT`.
        timeout_s: The longest that a call may take, generation included; training
            and streams that are scored or learnt have a `timeout_s` of their own.
            None waits as long as it takes.

    Raises:
        InputError: The address is of none of these forms.
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
                Where no `format` is set, paths that end in .jsonl, .ndjson, .csv or .tsv are read
                as that; `format="plain"` reads them as plain text.

        Returns:
            The run: iterate over its events, call `result()` for the model, or `detach()` to
            leave the job to the server.

        Raises:
            InputError: The corpus cannot be opened, or an option is wrong.
        """
        made = make_spec(model, spec, options)
        choose_format(made, corpus)
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
