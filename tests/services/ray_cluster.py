"""`RayCluster` is a cluster of nodes on this machine, each in namespaces of its own.

The nodes and the server that uses them share a network that nothing else reaches. The processes of
a node see none but their own, and die together, as with a machine. Folders that a test names are
empty for them: a node and the server share no files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

PATIENCE_S = 120.0
"""Seconds after which a test fails because something hangs."""

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
"""Variables of all that use a cluster. A token that the user keeps for others is not for it."""

_PORT = 6379
_STORE_BYTES = 80_000_000
_UNSHARE = ["unshare", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]


def require_cluster() -> None:
    """Skips the test where no cluster can be made."""
    pytest.importorskip("ray", reason="ray is not installed: make test-shared installs it")
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("the nodes of a cluster need unshare and nsenter of util-linux")
    if subprocess.run([*_UNSHARE, "--net", "--mount", "true"], check=False).returncode:
        pytest.skip("this system does not let a test make namespaces")


class Node:
    """One node of a cluster, with all its processes.

    Args:
        command: What runs it.
        environment: Its variables.
        log: Where it writes what it prints.
        address: Its address.
    """

    def __init__(
        self, command: list[str], environment: dict[str, str], log: IO[bytes], address: str
    ) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self.address = address
        self._is_killed = False
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command, env=self._environment, stdout=self._log, stderr=self._log
        )

    def keep_up(self) -> None:
        """Starts it again if it gave up: Ray allows a busy machine 30 seconds for a start."""
        if not self._is_killed and self._process.poll() is not None:
            self._process = self._start()

    def kill(self) -> None:
        """Kills all its processes at once."""
        self._is_killed = True
        self._process.kill()
        self._process.wait(PATIENCE_S)


class RayCluster:
    """A cluster on this machine.

    Args:
        cpus: The CPUs of the first node.
        hidden: A folder that no node sees the files of.
        log: Where the nodes write what they print.
    """

    def __init__(self, cpus: int, hidden: Path, log: Path) -> None:
        self._hidden = hidden
        self._log = log.open("wb")
        # The path of a socket may have some hundred characters at most.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        """Where its nodes keep their files."""
        self.nodes: list[Node] = []
        """Its nodes, dead ones included."""
        setup = " && ".join(
            ["ip link set lo up", *(f"ip addr add 10.99.0.{n}/32 dev lo" for n in range(1, 5))]
        )
        self._network = subprocess.Popen(
            [*_UNSHARE, "--net", "sh", "-c", f"{setup} && echo ready && exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert self._network.stdout is not None
        assert self._network.stdout.readline() == b"ready\n"
        user = [] if os.getuid() == 0 else ["--user", "--preserve-credentials"]
        self.inside = ["nsenter", "--target", str(self._network.pid), "--net", *user]
        """A command that runs another within the network of the cluster."""
        self.address = f"10.99.0.1:{_PORT}"
        """Its address, within its network."""
        self.add(cpus, "--head", f"--port={_PORT}", "--include-dashboard=false")

    def add(self, cpus: int, *flags: str) -> Node:
        """Starts one more node."""
        number = len(self.nodes) + 1
        address = f"10.99.0.{number}"
        temporary = self.folder / f"tmp{number}"
        temporary.mkdir()
        ray = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *(f"--node-ip-address={address}", f"--num-cpus={cpus}", "--disable-usage-stats"),
            f"--object-store-memory={_STORE_BYTES}",
            *(flags or (f"--address={self.address}",)),
            *((f"--temp-dir={self.folder}",) if flags else ()),
        ]
        hide = 'mount -t tmpfs none "$0" && exec "$@"'
        command = [
            *self.inside,
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", hide, str(self._hidden), *ray),
        ]
        environment = os.environ | ENVIRONMENT | {"TMPDIR": str(temporary)}
        node = Node(command, environment, self._log, address)
        self.nodes.append(node)
        return node

    def wait(self, count: int) -> None:
        """Waits until so many nodes are in the cluster."""
        look = (
            "import ray, sys, time\n"
            f"ray.init({self.address!r}, configure_logging=False)\n"
            "end = time.monotonic() + 10\n"
            f"while sum(node['Alive'] for node in ray.nodes()) != {count}:\n"
            "    time.sleep(0.2)\n"
            "    assert time.monotonic() < end\n"
        )
        end = time.monotonic() + 2 * PATIENCE_S
        while True:
            for node in self.nodes:
                node.keep_up()
            with suppress(subprocess.TimeoutExpired):
                command = [*self.inside, sys.executable, "-c", look]
                done = subprocess.run(
                    command,
                    env=os.environ | ENVIRONMENT,
                    check=False,
                    timeout=60,
                    capture_output=True,
                )
                if not done.returncode:
                    return
            assert time.monotonic() < end, f"no cluster of {count} nodes answers"

    def scratch(self, node: Node) -> list[Path]:
        """Returns the directories of jobs that a node has."""
        number = self.nodes.index(node) + 1
        return list((self.folder / f"tmp{number}").glob("treadle-job-*"))

    def close(self) -> None:
        """Kills all that is left of it."""
        for node in self.nodes:
            node.kill()
        self._network.kill()
        self._network.wait(PATIENCE_S)
        assert self._network.stdout is not None
        self._network.stdout.close()
        self._log.close()
        with suppress(OSError):
            shutil.rmtree(self.folder)
