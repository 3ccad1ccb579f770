"""The client is thin: it starts without what only the server needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .fake import FakeServer

HEAVY = (
    "numpy",
    "numba",
    "optuna",
    "rich",
    "shtab",
    "tomlkit",
    "treadle.kernels",
    "treadle.model",
    "treadle.server",
)

LIST_HEAVY = f"""
import sys
print([name for name in {HEAVY!r} if name in sys.modules])
"""

BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        for heavy in {HEAVY!r}:
            if name == heavy or name.startswith(heavy + "."):
                raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
"""


def python(code: str, *words: str) -> str:
    """Runs code in a new Python, warnings being errors, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *words], capture_output=True, check=True
    )
    assert done.stderr == b""
    return done.stdout.decode()


@pytest.mark.parametrize(
    "name", ["Client", "Generation", "TrainingRun", "TrainOptions", "CorpusFile"]
)
def test_the_library_loads_nothing_heavy(name: str) -> None:
    code = f"from treadle.client import {name}, errors; import treadle.v1.sequence_pb2"
    assert python(code + LIST_HEAVY) == "[]\n"


def test_help_loads_nothing_heavy_and_no_grpc() -> None:
    code = "from treadle.client.cli.main import main; main(['--help'])" + LIST_HEAVY
    code += "print('grpc' in sys.modules, 'google.protobuf' in sys.modules)"
    assert python(code).endswith("[]\nFalse False\n")


@pytest.mark.parametrize("package", ["client", "server"])
def test_a_command_takes_ctrl_c_before_it_loads_much(package: str) -> None:
    """Before that, Ctrl-C would end in a traceback."""
    slow = ("typing", "dataclasses", "inspect", "re", f"treadle.{package}.cli")
    code = (
        "import sys; before = set(sys.modules)\n"
        f"import treadle.{package}.__main__\n"
        f"print(sorted(set({slow!r}) & (set(sys.modules) - before)))"
    )
    assert python(code) == "[]\n"


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    code = "import treadle.client as c; print([n for n in c.__all__ if not hasattr(c, n)])"
    assert python(code) == "[]\n"


def test_everything_works_without_the_servers_packages(server: FakeServer, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("abc\n")
    code = BLOCK + (
        "from treadle.client.cli.main import main\n"
        "address, *words = sys.argv[1:]\n"
        "assert main(['--server', address, *words]) == 0"
    )
    address = server.address
    assert '"completed"' in python(code, address, "train", __file__, "--model", "m")
    assert python(code, address, "generate", "m") == "ello\n"
    assert python(code, address, "generate", "m", "-n", "2") == "amy\namy\n"
    assert python(code, address, "embed", "m", "t").startswith('{"text": "t", "values"')
    assert "4.000  abc" in python(code, address, "score-stream", "m", str(lines))
    assert "bits/char" in python(code, address, "score", "m", "--text", "t", "--tokens")
    assert "model-1" in python(code, address, "models")
    assert "lstm" in python(code, address, "models", "show", "m")
    assert "succeeded" in python(code, address, "jobs", "show", "latest")
    assert '"completed"' in python(code, address, "watch", "latest")
    assert "train" in python(code, address, "curve", "latest")
    assert "threads" in python(code, address, "info")
    assert python(code, address, "health") == "serving\n"
    assert "exit-codes" in python(code, address, "help")
    assert python(code, address, "help", "jobs").startswith("Training jobs\n===")
    assert python(code, address, "help", "--man").startswith(".TH TREADLE")
    assert python(code, address, "completion", "--list", "models") == "model-1\n"


def test_every_public_name_is_there() -> None:
    import treadle.client as package

    assert all(hasattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Loom'"):
        package.Loom  # noqa: B018


@pytest.mark.parametrize(
    ("old", "new"),
    [("LearntPieces", "LearnedPieces"), ("Piece", "StreamPiece"), ("Text", "GeneratedText")],
)
def test_a_public_name_of_before_is_an_alias_that_warns(old: str, new: str) -> None:
    import treadle.client as package

    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
        alias = getattr(package, old)
    assert alias is getattr(package, new)


def test_what_goes_to_a_pipe_waits_for_no_rich(server: FakeServer) -> None:
    """Nor does generated text on a terminal."""
    code = (
        "import sys; from treadle.client.cli.main import main\n"
        "address, *words = sys.argv[1:]\n"
        "main(['--server', address, *words])\n"
        "print('rich' in sys.modules)"
    )
    for words in (["generate", "m"], ["models"], ["train", __file__, "--model", "m", "--quiet"]):
        assert python(code, server.address, *words).endswith("False\n")
