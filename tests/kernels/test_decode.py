"""Decoding gives the same bits alone, among other sequences, and in any chunks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sampling_oracle import possible
from small_networks import CELLS, Network, make_network, same_bytes

from treadle.kernels import reference, scoring, structs
from treadle.kernels.decode import SAMPLING_STREAM, DecodedTokens, Sequences, decode
from treadle.kernels.logit_edits import LogitEdits
from treadle.kernels.random import uniform
from treadle.model.network import workspace
from treadle.model.network.shape import CELL_CODES
from treadle.model.network.workspace import allocate_state, allocate_workspace, pack_for_inference

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

# ---------------------------------------------------------------- sequences

TOKENS = 20


@dataclass(frozen=True)
class Request:
    """What one sequence asks for, and the state it comes with."""

    state_seed: int
    token: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    end: int = -1


def random_request(rng: np.random.Generator, V: int) -> Request:
    return Request(
        state_seed=int(rng.integers(1000)),
        token=int(rng.integers(1, V)),
        temperature=float(rng.choice([0.0, 0.5, 1.0, 1.5])),
        top_k=int(rng.choice([0, 3])),
        top_p=float(rng.choice([1.0, 0.8])),
        min_p=float(rng.choice([0.0, 0.1])),
        seed=int(rng.integers(2**63)),
        end=int(rng.choice([-1, 0])),
    )


def fill_state(made: Network, requests: list[Request]) -> structs.State:
    """The state of a row a request, each decoded_tokens by the request's own seed."""
    state = allocate_state(made.shape, len(requests))
    for row, request in enumerate(requests):
        rng = np.random.default_rng(request.state_seed)
        size = state.h.shape[0], state.h.shape[2]
        state.h[:, row] = rng.uniform(-0.9, 0.9, size)
        if made.cell == "lstm":
            state.c[:, row] = rng.uniform(-2, 2, size)
    return state


@dataclass(frozen=True)
class Decoded:
    """What sequences gave, and where they ended."""

    tokens: Ints
    """(N, M)."""
    log_probabilities: Floats
    """(N, M)."""
    state: structs.State
    sequences: Sequences

    def row(self, m: int) -> tuple[bytes, ...]:
        """All bits of one sequence; its state only if it continues."""
        arrays = [self.tokens[:, m], self.log_probabilities[:, m], self.sequences.position[m]]
        if self.sequences.token[m] != self.sequences.end[m]:
            arrays += [self.state.h[:, m], self.state.c[:, m], self.sequences.token[m]]
        return tuple(np.ascontiguousarray(array).tobytes() for array in arrays)


def no_edits(M: int, V: int) -> LogitEdits:
    """Of sequences that leave logits as they are."""
    return LogitEdits(
        bias_row=np.full(M, -1, np.int32),
        biases=np.zeros((0, V), np.float32),
        count_row=np.full(M, -1, np.int32),
        counts=np.zeros((0, 2, V), np.int32),
        repetition=np.ones(M, np.float32),
        presence=np.zeros(M, np.float32),
        frequency=np.zeros(M, np.float32),
        new_tokens=np.zeros(M, np.int32),
        min_new_tokens=np.zeros(M, np.int32),
        constraint_state=np.full(M, -1, np.int32),
        transitions=np.zeros((0, V), np.int32),
        forced=np.zeros((M, 0), np.int32),
    )


