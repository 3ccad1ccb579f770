from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_models import (
    bytes_of,
    chain_of,
    letters,
    model_of,
    result_of,
    text_of,
    tokens_of,
)

import treadle.model.generation.generate as generation_module
import treadle.model.network.workspace as workspace_module
from treadle.kernels import reference
from treadle.kernels.decode import SAMPLING_STREAM
from treadle.kernels.random import uniform
from treadle.model.config import NetworkConfig, SamplingConfig, TokenizerConfig
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, UnknownSymbolError
from treadle.model.generation.generate import CHUNK
from treadle.model.generation.output import Piece, StopReason
from treadle.model.generation.slot_arrays import Chunk, SlotArrays
from treadle.model.generation.stop_sequences import StopFilter
from treadle.model.model import Model
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.scoring.scorer import Scorer
from treadle.model.tokenizers.build import build_tokenizer

# ---------------------------------------------------------------- pieces and their number


@pytest.mark.parametrize(
    ("count", "drawn"),
    [(0, [0]), (1, [1]), (2, [1, 1]), (17, [1, 16]), (18, [1, 16, 1]), (40, [1, 16, 16, 7])],
)
def test_pieces_are_one_token_and_then_chunks(count: int, drawn: list[int]) -> None:
    model = letters()
    pieces = list(model.stream("a", max_new_tokens=count))
    assert [len(piece.tokens) for piece in pieces] == drawn
    assert [len(piece.text) for piece in pieces] == drawn
    assert text_of(pieces) == ("bcdefghija" * 4)[:count]
    result = result_of(pieces)
    assert result.stop_reason is StopReason.MAX_NEW_TOKENS
    assert (result.new_tokens, result.prompt_tokens, result.stop_sequence) == (count, 1, "")


def test_generate_is_all_pieces_joined() -> None:
    model = model_of()
    pieces = list(model.stream("ab", seed=4, max_new_tokens=50))
    assert model.generate("ab", seed=4, max_new_tokens=50) == text_of(pieces)
    sampling = SamplingConfig(seed=4, max_new_tokens=99)
    assert model.generate("ab", sampling, max_new_tokens=50) == text_of(pieces)


def test_tokens_carry_their_text() -> None:
    pieces = list(letters().stream("i", max_new_tokens=3))
    assert [(token.id, token.text) for token in tokens_of(pieces)] == [(9, "j"), (0, "a"), (1, "b")]


def test_what_is_wrong_is_said_before_the_first_piece() -> None:
    model = letters()
    with pytest.raises(UnknownSymbolError, match="'x'"):
        model.stream("abx")
    with pytest.raises(ConfigError, match="temperature"):
        model.stream("a", temperature=-1)
    with pytest.raises(ConfigError, match="stop_sequences"):
        model.stream("a", stop_sequences="abc")
    with pytest.raises(ConfigError, match="unknown token"):
        model.stream("a", unknown_policy="unknown")
    with pytest.raises(TypeError, match="temperatur"):
        model.stream("a", temperatur=1)


def test_unknown_symbols_of_a_prompt_fall_under_the_policy() -> None:
    model = letters()
    pieces = list(model.stream("axbx", unknown_policy="skip", max_new_tokens=2))
    assert text_of(pieces) == "cd"
    assert result_of(pieces).prompt_tokens == 2
    model = model_of(policy=UnknownPolicy.UNKNOWN)
    pieces = list(model.stream("ab?", max_new_tokens=1))
    assert result_of(pieces).prompt_tokens == 3
    with pytest.raises(UnknownSymbolError):
        model.stream("ab?", unknown_policy=UnknownPolicy.ERROR)


# ---------------------------------------------------------------- seeds and settings


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_a_seed_gives_the_same_bits_every_time(seed: int) -> None:
    one = list(model_of().stream("ab", seed=seed, max_new_tokens=40))
    same = list(model_of().stream("ab", seed=seed, max_new_tokens=40))
    assert one == same
    assert result_of(one).seed == seed


