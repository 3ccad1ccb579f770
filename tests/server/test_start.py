"""Errors that keep a server from starting, in one sentence each, and its addresses."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from treadle.client import Client
from treadle.server.address import AddressError, clear_socket
from treadle.server.config import ServerConfig, SettingError
from treadle.server.failures import DatabaseError
from treadle.server.storage.data_dir import DATABASE_FILE, DataDir
from treadle.server.storage.files import StoreError

from .harness import PATIENCE_S, TEXT, Server, tiny_spec

Start = Callable[..., Server]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a server that cannot start, or a command of it that ends."""
    command = [sys.executable, "-m", "treadle.server", *arguments]
    return subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Returns the one line that a command failed with."""
    assert done.returncode == code, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("treadle-server: ")
    return line


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket in it."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def make_file(data: Path) -> None:
    data.write_text("")


def make_loop(data: Path) -> None:
    data.symlink_to(data)


def make_dangling(data: Path) -> None:
    data.symlink_to(data.parent / "nowhere" / "else")


def make_below_file(data: Path) -> None:
    data.parent.joinpath("file").write_text("")
    data.symlink_to(data.parent / "file" / "data")


def make_inner(name: str) -> Callable[[Path], None]:
    def make(data: Path) -> None:
        data.mkdir()
        (data / name).write_text("x" * 5000)

    return make


def make_inner_folder(name: str) -> Callable[[Path], None]:
    def make(data: Path) -> None:
        (data / name).mkdir(parents=True)

    return make


@pytest.mark.parametrize(
    "make",
    [
        make_file,
        make_loop,
        make_dangling,
        make_below_file,
        *map(make_inner, ("models", "jobs", "corpora", "tmp", DATABASE_FILE)),
        *map(make_inner_folder, ("lock", DATABASE_FILE)),
    ],
)
def test_a_broken_data_directory_is_said_in_one_sentence(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    make(data)
    with pytest.raises((StoreError, DatabaseError)) as caught:
        DataDir(data)
    assert str(data) in str(caught.value)
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null", "/dev/null/data"])
def test_a_place_that_takes_no_directory_is_said_in_one_sentence(place: str) -> None:
    with pytest.raises(StoreError, match=f"^the data directory {place} cannot be used") as caught:
        DataDir(Path(place))
    assert "Errno" not in str(caught.value)


def test_a_server_that_cannot_use_its_directory_ends_with_1(tmp_path: Path) -> None:
    make_loop(tmp_path / "data")
    done = run("--address", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"))
    assert f"the data directory {tmp_path}/data cannot be used" in complaint(done, 1)


@pytest.mark.parametrize("file", ["none", "short", "/dev/zero", "."])
def test_a_key_file_that_cannot_be_is_named(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("0123")
    with pytest.raises(SettingError, match=f"^--state-key-file names '{file}', which "):
        ServerConfig(state_key_file=file).state_key_bytes()


def test_a_server_without_its_key_ends_with_1(tmp_path: Path) -> None:
    key = str(tmp_path / "key")
    done = run("--data-dir", str(tmp_path / "data"), "--state-key-file", key)
    assert f"--state-key-file names {key!r}, which cannot be read: No such" in complaint(done, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--health-address", "nonsense"), "--health-address 'nonsense' lacks a port"),
        (("--tls-cert-file", "pem"), "--tls-key-file is not given, and --tls-cert-file needs it"),
        (("--address", "nonsense"), "--address 'nonsense' lacks a port"),
    ],
)
def test_a_malformed_setting_ends_with_2(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = run("--address", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"), *words)
    assert said in complaint(done, 2)


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("postgresql://a:b@c@d/e", 2, "--database-url is malformed: write postgresql://USER:PASS"),
        ("postgresql://127.0.0.1/e?shoe=1", 2, "and no parameters but those of libpq"),
        ("postgresql://127.0.0.1:1/e", 1, "refused): start it, or correct --database-url"),
    ],
)
def test_a_database_url_that_cannot_be_used_is_said_with_the_remedy(
    url: str, code: int, said: str, tmp_path: Path
) -> None:
    pytest.importorskip("psycopg")
    blobs = ("--blobs-url", (tmp_path / "blobs").as_uri())
    done = run("--data-dir", str(tmp_path / "data"), "--database-url", url, *blobs)
    assert said in complaint(done, code)


def test_a_missing_mpirun_is_said_at_the_start(tmp_path: Path) -> None:
    words = ("--mpirun", "no-mpirun --hostfile x", "--address", "127.0.0.1:0")
    done = run("--data-dir", str(tmp_path / "data"), *words)
    assert "--mpirun begins with 'no-mpirun', which is no program here" in complaint(done, 1)


def test_a_busy_port_is_said_alone(start: Start, tmp_path: Path) -> None:
    server = start()
    done = run("--address", server.address, "--data-dir", str(tmp_path / "other"))
    assert complaint(done, 1).endswith(f"cannot listen on {server.address}: address already in use")


def test_a_host_that_is_elsewhere_is_said(tmp_path: Path) -> None:
    done = run("--address", "192.0.2.1:0", "--data-dir", str(tmp_path / "data"))
    assert "192.0.2.1:0: cannot assign requested address" in complaint(done, 1)


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_a_server_on_a_socket(form: str, start: Start, folder: Path) -> None:
    path = folder / "socket"
    address = form.format(path)
    server = start("--address", address)
    assert server.address == address
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert run("--check-health", address).returncode == 0
    with Client(address) as client:
        assert client.health()
    assert server.caller.trained(tiny_spec("m")).version == 1
    taken = run("--address", address, "--data-dir", str(folder / "other"))
    assert "another server listens there" in complaint(taken, 1)
    assert server.caller.serving()
    assert server.end() == 0
    assert not path.exists()


def test_a_socket_that_a_killed_server_left_is_taken_over(start: Start, folder: Path) -> None:
    address = f"unix:{folder}/socket"
    server = start("--address", address)
    server.end(signal.SIGKILL)
    assert (folder / "socket").exists()
    assert start("--address", address).caller.serving()


def test_an_abstract_socket(start: Start, tmp_path: Path) -> None:
    address = f"unix-abstract:treadle-test-{os.getpid()}"
    server = start("--address", address)
    assert server.address == address
    assert run("--check-health", address).returncode == 0
    taken = run("--address", address, "--data-dir", str(tmp_path / "other"))
    assert "it is in use" in complaint(taken, 1)


@pytest.mark.parametrize("name", ["none/socket", "file/socket"])
def test_a_socket_that_cannot_be_made_is_said(name: str, folder: Path) -> None:
    (folder / "file").write_text("")
    done = run("--address", f"unix:{folder}/{name}", "--data-dir", str(folder / "data"))
    assert f"cannot listen on unix:{folder}/{name}" in complaint(done, 1)


def test_no_file_but_a_left_socket_is_replaced(folder: Path) -> None:
    path = folder / "socket"
    clear_socket(path)
    path.write_text("precious")
    with pytest.raises(AddressError, match="is not a socket"):
        clear_socket(path)
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(AddressError, match="another server listens there"):
            clear_socket(path)
    clear_socket(path)
    assert not path.exists()


def test_the_health_check_goes_past_proxies(start: Start) -> None:
    server = start()
    closed = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "grpc", "all")}
    upper = {name.upper(): value for name, value in closed.items()}
    done = run("--check-health", server.address, no_proxy="", NO_PROXY="", **closed, **upper)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("protocol", ["grpc-v1", "grpc-v1alpha"])
def test_reflection_describes_the_service(protocol: str, server: Server) -> None:
    """Asked for by `buf curl`, which has the protocol from elsewhere."""
    buf = [
        str(Path(sys.executable).with_name("buf")),
        "curl",
        "--protocol=grpc",
        "--http2-prior-knowledge",
        f"--reflect-protocol={protocol}",
    ]
    url = f"http://{server.address}"
    environment = os.environ | {"NO_PROXY": "*", "no_proxy": "*"}
    methods = subprocess.run(
        [*buf, "--list-methods", url],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout.split()
    assert "treadle.v1.SequenceService/GetServerInfo" in methods
    assert "grpc.health.v1.Health/Check" in methods
    assert "grpc.reflection.v1.ServerReflection/ServerReflectionInfo" in methods
    info = subprocess.run(
        [*buf, f"{url}/treadle.v1.SequenceService/GetServerInfo"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout
    assert json.loads(info)["version"] == server.caller.info().version


def test_errors_name_no_path_of_the_server(start: Start, tmp_path: Path) -> None:
    home = tmp_path / "data" / "models" / "damaged" / "1"
    home.mkdir(parents=True)
    (home / "model.safetensors").write_bytes(b"\0" * 1000)
    caller = start().caller
    with pytest.raises(grpc.RpcError) as caught:
        caller.generate("damaged")
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert "version 1 of model 'damaged' cannot be read" in (caught.value.details() or "")
    assert str(tmp_path) not in str(caught.value)


INTERRUPT = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{number})
sys.meta_path.insert(0, Interrupt())
sys.argv = [{package!r}, "--version"]
from {package}.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("package", "module", "number", "code", "said"),
    [
        ("treadle.client", "treadle.client.cli.main", "SIGINT", 130, "treadle: interrupted\n"),
        (
            "treadle.client",
            "treadle.client.cli.display.console",
            "SIGINT",
            130,
            "treadle: interrupted\n",
        ),
        ("treadle.server", "treadle.server.cli", "SIGINT", 130, ""),
        ("treadle.server", "treadle.server.config", "SIGINT", 130, ""),
        ("treadle.server", "treadle.server.config", "SIGTERM", 143, ""),
        ("treadle.benchmarks", "treadle.benchmarks.settings", "SIGINT", 130, ""),
    ],
)
def test_a_signal_during_the_imports_leaves_no_traceback(
    package: str, module: str, number: str, code: int, said: str
) -> None:
    script = INTERRUPT.format(package=package, module=module, number=number)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def shared(folder: Path) -> Path:
    """Makes a data directory that root's group may write, as the image has it."""
    data = folder / "data"
    data.mkdir()
    data.chmod(0o2775)
    return data