def run(
    made: Network, requests: list[Request], chunk: int = TOKENS, count: int = TOKENS
) -> Decoded:
    """Decode `count` tokens for every request, in chunks."""
    M = len(requests)
    state = fill_state(made, requests)
    weights = pack_for_inference(made.parameters)
    work = allocate_workspace(made.shape, 1, M, backward=False)
    sequences = Sequences(
        token=np.array([r.token for r in requests], np.int32),
        end=np.array([r.end for r in requests], np.int32),
        temperature=np.array([r.temperature for r in requests], np.float32),
        top_k=np.array([r.top_k for r in requests], np.int32),
        top_p=np.array([r.top_p for r in requests], np.float32),
        min_p=np.array([r.min_p for r in requests], np.float32),
        typical_p=np.ones(M, np.float32),
        seed=np.array([r.seed for r in requests], np.uint64),
        position=np.zeros(M, np.uint64),
    )
    tokens = np.full((count, M), 99, np.int32)
    log_probabilities = np.full((count, M), np.nan, np.float32)
    edits = no_edits(M, made.shape.V)
    for n in range(0, count, chunk):
        part = slice(n, n + chunk)
        cell = CELL_CODES[made.shape.cell]
        none = np.zeros((tokens[part].shape[0], M, 0), np.int32)
        decoded_tokens = DecodedTokens(
            tokens[part],
            log_probabilities[part],
            np.zeros((0, M), np.int32),
            none,
            none.astype(np.float32),
        )
        decode(cell, weights, work, state, sequences, edits, decoded_tokens)
    return Decoded(tokens, log_probabilities, state, sequences)


def score(made: Network, request: Request, tokens: Ints) -> Floats:
    """The log-probabilities that scoring gives to tokens (N,) after the request's own."""
    state = fill_state(made, [request])
    weights = pack_for_inference(made.parameters)
    work = allocate_workspace(made.shape, tokens.size, 1, backward=False)
    inputs = np.concatenate(([request.token], tokens[:-1])).astype(np.int32).reshape(-1, 1)
    out = np.full((tokens.size, 1), np.nan, np.float32)
    cell = CELL_CODES[made.shape.cell]
    fresh = np.zeros(1, np.bool_)
    scoring.score_shard(cell, weights, work, state, inputs, tokens.reshape(-1, 1), fresh, out)
    return out[:, 0]


def small(cell: str, V: int = 11) -> Network:
    return make_network(cell, V, E=3, H=6, L=2, seed=4)


def logits_of(made: Network, request: Request, tokens: Ints) -> NDArray[Any]:
    """The reference's logits before each of tokens (N,)."""
    state = fill_state(made, [request])
    h = state.h.astype(np.float64)
    c = state.c.astype(np.float64)
    inputs = np.concatenate(([request.token], tokens[:-1])).astype(np.int32).reshape(-1, 1)
    states = h, c if made.cell == "lstm" else None
    return reference.network_forward(made.reference, made.cell, inputs, states)[0][:, 0]


