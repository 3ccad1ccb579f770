"""`treadle serve` and `treadle run`: servers that a command starts, and that end with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from treadle.client import Client
from treadle.client.cli.local.corpus_file import CorpusFile
from treadle.client.cli.local.local_server import LocalServer, ServerStartError
from treadle.client.errors import InputError

from .shell import PATIENCE_S, command, complaint, environment, run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "data"


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def homes(folder: Path) -> dict[str, str]:
    """Folders of their own for all that a server and its log need."""
    return {name: str(folder / name.lower()) for name in ("XDG_DATA_HOME", "XDG_STATE_HOME")}


def is_alive(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def server_id(said: str) -> int:
    found = re.search(r"started a server at \S+ \(process (\d+), log ", said)
    assert found, said
    return int(found[1])


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "some names.txt"
    path.write_text("".join(f"{first}{last}\n" for first in "abcdefgh" for last in "xyzuvw") * 4)
    return path


# ------------------------------------------------------------------------- serve


def test_serve_is_the_server(tmp_path: Path) -> None:
    done = run("", "serve", "--version")
    assert complaint(done, 2) == (
        "treadle: --server is for commands that call a server: `treadle serve --address "
        "HOST:PORT` says where to listen"
    )
    words = [sys.executable, "-m", "treadle.client", "serve"]
    for flag, code, expected in (
        ("--version", 0, "treadle-server 0."),
        ("--help", 0, "--data-dir DIRECTORY"),
        ("--thread=1", 2, "unrecognized arguments: --thread=1"),
    ):
        done = subprocess.run([*words, flag], env=environment(), capture_output=True, check=False)
        assert done.returncode == code
        assert expected in (done.stdout + done.stderr).decode()


def test_without_the_servers_packages_both_say_what_to_install(names: Path, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ModuleNotFoundError('none', name='numba')\n")
    env = environment(PYTHONPATH=str(tmp_path), **homes(tmp_path))
    serve = [sys.executable, "-m", "treadle.client", "serve"]
    for words in (serve, command(free_address(), "run", str(names))):
        done = subprocess.run(words, env=env, capture_output=True, check=False, timeout=PATIENCE_S)
        assert done.returncode == 1
        said = done.stderr.decode().splitlines()[-1]
        assert (
            "numba is not installed; install treadle with its extra `server`: pip install" in said
        )


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    words = ["--data-dir", str(tmp_path / "data")]
    server = LocalServer("127.0.0.1:0", tmp_path / "log" / "server.log", words)
    server.start()
    until = time.monotonic() + PATIENCE_S
    while server.is_running and time.monotonic() < until:
        time.sleep(0.05)
    with pytest.raises(ServerStartError, match="has ended: the data directory"):
        server.check()
    assert not server.is_running
    with open(server.log, "a", encoding="utf-8") as log:
        log.write("2026-01-01 00:00:00,000 INFO treadle.server.warmup: a line of another server\n")
    assert "the data directory" in server.last_words()


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    log = tmp_path / "state" / "treadle" / "server.log"
    with pytest.raises(ServerStartError, match=f"its log {log} cannot be written: Not a directory"):
        LocalServer("127.0.0.1:0", log).start()


def test_the_reason_of_an_older_server_is_not_the_reason_of_a_new_one(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("treadle-server: the reason of an older server\n", "utf-8")
    server = LocalServer("127.0.0.1:0", log, ["--help"])
    server.start()
    until = time.monotonic() + PATIENCE_S
    while server.is_running and time.monotonic() < until:
        time.sleep(0.05)
    assert "older" not in server.last_words()


# ---------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ((EXAMPLES / "names.txt").read_text("utf-8"), True),
        ((EXAMPLES / "tinyshakespeare.txt").read_text("utf-8"), False),
        (Path(__file__).read_text("utf-8"), False),
        ("short\n" * 10, False),
        ("word\n\n" * 100, False),
        ("two words\n" * 100, True),
        ("a line that is as long as those of a text that was set in lines\n" * 100, False),
    ],
)
def test_a_list_is_told_from_a_text(text: str, is_list: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text, "utf-8")
    assert CorpusFile(str(path)).is_list == is_list


@pytest.mark.parametrize(
    ("file", "name"),
    [("my names.txt", "my-names"), ("é.txt", "model"), (".hidden", "model"), ("a.b.c", "a")],
)
def test_a_model_is_called_like_its_file(file: str, name: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("x")
    assert CorpusFile(str(tmp_path / file)).model_name == name


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("none", "cannot read none: No such file"),
        ("-", "reads its file more than once"),
        (".", "is a folder"),
        ("/dev/null", "is not a regular file"),
        ("empty", "is empty: there is nothing to train on"),
    ],
)
def test_a_file_that_cannot_be_used(
    file: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("")
    with pytest.raises(InputError, match=expected):
        CorpusFile(file)


# --------------------------------------------------------------------------- run


def test_a_server_that_ends_at_once_ends_the_command(names: Path, tmp_path: Path) -> None:
    words = command(free_address(), "run", str(names), "--data-dir", "/dev/null/data")
    env = environment(**homes(tmp_path))
    done = subprocess.run(words, env=env, capture_output=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 1
    said = done.stderr.decode().splitlines()
    assert said[0].startswith("treadle: started a server at 127.0.0.1:")
    assert said[1].startswith("treadle: the server on this machine has ended: the data directory")
    assert len(said) == 2


def test_a_server_of_another_machine_is_not_started_here(names: Path) -> None:
    done = run("192.0.2.1:1", "run", str(names))
    assert "192.0.2.1:1" in complaint(done, 3)


def test_a_model_is_used_again_and_never_mixed_up(real_server: str, names: Path) -> None:
    words = ["run", str(names), "--model", "again", "--train-for", "0.3s"]
    first = run(real_server, *words)
    assert first.returncode == 0
    said = first.stderr.decode()
    assert "started a server" not in said
    assert "is read as a list, one item per line" in said
    assert len(first.stdout.splitlines()) == 10
    second = run(real_server, *words)
    assert second.returncode == 0
    assert second.stderr.decode() == (
        "treadle: model 'again' was trained on this file: --continue trains it further\n"
    )
    assert len(second.stdout.splitlines()) == 10
    names.write_text("another list\n" * 300)
    said = complaint(run(real_server, *words), 2)
    assert said.startswith("treadle: there is a model 'again', and nothing says that it was")
    assert "add --continue" in said
    names.write_text("ax\nby\ncz\n" * 100)
    assert run(real_server, *words, "--continue").returncode == 0
    with Client(real_server) as client:
        newest = next(client.jobs(model="again"))
    assert newest.version == 2
    assert newest.spec.init_from == "again"


def test_what_a_message_advises_works_with_run(real_server: str, tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("één cliché, une pièce\n".encode("latin-1") * 100)
    words = ("--train-for", "0.3s", "--layout", "text")
    refused = run(real_server, "run", str(latin), *words)
    assert refused.returncode == 1
    said = refused.stderr.decode().strip().splitlines()
    assert said[0].startswith("treadle: the corpus is not UTF-8")
    assert "give --encoding latin-1, or give --tokenizer bytes" in said[0]
    assert len(said) == 1  # the reason is given once
    assert run(real_server, "run", str(latin), "--encoding", "latin-1", *words).returncode == 0
    packed = latin.rename(tmp_path / "packed.gz")
    done = complaint(run(real_server, "run", str(packed), *words), 2)
    assert done.endswith("--format plain reads it as it is")
    flags = ("--format", "plain", "--encoding", "latin-1")
    assert run(real_server, "run", str(packed), *flags, *words).returncode == 0


def test_a_server_is_started_and_ends_with_the_command(names: Path, tmp_path: Path) -> None:
    """On a terminal: train, print, talk, leave."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    env = environment(TERM="dumb", PYTHONIOENCODING="utf-8", **homes(tmp_path))
    words = command(free_address(), "run", str(names), "--train-for", "0.3s")
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        seen = ""
        for piece in _output(ours):
            seen += piece
            if seen.rstrip().endswith(">") and "/help lists" in seen:
                os.write(ours, b"a\n\x04")
                break
        for piece in _output(ours):
            seen += piece
        assert process.wait(PATIENCE_S) == 0
    os.close(ours)
    assert "some-names version 1: " in seen
    assert "/help lists the commands" in seen
    assert not is_alive(server_id(seen))
    assert (tmp_path / "xdg_state_home" / "treadle" / "server.log").exists()


def _output(descriptor: int) -> Iterator[str]:
    """Yields what is written to a terminal, to its end."""
    until = time.monotonic() + PATIENCE_S
    with contextlib.suppress(OSError):  # Linux' way of saying that the other end is closed
        while time.monotonic() < until and (piece := os.read(descriptor, 4096)):
            yield piece.decode(errors="replace")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_training_leaves_no_server(
    number: signal.Signals, names: Path, tmp_path: Path
) -> None:
    words = command(free_address(), "run", str(names), "--train-for", "10m")
    env = environment(**homes(tmp_path))
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line.decode()
            if "to train on" in said:
                break
        process.send_signal(number)
        said += process.stderr.read().decode()
        code = process.wait(PATIENCE_S)
    assert not is_alive(server_id(said))
    if number == signal.SIGINT:
        assert code == 130
        assert f"interrupted; `treadle run {names}` continues where this ended" in said
    else:
        assert code == -number
