"""`ServerState` reads what the server knows anyway at each scrape, instead of counting it.

The objects that know it are of higher layers, so that it gets functions that read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

Value = float | Mapping[str, float]
"""What a function reads: a number, or numbers by the values of the label."""


@dataclass(frozen=True)
class Reading:
    """A metric that is read at each scrape."""

    name: str
    """Its name."""
    text: str
    """Its description."""
    label: str = ""
    """Its label; empty: it has none."""


READINGS = (
    Reading("treadle_build_info", "1, with the version of the server.", "version"),
    Reading("treadle_ready", "1 once the server is serving, otherwise 0."),
    Reading("treadle_calls_running", "Calls that run or wait, by what they do.", "kind"),
    Reading("treadle_streams_open", "Streams that are open, by what they do.", "kind"),
    Reading("treadle_sequences_running", "Texts that are generated or wait for it."),
    Reading("treadle_turn_queue_depth", "Tasks of calls that wait for a turn on a thread."),
    Reading("treadle_model_cache_models", "Models in memory."),
    Reading("treadle_model_cache_bytes", "About the bytes of the models in memory."),
    Reading("treadle_memory_budget_used_bytes", "Bytes of the memory budget that are taken."),
    Reading("treadle_memory_budget_limit_bytes", "Bytes of the memory budget."),
    Reading("treadle_jobs", "Jobs that are not over, by their state.", "state"),
    Reading("treadle_training_queue_depth", "Jobs that wait for a slot or for their corpus."),
    Reading("treadle_leases_held", "Leases of jobs that this server has; 0: it shares no jobs."),
    Reading(
        "treadle_storage_up",
        "1 if what the servers share could be reached the last time, otherwise 0, by its kind.",
        "kind",
    ),
    Reading("treadle_worker_processes", "Training processes, with those that stand by."),
    Reading(
        "treadle_checkpoint_age_seconds",
        "Seconds since a running job last wrote a checkpoint, or since it began to run.",
        "job_id",
    ),
    Reading("treadle_data_bytes", "Bytes of the data directory, by what they hold.", "kind"),
    Reading("treadle_data_disk_free_bytes", "Bytes that are free on the disk of the data."),
)
"""Every metric that is read, in the order of the page."""


class ServerState:
    """Reads the metrics of one server, on its event loop.

    Args:
        readers: A function for each of `READINGS`, by its name.
    """

    def __init__(self, readers: Mapping[str, Callable[[], Value]]) -> None:
        names = {reading.name for reading in READINGS}
        if names != readers.keys():
            raise ValueError(f"these have no reading, or no reader: {names ^ readers.keys()}")
        self._readers = readers

    def read(self) -> Iterable[Metric]:
        """Returns every metric with its value now."""
        return [_family(reading, self._readers[reading.name]()) for reading in READINGS]


def _family(reading: Reading, value: Value) -> Metric:
    labels = [reading.label] if reading.label else []
    family = GaugeMetricFamily(reading.name, reading.text, labels=labels)
    if isinstance(value, Mapping):
        for label, number in value.items():
            family.add_metric([label], number)
    else:
        family.add_metric([], value)
    return family
