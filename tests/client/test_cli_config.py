"""The command `treadle config`: profiles in a file, tokens that are never shown."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from .fake import FakeServer
from .shell import PATIENCE_S, complaint, environment

SECRET = "treadle_ab12_5ecret5ecret"

WORDS = [sys.executable, "-m", "treadle.client"]


class Shell:
    """A shell whose configuration is in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "treadle" / "config.toml"

    def run(
        self, *words: str, data: bytes = b"", **changes: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*WORDS, *words],
            input=data,
            capture_output=True,
            env=environment(**{"XDG_CONFIG_HOME": str(self.folder)} | changes),
            cwd=self.folder,
            timeout=PATIENCE_S,
            check=False,
        )

    def out(self, *words: str, data: bytes = b"", **changes: str) -> str:
        done = self.run(*words, data=data, **changes)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_a_profile_is_made_shown_used_and_removed(shell: Shell, server: FakeServer) -> None:
    said = shell.out("config", "set", "--profile", "prod", "server", server.address)
    assert said == f"server = {server.address} (profile prod)\n"
    said = shell.out("--profile", "prod", "config", "set", "token", data=f"{SECRET}\n".encode())
    assert said == "token = treadle_ab12_******** (profile prod)\n"
    assert shell.path.stat().st_mode & 0o777 == 0o600
    assert SECRET in shell.path.read_text()

    assert shell.out("--profile", "prod", "health") == "serving\n"
    assert shell.out("health", TREADLE_PROFILE="prod") == "serving\n"
    assert shell.out("config", "set", "default_profile", "prod") == "default_profile = prod\n"
    assert shell.out("health") == "serving\n"
    assert {each["authorization"] for _, each in server.calls} == {f"Bearer {SECRET}"}

    shown = shell.out("config", "show")
    assert shown.splitlines() == [
        f"file      {shell.path}",
        "profiles  prod",
        "profile   prod (default)",
        "",
        f"setting  value{' ' * (len('treadle_ab12_********') - 5)}  from",
        f"server   {server.address.ljust(len('treadle_ab12_********'))}  profile 'prod'",
        "token    treadle_ab12_********  profile 'prod'",
    ]
    assert shell.out("config") == shown
    shown = json.loads(shell.out("config", "show", "--json", TREADLE_TOKEN="another"))
    assert shown == {
        "path": str(shell.path),
        "profiles": ["prod"],
        "profile": "prod",
        "settings": {
            "server": {"value": server.address, "source": "profile 'prod'"},
            "token": {"value": "********", "source": "TREADLE_TOKEN"},
        },
    }

    assert shell.out("config", "unset", "token") == ""
    assert SECRET not in shell.path.read_text()
    said = complaint(shell.run("config", "unset", "token"), 2)
    assert said == "treadle: the profile 'prod' has no key 'token'"


def test_without_a_file(shell: Shell) -> None:
    assert shell.out("config", "path") == f"{shell.path}\n"
    shown = shell.out("config", "show", TREADLE_TLS="on")
    assert f"{shell.path} (does not exist)" in shown
    assert shown.splitlines()[3:] == [
        "server   127.0.0.1:50051  default",
        "tls      true             TREADLE_TLS",
    ]
    said = complaint(shell.run("config", "path", XDG_CONFIG_HOME="", HOME=""), 2)
    assert "set HOME or XDG_CONFIG_HOME" in said


def test_a_server_that_the_default_profile_is_not_for(shell: Shell, server: FakeServer) -> None:
    shell.out("config", "set", "server", "example.com:1")
    shell.out("config", "set", "token", data=SECRET.encode())
    assert shell.out("--server", server.address, "health") == "serving\n"
    assert "authorization" not in server.calls[-1][1]
    shown = shell.out("--server", server.address, "config", "show")
    assert "profile   none: default is for another server than --server" in shown
    said = complaint(shell.run("--profile", "default", "--server", server.address, "health"), 2)
    assert "is for example.com:1, and --server names" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["set", "token", SECRET], "a token in a command can be seen by others"),
        (["set", "srever", "a:1"], "there is no key 'srever': give server, tls"),
        (["set", "server"], "give the value of server"),
        (["set", "server", "nowhere"], "the server's address 'nowhere' lacks a port"),
        (["set", "tls", "perhaps"], "tls is 'perhaps': give 'true' or 'false'"),
        (["set", "ca_file", ""], "the value of ca_file is empty"),
        (["set", "token"], "token is empty"),
        (["set", "default_profile", "a b"], "a profile cannot be called 'a b'"),
        (["set", "--profile", "a/b", "tls", "on"], "a profile cannot be called 'a/b'"),
        (["unset", "tls"], "the profile 'default' has no key 'tls'"),
        (["unset", "default_profile"], "the file has no key 'default_profile'"),
    ],
)
def test_what_is_refused(shell: Shell, words: list[str], reason: str) -> None:
    said = complaint(shell.run("config", *words), 2)
    assert reason in said
    assert SECRET not in said
    assert not shell.path.exists()


def test_files_are_kept_with_their_whole_names(shell: Shell) -> None:
    shell.out("config", "set", "ca-file", "ca.pem")
    shell.out("config", "set", "key_file", "~/key.pem")
    written = shell.path.read_text()
    assert f'ca_file = "{shell.folder / "ca.pem"}"' in written
    assert 'key_file = "~/key.pem"' in written


