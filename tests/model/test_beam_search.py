"""Beam search against brute force, scoring and greedy decoding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from treadle.model.config import NetworkConfig, SamplingConfig, TokenizerConfig
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError
from treadle.model.generation.beam_rows import largest_first
from treadle.model.generation.beam_search import BeamSearch, Hypothesis
from treadle.model.generation.output import StopReason
from treadle.model.generation.sampling import resolve_sampling
from treadle.model.model import Model
from treadle.model.network.ordered_sum import in_order
from treadle.model.network.parameters import Parameters
from treadle.model.network.prefill import read_tokens
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import Shape
from treadle.model.tokenizers.build import build_tokenizer

pytestmark = pytest.mark.jit  # what it calls in kernels is tested uncompiled elsewhere

LINES, TEXT = CorpusLayout.LINES, CorpusLayout.TEXT


def make_model(
    text: str = "ab\n",
    layout: CorpusLayout = LINES,
    kind: TokenizerKind = TokenizerKind.CHARACTERS,
    seed: int = 1,
    cell: Cell = Cell.LSTM,
    **config: Any,
) -> Model:
    """A small model of random weights, large enough that it has opinions."""
    tokenizer = build_tokenizer(TokenizerConfig(kind, **config), [text], layout)
    network = NetworkConfig(cell, hidden_size=6, layers=2, embedding_size=3)
    parameters = Parameters.initial(Shape.of(network, tokenizer.vocabulary_size), seed=seed)
    parameters.flat *= 4
    return Model(network, tokenizer, parameters)


def after(model: Model, prompt: str = "", state: SessionState | None = None) -> SessionState:
    """The state after a prompt."""
    begun = model.beginning(state)
    if begun.token < 0 and not prompt:
        begun = replace(begun, token=model.default_context)
    tokens = model.tokenizer.encode(prompt)
    *_, read = read_tokens(model.parameters.shape, model.weights, begun, tokens)
    stream = model.tokenizer.stream(read.held)
    stream.push(tokens)
    return replace(read, held=stream.held)


def search(
    model: Model, count: int = 1, prompt: str = "", begun: SessionState | None = None,
    continues: bool = False, **settings: Any,
) -> list[Hypothesis]:  # fmt: skip
    """Everything that a search finds."""
    begun = begun or after(model, prompt)
    resolved = resolve_sampling(SamplingConfig(**settings), model.tokenizer)
    beam = BeamSearch(model.trained, resolved, begun, count, continues)
    for _ in beam.steps():
        pass
    return beam.results()


def scores_of(hypothesis: Hypothesis) -> bytes:
    return np.array([token.log_probability for token in hypothesis.tokens], np.float32).tobytes()


# ---------------------------------------------------------------- brute force


def texts_of_lines(letters: str, T: int) -> Iterator[tuple[str, bool]]:
    """All texts that T tokens can make, and whether they have ended."""
    for length in range(T + 1):
        for chosen in itertools.product(letters, repeat=length):
            if length < T:
                yield "".join(chosen), True
            else:
                yield "".join(chosen), False


@pytest.mark.parametrize("cell", list(Cell))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_beam_that_holds_everything_finds_the_best_there_is(cell: Cell, seed: int) -> None:
    model, T = make_model(cell=cell, seed=seed), 3
    assert model.vocabulary_size == 4  # two letters, begin and end
    best_of = 64
    brute = []
    for text, ended in texts_of_lines("ab", T):
        scores = model.score(text).log_probabilities
        counted = scores if ended else scores[:-1]
        brute.append((in_order(counted.tolist()), text, ended, counted.tobytes()))
    brute.sort(key=lambda entry: -entry[0])
    found = search(model, len(brute), best_of=best_of, max_new_tokens=T)
    assert [
        (
            one.total_log_probability,
            one.text,
            one.stop_reason is StopReason.END_TOKEN,
            scores_of(one),
        )
        for one in found
    ] == brute
    few = search(model, 3, best_of=best_of, max_new_tokens=T)
    assert [(one.text, scores_of(one)) for one in few] == [(t, s) for _, t, _, s in brute[:3]]


def test_a_beam_after_a_prompt_finds_the_best_there_is() -> None:
    model = make_model("abcd", TEXT)
    brute = []
    for chosen in itertools.product("abcd", repeat=3):
        scores = model.score("".join(chosen), "abba").log_probabilities
        brute.append((in_order(scores.tolist()), "".join(chosen), scores.tobytes()))
    brute.sort(key=lambda entry: -entry[0])
    found = search(model, 64, "abba", best_of=64, max_new_tokens=3)
    assert [(one.total_log_probability, one.text, scores_of(one)) for one in found] == brute
    assert {one.stop_reason for one in found} == {StopReason.MAX_NEW_TOKENS}


def plain_beam(model: Model, width: int, T: int) -> list[tuple[float, str]]:
    """The beam's rule in a few lines, by scoring whole texts."""
    live, ended = [(0.0, "")], []
    for _ in range(T):
        longer = []
        for beam, (_, text) in enumerate(live):
            for token, letter in enumerate([*"abc", "", "\0"]):
                if not letter:
                    continue  # begin
                scores = model.score(text + letter.strip("\0")).log_probabilities
                counted = scores if letter == "\0" else scores[:-1]
                longer.append((-in_order(counted.tolist()), beam, token, text + letter))
        longer.sort()
        best = [(-score, text) for score, _, _, text in longer[:width]]
        ended += [(score, text[:-1]) for score, text in best if text.endswith("\0")]
        live = [(score, text) for score, text in best if not text.endswith("\0")]
    return sorted(ended + live, key=lambda entry: -entry[0])


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_narrow_beams_keep_the_best_of_each_length(width: int) -> None:
    for seed in range(3):
        model = make_model("abc\n", seed=seed)
        found = search(model, width, best_of=width, max_new_tokens=5)
        expected = plain_beam(model, width, 5)[:width]
        assert [(one.total_log_probability, one.text) for one in found] == expected


