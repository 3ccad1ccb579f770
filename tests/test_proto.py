"""Checks that the generated code of the wire contract is current and that buf accepts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "proto"
TOOLS = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a tool from the environment that runs the tests."""
    environment = os.environ | {"PATH": f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def contracts() -> list[Path]:
    """Returns every .proto file, relative to the folder that protoc starts from."""
    return sorted(path.relative_to(PROTO) for path in PROTO.rglob("*.proto"))


def generated_files(folder: Path) -> dict[Path, bytes]:
    """Returns the generated files below a folder, by relative path."""
    return {
        path.relative_to(folder): path.read_bytes()
        for pattern in ("*_pb2*.py", "*_pb2*.pyi")
        for path in folder.rglob(pattern)
    }


def test_generated_code_is_current(tmp_path: Path) -> None:
    """`make proto` would change nothing."""
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    result = run(
        sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *out, *map(str, contracts())
    )
    assert result.returncode == 0, result.stderr
    fresh = generated_files(tmp_path)
    committed = generated_files(PROTO)
    assert sorted(fresh) == sorted(committed)
    stale = [str(path) for path in fresh if fresh[path] != committed[path]]
    assert stale == [], "run `make proto`"


def test_buf_lint_is_clean() -> None:
    result = run("buf", "lint")
    assert result.returncode == 0, result.stdout + result.stderr


def test_buf_format_is_clean() -> None:
    result = run("buf", "format", "--diff", "--exit-code")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def changed_contract(tmp_path: Path) -> Path:
    """A copy of the contract that a test may break."""
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    for path in contracts():
        (tmp_path / "proto" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROTO / path, tmp_path / "proto" / path)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "breaks"),
    [
        ("CELL_LSTM = 3;", "CELL_LSTM = 3;\n  // A new one.\n  CELL_NEW = 99;", False),
        ("CELL_LSTM = 3;", "CELL_LSTM = 4;", True),
        ("CELL_GRU = 2;", "CELL_GATED = 2;", True),
    ],
    ids=["added value", "renumbered", "renamed"],
)
def test_breaking_changes_are_told(
    changed_contract: Path, old: str, new: str, breaks: bool
) -> None:
    contract = changed_contract / "proto" / "treadle" / "v1" / "sequence.proto"
    text = contract.read_text("utf-8")
    assert old in text
    contract.write_text(text.replace(old, new), "utf-8")
    result = run("buf", "breaking", "--against", ROOT, cwd=changed_contract)
    assert (result.returncode != 0) == breaks, result.stdout + result.stderr