def test_seeds_differ() -> None:
    model = model_of()
    texts = {model.generate("ab", seed=seed, max_new_tokens=30) for seed in range(20)}
    assert len(texts) == 20


def test_a_seed_that_was_picked_is_reported_and_gives_the_same_again() -> None:
    model = model_of()
    picked = list(model.stream("ab", max_new_tokens=30))
    seed = result_of(picked).seed
    assert 0 <= seed < 2**64
    assert list(model.stream("ab", max_new_tokens=30, seed=seed)) == picked
    assert len({result_of(list(model.stream(max_new_tokens=0))).seed for _ in range(5)}) == 5


def test_a_longer_generation_begins_as_a_shorter_one() -> None:
    model = model_of()
    long = tokens_of(list(model.stream("ab", seed=3, max_new_tokens=60)))
    for count in (1, 2, 16, 17, 18, 59):
        short = tokens_of(list(model.stream("ab", seed=3, max_new_tokens=count)))
        assert short == long[:count]


def test_the_chunk_does_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    stops = ("a, b", "cc")
    expected = list(model_of().stream("ab", seed=3, max_new_tokens=60, stop_sequences=stops))
    for chunk in (1, 2, 64):
        monkeypatch.setattr(generation_module, "CHUNK", chunk)
        found = list(model_of().stream("ab", seed=3, max_new_tokens=60, stop_sequences=stops))
        assert tokens_of(found) == tokens_of(expected)
        assert text_of(found) == text_of(expected)
        assert result_of(found) == result_of(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 1e-300},
        {"temperature": 1e-6},
        {"top_k": 1},
        {"top_k": 1, "temperature": 100},
        {"top_p": 1e-300},
        {"top_p": 1e-6, "top_k": 3},
    ],
    ids=str,
)
def test_every_way_to_be_greedy_is_the_same(options: dict[str, Any]) -> None:
    model = model_of(cell=Cell.GRU)
    weights: reference.Parameters = {
        name: array.astype(np.float64) for name, array in model.parameters.named().items()
    }
    prompt = model.tokenizer.encode("ab")
    expected = reference.generate(weights, "gru", prompt, 25, temperature=0)
    for seed in (0, 1):
        found = tokens_of(list(model.stream("ab", seed=seed, max_new_tokens=25, **options)))
        assert [token.id for token in found] == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 100},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"temperature": 2, "top_k": 4, "top_p": 0.9},
        {"temperature": 1.5, "top_k": 8, "top_p": 0.9, "min_p": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", Cell)
def test_draws_are_those_of_the_reference(cell: Cell, options: dict[str, Any]) -> None:
    model = model_of(cell=cell, layers=2)
    weights: reference.Parameters = {
        name: array.astype(np.float64) for name, array in model.parameters.named().items()
    }
    tokens = model.tokenizer.encode("ab")
    states = reference.zero_states(weights, cell, B=1)
    expected = []
    for position in range(25):
        logits, states, _ = reference.network_forward(weights, cell, tokens[:, None], states)
        u = uniform(np.uint64(11), SAMPLING_STREAM, np.uint64(position))
        expected.append(reference.sample(logits[-1, 0], u=float(u), **options))
        tokens = np.array(expected[-1:], np.int32)
    found = tokens_of(list(model.stream("ab", seed=11, max_new_tokens=25, **options)))
    assert [token.id for token in found] == expected


def test_settings_that_exclude_nothing_change_nothing() -> None:
    model = model_of()
    expected = list(model.stream("ab", seed=5, max_new_tokens=30))
    everything: list[dict[str, Any]] = [
        {"top_k": 2**32 - 1}, {"top_k": model.vocabulary_size}, {"top_p": 1}, {"temperature": 1},
        {"min_p": 0}, {"min_p": 1e-300},
    ]  # fmt: skip
    for options in everything:
        assert list(model.stream("ab", seed=5, max_new_tokens=30, **options)) == expected


def test_log_probabilities_are_the_models_own_whatever_the_draw() -> None:
    model = model_of()
    pieces = list(model.stream("ab", seed=5, max_new_tokens=20, temperature=3, top_k=2, top_p=0.9))
    score = model.score(text_of(pieces), "ab")
    assert list(score.tokens) == tokens_of(pieces)


# ---------------------------------------------------------------- as scored


@pytest.mark.parametrize("kind", TokenizerKind)
@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("prompt", ["", "c", "cab abc! ab, " * 12])
def test_what_was_generated_scores_the_same_to_the_bit(
    kind: TokenizerKind, layout: CorpusLayout, prompt: str
) -> None:
    model = model_of(kind, layout, layers=2)
    pieces = list(model.stream(prompt, seed=2, max_new_tokens=24))
    result, drawn = result_of(pieces), tokens_of(pieces)
    assert result.new_tokens == len(drawn)
    assert result.prompt_tokens == model.tokenizer.encode(prompt).size
    assert result.total_log_probability == pytest.approx(
        sum(token.log_probability or 0 for token in drawn), rel=1e-12
    )
    scored = rescore(model, prompt, [token.id for token in drawn])
    assert scored.tobytes() == np.array([t.log_probability for t in drawn], np.float32).tobytes()


def rescore(model: Model, prompt: str, drawn: list[int]) -> NDArray[np.float32]:
    """log p of tokens after a prompt; of tokens, since random bytes are no text."""
    before = model.tokenizer.encode(prompt).tolist()
    if model.tokenizer.begin is not None:
        before = [model.tokenizer.begin, *before]
    before = before or [model.default_context]
    sequence = np.array([*before, *drawn], np.int32).reshape(-1, 1)
    scorer = Scorer(model.parameters.shape, model.weights, 1, len(sequence), Pool(1))
    scores = scorer.log_probabilities(sequence[:-1], sequence[1:], np.ones(1, np.bool_))
    return scores[len(before) - 1 :, 0]


@pytest.mark.parametrize("cell", Cell)
def test_a_text_generated_is_scored_the_same_to_the_bit(cell: Cell) -> None:
    model = model_of(cell=cell)
    pieces = list(model.stream("ab", seed=2, max_new_tokens=40))
    score = model.score(text_of(pieces), "ab")
    assert list(score.tokens) == tokens_of(pieces)
    total = result_of(pieces).total_log_probability
    assert total == pytest.approx(score.total_log_probability, rel=1e-12)


@pytest.mark.parametrize("cell", Cell)
def test_a_line_generated_is_scored_the_same_to_the_bit(cell: Cell) -> None:
    model = model_of(layout=CorpusLayout.LINES, cell=cell)
    # Training never shows begin as a target; were it drawn, the text would not show it.
    model.parameters.stacks.by[model.tokenizer.begin] = -1e4
    ended = 0
    for seed in range(10):
        pieces = list(model.stream("ca", seed=seed, max_new_tokens=60))
        if result_of(pieces).stop_reason is StopReason.END_TOKEN:
            ended += 1
            score = model.score(text_of(pieces), "ca")
            assert [t.log_probability for t in score.tokens] == [
                t.log_probability for t in tokens_of(pieces)
            ]
            assert score.tokens[-1].id == model.tokenizer.end == tokens_of(pieces)[-1].id
    assert ended > 2


@pytest.mark.parametrize("cell", Cell)
def test_a_vocabulary_too_large_for_a_table_does_not_change_a_bit(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(model_of(cell=cell, layers=2).stream("ab", seed=1, max_new_tokens=30))
    monkeypatch.setattr(workspace_module, "TABLE_LIMIT", 0)
    model = model_of(cell=cell, layers=2)
    assert list(model.stream("ab", seed=1, max_new_tokens=30)) == expected
    assert model.weights.table.shape[0] == 0


# ---------------------------------------------------------------- where it begins


@pytest.mark.parametrize("kind", TokenizerKind)
def test_without_a_prompt_a_line_begins_after_its_begin(kind: TokenizerKind) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind), ["b a "], CorpusLayout.LINES)
    order = [tokenizer.begin, *tokenizer.encode(" a").tolist(), tokenizer.end]
    model = chain_of(tokenizer, [token for token in order if token is not None])
    pieces = list(model.stream())
    assert text_of(pieces) == tokenizer.decode(tokenizer.encode(" a"))
    assert result_of(pieces).prompt_tokens == 0
    assert result_of(pieces).stop_reason is StopReason.END_TOKEN


