"""`TrainingRun` iterates over the events of a training job, also across lost connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from treadle.client.errors import InternalError, ServerError
from treadle.client.replicas.retry import RECONNECT_S, Retry, ignore
from treadle.client.streaming import Call, ResponseStream
from treadle.v1.sequence_pb2 import (
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_UNSPECIFIED,
    JobEvent,
    Model,
    TrainingProgress,
    TrainingStarted,
    WatchJobResponse,
)

if TYPE_CHECKING:
    from treadle.client.upload import Upload

STREAMING_STATES = (JOB_STATE_UNSPECIFIED, JOB_STATE_QUEUED, JOB_STATE_RUNNING)
"""States in which a job sends events; a paused job sends none until it is resumed."""

Repeat = Callable[[float | None], "tuple[Call[JobEvent], Upload]"]
"""Calls Train again with the same spec and corpus, and a timeout in seconds."""

Watch = Callable[[str, int, float | None], Call[WatchJobResponse]]
"""Calls WatchJob with a job, the last event known and a timeout in seconds."""


class WatchedEvents:
    """The events of a WatchJob call, in the form in which Train sends them.

    Args:
        call: The call.
    """

    def __init__(self, call: Call[WatchJobResponse]) -> None:
        self._call = call

    def __next__(self) -> JobEvent:
        return next(self._call).event

    def cancel(self) -> object:
        """Ends the call."""
        return self._call.cancel()


class TrainingRun(ResponseStream[JobEvent]):
    """A training run under way: iterate over its events, or wait for `result()`.

    Leaving it early, by `close()` or by the end of its `with` block, cancels an unfinished upload.
    An accepted job continues at the server, whether or not a client watches. Where the
    connection breaks, the run reconnects by itself and yields each event once.

    Args:
        call: The call under way.
        watch: Calls WatchJob, to reconnect.
        upload: The requests of Train; None where an earlier job is watched.
        repeat: Calls Train again where the connection breaks before the server has accepted the
            job; None where that might train twice, or where the corpus can be read only once.
        job: The job's id, where it is known already.
        after: The number of the last event known already.
        reconnect_s: How long to try to reconnect, in seconds; 0 never tries.
        timeout_s: The longest that all calls together may take; None: no limit.
    """

    def __init__(
        self,
        call: Call[JobEvent],
        watch: Watch,
        *,
        upload: Upload | None = None,
        repeat: Repeat | None = None,
        job: str = "",
        after: int = 0,
        reconnect_s: float = RECONNECT_S,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(call)
        self._watch = watch
        self._upload = upload
        self._repeat = repeat
        self._reconnect_s = reconnect_s
        self._retry = Retry(reconnect_s, self._say_break, timeout_s)
        self.on_break: Callable[[ServerError], None] = ignore
        """Called with the error of a broken connection, once before the run reconnects."""
        self.job = job
        """The job's id; empty until the server has accepted it."""
        self.last_sequence = after
        """The number of the newest event."""
        self.state = JOB_STATE_UNSPECIFIED
        """The newest state of the job, a `treadle.v1.JobState`."""
        self.started: TrainingStarted | None = None
        """The complete spec and the counts of the corpus, once the server has sent them."""
        self.progress: TrainingProgress | None = None
        """The newest progress event."""
        self.model: Model | None = None
        """The stored model, once the run has completed."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> JobEvent:
        while True:
            event = self._next_event()
            if event.sequence > self.last_sequence:
                break
        if self.last_sequence and event.sequence > self.last_sequence + 1:
            raise InternalError(
                f"the server left out events {self.last_sequence + 1} to {event.sequence - 1} "
                f"of job {self.job}"
            )
        self._keep(event)
        return event

    def close(self) -> None:
        """Stops watching; nothing more is yielded. An accepted job continues."""
        super().close()
        self._retry.stop()

    @property
    def sent(self) -> bool:
        """Whether gRPC has taken the whole corpus.

        Once `job` is set, the server has definitely received it, and the job continues by itself.
        Between the two, closing the run may still cancel the upload.
        """
        return self._upload is None or self._upload.sent

    def detach(self) -> str:
        """Waits until the server has accepted the job, and stops watching.

        Returns:
            The job's id, for `Client.watch`.

        Raises:
            ServerError: The server refused it, or the run was closed before.
        """
        while not self.job:
            if next(self, None) is None:
                raise InternalError("the training run ended before the server accepted it")
        self.close()
        return self.job

    def result(self) -> Model:
        """Waits for the end of the run and returns the stored model.

        Returns:
            The stored model.

        Raises:
            ServerError: The run failed, was paused or cancelled, or was closed before its end.
        """
        for _ in self:
            pass
        if self.model is None:
            raise InternalError("the training run ended without a model")
        return self.model

    def _keep(self, event: JobEvent) -> None:
        """Updates the attributes from an event."""
        self.last_sequence = event.sequence
        self.job = event.job or self.job
        match event.WhichOneof("event"):
            case "state":
                self.state = event.state.state
            case "started":
                self.started = event.started
            case "progress":
                self.progress = event.progress
            case "completed":
                self.model = event.completed

    def _say_break(self, error: ServerError) -> None:
        self.on_break(error)

    def _next_event(self) -> JobEvent:
        """Waits for the next event, and reconnects to the job where the connection broke."""
        while True:
            try:
                event = self._receive()
            except StopIteration:
                # A server that shuts down may end the stream without a status.
                if self._closed or self.model is not None:
                    raise
                if not self.job:
                    text = "the training run ended before the server accepted it"
                elif self._may_reconnect():
                    text = "the training run ended without a model"
                else:
                    raise
                self._continue(InternalError(text, broken=True))
            except ServerError as error:
                self._continue(error)
            else:
                self._retry.succeeded()
                return event

    def _continue(self, failure: ServerError) -> None:
        """Calls the server again where that may lead further.

        Raises:
            ServerError: The failure, where it does not.
        """
        if self._upload is not None and self._upload.error is not None:
            raise self._upload.error from None
        if self._may_reconnect():
            self._reconnect(failure)
        elif self._may_repeat(failure):
            self._train_again(failure)
        else:
            raise failure

    def _may_reconnect(self) -> bool:
        """Returns whether there is a job to reconnect to."""
        return bool(self.job) and self.state in STREAMING_STATES and self._reconnect_s > 0

    def _may_repeat(self, failure: ServerError) -> bool:
        """Returns whether to send the corpus again, to a server that was there before."""
        if self.job or self._repeat is None or self._reconnect_s <= 0:
            return False
        return self._retry.is_retrying or not failure.unsent

    def _train_again(self, failure: ServerError) -> None:
        """Waits for the next attempt, and sends the corpus again.

        Raises:
            ServerError: The failure, if the connection did not break or the time is over.
        """
        assert self._repeat is not None
        if not self._retry.wait(failure):
            raise StopIteration
        self._call, self._upload = self._repeat(self._retry.left_s)
        if self._closed:  # meanwhile, by another thread
            self._call.cancel()

    def _reconnect(self, failure: ServerError) -> None:
        """Waits for the next attempt, and asks for the events after the last one known.

        Raises:
            ServerError: The failure, if the connection did not break or the time is over.
        """
        if not self._retry.wait(failure):
            raise StopIteration
        self._call = WatchedEvents(self._watch(self.job, self.last_sequence, self._retry.left_s))
        if self._closed:  # meanwhile, by another thread
            self._call.cancel()
