"""`REGISTRY` holds every metric of the server; code elsewhere counts with the names defined here.

Labels have few values: the methods, codes and states of the contract, and the jobs that run. No
label holds the name of a model or of a caller, since both may be of any number.

What costs nothing to read is not counted here but read at each scrape: see `server_state`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

# A time of creation next to each counter would double what a scrape transfers.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
"""Every metric that is counted in this process."""

ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of the buckets of times that a caller waits for."""

_LONG_S = (*_SHORT_S, 30.0, 60.0, 300.0, 1800.0)
"""The same for what may last as long as a training job."""

_TOKEN_S = (2e-05, 5e-05, 1e-04, 2e-04, 5e-04, 1e-03, 2e-03, 5e-03, 1e-02, 2e-02, 5e-02, 0.1, 1.0)
"""The same for the time between two tokens of a text."""

_METHOD = ("grpc_type", "grpc_service", "grpc_method")


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(name, text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(name, text, labels, registry=REGISTRY, buckets=bounds)


# Calls, under the names and labels of the Go library go-grpc-middleware. A call that came by HTTP
# counts as the calls that it makes.
RPC_STARTED = _counter("grpc_server_started_total", "Calls that began.", *_METHOD)
RPC_HANDLED = _counter(
    "grpc_server_handled_total", "Calls that ended, by their status.", *_METHOD, "grpc_code"
)
RPC_SECONDS = _histogram(
    "grpc_server_handling_seconds",
    "Seconds from the start of a call to its end.",
    _LONG_S,
    *_METHOD,
)
RPC_RECEIVED = _counter("grpc_server_msg_received_total", "Requests that were read.", *_METHOD)
RPC_SENT = _counter("grpc_server_msg_sent_total", "Replies that were sent.", *_METHOD)

# Generation and scoring.
TURN_WAIT_SECONDS = _histogram(
    "treadle_turn_wait_seconds",
    "Seconds that work of a call waited for its turn on an inference thread.",
    _SHORT_S,
)
BATCH_SEQUENCES = _histogram(
    "treadle_decode_batch_sequences",
    "Sequences that decoded together, one observation for each chunk of steps.",
    (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
FIRST_TOKEN_SECONDS = _histogram(
    "treadle_time_to_first_token_seconds",
    "Seconds from the start of a Generate call to the first new token of each of its texts.",
    _SHORT_S,
)
TOKEN_SECONDS = _histogram(
    "treadle_time_per_token_seconds",
    "Mean seconds between two new tokens of a text, one observation for each text that ended.",
    _TOKEN_S,
)
PREFILL_TOKENS = _counter("treadle_prefill_tokens_total", "Tokens of prompts that were read.")
DECODE_TOKENS = _counter("treadle_decode_tokens_total", "New tokens of texts.")
SCORED_TOKENS = _counter(
    "treadle_scored_tokens_total",
    "Tokens that were scored, embedded or learned from, by the method that asked for it.",
    "grpc_method",
)
MODEL_CACHE_REQUESTS = _counter(
    "treadle_model_cache_requests_total",
    "Calls that needed a model: hit, it was in memory; miss, it was read from the disk.",
    "result",
)
MODEL_CACHE_EVICTIONS = _counter(
    "treadle_model_cache_evictions_total", "Models that were dropped to make space for others."
)
MODEL_LOAD_SECONDS = _histogram(
    "treadle_model_load_seconds", "Seconds that reading a model from the disk took.", _SHORT_S
)

# Training.
JOBS_ENDED = _counter("treadle_jobs_ended_total", "Jobs that ended, by their final state.", "state")
JOB_RESTARTS = _counter(
    "treadle_job_restarts_total", "Training processes that died and whose job continued."
)
LEASES_ACQUIRED = _counter(
    "treadle_leases_acquired_total", "Leases of jobs that this server has got."
)
LEASES_LOST = _counter(
    "treadle_leases_lost_total", "Leases of jobs that ran out before this server renewed them."
)
TRAINING_TOKENS = _counter("treadle_training_tokens_total", "Tokens that jobs were trained on.")
TRAINING_LOSS = _gauge(
    "treadle_training_loss_nats",
    "The last loss of a job, in nats per token: of its training part and of its validation part.",
    "job_id",
    "split",
)
TRAINING_STEP = _gauge("treadle_training_step", "Training steps that a job has done.", "job_id")
TRAINING_SPEED = _gauge(
    "treadle_training_tokens_per_second", "Tokens per second that a job is trained on.", "job_id"
)
CHECKPOINT_SECONDS = _histogram(
    "treadle_checkpoint_seconds",
    "Seconds that writing a checkpoint of a job took.",
    _LONG_S,
)

# The server itself.
LOOP_LAG_SECONDS = _histogram(
    "treadle_event_loop_lag_seconds",
    "Seconds by which a timer of the event loop was late; four observations a second.",
    _SHORT_S,
)
QUOTA_REFUSALS = _counter(
    "treadle_quota_refusals_total", "Refusals for a quota of a caller.", "quota"
)
MEMORY_REFUSALS = _counter(
    "treadle_memory_refusals_total", "Refusals for lack of space in the memory budget."
)
WARMUP_SECONDS = _gauge(
    "treadle_warmup_seconds", "Seconds that loading or compiling the kernels took; 0 until then."
)

for _result in ("hit", "miss"):
    MODEL_CACHE_REQUESTS.labels(_result)
for _state in ("succeeded", "failed", "cancelled"):
    JOBS_ENDED.labels(_state)
