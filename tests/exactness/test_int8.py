"""INT8 keeps every promise of exactness, since its sums are of integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exactness import int8_run
from exactness.processor_runs import IS_X86_64, NUMPY_PLAIN, finish, start
from llvmlite import binding as llvm
from numpy.typing import NDArray
from small_networks import CELLS, make_network, same_bytes

from treadle.kernels import reference
from treadle.model import (
    Cell,
    Details,
    InferencePrecision,
    Model,
    NetworkConfig,
    SamplingConfig,
    TokenizerConfig,
)
from treadle.model.generation import generate as generating
from treadle.model.generation.output import OutputOptions
from treadle.model.generation.sampling import ResolvedSampling
from treadle.model.generation.sequence_slot import SequenceSlot
from treadle.model.generation.slot_arrays import SlotArrays
from treadle.model.network import workspace
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.prefill import read_tokens
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import Shape
from treadle.model.network.workspace import pack_for_inference
from treadle.model.scoring.embedder import Embedder
from treadle.model.scoring.scorer import Scorer
from treadle.model.scoring.stream_scorer import StreamScorer
from treadle.model.tokenizers.build import build_tokenizer

pytestmark = pytest.mark.jit

INT8 = InferencePrecision.INT8

TEXT = "the treadle turns a wheel by foot, a loop that needs no engine; " * 2

SAMPLING = SamplingConfig(temperature=0.9, top_k=12, top_p=0.95, seed=11, max_new_tokens=60)


def model_of(cell: str, **sizes: Any) -> Model:
    """A model with INT8 weights, large enough that it has opinions."""
    tokenizer = build_tokenizer(TokenizerConfig(), [TEXT + "\n"])
    settings = {"hidden_size": 33, "layers": 2, "embedding_size": 5, **sizes}
    network = NetworkConfig(cell=Cell(cell), **settings)
    parameters = Parameters.initial(Shape.of(network, tokenizer.vocabulary_size), seed=4)
    parameters.flat *= 2
    return Model(network, tokenizer, parameters).at(INT8)


@pytest.fixture(params=CELLS)
def model(request: pytest.FixtureRequest) -> Model:
    return model_of(request.param)


def tokens_of(model: Model, prompt: str, **settings: Any) -> tuple[str, list[Any]]:
    output = OutputOptions(tokens=True, state=True)
    pieces = list(model.stream(prompt, replace(SAMPLING, **settings), output=output))
    tokens = [(token.id, token.log_probability) for piece in pieces for token in piece.tokens]
    result = pieces[-1].result
    assert result is not None
    state = [] if result.state is None else [result.state.hs.tobytes(), result.state.cs.tobytes()]
    return "".join(piece.text for piece in pieces), [*tokens, *state]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("E", "L", "tied"), [(0, 1, False), (4, 3, False), (14, 2, True)])
def test_a_network_is_close_to_its_emulation(cell: str, E: int, L: int, tied: bool) -> None:
    """Logits of plain NumPy in float64 that multiplies the same integers."""
    made = make_network(cell, V=19, E=E, H=14, L=L)
    shape = replace(made.shape, tied=tied)
    named = made.parameters.named()
    parameters = Parameters.from_named(
        shape, {name: array for name, array in named.items() if not (tied and name == "Wy")}
    )
    T, B = 9, 5
    rng = np.random.default_rng(3)
    tokens, targets = rng.integers(19, size=(2, T, B), dtype=np.int32)
    scorer = Scorer(shape, pack_for_inference(parameters, INT8), B, T, Pool(1))
    scores = scorer.log_probabilities(tokens, targets, np.ones(B, np.bool_))

    weights: reference.Parameters
    weights = {name: array.astype(np.float64) for name, array in parameters.named().items()}
    states = reference.zero_states(weights, cell, B)
    exact = log_probabilities(weights, cell, tokens, targets, states)
    emulated = log_probabilities(
        reference.with_int8_weights(weights), cell, tokens, targets, states
    )
    # A state next to a half is rounded to the other side now and then: one step of 1/127.
    assert np.abs(scores - emulated).max() < 2e-3
    assert np.median(np.abs(scores - emulated)) < 1e-5
    assert np.median(np.abs(emulated - exact)) > 1e-4  # INT8 is not FP32
    assert np.abs(emulated - exact).max() < 0.2


def log_probabilities(
    weights: Mapping[str, Any], cell: str, tokens: Any, targets: Any, states: Any
) -> NDArray[np.float64]:
    logits = reference.network_forward(dict(weights), cell, tokens, states)[0]
    rows, columns = np.indices(targets.shape)
    found: NDArray[np.float64] = logits[rows, columns, targets] - np.log(
        np.exp(logits).sum(axis=-1)
    )
    return found


@pytest.mark.parametrize("cell", CELLS)
def test_sequences_together_are_the_sequences_alone(cell: str) -> None:
    """In batches of 1 to 64, and in chunks of any size."""
    model = model_of(cell)
    shape = model.parameters.shape
    begun = SessionState.fresh(shape, token=1)
    sampling = ResolvedSampling(SamplingConfig(temperature=0.9))

    def decoded(seeds: list[int], chunks: tuple[int, ...]) -> dict[int, tuple[Any, ...]]:
        slots = SlotArrays(shape, model.weights)
        joining = [SequenceSlot(sampling, replace(begun, seed=seed), end=-1) for seed in seeds]
        slots.replace((), joining)
        parts = [slots.decode(chunk) for chunk in chunks]
        drawn = [(part.tokens, part.log_probabilities) for part in parts]
        found = {}
        for row, seed in enumerate(seeds):
            tokens = [token for part, _ in drawn for token in part[row]]
            scores = [score for _, part in drawn for score in part[row]]
            state = slots.state_of(row)
            found[seed] = (tokens, scores, state.hs.tobytes(), state.cs.tobytes())
        return found

    alone = {seed: decoded([seed], (12,))[seed] for seed in range(64)}
    assert len({str(result[0]) for result in alone.values()}) == 64
    for size in (2, 3, 5, 8, 12, 64):
        for first in range(0, 64 if size > 5 else 2 * size, size):
            seeds = list(range(first, min(64, first + size)))
            for seed, result in decoded(seeds, (12,)).items():
                assert result == alone[seed], (size, seed)
    for chunks in ((1,) * 12, (5, 7)):
        assert decoded([3, 4, 9], chunks) == {seed: alone[seed] for seed in (3, 4, 9)}


def test_what_was_generated_scores_the_same(model: Model) -> None:
    """Log-probabilities and ranks, also of a text that a regular expression constrains."""
    constrained: dict[str, Any] = {"regex": "[a-z ,]+", "repetition_penalty": 1.2}
    for settings in ({}, constrained, {"top_p": 0.5}):
        chosen = replace(SAMPLING, ranks=True, top_log_probabilities=3, **settings)
        pieces = list(model.stream(TEXT[:20], chosen))
        text = "".join(piece.text for piece in pieces)
        drawn = [token for piece in pieces for token in piece.tokens]
        scored = model.score(text, TEXT[:20], details=Details(ranks=True, alternatives=3)).tokens
        assert list(scored[: len(drawn)]) == drawn


def test_a_beam_scores_as_its_text_does(model: Model) -> None:
    settings: dict[str, Any] = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": 12,
        "best_of": 3,
    }
    (piece,) = (
        piece for piece in model.stream(TEXT[:9], replace(SAMPLING, **settings)) if piece.tokens
    )
    scored = model.score(piece.text, TEXT[:9]).tokens
    assert [token.log_probability for token in piece.tokens] == [
        token.log_probability for token in scored
    ]


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_do_not_matter(model: Model, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens_of(model, TEXT[:70])
    monkeypatch.setattr(generating, "CHUNK", chunk)
    assert tokens_of(model, TEXT[:70]) == expected


def test_a_stream_in_pieces_scores_as_the_whole(model: Model) -> None:
    whole = [token.log_probability for token in model.score(TEXT).tokens]
    stream = StreamScorer(model.trained, Details(), None, model.beginning())
    scores = [
        token.log_probability
        for n in range(0, len(TEXT), 7)
        for scored in stream.feed(TEXT[n : n + 7], end=n + 7 >= len(TEXT))
        if scored is not None
        for token in scored.tokens
    ]
    assert scores == whole


def test_an_embedding_is_the_state_that_reading_leaves(model: Model) -> None:
    *_, embedding = Embedder(model.trained).embedding(
        TEXT[:-1]
    )  # a state waits with its last token
    tokens = model.tokenizer.encode(TEXT)
    *_, read = read_tokens(model.parameters.shape, model.weights, model.beginning(), tokens)
    assert embedding is not None
    assert same_bytes(embedding.states, read.hs)


def test_threads_and_rows_do_not_matter(model: Model) -> None:
    V = model.vocabulary_size
    rng = np.random.default_rng(6)
    tokens, targets = rng.integers(V, size=(2, 20, 35), dtype=np.int32)
    shape = model.parameters.shape

    def scores(rows: slice, threads: int) -> Any:
        part = tokens[:, rows]
        scorer = Scorer(shape, model.weights, part.shape[1], 20, Pool(threads))
        fresh = np.ones(part.shape[1], np.bool_)
        return scorer.log_probabilities(part, targets[:, rows], fresh)

    together = scores(slice(None), 1)
    for threads in (2, 3):
        assert same_bytes(scores(slice(None), threads), together)
    for b in (0, 17, 34):
        row = slice(b, b + 1)
        assert same_bytes(scores(row, 1), together[:, row].copy())


def test_rows_made_on_demand_are_those_of_the_table(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens_of(model, TEXT[:9])
    monkeypatch.setattr(workspace, "TABLE_LIMIT", 0)
    other = Model(model.network, model.tokenizer, model.parameters).at(INT8)
    assert other.weights.table.shape[0] == 0
    assert tokens_of(other, TEXT[:9]) == expected


def test_a_state_continues_in_either_precision(model: Model) -> None:
    """States are float32: where a text moves on is up to the caller."""
    plain = model.at(InferencePrecision.FP32)
    tokens = model.tokenizer.encode(TEXT[:40])
    *_, read = read_tokens(model.parameters.shape, model.weights, model.beginning(), tokens)
    moved = plain.read_state(model.state_bytes(read))
    assert same_bytes(moved.hs, read.hs)
    here = model.score(TEXT[40:60], state=read).total_log_probability
    there = plain.score(TEXT[40:60], state=moved).total_log_probability
    assert here != there
    assert here == pytest.approx(there, abs=0.5)


# ---------------------------------------------------------------- processors

PROCESSORS: dict[str, tuple[dict[str, str], str]] = {
    # Each with the instructions that are to be chosen; all are run where the processor has them.
    "AVX512_VNNI": ({"NUMBA_CPU_NAME": "cascadelake"}, "avx512vnni"),
    "AVX-512BW": ({"NUMBA_CPU_NAME": "skylake-avx512"}, "avx512bw"),
    "VNNI of 256 bits": (
        {"NUMBA_CPU_NAME": "broadwell", "NUMBA_CPU_FEATURES": "+avx512vnni,+avx512vl"},
        "avx512vnni",
    ),
    "AVX-VNNI": ({"NUMBA_CPU_NAME": "alderlake"}, "avxvnni"),
    "AVX2": ({"NUMBA_CPU_NAME": "haswell"}, "fma"),
    "SSE2": ({"NUMBA_CPU_NAME": "x86-64", "NPY_DISABLE_CPU_FEATURES": NUMPY_PLAIN}, ""),
}


@pytest.mark.skipif(not IS_X86_64, reason="compiles for x86-64")
def test_processors_give_the_same_bits() -> None:
    host = llvm.get_host_cpu_features()
    processes = {
        name: start("int8_run.py", environment)
        for name, (environment, feature) in PROCESSORS.items()
        if not feature or host.get(feature, False)
    }
    try:
        results = {name: finish(process) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    expected = int8_run.results()
    for name, result in results.items():
        assert result == expected, name
