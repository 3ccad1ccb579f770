"""`treadle models pull`, `push`, `copy` and `import`, as a shell runs them."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer, FakeService
from .shell import PATIENCE_S, command, environment, out, run

DATA = bytes(range(256)) * 41
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def filled(service: FakeService) -> FakeService:
    """A service with a model."""
    service.model_files["m"] = DATA
    return service


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode()


def test_pull_writes_a_file(
    server: FakeServer, filled: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = out(server.address, "models", "pull", "m@stable")
    assert printed == "m version 2 is in m.safetensors (10.5 kB)\n"
    assert (tmp_path / "m.safetensors").read_bytes() == DATA
    again = run(server.address, "models", "pull", "m")
    assert (again.returncode, said(again)) == (
        2,
        "treadle: m.safetensors exists: add --force to replace it\n",
    )
    words = ("models", "pull", "m", "--version", "5", "--out", "x", "--json")
    assert json.loads(out(server.address, *words))["sha256"] == SHA256
    (tmp_path / "x").write_bytes(b"old")
    out(server.address, "models", "pull", "m", "--out", "x", "--force")
    assert (tmp_path / "x").read_bytes() == DATA


def test_pull_continues_by_itself_and_says_so(
    server: FakeServer, filled: FakeService, tmp_path: Path
) -> None:
    filled.cuts = [3000]
    done = run(server.address, "models", "pull", "m", "--out", str(tmp_path / "m"))
    assert done.returncode == 0
    assert "trying again" in said(done)
    assert (tmp_path / "m").read_bytes() == DATA


def test_pull_to_standard_output(server: FakeServer, filled: FakeService) -> None:
    done = run(server.address, "models", "pull", "m", "--out", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, DATA, b"")


def test_pull_writes_nothing_to_a_terminal(server: FakeServer, filled: FakeService) -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            command(server.address, "models", "pull", "m", "--out", "-"),
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=PATIENCE_S,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert b"give --out FILE, or a pipe" in done.stderr


def test_push_sends_a_file(server: FakeServer, service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(DATA)
    words = ("models", "push", str(path), "--name", "new")
    assert out(server.address, *words) == "new version 3 is stored\n"
    service.model_files["new"] = DATA
    printed = out(server.address, *words, "--alias", "stable")
    assert printed == "new version 3, new@stable, was that file already\n"
    reply = json.loads(out(server.address, *words, "--new-version", "--json"))
    assert reply["model"]["version"] == 3
    assert [each.reuse_identical for each in service.imports] == [True, True, False]
    missing = run(server.address, "models", "push", str(tmp_path / "none"), "--name", "new")
    assert missing.returncode == 2
    assert "cannot read" in said(missing)


def test_import_sends_a_vocabulary(
    server: FakeServer, service: FakeService, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    path.write_bytes(DATA)
    vocabulary = tmp_path / "v.txt"
    vocabulary.write_text("a\n\\n\nb\n")
    words = ("models", "import", str(path), "--name", "new", "--vocabulary", str(vocabulary))
    assert out(server.address, *words) == "new version 3 is stored\n"
    assert service.vocabulary == ["a", "\n", "b"]
    more = ("--tokenizer", "words", "--lower-case", "--layout", "lines", "--tied-weights")
    out(server.address, *words, *more)
    assert service.imports[-1].state_dict == v1.StateDictSpec(
        tokenizer=v1.TokenizerSpec(kind=v1.TOKENIZER_KIND_WORDS, lower_case=True),
        layout=v1.CORPUS_LAYOUT_LINES,
        tied_weights=True,
    )


def test_import_asks_for_the_vocabulary(
    server: FakeServer, service: FakeService, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    path.write_bytes(DATA)
    words = ("models", "import", str(path), "--name", "new")
    missing = run(server.address, *words)
    assert missing.returncode == 2
    assert "give --vocabulary VOCAB: the tokens of a module of characters" in said(missing)
    out(server.address, *words, "--tokenizer", "bytes")


def test_copy_needs_another_server_and_gives_it_no_token(
    server: FakeServer, filled: FakeService, tmp_path: Path
) -> None:
    away = FakeServer()
    (tmp_path / "treadle").mkdir()
    config = tmp_path / "treadle" / "config.toml"
    config.write_text(f'[profiles.away]\nserver = "{away.address}"\ntoken = "theirs"\n')
    config.chmod(0o600)
    secrets: Any = {"TREADLE_TOKEN": "ours", "XDG_CONFIG_HOME": str(tmp_path)}
    try:
        neither = run(server.address, "models", "copy", "m", **secrets)
        assert neither.returncode == 2
        assert "give --to ADDRESS" in said(neither)
        words = ("models", "copy", "m", "--name", "there")
        done = run(server.address, *words, "--to", away.address, **secrets)
        assert (done.stdout, said(done)) == (b"there version 3 is stored\n", "")
        done = run(server.address, *words, "--to-profile", "away", **secrets)
        assert (done.returncode, said(done)) == (0, "")
        assert away.service.imported == DATA
        tokens = [metadata.get("authorization") for _, metadata in away.calls]
        assert tokens == [None, "Bearer theirs"]
        assert {metadata["authorization"] for _, metadata in server.calls} == {"Bearer ours"}
    finally:
        away.stop()
