"""`treadle models export`: from a server or a file, and what a bare client says."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import model_of

from treadle.client.cli.main import main
from treadle.client.cli.transfer import converter
from treadle.model.export.__main__ import WRITERS

from .fake import FakeServer
from .shell import PATIENCE_S, command, complaint, environment, objects, out, run

NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    model_of().save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def serving(server: FakeServer, model_file: Path) -> str:
    server.service.model_files["small"] = model_file.read_bytes()
    return server.address


def test_the_formats_are_those_of_the_model() -> None:
    assert set(converter.SUFFIXES) == set(WRITERS)


def test_a_version_is_fetched_and_converted(serving: str, folder: Path) -> None:
    said = out(serving, "models", "export", "small@stable", "--format", "onnx", "--version", "3")
    assert said.startswith("small version 3 is in small.onnx as onnx (")
    assert onnx.load(folder / "small.onnx").producer_name == "treadle"
    words = ["models", "export", "small", "--format", "npz", "--out", "mine.npz", "--json"]
    (facts,) = objects(out(serving, *words))
    with np.load(folder / "mine.npz") as archive:
        assert "rnn.weight_hh_l0" in archive
    size = (folder / "mine.npz").stat().st_size
    expected: dict[str, Any] = {"file": "mine.npz", "format": "npz", "model": "small"}
    assert facts == {**expected, "version": 2, "size_bytes": size}
    assert {path.name for path in folder.iterdir()} == {"small.onnx", "mine.npz"}


def test_a_file_is_converted_without_a_server(model_file: Path, folder: Path) -> None:
    words = ["models", "export", "--file", str(model_file), "--format", "rtneural"]
    assert "small.rtneural.json" in out(NOBODY, *words)
    assert json.loads((folder / "small.rtneural.json").read_text("utf-8"))["layers"]


def test_a_name_may_begin_with_a_dash(model_file: Path, folder: Path) -> None:
    (folder / "-old.safetensors").write_bytes(model_file.read_bytes())
    out(NOBODY, "models", "export", "--file=-old.safetensors", "--format", "npz")
    assert (folder / "-old.npz").exists()


def test_an_older_file_is_replaced_only_on_request(
    serving: str, folder: Path, model_file: Path
) -> None:
    (folder / "small.safetensors").write_bytes(b"old")
    words = ["models", "export", "small", "--format", "safetensors"]
    assert "small.safetensors exists: give --force" in complaint(run(serving, *words), 2)
    assert (folder / "small.safetensors").read_bytes() == b"old"
    out(serving, *words, "--force")
    assert (folder / "small.safetensors").read_bytes() == model_file.read_bytes()


def test_what_does_not_go_together_is_refused(model_file: Path, folder: Path) -> None:
    start = ["models", "export", "--format", "npz"]
    for words, message in (
        ([], "give either the NAME of a model or --file FILE"),
        (["small", "--file", str(model_file)], "give either the NAME"),
        (["--file", str(model_file), "--version", "1"], "--version chooses among the versions"),
        (["small", "--out", "none/here"], "there is no folder none"),
        (["--file", "none"], "none: No such file or directory"),
    ):
        assert message in complaint(run(NOBODY, *start, *words), 2)
    (folder / "bad.safetensors").write_bytes(b"no model")
    done = run(NOBODY, *start, "--file", "bad.safetensors")
    assert "not a complete safetensors file" in complaint(done, 2)
    assert [path.name for path in folder.iterdir()] == ["bad.safetensors"]


def test_an_interruption_leaves_no_file(serving: str, folder: Path, tmp_path: Path) -> None:
    """A Ctrl-C, which reaches the converter as well, here a slow one."""
    for name in ("slow", "temporary", "out"):
        (tmp_path / name).mkdir()
    slow = "import sys, time\nif 'treadle.model.export' in sys.orig_argv: time.sleep(100)\n"
    (tmp_path / "slow" / "sitecustomize.py").write_text(slow)
    words = ["models", "export", "small", "--format", "npz", "--out", "out/small.npz"]
    changes = {"PYTHONPATH": str(tmp_path / "slow"), "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(
        command(serving, *words),
        env=environment(**changes),
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        end = time.monotonic() + PATIENCE_S
        while not list((tmp_path / "temporary").glob("*/model.safetensors")):
            assert time.monotonic() < end
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b"treadle: interrupted\n"
    assert list((tmp_path / "temporary").iterdir()) == []
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_with_a_file_of_a_package_does_no_harm(model_file: Path, folder: Path) -> None:
    (folder / "numpy.py").write_text("raise SystemExit('somebody else')")
    out(NOBODY, "models", "export", "--file", str(model_file), "--format", "npz")


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        (
            "npz",
            ["numpy", "numba"],
            "needs numpy, numba on this machine: pip install '.[server]' in a checkout of Treadle",
        ),
        (
            "onnx",
            ["onnx"],
            "needs onnx on this machine: pip install '.[server,onnx]' in a checkout of Treadle",
        ),
    ],
)
def test_a_bare_client_names_the_extra(
    name: str,
    missing: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
) -> None:
    """Before it asks a server for anything."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    assert main(["--server", NOBODY, "models", "export", "small", "--format", name]) == 2
    assert message in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_bare_client_fetches_the_file_itself(
    serving: str, monkeypatch: pytest.MonkeyPatch, folder: Path, model_file: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = ["--server", serving, "models", "export", "small", "--format", "safetensors"]
    assert main(words) == 0
    assert (folder / "small.safetensors").read_bytes() == model_file.read_bytes()
