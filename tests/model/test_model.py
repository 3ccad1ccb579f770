from __future__ import annotations

import re
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import treadle.model
from treadle.model.config import NetworkConfig, TokenizerConfig
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind
from treadle.model.model import Model
from treadle.model.network import trained_network
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.network.trained_network import default_context
from treadle.model.network.workspace import pack_for_inference
from treadle.model.tokenizers.build import build_tokenizer


def model_of(layout: CorpusLayout = CorpusLayout.TEXT) -> Model:
    network = NetworkConfig(Cell.GRU, hidden_size=3, layers=2, embedding_size=2)
    tokenizer = build_tokenizer(TokenizerConfig(), ["ab\n"], layout)
    parameters = Parameters.initial(Shape.of(network, tokenizer.vocabulary_size), seed=1)
    return Model(network, tokenizer, parameters)


def test_a_model_tells_its_sizes() -> None:
    model = model_of()
    assert model.layout is CorpusLayout.TEXT
    assert model.vocabulary_size == 3
    first, second = 9 * (2 + 3 + 1) + 3, 9 * (3 + 3 + 1) + 3
    assert model.parameter_count == 3 * 2 + first + second + 3 * 3 + 3
    lines = model_of(CorpusLayout.LINES)
    assert lines.layout is CorpusLayout.LINES
    assert lines.vocabulary_size == 4, "a, b, begin and end: a line has no newline"


def test_weights_are_packed_once_and_only_where_they_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed: list[str] = []
    gate = threading.Barrier(4)

    def counted(parameters: Parameters) -> Any:
        packed.append(threading.current_thread().name)
        time.sleep(0.05)  # so that the others come while it packs
        return pack_for_inference(parameters)

    monkeypatch.setattr(trained_network, "pack_for_inference", counted)
    model = model_of()
    assert packed == []

    def use(seed: int) -> str:
        gate.wait()
        return model.generate("a", seed=seed, max_new_tokens=5)

    with ThreadPoolExecutor(4) as executor:
        assert len(list(executor.map(use, range(4)))) == 4
    model.score("ab")
    assert len(packed) == 1


@pytest.mark.parametrize("kind", TokenizerKind)
def test_text_begins_as_a_new_line_does(kind: TokenizerKind) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind), ["one two\nthree"])
    if kind is TokenizerKind.EVENTS:  # a line's end is no event
        assert default_context(tokenizer, fallback=1) == 1
    else:
        assert tokenizer.decode([default_context(tokenizer, fallback=99)]) == "\n"


def test_text_without_newlines_begins_as_told() -> None:
    for kind in (TokenizerKind.CHARACTERS, TokenizerKind.WORDS):
        tokenizer = build_tokenizer(TokenizerConfig(kind), ["one two"])
        assert default_context(tokenizer, fallback=1) == 1


@pytest.mark.parametrize("kind", TokenizerKind)
def test_lines_begin_with_their_begin(kind: TokenizerKind) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind), ["one two\n"], CorpusLayout.LINES)
    assert default_context(tokenizer, fallback=99) == tokenizer.begin


def test_the_room_offers_what_it_names() -> None:
    for name in treadle.model.__all__:
        assert getattr(treadle.model, name) is not None
    assert sorted(treadle.model.__all__) == list(treadle.model.__all__)


@pytest.mark.jit
def test_the_rooms_docstring_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
