"""`treadle help`: its topics name what there is, and its manual page is one."""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from treadle.client.cli.main import main, make_parser
from treadle.client.cli.shell.topics import FOLDER, ORDER, topics

from .shell import PATIENCE_S, command, environment
from .test_options import parsers

PARSERS = {parser.prog: parser for parser in parsers(make_parser())}

EXIT_CODES = {"0", "1", "2", "3", "129, 143", "130", "141"}


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["help", *words]) == 0
    return capsys.readouterr().out


def test_every_page_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(ORDER)
    listed = shown(capsys)
    assert all(f"  {topic.name} " in listed and topic.title in listed for topic in topics())


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.name)
def test_a_topic_is_plain_without_a_terminal(
    topic: object, capsys: pytest.CaptureFixture[str]
) -> None:
    name = getattr(topic, "name", "")
    page = shown(capsys, name)
    assert page.startswith(f"{getattr(topic, 'title', '')}\n===")
    assert "|" not in page
    assert "# " not in page.replace("   # ", "")
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.name)
def test_what_a_topic_names_is_there(
    topic: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands of examples are commands, and every flag of a page is that of some command."""
    monkeypatch.chdir(tmp_path)
    Path("s.bin").write_bytes(b"state")
    text = str(getattr(topic, "text", ""))
    flags = {flag for parser in PARSERS.values() for flag in parser._option_string_actions}
    server = {"--address", "--tls-cert-file", "--tls-key-file", "--callers-file", "--role"}
    server |= {"--state-key-file"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)) <= flags | server
    for line in re.findall(r"^    (treadle .*)$", text, re.MULTILINE):
        words = shlex.split(line.partition("  #")[0].rstrip("\\"))
        command = next(word for word in words[1:] if f"treadle {word}" in PARSERS)
        if command != "serve" and words[1] == command:
            make_parser().parse_args(words[1:])


def test_a_topic_is_laid_out_on_a_terminal() -> None:
    pytest.importorskip("rich")
    ours, theirs = pty.openpty()
    env = environment(TERM="xterm", PYTHONIOENCODING="utf-8", COLUMNS="70")
    words = command("127.0.0.1:1", "help", "states")
    done = subprocess.run(words, stdout=theirs, env=env, check=True, timeout=PATIENCE_S)
    os.close(theirs)
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "\x1b[1" in seen
    assert "States: memory that you keep" in seen
    assert "`" not in seen


def test_the_exit_codes_are_all_there() -> None:
    page = next(topic.text for topic in topics() if topic.name == "exit-codes")
    assert set(re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE)) == EXIT_CODES


def test_a_command_is_explained_as_by_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "train") == PARSERS["treadle train"].format_help().rstrip() + "\n"
    assert shown(capsys, "models", "show").startswith("usage: treadle models show")


@pytest.mark.parametrize(
    ("word", "expected"),
    [("modles", ": did you mean 'models'?"), ("knit", ": `treadle help` lists the topics")],
)
def test_an_unknown_topic(word: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", word]) == 2
    assert capsys.readouterr().err == f"treadle: there is no topic or command {word!r}{expected}\n"


def test_the_manual_page_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, "--man")
    assert page.startswith('.TH TREADLE 1 "" "treadle 0.')
    for prog in set(PARSERS) - {"treadle"}:
        assert f'"{prog}'.replace("-", "\\-") in page
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-K", "utf8"],
        input=page.encode(),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    assert "hidden-size" in re.sub(r".\x08", "", done.stdout.decode())
