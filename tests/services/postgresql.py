"""A real PostgreSQL for tests: Debian's, in a cluster of its own that the tests make and remove."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

_PATIENCE_S = 60.0
_USER = "treadle"
_LOCALHOST = "127.0.0.1"


def programs() -> Path | None:
    """Returns the folder of PostgreSQL's programs; None where they are not installed."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    newest = max(found, key=lambda path: int(path.parts[-3]), default=None)
    if newest is None:
        other = shutil.which("initdb")
        newest = Path(other) if other else None
    return newest.parent if newest is not None else None


def _account() -> str | None:
    """Returns the user that PostgreSQL runs as, which must not be root; None: the own one."""
    if os.getuid():
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class PostgresqlServer:
    """A server of PostgreSQL on 127.0.0.1, which trusts everybody on this machine."""

    def __init__(self, bin_: Path) -> None:
        self._bin = bin_
        self._account = _account()
        # Not below pytest's folder, which the other user may not enter.
        self.root = Path(tempfile.mkdtemp(prefix="treadle-postgresql-"))
        """The folder of the cluster."""
        self.port = 0
        """The port, which stays when it is stopped and started."""
        self._process: subprocess.Popen[bytes] | None = None
        if self._account is not None:
            shutil.chown(self.root, self._account)
        try:
            self._run(
                *("initdb", "--auth=trust", "--no-sync", "--encoding=UTF8", "--no-locale"),
                *(f"--username={_USER}", "-D", str(self.root / "data")),
            )
            self.start()
        except BaseException:
            self.remove()
            raise

    def url(self, database: str = "postgres") -> str:
        """Returns the --database-url of a database."""
        return f"postgresql://{_USER}@{_LOCALHOST}:{self.port}/{database}"

    def new_database(self) -> str:
        """Makes an empty database and returns its name."""
        name = f"test_{secrets.token_hex(6)}"
        self._ask(f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name: str) -> None:
        """Ends the connections to a database and deletes it."""
        self._ask(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def dump(self, name: str, file: Path) -> None:
        """Writes a database to a file, as `pg_dump --format=custom` does."""
        self._run("pg_dump", "--format=custom", f"--file={file}", self.url(name))

    def restore(self, name: str, file: Path) -> None:
        """Fills an empty database from such a file."""
        self._run("pg_restore", "--no-owner", f"--dbname={self.url(name)}", str(file))

    def start(self) -> None:
        """Starts, after `stop` on the same port."""
        for _ in range(10):  # somebody else may take the port meanwhile
            port = self.port or _free_port()
            if self._starts(port):
                self.port = port
                return
        raise AssertionError(self._log())

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server and all connections: SIGINT in order, SIGQUIT as in a crash."""
        process = self._process
        if process is None:
            return
        self._signal_all(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._signal_all(signal.SIGKILL)
            process.wait(_PATIENCE_S)
        self._process = None

    def freeze(self) -> None:
        """Stops its processes, which keep their connections and answer nothing."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets its processes continue."""
        self._signal_all(signal.SIGCONT)

    def remove(self) -> None:
        """Ends the server and removes its folder."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.root, ignore_errors=True)

    def _starts(self, port: int) -> bool:
        """Starts on a port; returns whether it accepts connections."""
        data = self.root / "data"
        (data / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            "listen_addresses": _LOCALHOST,
            "port": port,
            "unix_socket_directories": "",
            "max_connections": 200,
            # Nothing here outlives the machine.
            "fsync": "off",
            "full_page_writes": "off",
        }
        flags = [word for item in settings.items() for word in ("-c", "=".join(map(str, item)))]
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(data), *flags],
                stdout=log,
                stderr=log,
                cwd="/",
                user=self._account,
            )
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                return False
            ready = [str(self._bin / "pg_isready"), "-q", "-h", _LOCALHOST, "-p", str(port)]
            if subprocess.run(ready, check=False).returncode == 0:
                return True
            time.sleep(0.05)
        return False

    def _signal_all(self, number: signal.Signals) -> None:
        """Sends a signal to the server and to the process of each connection."""
        assert self._process is not None
        self._process.send_signal(number)  # first, so that there are no new ones
        main = self._process.pid
        with suppress(FileNotFoundError):
            for child in Path(f"/proc/{main}/task/{main}/children").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), number)

    def _ask(self, statement: str) -> None:
        import psycopg  # not where the tests that need it skip

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            cwd="/",
            user=self._account,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _log(self) -> str:
        return (self.root / "log").read_text(errors="replace")[-4000:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOCALHOST, 0))
        return int(probe.getsockname()[1])


def served() -> Iterator[PostgresqlServer]:
    """Yields a server and removes it; skips where PostgreSQL is not installed."""
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed: make test-shared installs it")
    pytest.importorskip("psycopg", reason="psycopg is missing: pip install 'treadle[postgresql]'")
    server = PostgresqlServer(found)
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A server of PostgreSQL for all tests that do not stop it."""
    yield from served()


@pytest.fixture
def own_postgresql_server() -> Iterator[PostgresqlServer]:
    """A server of PostgreSQL that the test may stop."""
    yield from served()


@pytest.fixture
def postgresql_url(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """The URL of an empty database."""
    name = postgresql_server.new_database()
    yield postgresql_server.url(name)
    postgresql_server.drop_database(name)