@pytest.mark.parametrize("kind", TokenizerKind)
def test_without_a_prompt_a_text_begins_after_the_default_context(kind: TokenizerKind) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind), ["\n !"])
    order = tokenizer.encode("\n !").tolist() or [0]  # of events there is but one
    assert kind is TokenizerKind.EVENTS or len(order) > 1
    model = chain_of(tokenizer, order)
    model.trained.default_context = order[0]
    pieces = list(model.stream(max_new_tokens=len(order) - 1))
    assert text_of(pieces) == tokenizer.decode(order[1:])
    assert result_of(pieces).prompt_tokens == 0


def test_a_prompt_of_skipped_symbols_is_none() -> None:
    model = letters()
    pieces = list(model.stream("xyz", unknown_policy="skip", max_new_tokens=3))
    assert text_of(pieces) == "abc"
    assert result_of(pieces).prompt_tokens == 0


# ---------------------------------------------------------------- where it ends


def test_an_end_token_ends_the_text_and_is_counted() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(), ["abcdefgh"], CorpusLayout.LINES)
    assert tokenizer.begin is not None
    assert tokenizer.end is not None
    order = [tokenizer.begin, *tokenizer.encode("abcdefgh").tolist(), tokenizer.end]
    model = chain_of(tokenizer, order)
    pieces = list(model.stream(stop_sequences=("hx",)))
    assert text_of(pieces) == "abcdefgh"
    assert [token.text for token in tokens_of(pieces)] == [*"abcdefgh", ""]
    assert tokens_of(pieces)[-1].id == tokenizer.end
    result = result_of(pieces)
    assert (result.stop_reason, result.new_tokens) == (StopReason.END_TOKEN, 9)
    exact = list(model.stream("abcdefg", max_new_tokens=2))
    assert result_of(exact).stop_reason is StopReason.END_TOKEN
    short = list(model.stream("abcdefg", max_new_tokens=1))
    assert result_of(short).stop_reason is StopReason.MAX_NEW_TOKENS


