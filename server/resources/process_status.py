"""`processor_seconds` and `own_bytes` read the processor time and the memory of a process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_USER = 11
_SYSTEM = 12
"""The places of the fields utime and stime of /proc/PID/stat after the name; see proc(5)."""


def processor_seconds(pid: int) -> float:
    """Returns the processor time of a process in seconds; 0 where it is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # the process is gone, or too many files are open
        return 0.0
    fields = stat.rpartition(b")")[2].split()  # the name may hold anything
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS


def own_bytes(pid: int) -> int:
    """Returns the bytes of memory of a process alone, swapped or not; 0 where they are unknown.

    Mapped files do not count, since Linux can drop their pages.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:  # the process is gone, or too many files are open
        return 0
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(lines.get(name, "0").split()[0]) for name in ("RssAnon", "VmSwap")) << 10


def with_descendants(pid: int) -> list[int]:
    """Returns a process and those that descend from it, as far as they are known; parents first."""
    found = [pid]
    for parent in found:
        with suppress(OSError):  # it is gone
            for listed in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, listed.read_text("ascii").split())
    return found


def kills_for_memory() -> int:
    """Returns how often Linux has killed a process for lack of memory; 0 if unknown."""
    with suppress(OSError, ValueError):
        for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
            if path.exists():
                lines = (line.split() for line in path.read_text("ascii").splitlines())
                return int(dict(lines).get("oom_kill", 0))
    return 0
