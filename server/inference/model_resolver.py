"""`ModelResolver` finds the weights that a request names: those of a stored model, or of a job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from treadle.server.inference.model_cache import ModelCache, ResolvedModel
from treadle.server.messages.requests import SourceRequest
from treadle.v1 import sequence_pb2 as pb


class ModelResolver:
    """Finds the model of a request.

    Args:
        models: Gives the models.
        check_job: Raises NOT_FOUND where there is no job with an id.
    """

    def __init__(self, models: ModelCache, check_job: Callable[[str], Awaitable[object]]) -> None:
        self.models = models
        self._check_job = check_job

    async def resolve(self, request: SourceRequest) -> ResolvedModel:
        """Returns the model that a request names, or the weights of a job.

        Raises:
            StatusError: NOT_FOUND, FAILED_PRECONDITION (a job without weights yet), DATA_LOSS.
        """
        if not request.job:
            return await self.models.get(request.model, request.version)
        await self._check_job(request.job)
        best = request.job_weights == pb.JOB_WEIGHTS_BEST
        return await self.models.get_job(request.job, best)
