"""`python -m treadle.model.export` converts a model file, and says in a sentence why it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import model_of

from treadle.model.export.__main__ import WRITERS, main
from treadle.model.model import Model
from treadle.model.network.torch_state_dict import from_torch


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model_of().save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_every_format_is_written(file: Path, tmp_path: Path) -> None:
    for name in WRITERS:
        assert main([str(file), name, str(tmp_path / f"out.{name}")]) == 0
    assert (tmp_path / "out.safetensors").read_bytes() == file.read_bytes()
    assert json.loads((tmp_path / "out.rtneural").read_text("utf-8"))["in_shape"][-1] > 5
    assert onnx.load(tmp_path / "out.onnx").producer_name == "treadle"


def test_an_archive_holds_arrays_and_header(file: Path, tmp_path: Path) -> None:
    assert main([str(file), "npz", str(tmp_path / "model.npz")]) == 0
    model = Model.load(file)
    with np.load(tmp_path / "model.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays.pop("treadle")))
    assert header["tokenizer"] == model.tokenizer.to_json()
    _, named = from_torch(arrays)
    for name, array in model.parameters.named().items():
        assert named[name].tobytes() == array.tobytes()


def test_a_fault_is_one_sentence(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"no model")
    assert main([str(bad), "npz", str(tmp_path / "out")]) == 1
    assert "not a complete safetensors file" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), "npz", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'none'}: No such file or directory\n"
    assert main([str(file), "npz", str(tmp_path / "none" / "out")]) == 1
    assert "No such file or directory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
