from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import model_of

from treadle.kernels.gemm_packing import PANEL
from treadle.kernels.panel_words import QUADS_WIDTH
from treadle.model.config import TokenizerConfig
from treadle.model.enums import CorpusLayout, InferencePrecision, TokenizerKind
from treadle.model.errors import ConfigError
from treadle.model.export import write_npz
from treadle.model.network import packed_weights
from treadle.model.network.parameters import Parameters
from treadle.model.network.trained_network import TrainedNetwork, default_context
from treadle.model.network.workspace import pack_for_inference
from treadle.model.online.learner import Learner
from treadle.model.scoring.text_scorer import TextScorer
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.training.trainer import Trainer


def test_weights_are_packed_once_and_only_where_they_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed: list[str] = []
    gate = threading.Barrier(4)

    def counted(parameters: Parameters, *options: Any) -> Any:
        packed.append(threading.current_thread().name)
        time.sleep(0.05)  # so that the others come while it packs
        return pack_for_inference(parameters, *options)

    monkeypatch.setattr(packed_weights, "pack_for_inference", counted)
    model = model_of()
    assert packed == []

    def use(seed: int) -> str:
        gate.wait()
        return model.generate("a", seed=seed, max_new_tokens=5)

    with ThreadPoolExecutor(4) as executor:
        assert len(list(executor.map(use, range(4)))) == 4
    model.score("ab")
    assert len(packed) == 1


def test_weights_that_were_packed_by_the_caller_are_used() -> None:
    base = model_of().trained
    parameters = Parameters(base.shape)  # all zeros, while the packed weights are not
    network = TrainedNetwork(
        base.config, base.tokenizer, parameters, base.default_context, packed=base.weights
    )
    tokens = base.tokenizer.encode("ab")
    *_, found = TextScorer(network).score(tokens)
    *_, expected = TextScorer(base).score(tokens)
    assert found is not None
    assert expected is not None
    assert found.total_log_probability == expected.total_log_probability


def test_the_content_hash_depends_on_all_that_determines_results() -> None:
    base = model_of().trained
    same = TrainedNetwork(base.config, base.tokenizer, base.parameters, base.default_context)
    assert same.content_hash == base.content_hash
    context = TrainedNetwork(base.config, base.tokenizer, base.parameters, 1)
    parameters = Parameters(base.shape)
    parameters.flat[:] = base.parameters.flat
    parameters.flat[0] = np.nextafter(parameters.flat[0], np.float32(9))
    numbers = TrainedNetwork(base.config, base.tokenizer, parameters, base.default_context)
    assert len({base.content_hash, context.content_hash, numbers.content_hash}) == 3


@pytest.mark.parametrize("kind", TokenizerKind)
def test_text_begins_as_a_new_line_does(kind: TokenizerKind) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind), ["one two\nthree"])
    if kind is TokenizerKind.EVENTS:  # the end of a line is not an event
        assert default_context(tokenizer, fallback=1) == 1
    else:
        assert tokenizer.decode([default_context(tokenizer, fallback=99)]) == "\n"


def test_text_without_newlines_begins_with_the_fallback() -> None:
    for kind in (TokenizerKind.CHARACTERS, TokenizerKind.WORDS):
        tokenizer = build_tokenizer(TokenizerConfig(kind), ["one two"])
        assert default_context(tokenizer, fallback=1) == 1


@pytest.mark.parametrize("kind", TokenizerKind)
def test_lines_begin_with_their_begin(kind: TokenizerKind) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind), ["one two\n"], CorpusLayout.LINES)
    assert default_context(tokenizer, fallback=99) == tokenizer.begin


def test_a_view_in_another_precision_shares_all_but_the_panels() -> None:
    model = model_of()
    view = model.at(InferencePrecision.INT8)
    assert view.precision is InferencePrecision.INT8
    assert model.precision is InferencePrecision.FP32
    assert view is model.at(InferencePrecision.INT8)
    assert view is view.at(InferencePrecision.INT8)
    assert model is view.at(InferencePrecision.FP32)
    assert view.trained is model.trained.at(InferencePrecision.INT8)
    assert view.tokenizer is model.tokenizer
    assert view.parameters is model.parameters
    assert view.content_hash is model.content_hash
    for name in ("table", "embedding", "Wx0", "b", "bh", "by"):
        assert getattr(view.weights, name) is getattr(model.weights, name)
    assert view.weights.Wh.shape[-1] == view.weights.Wy.shape[-1] == QUADS_WIDTH
    assert model.weights.Wh.shape[-1] == model.weights.Wy.shape[-1] == PANEL


def test_precisions_packed_in_either_order_are_the_same() -> None:
    one = model_of()
    other = model_of()
    other.at(InferencePrecision.INT8).weights  # noqa: B018
    for precision in InferencePrecision:
        a = one.at(precision).weights
        b = other.at(precision).weights
        for name, array in a._asdict().items():
            assert array.tobytes() == getattr(b, name).tobytes(), name
            assert array.dtype == getattr(b, name).dtype


def test_a_view_keeps_its_model_in_memory_and_is_kept_by_nobody() -> None:
    model = model_of()
    alive = weakref.ref(model)
    view = model.at(InferencePrecision.INT8)
    del model
    assert alive() is not None
    weights = view.weights
    model = view.at(InferencePrecision.FP32)
    del view
    assert model.at(InferencePrecision.INT8).weights is weights
    del model
    assert alive() is None


def test_weights_that_learn_have_one_precision() -> None:
    base = model_of().trained
    network = TrainedNetwork(
        base.config, base.tokenizer, base.parameters, base.default_context, packed=base.weights
    )
    assert network.at(InferencePrecision.FP32) is network
    with pytest.raises(ValueError, match="weights that learn are in FP32 only, not in INT8"):
        network.at(InferencePrecision.INT8)


def test_nothing_learns_from_a_view_in_another_precision() -> None:
    view = model_of().at(InferencePrecision.INT8)
    sentence = (
        "{} computes in float32 and not in int8, as the model does: give it "
        "model.at(InferencePrecision.FP32)"
    )
    with pytest.raises(ConfigError) as caught:
        Learner(view)
    assert str(caught.value) == sentence.format("Learner")
    with pytest.raises(ConfigError) as caught:
        Trainer(b"abc" * 100, init_from=view)
    assert str(caught.value) == sentence.format("Trainer")


def test_the_files_of_a_view_are_those_of_its_model(tmp_path: Path) -> None:
    model = model_of()
    written = []
    for each in (model, model.at(InferencePrecision.INT8)):
        each.save(tmp_path / "model")
        write_npz(each, tmp_path / "npz")
        with np.load(tmp_path / "npz") as arrays:
            held = {name: arrays[name].tobytes() for name in arrays.files}
        written.append(((tmp_path / "model").read_bytes(), held))
    assert written[0] == written[1]
