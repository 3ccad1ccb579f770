from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

import treadle.model
from treadle.model.config import NetworkConfig, TokenizerConfig
from treadle.model.enums import Cell, CorpusLayout
from treadle.model.model import Model
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.tokenizers.build import build_tokenizer


def model_of(layout: CorpusLayout = CorpusLayout.TEXT) -> Model:
    network = NetworkConfig(Cell.GRU, hidden_size=3, layers=2, embedding_size=2)
    tokenizer = build_tokenizer(TokenizerConfig(), ["ab\n"], layout)
    parameters = Parameters.initial(Shape.of(network, tokenizer.vocabulary_size), seed=1)
    return Model(network, tokenizer, parameters)


def test_a_model_reports_its_sizes() -> None:
    model = model_of()
    assert model.layout is CorpusLayout.TEXT
    assert model.vocabulary_size == 3
    first = 9 * (2 + 3 + 1) + 3
    second = 9 * (3 + 3 + 1) + 3
    assert model.parameter_count == 3 * 2 + first + second + 3 * 3 + 3
    lines = model_of(CorpusLayout.LINES)
    assert lines.layout is CorpusLayout.LINES
    assert lines.vocabulary_size == 4, "a, b, begin and end: a line has no newline"


def test_a_model_shows_the_parts_of_its_network() -> None:
    model = model_of(CorpusLayout.LINES)
    trained = model.trained
    assert model.network is trained.config
    assert model.tokenizer is trained.tokenizer
    assert model.parameters is trained.parameters
    assert model.default_context == trained.default_context
    assert model.content_hash == trained.content_hash
    assert model.weights is trained.weights
    state = model.beginning()
    assert state.token == model.tokenizer.begin
    data = model.state_bytes(state, b"key")
    assert data == trained.state_bytes(state, b"key")
    assert (
        model.read_state(data, b"key").token
        == trained.read_state(data, b"key").token
        == state.token
    )


def test_the_package_exports_what_it_lists() -> None:
    for name in treadle.model.__all__:
        assert getattr(treadle.model, name) is not None
    assert sorted(treadle.model.__all__) == list(treadle.model.__all__)


@pytest.mark.jit
def test_the_docstring_of_the_package_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert treadle.model.__doc__ is not None
    _, _, code = treadle.model.__doc__.partition("\n\n")
    scope = run_as_in_a_notebook(code)
    assert isinstance(scope["model"], Model)
    assert (tmp_path / "hello.safetensors").exists()


def run_as_in_a_notebook(code: str) -> dict[str, Any]:
    """Runs code; a line that ends in a comment of its value must have it."""
    scope: dict[str, Any] = {}
    compared = 0
    for line in textwrap.dedent(code).splitlines():
        found = re.fullmatch(r"(\S.*?)\s+# ('.*')", line)
        if found is None:
            exec(line, scope)
        else:
            assert eval(found[1], scope) == eval(found[2]), line
            compared += 1
    assert compared
    return scope
