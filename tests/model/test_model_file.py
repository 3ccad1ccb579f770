from __future__ import annotations

import itertools
import json
import math
import os
import re
import socket
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from treadle.model import bounded_json
from treadle.model.atomic_files import write_atomically
from treadle.model.config import LimitsConfig, NetworkConfig, TokenizerConfig, TrainConfig
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import LoadError
from treadle.model.generation.novelty import SUFFIXES, TOKENS, Novelty, NoveltyIndex
from treadle.model.model import Model
from treadle.model.model_file import read_header
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.tensor_file import safetensors_parts
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.training_record import TrainingRecord

Arrays = dict[str, NDArray[Any]]

PAGE = Path(__file__).parents[2] / "docs" / "model-file.md"

RECORD = TrainingRecord(
    config=TrainConfig(limits=LimitsConfig(max_epochs=1 / 3), seed=2**64 - 1),
    steps=2**60,
    tokens_seen=12,
    train_loss=0.1 + 0.2,
    valid_loss=None,
    elapsed_s=1e-7,
    ended_by="it was “enough”\n",
)


def model_of(
    cell: Cell = Cell.LSTM,
    layers: int = 1,
    embedding: int = 3,
    kind: TokenizerKind = TokenizerKind.CHARACTERS,
    layout: CorpusLayout = CorpusLayout.TEXT,
    training: TrainingRecord | None = RECORD,
) -> Model:
    network = NetworkConfig(cell, hidden_size=5, layers=layers, embedding_size=embedding)
    tokenizer = build_tokenizer(TokenizerConfig(kind), ['ab "\\ é\u2028😀\x00\n'], layout)
    parameters = Parameters.initial(Shape.of(network, tokenizer.vocabulary_size), seed=1)
    return Model(network, tokenizer, parameters, training, default_context=2)


def tensors_of(path: Path) -> Arrays:
    return dict(load_file(path))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata())


def content_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(metadata_of(path)["treadle"]))


