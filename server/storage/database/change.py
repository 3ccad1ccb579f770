"""`Change` is what a server notifies the others of: a change in the database they share."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ChangeKind(enum.StrEnum):
    """What has changed."""

    JOB = "job"
    """A job: it has a new event, or it is deleted."""
    QUEUE = "queue"
    """A job waits that nobody holds."""
    REQUEST = "request"
    """Something is asked of the holder of a job."""
    MODEL = "model"
    """A version or an alias of a model: there is a new one, or one is gone."""
    ANYTHING = "anything"
    """Changes may have been missed, so that anything may be new."""


@dataclass(frozen=True)
class Change:
    """One change."""

    kind: ChangeKind
    """What has changed."""
    name: str = ""
    """The id of the job or the name of the model; empty for a kind that has neither."""
    sequence: int = 0
    """The number of the job's last event; 0: unknown, or the job is gone."""

    def payload(self) -> str:
        """Returns the change as the text of a notification."""
        words = [self.kind.value, self.name, str(self.sequence) if self.sequence else ""]
        return " ".join(word for word in words if word)

    @classmethod
    def parse(cls, payload: str) -> Change:
        """Returns the change of a notification; ANYTHING for what only a newer server knows."""
        kind, name, sequence, *_ = [*payload.split(" "), "", ""]
        try:
            return cls(ChangeKind(kind), name, int(sequence or 0))
        except ValueError:
            return cls(ChangeKind.ANYTHING)


QUEUED = Change(ChangeKind.QUEUE)
"""A job waits that nobody holds."""
