"""`ServerConfig` holds every setting of the server.

The docstring under a field is the help text of its flag, its metadata the range, and its default
the default of the flag. The health check reads its address here, so that this module must not
import NumPy.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shlex
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treadle.server.address import address_fault

logger = logging.getLogger(__name__)


def available_cpus() -> int:
    """Returns how many processors this process may use, at least 1.

    These are the processors that it may run on, or fewer where the container's CPU quota allows
    fewer: Numba and OpenBLAS do not see the quota.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(allowed, round(quota))) if quota is not None else allowed


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Returns the CPU quota of this container in processors; None without a quota."""
    try:
        if (root / "cpu.max").exists():
            limit, period = (root / "cpu.max").read_text().split()
        else:
            limit = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        share = float(limit) / float(period)
    except (OSError, ValueError):  # no cgroup here, or the limit is the word "max"
        return None
    return share if share > 0 else None


def available_memory(
    cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")
) -> int | None:
    """Returns the bytes of memory of this container or machine; None where they are unknown."""
    known = []
    for path in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no cgroup here, or the limit is the word "max"
            known.append(int(path.read_text()))
    with suppress(OSError, StopIteration):
        lines = meminfo.read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        known.append(int(line.split()[1]) * 1024)
    return min(known, default=None)


def default_data_dir() -> Path:
    """Returns the user's own folder for data, as the XDG Base Directory Specification defines it.

    For a user without a home, as in some containers, it is a folder of the working directory.
    """
    base = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(base):  # the specification says to ignore it
        home = os.path.expanduser("~")
        if home == "~":
            return Path("treadle-data")
        base = os.path.join(home, ".local", "share")
    return Path(base) / "treadle"


_MIN_KEY_BYTES = 16
_MAX_KEY_BYTES = 1 << 16
"""A key file is read up to here: it may be a device without an end."""

_COUNT = (1 << 32) - 1
"""The largest count that GetServerInfo can report: a uint32."""
_BYTES = (1 << 63) - 1
_BUDGET_OF_UNKNOWN_MEMORY = 1 << 30
"""The memory budget where neither the container nor the machine says how much memory it has."""
_SECONDS = 1e9
"""Thirty years."""
_THREADS = 1024

_DATABASE_SCHEMES = ("postgresql://", "postgres://")


PUBLIC_SERVICES = {
    "health": {"health"},
    "reflection": {"reflection"},
    "health,reflection": {"health", "reflection"},
    "reflection,health": {"health", "reflection"},
    "none": set[str](),
}
"""What `public_services` may be, and the services that it names."""


class SettingError(ValueError):
    """A setting cannot be used.

    Args:
        setting: Its name, as a field of `ServerConfig`.
        fault: What is wrong with it, as a clause that follows its name.
    """

    def __init__(self, setting: str, fault: str) -> None:
        super().__init__(f"--{setting.replace('_', '-')} {fault}")
        self.setting = setting
        self.fault = fault


class MalformedSettingError(SettingError):
    """No server could use a setting, whatever its machine is like: wrong usage."""


def _range(least: float, most: float) -> dict[str, Any]:
    return {"least": least, "most": most}


def range_of(item: dataclasses.Field[Any]) -> str:
    """Returns the range of a setting in words, such as `1 to 1024`; empty where it has none.

    Args:
        item: A field of `ServerConfig`.
    """
    if not item.metadata:
        return ""
    least = item.metadata["least"]
    most = item.metadata["most"]
    if most in (_COUNT, _BYTES, _SECONDS):  # no limit that anybody comes near
        return f"{least} or more"
    return f"{least} to {most}"


@dataclass(frozen=True)
class ServerConfig:
    """Settings of one server process, checked when they are built.

    Raises:
        SettingError: A setting is out of its range; the message names it.
    """

    address: str = "127.0.0.1:50051"
    """Address to listen on: HOST:PORT, unix:/PATH or unix-abstract:NAME. Port 0 takes a free port;
    0.0.0.0 or [::] listens on every network."""
    data_dir: Path = field(default_factory=default_data_dir)
    """Directory of models, jobs and corpora; it is created if it is missing. Only one server at a
    time may use it."""
    database_url: str = field(default="", repr=False)
    """PostgreSQL database that several servers share, instead of a file in data_dir:
    postgresql://USER:PASSWORD@HOST:PORT/DATABASE. Goes with blobs_url. Needs the extra
    `postgresql`."""
    blobs_url: str = field(default="", repr=False)
    """Store of models, checkpoints and corpora that several servers share, instead of data_dir:
    s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, or file:///PATH for a folder that
    all of them have mounted. Goes with database_url. Needs the extra `objectstore`."""
    blob_cache_bytes: int = field(default=10 << 30, metadata=_range(0, _BYTES))
    """Bytes of data_dir up to which copies of models and corpora of blobs_url are kept. What is in
    use is always kept."""
    lease_s: float = field(default=10.0, metadata=_range(0.5, 3600))
    """Seconds for which a server that shares database_url has the lease of a job that it runs. It
    renews the lease four times as often; one that does not come to it loses its jobs to others."""
    threads: int = field(default_factory=available_cpus, metadata=_range(1, _THREADS))
    """Threads that running training jobs share, and as many again for inference. The default is the
    number of processors that this process may use."""
    training_slots: int = field(default=1, metadata=_range(0, _THREADS))
    """Training jobs that may run at once and share the threads; other jobs wait. 0 runs none: a
    server that shares database_url takes jobs and leaves them to the others, and one that does not
    refuses to train."""
    training_queue_limit: int = field(default=1000, metadata=_range(0, _COUNT))
    """Training jobs that may wait for a slot, on disk; more are refused."""
    upload_limit: int = field(default=16, metadata=_range(1, _COUNT))
    """Corpora that may be uploaded at once, and as many models; more are refused."""
    checkpoint_interval_s: float = field(default=10.0, metadata=_range(0, _SECONDS))
    """Seconds between two checkpoints of a training job. Its weights can be used from then on."""
    max_restarts: int = field(default=3, metadata=_range(0, _COUNT))
    """How often in a row a job is restarted after its process died without a new checkpoint."""
    min_free_bytes: int = field(default=64 << 20, metadata=_range(0, _BYTES))
    """Bytes to leave free on the disk of the data directory. With less space, jobs pause and
    uploads end."""
    model_limit: int = field(default=100_000, metadata=_range(1, _COUNT))
    """Models that may be stored; a new one is refused."""
    version_limit: int = field(default=10_000, metadata=_range(1, _COUNT))
    """Versions that a model may have, with those of unfinished jobs; a new one is refused."""
    alias_limit: int = field(default=100, metadata=_range(1, _COUNT))
    """Aliases that a model may have; a new one is refused."""
    job_retention_s: float = field(default=30 * 86_400.0, metadata=_range(0, _SECONDS))
    """Seconds after its end for which a job and its own weights are kept; 0 keeps them for ever."""
    corpus_retention_s: float = field(default=7 * 86_400.0, metadata=_range(0, _SECONDS))
    """Seconds for which a corpus is kept that no job needs any more; 0 keeps it for ever."""
    memory_budget: int = field(default=0, metadata=_range(0, _BYTES))
    """Bytes of memory that requests, unread replies, loaded models and learners may take together
    in this process. 0 stands for a third of the memory that the container or the machine has at
    start."""
    max_training_bytes: int = field(default=0, metadata=_range(0, _BYTES))
    """Bytes of memory that one training job may take, with its corpus. 0 stands for 80 % of the
    memory at start less memory_budget, divided by training_slots; on other machines (executor, or
    training_slots=0), for all that they have."""
    max_training_s: float = field(default=86_400.0, metadata=_range(0, _SECONDS))
    """Seconds of running after which a training job is stopped and its model stored; 0 never stops
    one."""
    executor: str = "local"
    """Where training jobs run: local, in processes of this machine; or ray, on the nodes of the Ray
    cluster at ray_address, each on one that has as many CPUs free as there are threads, and the
    bytes of max_training_bytes where that is given. Ray needs the extra `ray`."""
    ray_address: str = "auto"
    """Address of the Ray cluster for executor=ray: HOST:PORT, ray://HOST:PORT, or auto, which is
    the cluster that this machine belongs to. The server starts no cluster."""
    standby_workers: int = field(default=1, metadata=_range(0, _THREADS))
    """Training processes that are kept ready, so that a short job need not wait for Python to
    start."""
    mpirun: str = ""
    """Command that starts the processes of a training job with several nodes, by MPI, such as
    `mpirun --hostfile /etc/treadle/hosts`; it gets -n and the number. Treadle with its extra mpi
    must be installed on every machine, at the same place. Without it such jobs are refused."""
    inference_precision: str = "fp32"
    """The numbers that models compute with when they generate, score or embed, where a request
    neither says so nor continues from a state: fp32, or int8, which is faster and less exact."""
    inference_limit: int = field(default=512, metadata=_range(1, _COUNT))
    """Calls that may generate, score or embed at once, including those that wait; more are
    refused."""
    list_limit: int = field(default=32, metadata=_range(1, _COUNT))
    """Calls that may list jobs or models at once, including those that wait; more are refused."""
    watch_limit: int = field(default=1024, metadata=_range(1, _COUNT))
    """Calls that may watch jobs at once, and as many again that submit a job and follow it; more
    are refused."""
    stream_limit: int = field(default=512, metadata=_range(1, _COUNT))
    """Streams to score (ScoreStream) that may be open at once. One more is refused, unless a
    stream has been silent for stream_idle_s: that one ends, and the new one takes its place."""
    session_limit: int = field(default=1024, metadata=_range(1, _COUNT))
    """Texts that may be generated at once, including those that wait. One call may ask for many;
    more are refused."""
    learning_limit: int = field(default=16, metadata=_range(0, _COUNT))
    """Learning streams (LearnStream) that may be open at once, each with its own copy of a model.
    stream_idle_s holds for them as well."""
    stream_idle_s: float = field(default=60.0, metadata=_range(0, _SECONDS))
    """Seconds of silence after which a stream loses its place to a new one, if all places are
    taken. While places are free, a stream may be silent for any time."""
    first_message_s: float = field(default=10.0, metadata=_range(0.1, _SECONDS))
    """Seconds within which the first message of a stream, its spec, must arrive."""
    max_call_s: float = field(default=3600.0, metadata=_range(0.1, _SECONDS))
    """Seconds that one call to generate, score or embed, or one message of a stream, may take.
    Generated texts then end early, and other calls fail."""
    http_address: str = ""
    """A further address that speaks HTTP: every RPC as JSON, what OpenAI's clients send, a page,
    metrics and probes. Empty: none. It has the TLS, the callers and the limits of the other one.
    Needs the extra `http`."""
    http_allow_origin: str = ""
    """Origins whose web pages may call the HTTP address from a browser, with commas between them,
    such as https://app.example; `*` is every page there is. Empty: only the server's own page."""
    http_allow_host: str = ""
    """Names under which browsers may call the HTTP address where no credential is needed, with
    commas between them, besides IP addresses, localhost and names without a dot; `*` is any. It
    keeps out pages whose own name leads to this machine."""
    http_connection_limit: int = field(default=1024, metadata=_range(1, _COUNT))
    """Connections that the HTTP address may have at once. One more takes the place of one that
    waits for its client, or is refused if there is no such connection."""
    tls_cert_file: str = ""
    """PEM file with the certificate of the server, followed by those between it and its authority.
    With it the server speaks TLS 1.2 and 1.3 only. The files of TLS are read again when they
    change; open connections stay."""
    tls_key_file: str = ""
    """PEM file with the private key of tls_cert_file: RSA, P-256 or P-384, not encrypted."""
    tls_client_ca_file: str = ""
    """PEM file with the authorities that sign the certificates of clients. With it every client
    must show a valid one."""
    health_address: str = ""
    """A further address that answers health checks and nothing else, without TLS and without a
    token, as for the probes of Kubernetes."""
    public_services: str = "health"
    """Services that may be called without a token where callers need one: health, reflection,
    health,reflection or none."""
    state_key_file: str = ""
    """File with secrets of 16 bytes or more that encrypt session states, one on each line; a file
    that is not text is one secret. The first one encrypts, and all are accepted. Each state is
    bound to its caller. The file is read again when it changes; only its owner may be able to
    write it. Without a file, states are not encrypted."""
    audit_log: str = ""
    """File to which a line of JSON is appended for every call that changes something or is refused;
    `-` is standard output. Without a file, nothing is written."""
    audit_log_bytes: int = field(default=100 << 20, metadata=_range(0, _BYTES))
    """Size from which audit_log is renamed and begun again; 0 leaves that to other programs."""
    audit_log_files: int = field(default=10, metadata=_range(1, 1000))
    """Earlier files of audit_log that are kept."""
    max_new_tokens_limit: int = field(default=100_000, metadata=_range(1, _COUNT))
    """The largest max_new_tokens of a generation; a larger one is refused."""
    max_corpus_bytes: int = field(default=1 << 30, metadata=_range(1, _BYTES))
    """Bytes of the largest corpus; a larger one is refused."""
    max_model_bytes: int = field(default=1 << 30, metadata=_range(1, _BYTES))
    """Bytes of the largest file of a model that is imported; a larger one is refused."""
    export_limit: int = field(default=32, metadata=_range(1, _COUNT))
    """Files of models that may be exported at once; more are refused. upload_idle_s,
    upload_min_rate and upload_max_s hold for those who read them as well."""
    max_message_bytes: int = field(default=4 << 20, metadata=_range(1 << 16, (1 << 31) - 1))
    """Bytes of the largest request or reply message."""
    model_cache_bytes: int = field(default=1 << 30, metadata=_range(0, _BYTES))
    """Bytes of memory up to which loaded models are kept. The model used last is always kept."""
    upload_idle_s: float = field(default=60.0, metadata=_range(0.1, _SECONDS))
    """Seconds without a byte after which the upload of a corpus or a model ends with an error."""
    upload_min_rate: int = field(default=1024, metadata=_range(0, _BYTES))
    """Bytes per second, averaged over upload_idle_s, below which an upload ends with an error; 0
    allows any rate."""
    upload_max_s: float = field(default=3600.0, metadata=_range(0, _SECONDS))
    """Seconds that an upload may take in total; 0 allows any time."""
    callers_file: str = ""
    """File of those who may call: their tokens, certificates, rights and quotas. It is read again
    when it has changed. `treadle-server token` makes and changes it. Without a file everybody may
    do everything."""
    grace_s: float = field(default=8.0, metadata=_range(0, _SECONDS))
    """Seconds after SIGTERM within which the server ends. Running requests get nearly all of them;
    those that are still left end with UNAVAILABLE."""
    log_level: str = "info"
    """How much is logged to standard error: debug, info, warning or error."""
    log_format: str = "text"
    """How it is logged: text, or json for a JSON object on each line."""
    otlp_endpoint: str = ""
    """Address of an OpenTelemetry collector that gets traces by OTLP over gRPC, such as
    http://127.0.0.1:4317; needs the extra otel. OpenTelemetry's own variables hold as well."""
    metrics_access: str = "admin"
    """Who may read /metrics where callers need a token: admin, callers with that role; public,
    everybody."""

    def shares_storage(self) -> bool:
        """Returns whether this server shares its data with others.

        Raises:
            MalformedSettingError: One of database_url and blobs_url comes without the other, or
                the database is no PostgreSQL.
        """
        for name, other in (("database_url", "blobs_url"), ("blobs_url", "database_url")):
            if getattr(self, name) and not getattr(self, other):
                flag = "--" + other.replace("_", "-")
                fault = f"comes without {flag}: servers share both or neither, so give {flag} too"
                raise MalformedSettingError(name, fault)
        # The URL itself is not repeated: it may hold a password.
        if self.database_url and not self.database_url.startswith(_DATABASE_SCHEMES):
            fault = "must begin with postgresql://"
            raise MalformedSettingError("database_url", fault)
        return bool(self.database_url)

    def state_key_bytes(self) -> bytes:
        """Returns the content of the file of secrets for session states; empty without a file.

        Raises:
            SettingError: The file cannot be read, holds too little or too much, or may be written
                by others.
        """
        if not self.state_key_file:
            return b""
        try:
            with open(self.state_key_file, "rb") as file:
                status = os.fstat(file.fileno())
                read = file.read(_MAX_KEY_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            fault = f"names {self.state_key_file!r}, which cannot be read: {reason}"
            raise SettingError("state_key_file", fault) from error
        if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            fault = f"names {self.state_key_file!r}, which others may write (mode {mode})"
            raise SettingError("state_key_file", f"{fault}: run chmod go-w on it")
        if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
            logger.warning(
                "every user of this machine may read the secret in %s: run chmod o-r on it, or "
                "mount it with mode 0400",
                self.state_key_file,
            )
        key = read.strip()
        if len(key) < _MIN_KEY_BYTES or len(read) > _MAX_KEY_BYTES:
            found = f"more than {_MAX_KEY_BYTES}" if len(read) > _MAX_KEY_BYTES else str(len(key))
            allowed = f"{_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} bytes"
            fault = f"names {self.state_key_file!r}, which must hold {allowed}, not {found}"
            raise SettingError("state_key_file", fault)
        return key

    def memory_budget_bytes(self) -> int:
        """Returns the bytes of memory that this process may keep for its callers.

        Without the flag it is a third of the memory. Training jobs may take 80 % of the rest, and
        the remainder is for Python itself, the compiled kernels and the page cache.
        """
        if self.memory_budget:
            return self.memory_budget
        memory = available_memory()
        return _BUDGET_OF_UNKNOWN_MEMORY if memory is None else memory // 3

    def training_bytes(self) -> int | None:
        """Returns the bytes of memory that one job may take; None: all there is."""
        if self.max_training_bytes:
            return self.max_training_bytes
        if self.executor != "local" or not self.training_slots:
            return None  # nobody knows where a job will run
        memory = available_memory()
        if memory is None:
            return None
        rest = max(memory - self.memory_budget_bytes(), memory // 5)
        return rest * 4 // 5 // self.training_slots

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            if not item.metadata:
                continue
            least = item.metadata["least"]
            most = item.metadata["most"]
            value = getattr(self, item.name)
            if not (least <= value <= most and math.isfinite(value)):
                shown = most if isinstance(most, int) else f"{most:.0f}"
                raise SettingError(item.name, f"must be {least} to {shown}, not {value}")
        if fault := address_fault(self.address):
            raise SettingError("address", f"{self.address!r} {fault}")
        if self.public_services not in PUBLIC_SERVICES:
            allowed = "health, reflection, health,reflection or none"
            raise SettingError(
                "public_services", f"must be {allowed}, not {self.public_services!r}"
            )
        if "\0" in str(self.data_dir):
            raise SettingError("data_dir", "has a NUL in its name")
        try:
            shlex.split(self.mpirun)
        except ValueError as error:
            raise SettingError("mpirun", f"cannot be read as a command: {error}") from None
        if self.inference_precision not in ("fp32", "int8"):
            fault = f"must be fp32 or int8, not {self.inference_precision!r}"
            raise SettingError("inference_precision", fault)
        if self.executor not in ("local", "ray"):
            raise SettingError("executor", f"must be local or ray, not {self.executor!r}")
        if self.ray_address != "auto" and self.executor != "ray":
            raise SettingError("ray_address", "needs --executor ray")
        if self.mpirun and self.executor != "local":
            fault = (
                f"goes with --executor local, not with {self.executor}: a job has one node there"
            )
            raise SettingError("mpirun", fault)
        if self.log_level not in ("debug", "info", "warning", "error"):
            levels = "debug, info, warning or error"
            raise SettingError("log_level", f"must be {levels}, not {self.log_level!r}")
        if self.log_format not in ("text", "json"):
            raise SettingError("log_format", f"must be text or json, not {self.log_format!r}")
        if self.metrics_access not in ("admin", "public"):
            fault = f"must be admin or public, not {self.metrics_access!r}"
            raise SettingError("metrics_access", fault)