def shape_of(value: object) -> object:
    """The keys of a JSON value, and the types of what they lead to."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    return type(value)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    model_of().save(path)
    return path


def refusal(path: Path) -> str:
    """The one clear sentence that a file is refused with."""
    with pytest.raises(LoadError) as caught:
        Model.load(path)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("kind", TokenizerKind)
@pytest.mark.parametrize("embedding", [0, 3])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", Cell)
def test_a_model_comes_back_as_it_was(
    cell: Cell,
    layers: int,
    embedding: int,
    kind: TokenizerKind,
    layout: CorpusLayout,
    tmp_path: Path,
) -> None:
    model = model_of(cell, layers, embedding, kind, layout)
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model")
    assert again.parameters.flat.tobytes() == model.parameters.flat.tobytes()
    assert again.network == model.network
    assert again.tokenizer.to_json() == model.tokenizer.to_json()
    assert again.layout is layout
    assert again.training == RECORD
    assert again.default_context == 2
    sampled = again.generate(seed=5, max_new_tokens=3)
    assert sampled == model.generate(seed=5, max_new_tokens=3)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()


@pytest.mark.parametrize("embedding", [0, 3])
@pytest.mark.parametrize("cell", Cell)
def test_the_file_has_pytorchs_names_and_shapes(cell: Cell, embedding: int, tmp_path: Path) -> None:
    model = model_of(cell, layers=2, embedding=embedding)
    model.save(tmp_path / "model")
    V = model.vocabulary_size
    H = 5
    G = {Cell.RNN: 1, Cell.GRU: 3, Cell.LSTM: 4}[cell] * H
    expected: dict[str, tuple[int, ...]] = {
        "rnn.weight_ih_l0": (G, embedding or V),
        "rnn.weight_hh_l0": (G, H),
        "rnn.bias_ih_l0": (G,),
        "rnn.bias_hh_l0": (G,),
        "rnn.weight_ih_l1": (G, H),
        "rnn.weight_hh_l1": (G, H),
        "rnn.bias_ih_l1": (G,),
        "rnn.bias_hh_l1": (G,),
        "output.weight": (V, H),
        "output.bias": (V,),
    }
    if embedding:
        expected["embedding.weight"] = (V, embedding)
    tensors = tensors_of(tmp_path / "model")
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    named = model.parameters.named()
    assert np.array_equal(tensors["rnn.weight_ih_l1"], named["Wx1"].T)
    assert np.array_equal(tensors["output.weight"], named["Wy"].T)
    hidden_bias = tensors["rnn.bias_hh_l0"]
    assert not hidden_bias[: 2 * H].any()
    assert hidden_bias.any() == (cell is Cell.GRU)


def test_the_header_is_one_json_object(stored: Path) -> None:
    assert list(metadata_of(stored)) == ["treadle"]
    content = content_of(stored)
    assert list(content) == ["format", "network", "tokenizer", "training", "default_context"]
    assert content["format"] == "1"
    assert content["network"] == NetworkConfig(Cell.LSTM, 5, 1, 3).to_json()
    assert content["training"]["ended_by"] == RECORD.ended_by


def test_the_page_shows_the_header_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGE.read_text()
    shown = json.loads(page.partition("```json\n")[2].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], scope)
    header = scope["header"]
    assert header["training"]["config"].keys() == shown["training"]["config"].keys()
    del header["training"]["config"], shown["training"]["config"]
    assert shape_of(header) == shape_of(shown)
    del header["training"], shown["training"]
    assert header == shown
    for name in scope["tensors"]:
        assert re.sub(r"\d", "{l}", name) in page


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        model_of().save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in ("one", "two", "three")}) == 1


def test_a_file_is_byte_for_byte_what_the_library_writes() -> None:
    tensors: Arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "a": np.arange(3, dtype=np.float32),
        "novelty.tokens": np.arange(5, dtype=np.int32),
        "bytes": np.arange(5, dtype=np.uint8),
        "short": np.arange(3, dtype=np.uint16),
        "whole": np.arange(3, dtype=np.uint32),
        "long": np.arange(2, dtype=np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "ünï": np.ones(1, np.float32),
    }
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    for text in ("", '{"a": "ü\\u0001 \\"“\\n"}', "x" * 7):
        metadata = {"treadle": text}
        assert b"".join(safetensors_parts(tensors, metadata)) == save(whole, metadata=metadata)


def test_a_file_is_written_without_a_second_copy_of_the_model(tmp_path: Path) -> None:
    model = model_of()
    model = Model(
        NetworkConfig(Cell.LSTM, hidden_size=256, layers=2, embedding_size=8),
        model.tokenizer,
        Parameters(Shape(Cell.LSTM, model.vocabulary_size, 8, 256, 2)),
    )
    tracemalloc.start()
    model.save(tmp_path / "m")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 4 * model.parameter_count


def test_a_run_without_a_loss_leaves_json_that_anyone_reads(tmp_path: Path) -> None:
    record = TrainingRecord(TrainConfig(), 0, 0, math.nan, None, 0.0, "stopped on request")
    model_of(training=record).save(tmp_path / "model")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(metadata_of(tmp_path / "model")["treadle"], parse_constant=refuse)
    again = Model.load(tmp_path / "model").training
    assert again is not None
    assert math.isnan(again.train_loss)


def test_a_model_may_have_no_record(tmp_path: Path) -> None:
    model_of(training=None).save(tmp_path / "model")
    assert Model.load(tmp_path / "model").training is None


def test_a_loaded_model_does_not_need_its_file(stored: Path) -> None:
    model = Model.load(stored)
    expected = model_of().generate(seed=1, max_new_tokens=5)
    stored.write_bytes(b"\xff" * stored.stat().st_size)
    stored.unlink()
    assert model.generate(seed=1, max_new_tokens=5) == expected


def test_the_header_is_read_without_the_tensors(stored: Path) -> None:
    size = struct.unpack("<Q", stored.read_bytes()[:8])[0]
    raw = bytearray(stored.read_bytes())
    raw[8 + size :] = b"\xff" * (len(raw) - 8 - size)
    stored.write_bytes(raw)
    header = read_header(stored)
    assert header.network == model_of().network
    assert header.tokenizer.vocabulary_size == model_of().vocabulary_size
    assert header.training == RECORD
    assert header.shape.parameter_count == model_of().parameter_count
    assert "not a finite float32" in refusal(stored)


# ---------------------------------------------------------------- files that are none


def test_what_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    for read in (Model.load, read_header):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nothing")
        with pytest.raises(IsADirectoryError):
            read(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            listening.bind(str(path))
        else:
            path.symlink_to("/dev/zero")
        for read in (Model.load, read_header):
            with pytest.raises(OSError, match=r"not a regular file|No such device"):
                read(path)


@pytest.mark.parametrize("size", [0, 8, 1 << 20, 1 << 40])
def test_a_file_of_zeros_takes_no_memory(size: int, tmp_path: Path) -> None:
    with (tmp_path / "m").open("wb") as file:
        file.truncate(size)
    tracemalloc.start()
    with pytest.raises(LoadError):
        Model.load(tmp_path / "m")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_header_behind_the_end_is_refused(stored: Path) -> None:
    data = stored.read_bytes()
    for size in (len(data) - 7, 10**8 + 1, 1 << 63, (1 << 64) - 1):
        stored.write_bytes(size.to_bytes(8, "little") + data[8:])
        with pytest.raises(LoadError, match="not a complete safetensors file"):
            Model.load(stored)


def test_a_file_of_another_size_is_refused_before_it_is_mapped(stored: Path) -> None:
    size = stored.stat().st_size
    for other in (size - 1, size + 1, 1 << 42):
        os.truncate(stored, other)
        for read in (Model.load, read_header):
            with pytest.raises(LoadError, match="its tensors should have"):
                read(stored)


def test_a_header_of_many_tensors_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    entry = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    crowds = (
        "{" + ",".join(entry % number for number in range(5000)) + "}",
        '{"a":{"dtype":"F32","shape":[' + ",".join(["0"] * 200_000) + '],"data_offsets":[0,0]}}',
        "{" + '""' * 200_000 + "}",
        '{"__metadata__":{' + ",".join(f'"{number}":""' for number in range(200_000)) + "}}",
    )
    for header in crowds:
        (tmp_path / "m").write_bytes(len(header).to_bytes(8, "little") + header.encode())
        with pytest.raises(LoadError, match="more than 4,096 tensors"):
            Model.load(tmp_path / "m")


def test_names_that_stand_twice_are_refused(stored: Path) -> None:
    data = stored.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].decode().rstrip()
    tensors = json.loads(header)
    inner = tensors["__metadata__"]["treadle"]
    bias = json.dumps(tensors["output.bias"])
    tensors["__metadata__"]["treadle"] = inner[:-1] + ',"format":"1"}'
    for text in (header[:-1] + f',"output.bias" : {bias}}}', json.dumps(tensors)):
        encoded = text.encode()
        stored.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + size :])
        for read in (Model.load, read_header):
            with pytest.raises(LoadError, match="twice"):
                read(stored)


def test_a_header_of_many_values_is_refused_before_they_are_made(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_json, "MOST_VALUES", 1000)
    monkeypatch.setattr(bounded_json, "_SHORT", 1000)
    data = stored.read_bytes()
    size = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + size])
    inner = content["__metadata__"]["treadle"]
    assert read_header(stored).default_context == 2
    for more in ("[]," * 1000 + "0", '{"a":{}},' * 400 + "0"):
        content["__metadata__"]["treadle"] = inner[:-1] + f',"more":[{more}]}}'
        header = json.dumps(content).encode()
        stored.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
        with pytest.raises(LoadError, match="more than 1,000 values"):
            read_header(stored)


def test_every_truncation_is_refused(stored: Path) -> None:
    raw = stored.read_bytes()
    for size in [*range(40), *range(40, len(raw), 97), len(raw) - 1]:
        stored.write_bytes(raw[:size])
        assert "is not a complete safetensors file" in refusal(stored)
        with pytest.raises(LoadError):
            read_header(stored)
    stored.write_bytes(raw + b"\0")
    assert "is not a complete safetensors file" in refusal(stored)


@pytest.mark.parametrize("raw", [b"", b"hello", b"\0" * 99, b"\xff" * 99, b"PK\x03\x04" * 99])
def test_garbage_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(raw)
    assert "is not a complete safetensors file" in refusal(tmp_path / "model")


def test_the_error_of_a_foreign_file_names_the_import(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_file({"rnn.weight_hh_l0": np.zeros((2, 2), np.float32)}, path)
    assert "is not a Treadle model" in refusal(path)
    assert "import_state_dict" in refusal(path)
    save_file({"x": np.zeros(2, np.float32)}, path, metadata={"format": "pt"})
    assert "is not a Treadle model" in refusal(path)


def test_any_one_byte_may_be_damaged(stored: Path) -> None:
    """A file either says why it is no model or is one: nothing else ever comes out."""
    raw = stored.read_bytes()
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    rng = np.random.default_rng(0)
    outcomes = set()
    for place in range(0, header, 3):
        damaged = bytearray(raw)
        damaged[place] = rng.integers(256)
        stored.write_bytes(damaged)
        try:
            Model.load(stored)
            outcomes.add("read")
        except LoadError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}, "changes within a text of the record go unnoticed"


# ---------------------------------------------------------------- headers that lie


def rewrite(path: Path, text: str, tensors: Arrays | None = None) -> None:
    kept = tensors_of(path) if tensors is None else tensors
    path.write_bytes(save(kept, metadata={"treadle": text}))


def change(path: Path, *keys: str, to: object) -> None:
    """Changes one value of a header, named by the keys that lead to it."""
    content = content_of(path)
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    rewrite(path, json.dumps(content))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", "{}", '"x"', '{"format":"1"}', "[" * 100_000],
    ids=lambda text: text[:20] or "empty",
)
def test_a_damaged_header_is_refused(text: str, stored: Path) -> None:
    rewrite(stored, text)
    assert "the file's header cannot be read" in refusal(stored)


@pytest.mark.parametrize("version", ["2", "0", 1, None])
def test_another_format_is_refused(version: object, stored: Path) -> None:
    change(stored, "format", to=version)
    assert f"the file has format {version!r}, but this Treadle reads only '1'" in refusal(stored)


@pytest.mark.parametrize(
    ("keys", "value", "expected"),
    [
        (["network"], None, "header cannot be read"),
        (["network", "cell"], "transformer", r"network\.cell"),
        (["network", "hidden_size"], -1, r"network\.hidden_size"),
        (["network", "hidden_size"], 4096, "has shape"),
        (["network", "layers"], 2, "do not fit the network"),
        (["network", "cell"], "gru", "of a lstm network, but its header says gru"),
        (["network", "embedding_size"], 0, "embedding"),
        (["network", "colour"], "red", r"network\.colour"),
        (["tokenizer"], 7, "tokenizer cannot be read"),
        (["tokenizer", "symbols"], "abcd", "has shape"),
        (["tokenizer", "symbols"], "aab", "twice"),
        (["tokenizer", "layout"], "poem", "poem"),
        (["training"], [], "training record"),
        (["training", "steps"], math.inf, "training record"),
        (["training", "steps"], -1, "training record"),
        (["training", "steps"], 2**64, "training record"),
        (["training", "tokens_seen"], -1, "training record"),
        (["training", "weights_step"], 2**64, "training record"),
        (["training", "valid_tokens"], -1, "training record"),
        (["training", "ended_by"], "\ud800", "header"),
        (["training", "notices"], ["\udfff"], "header"),
        (["training", "config", "data", "column"], "\ud800", "header"),
        (["training", "steps"], "many", "training record"),
        (["training", "config", "seed"], -1, "seed"),
        (["default_context"], 99, "default context"),
        (["default_context"], -1, "default context"),
        (["default_context"], math.inf, "header cannot be read"),
        (["default_context"], [], "header cannot be read"),
    ],
)
def test_a_header_that_lies_is_refused(
    keys: list[str], value: object, expected: str, stored: Path
) -> None:
    change(stored, *keys, to=value)
    with pytest.raises(LoadError, match=expected):
        Model.load(stored)


@pytest.mark.parametrize("key", ["network", "tokenizer", "training", "default_context", "format"])
def test_a_header_without_a_part_is_refused(key: str, stored: Path) -> None:
    content = content_of(stored)
    del content[key]
    rewrite(stored, json.dumps(content))
    assert key in refusal(stored)


# ---------------------------------------------------------------- tensors that do not fit


def spoil(tensors: Arrays, name: str, value: float) -> None:
    tensors[name].flat[-1] = value


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda t: t.pop("output.weight"), "lacks output.weight"),
        (lambda t: t.pop("rnn.weight_hh_l0"), "lacks rnn.weight_hh_l0"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "'extra'"),
        (lambda t: t.update({"output.bias": np.zeros(2, np.float32)}), "output.bias has shape"),
        (lambda t: t.update({"rnn.weight_hh_l0": np.zeros(9, np.float32)}), "weight_hh_l0"),
        (lambda t: t.update({"output.bias": np.zeros(8, np.int32)}), "output.bias is of type"),
        (lambda t: spoil(t, "rnn.weight_ih_l0", math.nan), "weight_ih_l0 contains a value"),
        (lambda t: spoil(t, "embedding.weight", math.inf), "embedding"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    damage: Callable[[Arrays], object], expected: str, stored: Path
) -> None:
    tensors = tensors_of(stored)
    damage(tensors)
    rewrite(stored, metadata_of(stored)["treadle"], tensors)
    assert expected in refusal(stored)


def test_a_type_that_numpy_lacks_is_refused(stored: Path) -> None:
    header: dict[str, Any] = {"__metadata__": metadata_of(stored)}
    start = 0
    for name, tensor in tensors_of(stored).items():
        stop = start + 2 * tensor.size
        shape = list(tensor.shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    stored.write_bytes(struct.pack("<Q", len(text)) + text + bytes(start))
    # Where another package has taught NumPy the type, its name is known.
    refused = ("the file's tensors cannot be read", "is of type bfloat16: give it as float32")
    assert refusal(stored).partition(": data type")[0].endswith(refused)


# ---------------------------------------------------------------- with a novelty index


def indexed(layout: CorpusLayout = CorpusLayout.LINES) -> Model:
    model = model_of(layout=layout)
    tokens = np.array([0, 1, 2, 1, 0, 1])
    offsets = np.array([0, 3, 6]) if layout is CorpusLayout.LINES else None
    model.novelty = NoveltyIndex.build(tokens, offsets, model.tokenizer)
    return model


@pytest.mark.parametrize("layout", CorpusLayout)
def test_an_index_comes_back_and_changes_nothing_else(layout: CorpusLayout, tmp_path: Path) -> None:
    model = indexed(layout)
    plain = model_of(layout=layout)
    model.save(tmp_path / "model")
    plain.save(tmp_path / "plain")
    assert read_header(tmp_path / "model").novelty_index
    assert not read_header(tmp_path / "plain").novelty_index
    assert metadata_of(tmp_path / "model") == metadata_of(tmp_path / "plain")
    again = Model.load(tmp_path / "model")
    assert Model.load(tmp_path / "plain").novelty is None
    assert again.novelty is not None
    assert again.novelty.novelty([0, 1, 2], again.tokenizer) == Novelty(3, False)
    assert again.novelty.novelty([1, 2, 0, 0], again.tokenizer) == Novelty(2, True)
    assert again.content_hash == plain.content_hash
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    again.novelty = None
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "plain").read_bytes()


def with_index(path: Path, **changes: object) -> Path:
    """A file in which parts of the index are others, or left out where they are None."""
    indexed().save(path)
    named = {"tokens": TOKENS, "suffixes": SUFFIXES}
    tensors: dict[str, Any] = {**tensors_of(path)}
    tensors |= {named[name]: changes[name] for name in changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    rewrite(path, metadata_of(path)["treadle"], kept)
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokens": None}, "novelty.tokens is missing"),
        ({"suffixes": None}, "novelty.suffixes is missing"),
        ({"tokens": np.zeros(9, np.uint16)}, "novelty.tokens is not of one axis and of type uint8"),
        ({"tokens": np.zeros(9, np.float32)}, "novelty.tokens is not"),
        ({"tokens": np.zeros((3, 3), np.uint8)}, "novelty.tokens is not"),
        ({"suffixes": np.zeros(9, np.int64)}, "novelty.suffixes is not"),
        ({"tokens": np.zeros(8, np.uint8)}, "it has 8 tokens and 9 suffixes"),
        (
            {"tokens": np.zeros(0, np.uint8), "suffixes": np.zeros(0, np.int32)},
            "it has 0 tokens and 0 suffixes",
        ),
        ({"tokens": np.full(9, 99, np.uint8)}, "a token is not in the vocabulary"),
        ({"suffixes": np.full(9, 9, np.int32)}, "a suffix begins outside of the tokens"),
        ({"suffixes": np.full(9, -1, np.int32)}, "a suffix begins outside of the tokens"),
    ],
)
def test_a_damaged_index_is_refused(
    changes: dict[str, object], expected: str, tmp_path: Path
) -> None:
    path = with_index(tmp_path / "model", **changes)
    assert "the file's novelty index cannot be read: " + expected in refusal(path)


def test_an_index_is_the_items_and_the_order_of_their_suffixes(tmp_path: Path) -> None:
    tensors = tensors_of(with_index(tmp_path / "model"))
    begin = model_of(layout=CorpusLayout.LINES).tokenizer.begin
    tokens = tensors[TOKENS].tolist()
    suffixes = tensors[SUFFIXES].tolist()
    assert tokens == [begin, 0, 1, 2, begin, 1, 0, 1, begin]
    assert suffixes == sorted(range(9), key=lambda start: tokens[start:])


# ---------------------------------------------------------------- writing


def test_a_file_is_replaced_whole(stored: Path) -> None:
    other = model_of(Cell.GRU, training=None)
    other.save(str(stored))
    assert Model.load(str(stored)).network.cell is Cell.GRU
    assert os.listdir(stored.parent) == [stored.name]


def test_a_name_alone_is_a_file_of_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model_of().save("model")
    assert Model.load("model").network == model_of().network


@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    step: str, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, step, fail)
    with pytest.raises(OSError, match="No space left"):
        model_of(Cell.RNN).save(stored)
    monkeypatch.undo()
    assert stored.read_bytes() == before
    assert os.listdir(stored.parent) == [stored.name]


def test_an_interrupted_write_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "model", b"data")
    assert os.listdir(tmp_path) == []


def test_the_content_is_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[int]]] = []
    fsync = os.fsync
    replace = Path.replace

    def watched_fsync(file: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{file}"))
        seen.append((name, [path.stat().st_size for path in tmp_path.iterdir()]))
        fsync(file)

    def watched_replace(path: Path, target: Path) -> Path:
        seen.append((f"to {target.name}", []))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write_atomically(tmp_path / "model", b"12345")
    (temporary, sizes), renamed, (folder, _) = seen
    assert temporary.startswith(".model.")
    assert sizes == [5], "the whole content was handed over before it was synced"
    assert renamed == ("to model", [])
    assert folder == tmp_path.name


def test_a_folder_that_is_missing_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        model_of().save(tmp_path / "nowhere" / "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_file_mode_follows_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        model_of().save(tmp_path / "model")
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == mode


def test_every_unknown_policy_and_layout_has_its_own_vocabulary(tmp_path: Path) -> None:
    sizes = set()
    for policy, layout in itertools.product(UnknownPolicy, CorpusLayout):
        network = NetworkConfig(Cell.RNN, hidden_size=2, layers=1, embedding_size=0)
        config = TokenizerConfig(TokenizerKind.WORDS, unknown_policy=policy)
        tokenizer = build_tokenizer(config, ["one two\n"], layout)
        parameters = Parameters.initial(Shape.of(network, tokenizer.vocabulary_size), seed=0)
        Model(network, tokenizer, parameters).save(tmp_path / "model")
        again = Model.load(tmp_path / "model")
        assert again.tokenizer.config.policy is policy
        assert again.tokenizer.unknown == tokenizer.unknown
        sizes.add((again.layout, again.vocabulary_size))
    assert len(sizes) == 4