def test_the_search_ends_when_nothing_can_pass_what_was_found() -> None:
    model = make_model()
    sampling = SamplingConfig(best_of=4, max_new_tokens=10_000)
    resolved = resolve_sampling(sampling, model.tokenizer)
    beam = BeamSearch(model.trained, resolved, after(model), 2)
    steps = sum(1 for _ in beam.steps())
    assert steps < 1000
    short = search(model, 2, best_of=4, max_new_tokens=steps)
    assert [one.text for one in beam.results()] == [one.text for one in short]


# ---------------------------------------------------------------- greedy

SETTINGS: list[dict[str, Any]] = [
    {},
    {"stop_sequences": ("ba", "cc")},
    {"min_new_tokens": 9, "stop_sequences": ("a",)},
    {"banned_tokens": (0,)},
    {"token_biases": ((1, 3.0), (2, -4.0))},
    {"forced_tokens": (2, 0, 2)},
    {"ranks": True, "top_log_probabilities": 3},
    {"regex": "(ab|c)*c?"},
    {"regex": "[ab]{3}c"},
    {"max_new_tokens": 0},
]


@pytest.mark.parametrize("layout", [LINES, TEXT])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda given: "-".join(given) or "plain")
def test_a_beam_of_one_is_greedy(settings: dict[str, Any], layout: CorpusLayout) -> None:
    settings = {"max_new_tokens": 14, **settings}
    for seed in range(4):
        model = make_model("abc\n", layout, seed=seed)
        pieces = list(model.stream("ab", temperature=0, **settings))
        result = pieces[-1].result
        assert result is not None
        (one,) = search(model, 1, "ab", best_of=1, **settings)
        assert one.tokens == tuple(token for piece in pieces for token in piece.tokens)
        assert one.text == "".join(piece.text for piece in pieces)
        assert (one.stop_reason, one.stop_sequence) == (result.stop_reason, result.stop_sequence)
        assert one.total_log_probability == result.total_log_probability
        assert (one.new_tokens, one.regex_complete) == (result.new_tokens, result.regex_complete)


