"""Scripts of `treadle completion`, run by the shells themselves where they are installed."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer
from .shell import PATIENCE_S, complaint, environment, out, run

NOBODY = "127.0.0.1:1"

Complete = Callable[[str], list[str]]
"""Returns what a shell offers behind a beginning of a line."""

BASH = """
source {script}
line={line}
COMP_WORDS=($line)
[[ "$line" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
COMP_LINE=$line
COMP_POINT=${{#line}}
function_name=$(complete -p treadle | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function_name treadle "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script of each shell, and a `treadle` that is this one."""
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / f"treadle.{shell}").write_text(out(NOBODY, "completion", shell))
    program = folder / "bin" / "treadle"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m treadle.client "$@"\n')
    program.chmod(0o755)
    return folder


def shell_environment(scripts: Path, address: str = NOBODY) -> dict[str, str]:
    path = f"{scripts / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return environment(PATH=path, TREADLE_SERVER=address, HOME=str(scripts), TERM="dumb")


def complete_in_bash(scripts: Path, line: str, address: str = NOBODY) -> list[str]:
    code = BASH.format(script=scripts / "treadle.bash", line=shlex.quote(line))
    return _words(["bash", "--norc", "-c", code], scripts, address)


def complete_in_fish(scripts: Path, line: str, address: str = NOBODY) -> list[str]:
    code = f"source {scripts / 'treadle.fish'}; complete -C {shlex.quote(line)}"
    found = _words(["fish", "--no-config", "-c", code], scripts, address)
    return [each.partition("\t")[0] for each in found]


def _words(command: list[str], scripts: Path, address: str) -> list[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        command,
        env=shell_environment(scripts, address),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=scripts,
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


SHELLS = {"bash": complete_in_bash, "fish": complete_in_fish}


@pytest.mark.parametrize("shell", list(SHELLS))
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("treadle tra", {"train"}),
        ("treadle jobs can", {"cancel"}),
        ("treadle models unal", {"unalias"}),
        ("treadle train x --hidden", {"--hidden-size"}),
        ("treadle train x --cell ", {"rnn", "gru", "lstm"}),
        ("treadle jobs --state run", {"running"}),
        ("treadle score-stream m --optimizer ", {"sgd", "adam"}),
        ("treadle completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_commands_flags_and_words(shell: str, line: str, offered: set[str], scripts: Path) -> None:
    assert offered <= set(SHELLS[shell](scripts, line))


@pytest.mark.parametrize("shell", list(SHELLS))
def test_files(shell: str, scripts: Path) -> None:
    (scripts / "corpus.txt").write_text("")
    assert "corpus.txt" in SHELLS[shell](scripts, "treadle train corp")
    assert "corpus.txt" in SHELLS[shell](scripts, "treadle --ca-file corp")


@pytest.mark.parametrize("shell", list(SHELLS))
def test_models_and_jobs_of_the_server(shell: str, scripts: Path, server: FakeServer) -> None:
    server.service.pages = 2
    assert {"model-1", "model-2"} <= set(
        SHELLS[shell](scripts, "treadle generate mod", server.address)
    )
    assert "model-1" not in SHELLS[shell](scripts, "treadle generate mod")


def test_zsh_offers_commands_words_and_models(scripts: Path, server: FakeServer) -> None:
    """Typed at a prompt: zsh has no other way to ask it."""
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    script = scripts / "treadle.zsh"
    subprocess.run(["zsh", "-n", str(script)], check=True)
    functions = scripts / "functions"
    functions.mkdir()
    (functions / "_treadle").write_text(script.read_text())
    ours, theirs = pty.openpty()
    words = ["zsh", "-f", "-i"]
    environment_ = shell_environment(scripts, server.address)
    with subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment_
    ) as process:
        os.close(theirs)
        os.write(ours, b"PS1='ready> '; unsetopt zle_bracketed_paste\n")
        os.write(ours, f"fpath=({functions} $fpath); autoload -Uz compinit; compinit -D\n".encode())
        _read_to(ours, "compinit -D")
        for typed, expected in (
            ("treadle gene", "treadle generate "),
            ("treadle train x --cell ls", "--cell lstm "),
            ("treadle models unal", "models unalias "),
            ("treadle generate mod", "generate model-1 "),
        ):
            os.write(ours, typed.encode() + b"\t")
            _read_to(ours, expected)
            os.write(ours, b"\x15")  # clears the line
        process.kill()
    os.close(ours)


def _read_to(descriptor: int, expected: str) -> None:
    """Reads what a terminal shows until a text appears."""
    seen = ""
    for piece in _pieces(descriptor):
        seen += piece
        if expected in seen:
            return
    pytest.fail(f"{expected!r} did not appear: {seen!r}")


def _pieces(descriptor: int) -> Iterator[str]:
    until = time.monotonic() + PATIENCE_S / 4
    os.set_blocking(descriptor, False)
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            yield os.read(descriptor, 4096).decode(errors="replace")
        time.sleep(0.02)


def test_a_list_has_no_errors(server: FakeServer) -> None:
    assert out(NOBODY, "completion", "--list", "models") == ""
    assert out("nonsense", "completion", "--list", "jobs") == ""
    assert out(server.address, "completion", "--list", "models") == "model-1\n"


def test_a_list_has_no_name_that_a_shell_would_run(server: FakeServer) -> None:
    job = server.service.accept(v1.TrainSpec(model="m"))
    server.service.jobs[job].id = "$(touch owned)"
    server.service.jobs["two"] = v1.Job(id="job-2")
    assert out(server.address, "completion", "--list", "jobs") == "job-2\n"


def test_without_a_shell_it_says_which_there_are() -> None:
    assert "one of the arguments SHELL --list is required" in complaint(
        run(NOBODY, "completion"), 2
    )


def test_without_shtab_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['shtab'] = None\n"
        "from treadle.client.cli.main import main; sys.exit(main(['completion', 'bash']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        b"treadle: completion needs the package shtab: pip install '.[cli]' in a "
        b"checkout of Treadle\n"
    )