@pytest.mark.parametrize(
    ("stops", "text", "found", "drawn"),
    [
        (("de",), "bc", "de", 4),
        (("b",), "", "b", 1),
        (("ab",), "bcdefghij", "ab", 11),
        (("cd", "bcde"), "b", "cd", 3),
        (("de", "cde"), "b", "cde", 4),
        (("cde", "de"), "b", "cde", 4),
        (("e", "cde", "de"), "b", "cde", 4),
        (("bcdx", "xb", "cdf", "f"), "bcde", "f", 5),
        (("defghijabcdefghijabcdefg",), "bc", "defghijabcdefghijabcdefg", 26),
        (("j", "j"), "bcdefghi", "j", 9),
        (("B", "zz"), "bcdefghijabcdefghijabcdefghija", "", 30),
    ],
)
def test_a_stop_sequence_ends_the_text_before_it(
    stops: tuple[str, ...], text: str, found: str, drawn: int
) -> None:
    pieces = list(letters().stream("a", max_new_tokens=30, stop_sequences=stops))
    assert text_of(pieces) == text
    result = result_of(pieces)
    reason = StopReason.STOP_SEQUENCE if found else StopReason.MAX_NEW_TOKENS
    assert (result.stop_reason, result.stop_sequence) == (reason, found)
    assert result.new_tokens == len(tokens_of(pieces)) == drawn


def test_a_stop_sequence_counts_from_the_first_new_token() -> None:
    pieces = list(letters().stream("abc", max_new_tokens=12, stop_sequences=("cde",)))
    assert text_of(pieces) == "defghijab"
    assert result_of(pieces).stop_sequence == "cde"