@pytest.mark.parametrize("kind", list(TokenizerKind))
def test_every_kind_of_token(kind: TokenizerKind) -> None:
    more: dict[str, Any] = {"max_vocabulary_size": 270} if kind is TokenizerKind.SUBWORDS else {}
    model = make_model("aé bé ab é. " * 9 + "\n", LINES, kind, **more)
    pieces = list(model.stream("ab", temperature=0, max_new_tokens=20, stop_sequences=("é é",)))
    (one,) = search(model, 1, "ab", best_of=1, max_new_tokens=20, stop_sequences=("é é",))
    assert one.text == "".join(piece.text for piece in pieces)
    assert one.tokens == tuple(token for piece in pieces for token in piece.tokens)
    for other in search(model, 5, "ab", best_of=5, max_new_tokens=6):
        prompt = model.tokenizer.encode("ab").tolist()
        shown = model.tokenizer.decode(prompt)
        assert shown + other.text == model.tokenizer.decode(prompt + list(other.ids))


# ---------------------------------------------------------------- settings


def test_begin_and_unknown_tokens_are_never_chosen_unless_named() -> None:
    model = make_model("ab\n", unknown_policy=UnknownPolicy.UNKNOWN)
    begin, unknown = model.tokenizer.begin, model.tokenizer.unknown
    assert begin is not None
    assert unknown is not None
    found = search(model, 60, best_of=60, max_new_tokens=3)
    chosen = {token.id for one in found for token in one.tokens}
    assert chosen == set(range(model.vocabulary_size)) - {begin, unknown}
    (named,) = search(model, best_of=1, max_new_tokens=3, token_biases=((unknown, 100.0),))
    assert named.text == "\ufffd" * 3


def test_biases_change_the_choice_but_not_what_is_reported() -> None:
    model = make_model("ab\n")
    biases = ((0, 5.0), (model.tokenizer.end or 0, -6.0))
    found = search(model, 5, best_of=16, max_new_tokens=3, token_biases=biases)
    ranking = []
    for text, ended in texts_of_lines("ab", 3):
        scores = model.score(text).log_probabilities
        own = scores if ended else scores[:-1]
        rank = in_order(own.tolist()) + 5 * text.count("a") - 6 * ended
        ranking.append((rank, text, own.tobytes()))
    ranking.sort(reverse=True)
    assert [(one.text, scores_of(one)) for one in found] == [entry[1:] for entry in ranking[:5]]
    unbiased = search(model, 5, best_of=16, max_new_tokens=3)
    assert [one.text for one in found] != [one.text for one in unbiased]


@pytest.mark.parametrize("ranked", [False, True])
def test_ranks_and_alternatives_are_those_of_the_model(ranked: bool) -> None:
    model = make_model("abc\n")
    found = search(
        model, 4, best_of=4, max_new_tokens=4, ranks=ranked, top_log_probabilities=20,
        banned_tokens=(0,),
    )  # fmt: skip
    for one in found:
        for token in one.tokens:
            ids = [other.id for other in token.alternatives]
            assert sorted(ids) == list(range(model.vocabulary_size))
            place = ids.index(token.id)
            assert token.rank == (place + 1 if ranked else 0)
            assert token.alternatives[place].log_probability == token.log_probability
            likely = [other.log_probability for other in token.alternatives]
            assert likely == sorted(likely, reverse=True)


