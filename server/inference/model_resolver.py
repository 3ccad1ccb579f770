"""`ModelResolver` finds the weights that a request names: those of a stored model, or of a job.

It finds only what the current caller may use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from treadle.model.enums import InferencePrecision
from treadle.model.network.session_state import SessionState
from treadle.model.warmup.groups import KernelGroup
from treadle.server.access.model_rights import check_read
from treadle.server.inference.model_cache import ModelCache, ResolvedModel
from treadle.server.messages.inference_precision import asked_precision
from treadle.server.messages.requests import SourceRequest
from treadle.v1 import sequence_pb2 as pb

_DETAILS = ("ranks", "top_log_probabilities", "best_of")
"""The fields of requests that need more than the kernels of plain inference."""


async def _all_ready(group: KernelGroup) -> None:
    """Waits for nothing, as where every kernel is compiled."""


class ModelResolver:
    """Finds the model of a request.

    Args:
        models: Gives the models.
        check_job: Raises NOT_FOUND where the current caller has no job with an id.
        precision: The precision where a request neither sets one nor continues from a state.
        require: Waits until the kernels of a group are compiled; see `Warmup`.
    """

    def __init__(
        self,
        models: ModelCache,
        check_job: Callable[[str], Awaitable[object]],
        precision: InferencePrecision = InferencePrecision.FP32,
        require: Callable[[KernelGroup], Awaitable[None]] = _all_ready,
    ) -> None:
        self._models = models
        self._check_job = check_job
        self._precision = precision
        self.require = require

    async def resolve(self, request: SourceRequest) -> ResolvedModel:
        """Returns the model that a request names, or the weights of a job.

        Raises:
            StatusError: NOT_FOUND, FAILED_PRECONDITION (a job without weights yet), DATA_LOSS.
        """
        if not request.job:
            return await self.stored(request.model, request.version)
        await self._check_job(request.job)
        best = request.job_weights == pb.JOB_WEIGHTS_BEST
        return await self._models.get_job(request.job, best)

    async def await_kernels(
        self, request: SourceRequest, state: SessionState | None = None
    ) -> None:
        """Waits until the kernels that a request needs are compiled, as right after a first start.

        To be called before the request takes any place that others may need.

        Args:
            request: The request.
            state: The state from which it continues, once that is read. It may keep a precision
                that the request does not name; then this is to be called again.

        Raises:
            StatusError: UNAVAILABLE: the kernels are not ready.
        """
        is_known = state is not None or not getattr(request, "state", b"")
        is_known = is_known or asked_precision(request) is not None
        if is_known and self._precision_of(request, state) is InferencePrecision.INT8:
            await self.require(KernelGroup.INT8)
        if any(getattr(request, name, 0) for name in _DETAILS):
            await self.require(KernelGroup.DETAILS)
        if getattr(request, "novelty", False):
            await self.require(KernelGroup.NOVELTY)

    async def at_precision(
        self, found: ResolvedModel, request: SourceRequest, state: SessionState | None = None
    ) -> ResolvedModel:
        """Returns a model in the precision in which a request computes.

        Args:
            found: The model, as `resolve` returned it.
            request: The request.
            state: The state from which it continues, which keeps its precision unless the request
                sets another one; None: it continues from none.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the model does not fit into memory in this precision.
        """
        return await self._models.at_precision(found, self._precision_of(request, state))

    def _precision_of(
        self, request: SourceRequest, state: SessionState | None
    ) -> InferencePrecision:
        asked = asked_precision(request)
        if asked is not None:
            return asked
        return self._precision if state is None else state.precision

    async def stored(self, name: str, version: int) -> ResolvedModel:
        """Returns a stored model.

        Args:
            name: NAME or NAME@ALIAS.
            version: The version; 0: the one of the alias, or the newest.

        Raises:
            StatusError: NOT_FOUND, DATA_LOSS.
        """
        check_read(name, version)
        return await self._models.get(name, version)