def test_text_that_may_begin_a_stop_is_held_back_and_let_go() -> None:
    pieces = list(letters().stream("a", max_new_tokens=40, stop_sequences=("bx", "hijabcx")))
    assert [piece.text for piece in pieces] == [
        "",  # b may become bx
        "bcdefghijabcdefg",  # and the h after it hijabcx
        "hijabcdefghijabcd",
        "efghija",
    ]


def test_a_stop_that_was_just_completed_wins_over_the_limit() -> None:
    pieces = list(letters().stream("a", max_new_tokens=3, stop_sequences=("cd",)))
    assert result_of(pieces).stop_reason is StopReason.STOP_SEQUENCE
    pieces = list(letters().stream("a", max_new_tokens=2, stop_sequences=("cd",)))
    assert result_of(pieces).stop_reason is StopReason.MAX_NEW_TOKENS
    assert text_of(pieces) == "bc", "what was held back is let go at the end"


def test_of_stops_that_one_token_completes_the_first_complete_and_then_the_longest_counts() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(TokenizerKind.WORDS), [" one two"])
    model = chain_of(tokenizer, tokenizer.encode(" one two").tolist())
    for stops, text, found in [
        ((" t", " tw", "w"), "", " t"),
        (("wo", "o", "two"), " ", "two"),
        (("o",), " tw", "o"),
        (("o o", "o one"), " tw", "o o"),
    ]:
        pieces = list(model.stream(" one", max_new_tokens=5, stop_sequences=stops))
        assert text_of(pieces) == text
        assert result_of(pieces).stop_sequence == found


def naive_stop(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, str]:
    """All text up to the first stop, looking at the whole text after each piece."""
    text = ""
    for piece in pieces:
        text += piece
        hits = [(text.index(s) + len(s), text.index(s), s) for s in stops if s in text]
        if hits:
            _, place, found = min(hits)
            return text[:place], found
    return text, ""


@settings(deadline=None, max_examples=300)
@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4).map(tuple),
)
def test_the_filter_lets_through_all_that_is_certain(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    filter_, given_, released = StopFilter(stops), "", ""
    for piece in pieces:
        given_ += piece
        released += filter_.push(piece)
        if filter_.found:
            break
        held = given_[len(released) :]
        assert given_ == released + held
        assert not held or any(stop.startswith(held) for stop in stops), "held for no reason"
        for start in range(len(released)):
            assert not any(stop.startswith(given_[start:]) for stop in stops), "let go too early"
    if not filter_.found:
        released += filter_.flush()
    assert (released, filter_.found) == naive_stop(pieces, stops)


# ---------------------------------------------------------------- half characters


def whole(text: str) -> bool:
    return "\ufffd" not in text


@pytest.mark.parametrize("text", ["aé", "€b", "😀", "é€😀"])
def test_no_piece_holds_half_a_character(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bytes_of(text)
    size = len(text.encode())
    for chunk in (1, 2, CHUNK):
        monkeypatch.setattr(generation_module, "CHUNK", chunk)
        pieces = list(model.stream(text, max_new_tokens=size * 5))
        assert all(whole(piece.text) for piece in pieces)
        assert text_of(pieces) == text * 5
        assert [token.id for token in tokens_of(pieces)] == list(text.encode() * 5)
        assert "".join(t.text for t in tokens_of(pieces)) == text_of(pieces).encode().decode(
            "ascii", "ignore"
        )


def test_a_character_cut_by_the_limit_is_shown_as_such_in_the_last_piece() -> None:
    pieces = list(bytes_of("a€").stream("a€", max_new_tokens=3))
    assert [piece.text for piece in pieces] == ["a", "\ufffd"]
    assert result_of(pieces).new_tokens == 3


def test_a_stop_sequence_of_many_bytes_is_found() -> None:
    pieces = list(bytes_of("a€é").stream("a€é", max_new_tokens=50, stop_sequences=("€é",)))
    assert text_of(pieces) == "a"
    result = result_of(pieces)
    assert (result.stop_sequence, result.new_tokens) == ("€é", 6)


def test_a_stop_is_found_in_what_half_a_character_is_shown_as() -> None:
    pieces = list(bytes_of("a€").stream("a€", max_new_tokens=2, stop_sequences=("\ufffd",)))
    assert text_of(pieces) == "a"
    assert result_of(pieces).stop_reason is StopReason.STOP_SEQUENCE
    pieces = list(bytes_of("a€").stream("a€", max_new_tokens=2, stop_sequences=("a\ufffd!",)))
    assert text_of(pieces) == "a\ufffd"
    assert result_of(pieces).stop_reason is StopReason.MAX_NEW_TOKENS


def test_a_line_of_bytes_may_end_in_half_a_character() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(TokenizerKind.BYTES), [], CorpusLayout.LINES)
    assert tokenizer.begin is not None
    assert tokenizer.end is not None
    model = chain_of(tokenizer, [tokenizer.begin, *"aé".encode()[:2], tokenizer.end])
    pieces = list(model.stream())
    assert text_of(pieces) == "a\ufffd"
    assert result_of(pieces).stop_reason is StopReason.END_TOKEN
    assert result_of(pieces).new_tokens == 3


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**64 - 1), count=st.integers(0, 40))
def test_random_bytes_make_the_text_that_decoding_them_at_once_makes(seed: int, count: int) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(TokenizerKind.BYTES))
    config = NetworkConfig(Cell.RNN, hidden_size=2, embedding_size=0)
    model = Model(config, tokenizer, Parameters(Shape.of(config, 256)))
    pieces = list(model.stream(seed=seed, max_new_tokens=count))
    ids = [token.id for token in tokens_of(pieces)]
    assert text_of(pieces) == bytes(ids).decode("utf-8", "replace")