def test_regular_expressions_hold_for_all_that_is_found() -> None:
    model = make_model("abc\n")
    found = search(model, 8, best_of=8, max_new_tokens=6, regex="a(b|cc){1,2}")
    assert {one.text for one in found} == {"ab", "acc", "abb", "abcc", "accb", "acccc"}
    for one in found:
        assert one.regex_complete
    assert [one.stop_reason for one in found].count(StopReason.REGEX_COMPLETE) == 4
    cut = search(model, 8, best_of=8, max_new_tokens=2, regex="a(b|cc){1,2}")
    assert {(one.text, one.regex_complete) for one in cut} == {("ab", True), ("ac", False)}


def test_an_expression_that_allows_nothing_more_is_complete_at_once() -> None:
    (one,) = search(make_model("ab", TEXT), best_of=2, regex="a{0}")
    assert (one.text, one.tokens, one.regex_complete) == ("", (), True)
    assert one.stop_reason is StopReason.REGEX_COMPLETE
    (ended,) = search(make_model("ab\n"), best_of=2, regex="a{0}")
    assert (ended.text, ended.stop_reason) == ("", StopReason.END_TOKEN)


def test_settings_that_leave_nothing_are_refused() -> None:
    model = make_model("ab\n")
    with pytest.raises(ConfigError, match="no token is left"):
        search(model, best_of=3, max_new_tokens=9, regex="ab*", banned_tokens=(0,))


def test_time_ends_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model, now = make_model("ab", TEXT), [0.0]
    monkeypatch.setattr("treadle.model.generation.deadline.time.monotonic", lambda: now[0])
    sampling = SamplingConfig(best_of=3, max_new_tokens=1000, max_time_s=5)
    beam = BeamSearch(model.trained, resolve_sampling(sampling, model.tokenizer), after(model), 2)
    for step, _ in enumerate(beam.steps()):
        now[0] = 6.0 if step >= 6 else 0.0
    found = beam.results()
    assert [one.stop_reason for one in found] == [StopReason.TIME_LIMIT] * 2
    assert [one.new_tokens for one in found] == [7, 7]
    expected = search(model, 2, best_of=3, max_new_tokens=7)
    assert [one.text for one in found] == [one.text for one in expected]


# ---------------------------------------------------------------- states


def same_state(one: SessionState, other: SessionState) -> bool:
    return (one.hs.tobytes(), one.cs.tobytes(), one.token, one.held) == (
        other.hs.tobytes(),
        other.cs.tobytes(),
        other.token,
        other.held,
    )


def test_states_stand_after_the_text() -> None:
    model = make_model("abc\n")
    begun = replace(after(model, "ab"), seed=7, position=3)
    reasons = set()
    settings: dict[str, Any] = {"best_of": 8, "max_new_tokens": 4, "stop_sequences": ("cc",)}
    for one in search(model, 8, begun=begun, continues=True, **settings):
        assert same_state(one.state, after(model, "ab" + one.text))
        assert (one.state.seed, one.state.position) == (7, 3)
        assert model.tokenizer.decode(list(one.ids)) == one.text
        reasons.add(one.stop_reason)
        if one.stop_reason is StopReason.STOP_SEQUENCE:
            assert one.stop_sequence == "cc"
            assert one.new_tokens == len(one.ids) + 2
    assert reasons == {StopReason.END_TOKEN, StopReason.STOP_SEQUENCE, StopReason.MAX_NEW_TOKENS}


def test_a_search_continues_where_another_ended() -> None:
    model = make_model("abcd", TEXT)
    (whole,) = search(model, best_of=1, max_new_tokens=9, continues=True)
    (first,) = search(model, best_of=1, max_new_tokens=4, continues=True)
    (second,) = search(model, best_of=1, max_new_tokens=5, begun=first.state, continues=True)
    assert first.text + second.text == whole.text
    assert scores_of(first) + scores_of(second) == scores_of(whole)
    assert same_state(second.state, whole.state)


