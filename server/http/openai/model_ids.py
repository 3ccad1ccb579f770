"""`ModelReference` is the model that an id names, and `model_id` is the id of a version.

::

    NAME            the newest version
    NAME@ALIAS      the version that an alias leads to
    NAME@N          version N; no alias is a number
    job:ID          the newest weights of a training job
    job:ID@best     its weights with the lowest validation loss

All of them can stand in a URL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from treadle.server.http.openai.json_fields import MAX_UINT64
from treadle.server.http.openai.openai_error import OpenAIError, invalid
from treadle.server.release import RELEASE
from treadle.v1 import sequence_pb2 as pb

"""That of this program; to look it up takes milliseconds."""

_JOB = "job:"
_BEST = "@best"


@dataclass(frozen=True)
class ModelReference:
    """The weights that a request names."""

    model: str = ""
    """NAME or NAME@ALIAS; empty where a job is named."""
    version: int = 0
    """The version; 0: the newest, or that of the alias."""
    job: str = ""
    """The id of a job; empty where a model is named."""
    best: bool = False
    """Whether the best weights of the job are named and not the last ones."""

    def fields(self) -> dict[str, Any]:
        """Returns the fields of a request that name these weights."""
        if not self.job:
            return {"model": self.model, "version": self.version}
        weights = pb.JOB_WEIGHTS_BEST if self.best else pb.JOB_WEIGHTS_LAST
        return {"job": self.job, "job_weights": weights}


def read_model_id(text: str | None) -> ModelReference:
    """Returns what an id names.

    Raises:
        OpenAIError: 400: it is missing or not text; 404: nothing can have it.
    """
    if not text:
        raise invalid("model", "model must name a model: GET /v1/models lists them")
    if text.startswith(_JOB):
        job = text.removeprefix(_JOB)
        return ModelReference(job=job.removesuffix(_BEST), best=job.endswith(_BEST))
    name, _, number_text = text.partition("@")
    if not (number_text.isascii() and number_text.isdecimal()):
        return ModelReference(text)
    number = int(number_text[:30])
    if not 0 < number <= MAX_UINT64:
        raise OpenAIError(
            404, f"there is no model {text[:130]!r}", param="model", code="model_not_found"
        )
    return ModelReference(name, number)


def model_id(name: str, number: int) -> str:
    """Returns the id of one version."""
    return f"{name}@{number}"


def job_id(job: str) -> str:
    """Returns the id of the newest weights of a job."""
    return _JOB + job


def fingerprint(model: pb.Model) -> str:
    """Returns what identifies the weights and the program that generate a text."""
    return f"fp_{model.sha256[:16]}_treadle_{RELEASE}"
