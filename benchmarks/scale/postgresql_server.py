"""`run` starts PostgreSQL with a database directory of its own, and ends it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_DEBIAN = Path("/usr/lib/postgresql")
_USER = "postgres"
"""Who runs it where this process is root, whom PostgreSQL refuses."""


class MissingError(Exception):
    """A program or package that a measurement needs is not installed; the message says which."""


@dataclass(frozen=True)
class PostgreSQL:
    """A server that runs."""

    programs: Path
    """The folder of its programs."""
    socket: Path
    """The folder of its socket."""
    pid: int
    """The id of its first process."""
    user: str | None
    """Who runs it; None: who runs this process."""

    @property
    def conninfo(self) -> str:
        """How libpq connects to it."""
        return f"host={self.socket} dbname=postgres user={_USER}"

    def bench(self, script: str, clients: int, seconds: float) -> float:
        """Returns the transactions a second that pgbench reaches.

        Args:
            script: The statements of a transaction.
            clients: Connections.
            seconds: How long, a second at least.

        Raises:
            RuntimeError: A statement failed.
        """
        path = self.socket / "script.sql"
        path.write_text(script, "utf-8")
        path.chmod(0o644)
        command: list[str | Path] = [
            self.programs / "pgbench",
            "--no-vacuum",
            "--protocol",
            "prepared",
        ]
        command += ["--file", path, "--client", f"{clients}"]
        command += ["--time", f"{max(1, round(seconds))}", "-h", self.socket, "-U", _USER]
        command += ["postgres"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pgbench failed: {done.stderr.strip()}")
        [line] = [line for line in done.stdout.splitlines() if line.startswith("tps =")]
        return float(line.split()[2])


@contextmanager
def run() -> Iterator[PostgreSQL]:
    """Starts it, without an address of TCP, and ends it.

    Yields:
        The server.

    Raises:
        MissingError: It is not installed.
    """
    programs = _programs()
    user = _USER if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="treadle-scale-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        initdb: list[str | Path] = [
            programs / "initdb",
            "--auth=trust",
            f"--username={_USER}",
            "--pgdata",
            data,
        ]
        subprocess.run(initdb, check=True, capture_output=True, user=user)
        settings = {"listen_addresses": "", "unix_socket_directories": f"{folder}"}
        settings |= {"max_connections": "400", "shared_buffers": "128MB"}
        options = [f"--{name}={value}" for name, value in settings.items()]
        command: list[str | Path] = [programs / "postgres", "-D", data, *options]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, user=user)
        try:
            ready: list[str | Path] = [
                programs / "pg_isready",
                "--quiet",
                "-h",
                folder,
                "--timeout=1",
            ]
            for _ in range(60):
                if subprocess.run(ready, check=False).returncode == 0:
                    break
            yield PostgreSQL(programs, folder, server.pid, user)
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    """Returns the folder with the programs of the newest PostgreSQL.

    Raises:
        MissingError: PostgreSQL is missing, or nobody may run it.
    """
    found = sorted(_DEBIAN.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise MissingError("PostgreSQL is not installed: apt-get install postgresql")
    if os.getuid() == 0:
        try:
            pwd.getpwnam(_USER)
        except KeyError as error:
            raise MissingError(
                f"root may not run PostgreSQL, and there is no user {_USER}"
            ) from error
    return found[-1].parent
