"""The examples in Go and Java, built by their scripts, where their tools are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest
from certificates import Authority

from .fake import FakeServer

ROOT = Path(__file__).parents[2]
MISSING = 77
"""The exit code of a script that lacks a tool."""


@pytest.fixture(scope="module", params=["go", "java"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    language = str(request.param)
    folder = tmp_path_factory.mktemp(language)
    script = ROOT / "examples" / language / "build.sh"
    done = subprocess.run([script, folder], capture_output=True, text=True, check=False)
    if done.returncode == MISSING:
        pytest.skip(done.stdout.strip())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder / "treadle-example"


@pytest.mark.parametrize("language", ["go", "java", "browser"])
def test_a_missing_tool_is_named(language: str, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("dirname", "mkdir"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        ["/bin/sh", ROOT / "examples" / language / "build.sh", tmp_path / "out"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (MISSING, "")
    assert re.fullmatch(r"(go|java|node) is not installed\n", done.stdout)


def run(program: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *words],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_it_trains_generates_scores_and_is_refused(program: Path, real_server: str) -> None:
    done = run(program, real_server)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(re.fullmatch(r"step 300  loss \d\.\d{3}  valid \d\.\d{3}", line) for line in lines)
    *names, maria, airam, refused = lines[-7:]
    assert re.fullmatch(r"\w+-names version 1: 300 steps", lines[-8])
    assert [name[:2] for name in names] == ["an", "be", "jo", "ma"]
    assert all(name.isalpha() for name in names)
    nats = [
        float(line.removesuffix(f" nats  {name}"))
        for line, name in ((maria, "maria"), (airam, "airam"))
    ]
    assert nats[0] > nats[1]
    assert re.match(r"refused: Invalid_?Argument: '4' .* is not among", refused, re.IGNORECASE)
    assert refused.endswith("(texts[0])")


def test_it_uses_tls_and_sends_a_token(program: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.server()
    server = FakeServer(credentials=grpc.ssl_server_credentials([(pair.key, pair.cert)]))
    (tmp_path / "token").write_text("treadle_ab12_5ecret\n")
    address = server.address.replace("127.0.0.1", "localhost")
    files = {"TREADLE_TOKEN_FILE": str(tmp_path / "token")}
    done = run(program, address, **files, TREADLE_CA_FILE=str(authority.ca_file))
    server.stop()
    # The server scores anything, which the example says in the end.
    assert "unknown symbol" in done.stderr
    assert [method for method, _ in server.calls] == ["Train", *["Generate"] * 4, "Score", "Score"]
    assert {each["authorization"] for _, each in server.calls} == {"Bearer treadle_ab12_5ecret"}
    done = run(program, address, **files)
    assert (done.returncode, done.stderr) == (
        1,
        "a token needs TLS: set TREADLE_CA_FILE as well\n",
    )


def test_it_says_what_went_wrong(program: Path, real_server: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for words, fault in (
        ([real_server, str(tmp_path / "empty")], "the corpus is empty"),
        ([real_server, str(tmp_path / "none")], str(tmp_path / "none")),
        (["127.0.0.1:1"], "refused"),
    ):
        done = run(program, *words)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert fault in done.stderr