@pytest.mark.parametrize("cell", CELLS)
def test_greedy_decoding_takes_the_likeliest_of_the_reference(cell: str) -> None:
    made = small(cell)
    request = Request(1, token=2, temperature=0)
    decoded = run(made, [request])
    logits = logits_of(made, request, decoded.tokens[:, 0])
    assert decoded.tokens[:, 0].tolist() == logits.argmax(axis=1).tolist()
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    chosen = expected[np.arange(TOKENS), decoded.tokens[:, 0]]
    np.testing.assert_allclose(decoded.log_probabilities[:, 0], chosen, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_each_draw_is_of_its_own_seed_and_position(cell: str) -> None:
    made = small(cell)
    request = Request(2, 3, temperature=0.8, top_k=6, top_p=0.95, min_p=0.02, seed=77)
    decoded = run(made, [request])
    tokens = decoded.tokens[:, 0]
    for n, logits in enumerate(logits_of(made, request, tokens)):
        u = float(uniform(np.uint64(77), SAMPLING_STREAM, np.uint64(n)))
        row = logits.astype(np.float32)
        cut = 6, float(np.float32(0.95)), float(np.float32(0.02))
        assert tokens[n] in possible(row, request.temperature, *cut, u)
    assert decoded.sequences.position.tolist() == [TOKENS]
    assert len(set(tokens.tolist())) > 2


@pytest.mark.parametrize("cell", CELLS)
def test_log_probabilities_are_those_of_scoring(cell: str) -> None:
    """Byte for byte, although one goes step by step and the other all at once."""
    made = small(cell)
    rng = np.random.default_rng(3)
    requests = [random_request(rng, 11) for _ in range(4)]
    decoded = run(made, requests)
    for m, request in enumerate(requests):
        tokens = decoded.tokens[:, m]
        tokens = np.ascontiguousarray(tokens[tokens >= 0])
        scores = score(made, request, tokens)
        assert same_bytes(np.ascontiguousarray(decoded.log_probabilities[: tokens.size, m]), scores)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("M", range(1, 10))
def test_a_sequence_among_others_is_the_sequence_alone(cell: str, M: int) -> None:
    made = small(cell)
    rng = np.random.default_rng(M)
    requests = [random_request(rng, 11) for _ in range(M)]
    together = run(made, requests)
    for m, request in enumerate(requests):
        assert together.row(m) == run(made, [request]).row(0)


@pytest.mark.jit
@pytest.mark.parametrize("M", [33, 64])
def test_many_sequences(M: int) -> None:
    made = make_network("lstm", 70, E=9, H=33, L=2)
    rng = np.random.default_rng(M)
    requests = [random_request(rng, 70) for _ in range(M)]
    together = run(made, requests)
    for m, request in enumerate(requests):
        assert together.row(m) == run(made, [request]).row(0)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_do_not_matter(cell: str, chunk: int) -> None:
    made = small(cell)
    rng = np.random.default_rng(5)
    requests = [random_request(rng, 11) for _ in range(3)]
    at_once = run(made, requests, 64, 64)
    in_chunks = run(made, requests, chunk, 64)
    for m in range(3):
        assert in_chunks.row(m) == at_once.row(m)


@pytest.mark.parametrize("chunk", [1, 4, TOKENS])
def test_a_sequence_ends_after_its_end_token(chunk: int) -> None:
    made = small("gru")
    endless = run(made, [Request(6, token=1, seed=8)]).tokens[:, 0]
    end = int(endless[5])
    first = endless.tolist().index(end)
    requests = [Request(6, token=1, seed=8, end=end), Request(7, token=1, seed=9)]
    decoded = run(made, requests, chunk)
    assert decoded.tokens[: first + 1, 0].tolist() == endless[: first + 1].tolist()
    assert (decoded.tokens[first + 1 :, 0] == -1).all()
    assert not decoded.log_probabilities[first + 1 :, 0].any()
    assert decoded.sequences.position.tolist() == [first + 1, TOKENS]
    assert (decoded.tokens[:, 1] >= 0).all()


def test_when_all_have_ended_nothing_is_computed() -> None:
    made = small("rnn")
    end = int(run(made, [Request(6, token=1, seed=8)]).tokens[0, 0])
    decoded = run(made, [Request(6, token=1, seed=8, end=end)] * 2)
    assert decoded.tokens[0].tolist() == [end, end]
    assert (decoded.tokens[1:] == -1).all()
    assert decoded.sequences.position.tolist() == [1, 1]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("M", [1, 3])
def test_rows_made_on_demand_are_those_of_the_table(
    cell: str, M: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary too large for a table computes its rows on demand, to the same bits."""
    made = small(cell)
    rng = np.random.default_rng(9)
    requests = [random_request(rng, 11) for _ in range(M)]
    with_table = run(made, requests)
    scores = score(made, requests[0], with_table.tokens[:3, 0].copy())
    monkeypatch.setattr(workspace, "TABLE_LIMIT", 0)
    assert pack_for_inference(made.parameters).table.shape[0] == 0
    on_demand = run(made, requests)
    assert [on_demand.row(m) for m in range(M)] == [with_table.row(m) for m in range(M)]
    assert same_bytes(score(made, requests[0], with_table.tokens[:3, 0].copy()), scores)
