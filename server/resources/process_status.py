"""What Linux tells of a running process: the processor time and the memory that it has taken."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12
"""Where the fields utime and stime of /proc/PID/stat stand behind the name; see proc(5)."""


def processor_seconds(pid: int) -> float:
    """Returns the processor time that a process has used; 0 where nobody can tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # it is gone; or no more files may be open, and the next look tells
        return 0.0
    fields = stat.rpartition(b")")[2].split()  # the name may hold anything
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS


def own_bytes(pid: int) -> int:
    """Returns the memory that a process alone takes, swapped or not; 0 where nobody can tell.

    Mapped files do not count: the kernel takes their pages back when it needs them.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:  # it is gone; or no more files may be open, and the next look tells
        return 0
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(lines.get(name, "0").split()[0]) for name in ("RssAnon", "VmSwap")) << 10


def kills_for_memory() -> int:
    """Returns how often the kernel has killed a process for want of memory; 0 if unknown."""
    with suppress(OSError, ValueError):
        for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
            if path.exists():
                lines = (line.split() for line in path.read_text("ascii").splitlines())
                return int(dict(lines).get("oom_kill", 0))
    return 0
