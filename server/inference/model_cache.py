"""`ModelCache` keeps models in memory: loads them when needed and drops those not used for long."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

from treadle.model import InferencePrecision, Model
from treadle.model.errors import LoadError
from treadle.server.errors import StatusError, aborted, damaged, not_found, precondition
from treadle.server.failures import is_full, is_out_of_files
from treadle.server.resources import thread_pools
from treadle.server.storage.job_files import BEST_FILE, LAST_FILE, JobWeights
from treadle.server.telemetry import metrics, tracing

if TYPE_CHECKING:
    from treadle.server.resources.memory_budget import MemoryBudget
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.model_version import StoredModel

_HITS = metrics.MODEL_CACHE_REQUESTS.labels("hit")
_MISSES = metrics.MODEL_CACHE_REQUESTS.labels("miss")

_MEMORY_PER_FILE = 3
"""Memory of a model in sizes of its file: parameters, packed weights and a table."""

_PARAMETERS_PER_INT8 = 2
"""Bytes of parameters for a byte of their int8 form, at least: a quarter, and a scale and a
correction for each output."""

_TRIES = 3
"""How often weights are looked up that a job replaces while they are read."""


class _MissingWeightsError(Exception):
    """Weights are not where they were a moment ago."""


@dataclass(frozen=True)
class ResolvedModel:
    """A loaded model and where it comes from."""

    model: Model
    """The model."""
    version: int = 0
    """Its version, where it is a stored model; otherwise 0."""
    job_step: int = 0
    """Optimizer steps of its training, where it is of a job; otherwise 0."""


class ModelCache:
    """Loaded models, of which the least recently used go first.

    A dropped or deleted model stays in memory for the calls that use it, and in the budget until
    the last of them is over. Models that no call uses are dropped where memory is needed.

    Args:
        data_dir: Where models come from.
        max_bytes: Models of this size together stay loaded, and always the newest one.
        budget: Holds the memory of the models.
    """

    def __init__(self, data_dir: DataDir, max_bytes: int, budget: MemoryBudget) -> None:
        self._data_dir = data_dir
        self._max_bytes = max_bytes
        self._budget = budget
        # A whole StoredModel is the key, since a deleted model's name and number may come again.
        self._models: OrderedDict[StoredModel | JobWeights, Model] = OrderedDict()
        self._loading: dict[StoredModel | JobWeights, asyncio.Task[Model]] = {}
        # Includes models that were dropped and are still in use: no model is in memory twice.
        self._alive: WeakValueDictionary[StoredModel | JobWeights, Model] = WeakValueDictionary()
        self._lock = threading.RLock()
        self._int8_bytes: WeakKeyDictionary[Model, int] = WeakKeyDictionary()
        self._packing: dict[Model, asyncio.Task[None]] = {}
        budget.on_shortage(self._spare)

    async def get(self, name: str, version: int = 0) -> ResolvedModel:
        """Returns a model by its NAME or NAME@ALIAS, by default its newest version.

        Raises:
            StatusError: NOT_FOUND, DATA_LOSS for a damaged file, or RESOURCE_EXHAUSTED where it
                does not fit into memory.
        """
        stored = await thread_pools.DATABASE.run(self._data_dir.models.find, name, version)
        return ResolvedModel(await self._get(stored), version=stored.version)

    async def get_job(self, job: str, best: bool) -> ResolvedModel:
        """Returns the weights that a job has published last, or its best ones.

        Raises:
            StatusError: FAILED_PRECONDITION: it has published none; RESOURCE_EXHAUSTED: they do
                not fit into memory.
        """
        weights = await self._weights(job, best)
        for _ in range(_TRIES):
            try:
                model = await self._get(weights)
                break
            except _MissingWeightsError:  # the job has replaced them, or was deleted
                missing = weights
                with suppress(StatusError):
                    weights = await self._weights(job, best)
                if weights == missing:
                    raise precondition(f"job {job} was just deleted") from None
        else:
            raise aborted(f"the weights of job {job} changed while they were read: call again")
        with self._lock:
            for old in [key for key in self._models if _replaces(weights, key)]:
                del self._models[old]
        record = model.training
        return ResolvedModel(model, job_step=0 if record is None else record.weights_step)

    async def _weights(self, job: str, best: bool) -> JobWeights:
        """Returns which weights a job has published last, or which are its best ones."""
        name = BEST_FILE if best else LAST_FILE
        try:
            return await thread_pools.DATABASE.run(self._data_dir.jobs.weights, job, name)
        except FileNotFoundError:
            what = "best weights: it has not validated" if best else "weights: it has just begun"
            raise precondition(f"job {job} has published no {what}") from None
        except OSError as error:  # something else has the name of its directory or file
            if is_out_of_files(error) or is_full(error):
                raise
            raise precondition(f"the weights of job {job} cannot be read") from error

    async def at_precision(
        self, found: ResolvedModel, precision: InferencePrecision
    ) -> ResolvedModel:
        """Returns a loaded model in a precision; its int8 form is made at first use, and kept.

        Args:
            found: The model, as `get` or `get_job` returned it.
            precision: The numbers that it is to compute with.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: its int8 form does not fit into memory.
        """
        model = found.model
        if precision is InferencePrecision.FP32:
            return found
        if model not in self._int8_bytes:
            if model not in self._packing:
                packing = asyncio.create_task(self._pack_int8(model))
                packing.add_done_callback(lambda task: task.cancelled() or task.exception())
                self._packing[model] = packing
            # Shielded: others may wait for the same form when this caller goes away.
            await asyncio.shield(self._packing[model])
        return replace(found, model=model.at(precision))

    async def _pack_int8(self, model: Model) -> None:
        """Makes the int8 form of a model; its memory counts for as long as the model exists."""
        try:
            size = model.parameters.flat.nbytes // _PARAMETERS_PER_INT8
            held = self._budget.reserve(size, "int8 weights")
            try:
                view = model.at(InferencePrecision.INT8)
                await thread_pools.MODELS.run(lambda: view.weights)
            except BaseException:
                held.release()
                raise
            weakref.finalize(model, held.release).atexit = False
            with self._lock:
                self._int8_bytes[model] = size
                self._evict()
        finally:
            del self._packing[model]

    def loaded(self) -> dict[str, list[int]]:
        """Returns the versions of stored models that are in memory, by the names of the models."""
        found: dict[str, list[int]] = {}
        with self._lock:
            for stored in self._models:
                if not isinstance(stored, JobWeights):
                    found.setdefault(stored.name, []).append(stored.version)
        return found

    def forget(self, name: str, versions: list[int]) -> None:
        """Drops versions that were deleted."""
        with self._lock:
            for stored in [*self._models, *self._loading]:
                if isinstance(stored, JobWeights):
                    continue
                if stored.name == name and stored.version in versions:
                    self._models.pop(stored, None)
                    self._alive.pop(stored, None)
                    self._loading.pop(stored, None)  # calls that wait for it still get it

    async def _get(self, stored: StoredModel | JobWeights) -> Model:
        with self._lock:
            model = self._alive.get(stored)
            if model is not None:
                self._keep(stored, model)
                _HITS.inc()
                return model
        _MISSES.inc()
        if stored not in self._loading:
            loading = asyncio.create_task(self._load(stored))
            loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._loading[stored] = loading
        # Shielded: others may wait for the same model when this caller goes away.
        return await asyncio.shield(self._loading[stored])

    async def _load(self, stored: StoredModel | JobWeights) -> Model:
        try:
            model = await self._read(stored)
        finally:
            still_stored = self._loading.pop(stored, None) is not None
        if still_stored:
            with self._lock:
                self._alive[stored] = model
                self._keep(stored, model)
        return model

    async def _read(self, stored: StoredModel | JobWeights) -> Model:
        """Reads a model, whose memory counts in the budget for as long as it exists."""
        held = self._budget.reserve(_MEMORY_PER_FILE * stored.size_bytes, _called(stored))
        try:
            with metrics.MODEL_LOAD_SECONDS.time(), tracing.within("load model"):
                model = await self._read_file(stored)
        except LoadError as error:
            held.release()
            if isinstance(stored, JobWeights):
                raise precondition(f"the weights of job {stored.job} are damaged") from error
            raise damaged(stored.name, stored.version, error) from error
        except FileNotFoundError:
            held.release()
            if isinstance(stored, JobWeights):
                raise _MissingWeightsError from None
            raise not_found(stored.name, stored.version) from None
        except OSError as error:
            held.release()
            if is_out_of_files(error):  # the file itself may be whole
                raise
            fault = LoadError(error.strerror or "the disk failed")
            if isinstance(stored, JobWeights):
                raise precondition(f"the weights of job {stored.job} cannot be read") from error
            raise damaged(stored.name, stored.version, fault) from error
        except BaseException:
            held.release()
            raise
        weakref.finalize(model, held.release).atexit = False
        return model

    async def _read_file(self, stored: StoredModel | JobWeights) -> Model:
        """Reads the file of a model, which is brought to this machine first if need be."""
        files: AbstractContextManager[Path]
        if isinstance(stored, JobWeights):
            is_local = self._data_dir.jobs.is_local(stored)
            files = self._data_dir.jobs.local_file(stored)
        else:
            is_local = self._data_dir.models.is_local(stored)
            files = self._data_dir.models.local_file(stored)
        held = ExitStack()
        if not is_local:
            # In other threads, so that models which are here can be read while the store hangs.
            files = nullcontext(await thread_pools.FETCHES.run(held.enter_context, files))
        return await thread_pools.MODELS.run(_load, files, held)

    def _keep(self, stored: StoredModel | JobWeights, model: Model) -> None:
        """Keeps a model as the newest, and drops others that do not fit any more."""
        self._models[stored] = model
        self._models.move_to_end(stored)
        self._evict()

    def _evict(self) -> None:
        """Drops the models that were not used for longest while all together are too large."""
        while len(self._models) > 1 and self.size_bytes > self._max_bytes:
            self._models.popitem(last=False)
            metrics.MODEL_CACHE_EVICTIONS.inc()

    def _spare(self, missing: int) -> None:
        """Drops models that no call uses until so many bytes are free; in any thread."""
        with self._lock:
            target = self._budget.used - missing
            for stored in [*self._models]:
                if self._budget.used <= target:
                    return
                del self._models[stored]
                used = self._alive.get(stored)
                if used is not None:  # a call uses it: nothing is gained
                    self._models[stored] = used
                else:
                    metrics.MODEL_CACHE_EVICTIONS.inc()

    @property
    def count(self) -> int:
        """How many models are loaded."""
        return len(self._models)

    @property
    def size_bytes(self) -> int:
        """About the memory of all loaded models."""
        with self._lock:
            files = sum(stored.size_bytes for stored in self._models)
            int8 = sum(self._int8_bytes.get(model, 0) for model in self._models.values())
            return _MEMORY_PER_FILE * files + int8


def _load(files: AbstractContextManager[Path], held: ExitStack) -> Model:
    """Reads the file of a model, and gives up what was held for that."""
    with held, files as path:
        return Model.load(path)


def _called(stored: StoredModel | JobWeights) -> str:
    """Returns what is loaded, for a message."""
    if isinstance(stored, JobWeights):
        return f"the weights of job {stored.job}"
    return f"version {stored.version} of model {stored.name!r}"


def _replaces(weights: JobWeights, other: StoredModel | JobWeights) -> bool:
    """Returns whether weights are newer ones of the same job and kind."""
    return (
        isinstance(other, JobWeights)
        and (other.job, other.name) == (weights.job, weights.name)
        and other != weights
    )
