"""`server_state` reads the metrics of a server from its parts, at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from treadle.server.release import RELEASE
from treadle.server.storage.job_state import UNFINISHED_STATES
from treadle.server.telemetry.server_state import ServerState
from treadle.server.telemetry.training_metrics import TRAINING

if TYPE_CHECKING:
    from collections.abc import Callable

    from treadle.server.inference.admission import ControlAdmission, InferenceAdmission
    from treadle.server.inference.model_cache import ModelCache
    from treadle.server.inference.scheduler import Scheduler
    from treadle.server.jobs.executors.executor import Executor
    from treadle.server.jobs.manager import JobManager
    from treadle.server.resources.disk_usage import DiskUsage
    from treadle.server.resources.memory_budget import MemoryBudget


def server_state(
    *,
    is_ready: Callable[[], bool],
    inference: InferenceAdmission,
    control: ControlAdmission,
    scheduler: Scheduler,
    models: ModelCache,
    budget: MemoryBudget,
    jobs: JobManager,
    workers: Executor,
    disk: DiskUsage,
) -> ServerState:
    """Returns what reads the metrics of a server.

    Args:
        is_ready: Returns whether the server is serving.
        inference: Counts the calls that compute.
        control: Counts the others.
        scheduler: Gives the turns.
        models: The models in memory.
        budget: The memory of callers.
        jobs: The training jobs.
        workers: Their processes.
        disk: Measures the data directory.
    """

    def calls() -> Mapping[str, float]:
        return {
            "inference": inference.calls.running,
            "list": control.lists.running,
            "watch": control.watchers.running,
            "submit": control.submissions.running,
        }

    def streams() -> Mapping[str, float]:
        return {"score": inference.streams.running, "learn": inference.learning_streams.running}

    def storage_up() -> Mapping[str, float]:
        if jobs.replica is None:
            return {}
        keeper, blobs = jobs.replica.keeper, jobs.replica.blobs
        return {"database": float(keeper.is_reached), "blobs": float(blobs.is_reached)}

    def job_states() -> Mapping[str, float]:
        found = Counter(str(job.row.state) for job in jobs.registry.live.values())
        return {str(state): found[str(state)] for state in UNFINISHED_STATES}

    return ServerState(
        {
            "treadle_build_info": lambda: {RELEASE: 1},
            "treadle_ready": lambda: float(is_ready()),
            "treadle_calls_running": calls,
            "treadle_streams_open": streams,
            "treadle_sequences_running": lambda: inference.sequences.running,
            "treadle_turn_queue_depth": lambda: scheduler.waiting,
            "treadle_model_cache_models": lambda: models.count,
            "treadle_model_cache_bytes": lambda: models.size_bytes,
            "treadle_memory_budget_used_bytes": lambda: budget.used,
            "treadle_memory_budget_limit_bytes": lambda: budget.limit,
            "treadle_jobs": job_states,
            "treadle_training_queue_depth": lambda: jobs.waiting_count,
            "treadle_leases_held": lambda: len(jobs.registry.live) if jobs.replica else 0,
            "treadle_storage_up": storage_up,
            "treadle_worker_processes": lambda: workers.count,
            "treadle_checkpoint_age_seconds": TRAINING.checkpoint_ages,
            "treadle_data_bytes": lambda: disk.sizes,
            "treadle_data_disk_free_bytes": lambda: disk.free,
        }
    )