def forced(model: Model, data: bytes, **settings: Any) -> Hypothesis:
    """The only text of forced bytes."""
    more = {"best_of": 2, "max_new_tokens": len(data), **settings}
    (one,) = search(model, forced_tokens=tuple(data), **more)
    return one


def test_half_characters_are_shown_or_left_to_the_text_that_continues() -> None:
    model = make_model("", TEXT, TokenizerKind.BYTES)
    shown, left = forced(model, b"a\xe2\x82"), forced(model, b"a\xe2\x82", continues=True)
    assert (shown.text, left.text, left.state.held) == ("a\ufffd", "a", b"\xe2\x82")
    (rest,) = search(model, begun=left.state, best_of=1, max_new_tokens=1, forced_tokens=(0xAC,))
    assert left.text + rest.text == "a€"


@pytest.mark.parametrize(
    ("data", "stop", "text", "kept"),
    [
        ("x€".encode(), "€", "x", 1),
        ("xé€".encode(), "é€", "x", 1),
        ("€x".encode(), "x", "€", 3),
        (b"x\xe2\x82y", "\ufffd", "x", 1),
        (b"abcab", "ca", "ab", 2),
    ],
)
def test_states_stand_before_the_first_part_of_a_stop(
    data: bytes, stop: str, text: str, kept: int
) -> None:
    model = make_model("", TEXT, TokenizerKind.BYTES)
    one = forced(model, data, stop_sequences=(stop,))
    assert (one.text, one.stop_sequence, len(one.ids)) == (text, stop, kept)
    assert one.stop_reason is StopReason.STOP_SEQUENCE
    assert one.state.held == b""


def test_stops_within_tokens_keep_the_tokens_before() -> None:
    model = make_model("ab cd ef", TEXT, TokenizerKind.WORDS)
    ids = tuple(model.tokenizer.encode("ab cd ef").tolist())
    (one,) = search(model, best_of=1, max_new_tokens=3, forced_tokens=ids, stop_sequences=("d e",))
    assert (one.text, one.ids, one.new_tokens) == ("ab c", ids[:1], 3)
    (free,) = search(
        model, best_of=1, max_new_tokens=3, forced_tokens=ids, stop_sequences=("d",),
        min_new_tokens=2,
    )  # fmt: skip
    assert (free.text, free.stop_sequence) == ("ab cd ef", "")


# ---------------------------------------------------------------- parts


def test_best_first_breaks_ties_by_place() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        row = rng.integers(0, 5, rng.integers(1, 30)).astype(np.float32)
        row[row == 0] = -np.inf
        count = int(rng.integers(1, 12))
        expected = sorted(
            (v for v in range(row.size) if row[v] > -np.inf), key=lambda v: (-row[v], v)
        )
        assert largest_first(row, count).tolist() == expected[:count]


def test_pieces_of_work_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("abcdef\n")
    whole = search(model, 9, best_of=9, max_new_tokens=8)
    monkeypatch.setattr("treadle.model.generation.beam_rows._MAX_ROWS", 2)
    assert [scores_of(one) for one in search(model, 9, best_of=9, max_new_tokens=8)] == [
        scores_of(one) for one in whole
    ]


def test_tokens_of_a_text_are_made_when_they_are_asked_for() -> None:
    """A long text with alternatives would be a million objects."""
    [found] = search(
        make_model(), 1, min_new_tokens=6, best_of=2, max_new_tokens=6, top_log_probabilities=3
    )
    tokens = found.tokens
    assert len(tokens) == found.new_tokens == 6
    assert [*tokens] == [tokens[place] for place in range(6)] == [*tokens[:4], *tokens[4:]]
    assert tokens[-1] == tokens[5]
    assert tokens[0] is not tokens[0]
    assert tokens == tuple(tokens)
    assert tokens != tokens[:-1]
    assert all(len(token.alternatives) == 3 for token in tokens)
    scores = [other.log_probability for other in tokens[2].alternatives]
    assert scores == sorted(scores, reverse=True)
