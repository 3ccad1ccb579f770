"""Every setting of the server. The docstring under a field is also its help text.

Light on purpose: the health check reads its address from here and must not import NumPy.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treadle.server.address import address_fault

logger = logging.getLogger(__name__)


def available_cpus() -> int:
    """Returns how many processors this process may keep busy, at least 1.

    That is the processors it may run on, or what the container's CPU quota allows where that is
    less: Numba and OpenBLAS see only the former.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(allowed, round(quota))) if quota is not None else allowed


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Returns the CPU quota of this container in processors; None where there is none."""
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
    """Returns the bytes that this container or machine has to give; None where nobody tells."""
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
    """Returns the user's own folder for data, as the XDG rules give it.

    For a user without a home, as containers may run us, it is a folder where we were started.
    """
    base = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(base):  # to be ignored, says the XDG specification
        home = os.path.expanduser("~")
        if home == "~":
            return Path("treadle-data")
        base = os.path.join(home, ".local", "share")
    return Path(base) / "treadle"


_MIN_KEY_BYTES = 16
_MAX_KEY_BYTES = 1 << 16
"""A key file is read no further: it may be a device without an end."""

_COUNT = (1 << 32) - 1
"""The most that GetServerInfo can tell of what is counted."""
_BYTES = (1 << 63) - 1
_BUDGET_WHERE_NOBODY_TELLS = 1 << 30
"""The memory budget where neither the container nor the machine tells what it has."""
_SECONDS = 1e9
"""Thirty years."""
_THREADS = 1024


class SettingError(ValueError):
    """A setting cannot be used.

    Args:
        setting: Its name, as a field of `ServerConfig`.
        fault: What is wrong with it, to be read behind its name.
    """

    def __init__(self, setting: str, fault: str) -> None:
        super().__init__(f"--{setting.replace('_', '-')} {fault}")
        self.setting = setting
        self.fault = fault


def _range(least: float, most: float) -> dict[str, Any]:
    return {"least": least, "most": most}


@dataclass(frozen=True)
class ServerConfig:
    """Settings of one server process, checked when they are built.

    Raises:
        SettingError: A setting is out of its range; the message names it.
    """

    address: str = "127.0.0.1:50051"
    """HOST:PORT to listen on, unix:/PATH or unix-abstract:NAME; port 0 takes a free one, 0.0.0.0
    or [::] listens everywhere."""
    data_dir: Path = field(default_factory=default_data_dir)
    """Directory of the models; made if it is missing. One server at a time may use it."""
    threads: int = field(default_factory=available_cpus, metadata=_range(1, _THREADS))
    """Threads that training jobs share, and as many that generate and that score."""
    training_slots: int = field(default=1, metadata=_range(1, _THREADS))
    """Training jobs that may run at once, sharing the threads; more of them wait."""
    training_queue_limit: int = field(default=1000, metadata=_range(0, _COUNT))
    """Training jobs that may wait for a slot, on disk; more of them are refused."""
    upload_limit: int = field(default=16, metadata=_range(1, _COUNT))
    """Corpora that may be on their way at once; more of them are refused."""
    checkpoint_interval_s: float = field(default=10.0, metadata=_range(0, _SECONDS))
    """Seconds between two checkpoints of a training job, whose weights are published then."""
    max_restarts: int = field(default=3, metadata=_range(0, _COUNT))
    """How often in a row a job goes on after its process died without a new checkpoint."""
    min_free_bytes: int = field(default=64 << 20, metadata=_range(0, _BYTES))
    """Bytes to leave free on the data directory's disk: below, jobs pause and uploads end."""
    model_limit: int = field(default=100_000, metadata=_range(1, _COUNT))
    """Models that there may be; a new one is refused."""
    version_limit: int = field(default=10_000, metadata=_range(1, _COUNT))
    """Versions that a model may have, those of unfinished jobs included; a new one is refused."""
    alias_limit: int = field(default=100, metadata=_range(1, _COUNT))
    """Aliases that a model may have; a new one is refused."""
    job_retention_s: float = field(default=30 * 86_400.0, metadata=_range(0, _SECONDS))
    """Seconds that a job which is over is remembered, with its own weights; 0: for ever."""
    corpus_retention_s: float = field(default=7 * 86_400.0, metadata=_range(0, _SECONDS))
    """Seconds that a corpus stays which no job needs any more; 0: for ever."""
    memory_budget: int = field(default=0, metadata=_range(0, _BYTES))
    """Bytes of memory that requests, unread replies, loaded models and learners may take together
    in this process; 0: a third of what the container or the machine has to give at start."""
    max_training_bytes: int = field(default=0, metadata=_range(0, _BYTES))
    """The most memory that one training job may take, in bytes, its corpus counted; 0: 80 %
    of what the container or the machine has to give at start beside memory_budget, divided by
    training_slots."""
    max_training_s: float = field(default=86_400.0, metadata=_range(0, _SECONDS))
    """Seconds of running after which a training job is stopped and its model stored; 0: never."""
    standby_workers: int = field(default=1, metadata=_range(0, _THREADS))
    """Training processes kept ready, so that a short job need not wait for Python to start."""
    inference_limit: int = field(default=512, metadata=_range(1, _COUNT))
    """Generations, scorings and embeddings that may run at once, waiting ones included."""
    list_limit: int = field(default=32, metadata=_range(1, _COUNT))
    """Lists of jobs and models that may be made at once, waiting ones included."""
    watch_limit: int = field(default=1024, metadata=_range(1, _COUNT))
    """Calls that may watch jobs at once, and as many that bring a job and then follow it."""
    stream_limit: int = field(default=512, metadata=_range(1, _COUNT))
    """Streams to score (ScoreStream) that may be open at once; more of them are refused, unless one
    is silent for stream_idle_s: it then gives its place to the next."""
    session_limit: int = field(default=1024, metadata=_range(1, _COUNT))
    """Texts that may be generated at once, waiting ones included: a generation may ask for many."""
    learning_limit: int = field(default=16, metadata=_range(0, _COUNT))
    """Streams that may be learned from at once, each with its own copy of a model; stream_idle_s
    holds for them as well."""
    stream_idle_s: float = field(default=60.0, metadata=_range(0, _SECONDS))
    """Seconds of silence after which a stream gives its place to another call, where all places
    are taken; while there are places, it may be silent for as long as it likes."""
    first_message_s: float = field(default=10.0, metadata=_range(0.1, _SECONDS))
    """Seconds that the first message of a stream, its spec, may take; it has no place before."""
    max_call_s: float = field(default=3600.0, metadata=_range(0.1, _SECONDS))
    """Seconds that one call to generate, score or embed, or one message of a stream, may take;
    generated texts end then, and other calls fail."""
    state_key_file: str = ""
    """File with a secret of 16 bytes or more, which none but its owner may write; states that were
    not made with it are refused."""
    max_new_tokens_limit: int = field(default=100_000, metadata=_range(1, _COUNT))
    """The largest max_new_tokens that one generation may ask for."""
    max_corpus_bytes: int = field(default=1 << 30, metadata=_range(1, _BYTES))
    """The largest corpus, in bytes."""
    max_message_bytes: int = field(default=4 << 20, metadata=_range(1 << 16, (1 << 31) - 1))
    """The largest request or reply message, in bytes."""
    model_cache_bytes: int = field(default=1 << 30, metadata=_range(0, _BYTES))
    """Loaded models are kept up to this many bytes of memory; the newest always is."""
    upload_idle_s: float = field(default=60.0, metadata=_range(0.1, _SECONDS))
    """Seconds without a byte after which a corpus upload is given up."""
    upload_min_rate: int = field(default=1024, metadata=_range(0, _BYTES))
    """Bytes a second, over upload_idle_s, below which a corpus upload is given up; 0: never."""
    upload_max_s: float = field(default=3600.0, metadata=_range(0, _SECONDS))
    """Seconds that a corpus upload may take in all; 0: any number."""
    grace_s: float = field(default=8.0, metadata=_range(0, _SECONDS))
    """Seconds after SIGTERM within which the server ends; requests get nearly all of them."""
    log_level: str = "info"
    """How much is logged to standard error: debug, info, warning or error."""

    def state_key_bytes(self) -> bytes:
        """Returns the secret by which states are authenticated; empty where there is none.

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
            many = f"more than {_MAX_KEY_BYTES}" if len(read) > _MAX_KEY_BYTES else str(len(key))
            wanted = f"{_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} bytes"
            fault = f"names {self.state_key_file!r}, which must hold {wanted}, not {many}"
            raise SettingError("state_key_file", fault)
        return key

    def memory_budget_bytes(self) -> int:
        """Returns the memory that this process may keep for its callers, as it is now.

        Without the flag it is a third of what there is. Training jobs may take 80 % of the rest,
        and what then is left is for Python itself, the compiled kernels and the page cache.
        """
        if self.memory_budget:
            return self.memory_budget
        memory = available_memory()
        return _BUDGET_WHERE_NOBODY_TELLS if memory is None else memory // 3

    def training_bytes(self) -> int | None:
        """Returns the memory that one run may take, as it is now; None: whatever there is."""
        if self.max_training_bytes:
            return self.max_training_bytes
        memory = available_memory()
        if memory is None:
            return None
        rest = max(memory - self.memory_budget_bytes(), memory // 5)
        return rest * 4 // 5 // self.training_slots

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            if not item.metadata:
                continue
            least, most = item.metadata["least"], item.metadata["most"]
            value = getattr(self, item.name)
            if not (least <= value <= most and math.isfinite(value)):
                shown = most if isinstance(most, int) else f"{most:.0f}"
                raise SettingError(item.name, f"must be {least} to {shown}, not {value}")
        if fault := address_fault(self.address):
            raise SettingError("address", f"{self.address!r} {fault}")
        if "\0" in str(self.data_dir):
            raise SettingError("data_dir", "has a NUL in its name")
        if self.log_level not in ("debug", "info", "warning", "error"):
            levels = "debug, info, warning or error"
            raise SettingError("log_level", f"must be {levels}, not {self.log_level!r}")
