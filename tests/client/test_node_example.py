"""The Node.js example: a client made from the .proto alone, run as its comment says."""

from __future__ import annotations

import json
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
EXAMPLE = ROOT / "examples" / "node"
OFFLINE = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|E50\d")


def test_the_lock_file_names_exact_versions_and_no_registry() -> None:
    package = json.loads((EXAMPLE / "package.json").read_text())
    lock = json.loads((EXAMPLE / "package-lock.json").read_text())
    assert all(re.fullmatch(r"[\d.]+", version) for version in package["dependencies"].values())
    modules = {name: module for name, module in lock["packages"].items() if name}
    assert lock["packages"][""]["dependencies"] == package["dependencies"]
    assert all("resolved" not in module for module in modules.values())
    assert all(module["integrity"].startswith("sha512-") for module in modules.values())


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its modules installed, and of what it reads."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(EXAMPLE, root / "examples" / "node", ignore=lambda *_: {"node_modules"})
    for read in ("proto", "examples/data"):
        shutil.copytree(ROOT / read, root / read)
    folder = root / "examples" / "node"
    words = ["npm", "ci", "--no-audit", "--no-fund", "--fetch-retries=0"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and (found := OFFLINE.search(done.stderr)):
        pytest.skip(f"npm cannot reach its registry: {found[0]}")
    assert done.returncode == 0, done.stderr
    return folder


def node(example: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", "client.mjs", *words],
        cwd=example,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_it_trains_and_generates(example: Path, real_server: str) -> None:
    done = node(example, real_server)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(re.fullmatch(r"step 300  loss \d\.\d{3}  valid \d\.\d{3}", line) for line in lines)
    assert "node-names version 1: 300 steps" in lines
    names = lines[lines.index("node-names version 1: 300 steps") + 1 :]
    assert [name[:2] for name in names] == ["an", "be", "jo", "ma"]
    assert all(name.isalpha() for name in names)


def test_it_uses_tls_and_sends_a_token(example: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.server()
    server = FakeServer(credentials=grpc.ssl_server_credentials([(pair.key, pair.cert)]))
    (tmp_path / "token").write_text("treadle_ab12_5ecret\n")
    address = server.address.replace("127.0.0.1", "localhost")  # Node.js dislikes a bare number
    files = {"TREADLE_TOKEN_FILE": str(tmp_path / "token")}
    done = node(example, address, **files, TREADLE_CA_FILE=str(authority.ca_file))
    server.stop()
    assert (done.returncode, done.stderr) == (0, "")
    assert [method for method, _ in server.calls] == ["Train", *["Generate"] * 4]
    assert {each["authorization"] for _, each in server.calls} == {"Bearer treadle_ab12_5ecret"}
    done = node(example, address, **files)
    assert done.returncode == 1
    assert "a token needs TLS" in done.stderr


def test_it_says_what_went_wrong(example: Path, real_server: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    done = node(example, real_server, str(empty))
    assert done.returncode == 1
    assert "empty" in done.stderr
    done = node(example, "127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