def test_a_file_that_others_may_read(shell: Shell, server: FakeServer) -> None:
    shell.out("config", "set", "server", server.address)
    shell.out("config", "set", "token", data=SECRET.encode())
    shell.path.chmod(0o644)
    done = shell.run("health")
    assert done.stdout == b"serving\n"
    assert done.stderr.decode().startswith(f"treadle: warning: '{shell.path}' holds a token")


def test_a_broken_file(shell: Shell) -> None:
    shell.path.parent.mkdir()
    shell.path.write_text(f"[profiles.a]\ntoken = {SECRET}\n")
    said = complaint(shell.run("health"), 2)
    assert "no valid TOML" in said
    assert "line 2" in said
    assert SECRET not in said
    shell.path.write_text("[profiles.default]\nsrever = 'a:1'\n")
    assert "line 2: 'srever' is unknown" in complaint(shell.run("info"), 2)
    shell.out("config", "unset", "srever")  # which repairs it
    assert shell.path.read_text() == ""


def test_a_fault_has_the_words_of_the_file_or_the_variable(shell: Shell) -> None:
    shell.path.parent.mkdir()
    for text, said in (
        ("ca_fil = 'x'", "'ca_fil' is unknown: a profile has 'server', 'tls', 'ca_file', "),
        ("ca_file = 3", "the value of 'ca_file' must be a text in quotes"),
        ("token = 'a'\ntoken_file = 'b'", "give either 'token' or 'token_file'"),
        ("ca_file = '/x'", "`ca_file` of profile 'default' '/x' cannot be read: No such file"),
        ("token = 'a b'", "`token` of profile 'default' holds white space or characters"),
    ):
        shell.path.write_text(f"[profiles.default]\n{text}\n")
        shell.path.chmod(0o600)
        assert said in complaint(shell.run("info"), 2)
    shell.path.unlink()
    for variable, value, said in (
        ("TREADLE_CA_FILE", "/x", "TREADLE_CA_FILE '/x' cannot be read: No such file"),
        ("TREADLE_TOKEN_FILE", "/x", "TREADLE_TOKEN_FILE '/x' cannot be read: No such file"),
        ("TREADLE_TOKEN", "a\nb", "TREADLE_TOKEN holds white space or characters"),
        ("TREADLE_CERT_FILE", "/x", "TREADLE_CERT_FILE is given without --key-file: give both"),
    ):
        given: dict[str, Any] = {variable: value}
        assert said in complaint(shell.run("info", **given), 2)
    assert "--profile is empty: give" in complaint(shell.run("--profile", "", "info"), 2)


@pytest.mark.parametrize(
    "token",
    [f"treadle_0123456789abcdef_{'5ecret' * 9}", "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.5ecret-_9"],
)
def test_no_message_repeats_a_token(shell: Shell, token: str) -> None:
    for words in (
        ["--tok", token, "info"],
        ["info", token],
        ["config", "set", f"token={token}"],
        ["--profile", token, "info"],
        ["--server", token, "info"],
    ):
        said = complaint(shell.run(*words), 2)
        assert "********" in said
        assert "5ecret" not in said


def test_without_tomlkit_profiles_can_be_read(shell: Shell) -> None:
    block = "import sys; sys.modules['tomlkit'] = None; "
    code = block + "from treadle.client.cli.main import main; sys.exit(main(sys.argv[1:]))"
    shell.path.parent.mkdir()
    shell.path.write_text("[profiles.default]\ntls = true\n")

    def bare(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", code, "config", *words],
            env=environment(XDG_CONFIG_HOME=str(shell.folder)),
            capture_output=True,
            check=False,
        )

    assert b"profile 'default'" in bare("show").stdout
    for words in (["set", "tls", "off"], ["unset", "tls"], ["set", "token"]):
        assert "run `pip install '.[cli]'` in a checkout" in complaint(bare(*words), 2)


class Terminal:
    """The command on a pseudo-terminal."""

    def __init__(self, shell: Shell, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*WORDS, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(XDG_CONFIG_HOME=str(shell.folder)),
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(theirs), os.O_RDWR)),
        )
        self.seen = b""
        self.theirs = theirs

    def wait_for(self, text: bytes) -> None:
        while text not in self.seen:
            self.seen += os.read(self.ours, 1024)

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.theirs)[3] & termios.ECHO)

    def end(self) -> int:
        code = self.process.wait(PATIENCE_S)
        os.close(self.theirs)
        try:
            while piece := os.read(self.ours, 1024):
                self.seen += piece
        except OSError:
            pass
        os.close(self.ours)
        return code


def test_a_token_is_asked_for_and_not_shown(shell: Shell) -> None:
    terminal = Terminal(shell, "config", "set", "token")
    terminal.wait_for(b"token: ")
    assert not terminal.echoes()
    os.write(terminal.ours, SECRET.encode() + b"\n")
    assert terminal.end() == 0
    assert SECRET.encode() not in terminal.seen
    assert b"token = treadle_ab12_********" in terminal.seen
    assert SECRET in shell.path.read_text()


def test_ctrl_c_turns_the_echo_on_again(shell: Shell) -> None:
    terminal = Terminal(shell, "config", "set", "token")
    terminal.wait_for(b"token: ")
    terminal.process.send_signal(signal.SIGINT)
    terminal.process.wait(PATIENCE_S)
    assert terminal.echoes()
    assert terminal.end() == 130
    assert b"Traceback" not in terminal.seen
    assert not shell.path.exists()