# ---------------------------------------------------------------- many at once


def take_turns(streams: list[Iterator[Piece]]) -> list[list[Piece]]:
    taken: list[list[Piece]] = [[] for _ in streams]
    while any(not pieces or pieces[-1].result is None for pieces in taken):
        for stream, pieces in zip(streams, taken, strict=True):
            pieces.extend([piece for piece in [next(stream, None)] if piece is not None])
    return taken


def test_streams_that_take_turns_do_not_touch_each_other() -> None:
    model = model_of(layers=2)
    prompts = ["a", "bb", "cab"]
    expected = [list(model.stream(prompt, seed=7, max_new_tokens=40)) for prompt in prompts]
    streams = [model.stream(prompt, seed=7, max_new_tokens=40) for prompt in prompts]
    assert take_turns(streams) == expected


def test_threads_may_share_a_model() -> None:
    model = model_of(layers=2)
    expected = [model.generate("ab", seed=seed, max_new_tokens=40) for seed in range(8)]
    fresh = model_of(layers=2)

    def generate(seed: int) -> str:
        return fresh.generate("ab", seed=seed, max_new_tokens=40)

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(generate, range(8))) == expected


def test_a_stream_may_be_dropped_at_any_time() -> None:
    model = model_of()
    expected = list(model.stream("ab", seed=1, max_new_tokens=40))
    threads = threading.active_count()
    for count in range(4):
        stream = model.stream("ab", seed=1, max_new_tokens=40)
        for _ in range(count):
            next(stream)
        del stream
    assert threading.active_count() == threads
    assert list(model.stream("ab", seed=1, max_new_tokens=40)) == expected


def test_a_stream_draws_only_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    decode = SlotArrays.decode

    def counted(self: SlotArrays, count: int) -> Chunk:
        drawn.append(count)
        return decode(self, count)

    monkeypatch.setattr(SlotArrays, "decode", counted)
    stream = letters().stream("a", max_new_tokens=40)
    assert drawn == []
    next(stream)
    assert drawn == [1]
    next(stream)
    assert drawn == [1, 16]
    assert len(list(stream)) == 2
    assert drawn == [1, 16, 16, 7]
