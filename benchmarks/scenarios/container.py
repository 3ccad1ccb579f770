"""`Container`: a control group with a limit of memory, for a server and all that it starts.

The server sees the limit where it would in a container: the group is mounted over the root of the
memory controller in a mount namespace of its own. That needs root and version 1 of control groups;
elsewhere start the server in a container by `--server-command`.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup/memory")

_ENTER = """
echo $$ > "$0/cgroup.procs" || exit 1
exec unshare --mount sh -c 'mount --bind "$0" {root} && exec "$@"' "$0" "$@"
"""


class ContainerError(Exception):
    """No group can be made here. The message says why."""


class Container:
    """One control group below this process' own; `close` removes it.

    Args:
        limit_bytes: The most memory of all its processes together.

    Raises:
        ContainerError: It cannot be made here.
    """

    def __init__(self, limit_bytes: int) -> None:
        own = _own_group()
        self.path = own / f"abuse-{os.getpid()}-{time.monotonic_ns()}"
        try:
            self.path.mkdir()
            (self.path / "memory.limit_in_bytes").write_text(str(limit_bytes))
            done = subprocess.run([*self.prefix, "true"], capture_output=True, text=True)
        except OSError as error:
            self.close()
            raise ContainerError(f"no control group can be made: {error}") from error
        if done.returncode:
            self.close()
            raise ContainerError(f"no mount namespace can be made: {done.stderr.strip()}")

    @property
    def prefix(self) -> list[str]:
        """The command that runs its arguments as a command in the group, under its own id."""
        return ["sh", "-c", _ENTER.format(root=_ROOT), str(self.path)]

    @property
    def peak_bytes(self) -> int:
        """The most memory that the group had, cached files included."""
        return int((self.path / "memory.max_usage_in_bytes").read_text())

    @property
    def kills(self) -> int:
        """How many processes were killed since the group had no more memory."""
        for row in (self.path / "memory.oom_control").read_text().splitlines():
            name, _, value = row.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def close(self) -> None:
        """Removes the group, once its processes have gone."""
        for _ in range(50):
            with suppress(FileNotFoundError):
                try:
                    self.path.rmdir()
                except OSError:
                    time.sleep(0.1)
                    continue
            return


def _own_group() -> Path:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError as error:
        raise ContainerError(f"no control groups here: {error}") from error
    for row in lines:
        _, controllers, path = row.split(":", 2)
        if "memory" in controllers.split(","):
            return _ROOT / path.lstrip("/")
    raise ContainerError("no memory controller of version 1 here")