AS_USER = ["setpriv", "--reuid", "{}", "--regid", "0", "--clear-groups"]
# Reading past permissions lets another user run a Python that lies in root's home.
AS_USER += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]

as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/usr/bin/setpriv").exists(),
    reason="only root can run servers as other users, with setpriv",
)


@as_root
def test_a_data_directory_of_a_group_serves_one_user_after_the_other(
    start: Start, tmp_path: Path
) -> None:
    shared(tmp_path)
    tmp_path.chmod(0o755)
    for version, user in enumerate(("10001", "12345", "10001"), start=1):
        server = start(prefix=[word.format(user) for word in AS_USER])
        assert server.caller.trained(tiny_spec("m"), TEXT).version == version
        if version == 2:
            server.end(signal.SIGKILL)  # what this leaves has to do as well
        else:
            assert server.end() == 0
    for path in (tmp_path / "data").rglob("*"):
        assert path.stat().st_gid == 0
        mode = path.stat().st_mode
        assert (mode >> 3) & 7 == (mode >> 6) & 7, path  # the group may do what the user may
        assert mode & 7 == 0, path


@as_root
def test_a_directory_of_another_user_is_said_with_its_remedy(tmp_path: Path) -> None:
    data = shared(tmp_path)
    (data / DATABASE_FILE).write_bytes(b"")
    (data / DATABASE_FILE).chmod(0o600)
    os.chown(data / DATABASE_FILE, 10001, 0)
    command = [word.format("12345") for word in AS_USER]
    command += [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, "--data-dir", str(data)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    line = complaint(done, 1)
    assert "treadle.db belongs to user 10001, group 0, mode 0600" in line
    assert line.endswith(f"run `chmod -R g=u {data}` as user 10001 or root")
