"""Settings of the draw beyond temperature, and states, from which a text continues."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clocks import StillClock
from small_models import bytes_of, chain_of, letters, model_of, result_of, text_of, tokens_of

from treadle.model.config import TokenizerConfig
from treadle.model.enums import Cell, CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, ForeignStateError, StateError
from treadle.model.generation import generate
from treadle.model.generation.generate import PreparedPrompt, seed_of
from treadle.model.generation.output import OutputOptions, Piece, StopReason
from treadle.model.model import Model
from treadle.model.network.session_state import _HEAD, _HELD_BYTES, SessionState
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.tokenizers.characters import CharacterTokenizer
from treadle.model.tokenizers.incremental_decoder import LookupDecoder

pytestmark = pytest.mark.jit  # what it calls in kernels is tested uncompiled elsewhere

EVERYTHING = OutputOptions(tokens=True, state=True, ids=True)


def stream(model: Model, prompt: str = "", **settings: Any) -> list[Piece]:
    return list(model.stream(prompt, output=EVERYTHING, **settings))


def ids_of(pieces: list[Piece]) -> list[int]:
    return [token.id for token in tokens_of(pieces)]


def state_of(pieces: list[Piece]) -> SessionState:
    state = result_of(pieces).state
    assert state is not None
    return state


def lines(text: str = "abcdefgh") -> Model:
    """Says a line and ends."""
    tokenizer = build_tokenizer(TokenizerConfig(), [text], CorpusLayout.LINES)
    assert tokenizer.begin is not None
    assert tokenizer.end is not None
    return chain_of(tokenizer, [tokenizer.begin, *tokenizer.encode(text).tolist(), tokenizer.end])


# ---------------------------------------------------------------- what may be drawn


def test_banned_tokens_are_never_drawn() -> None:
    model = model_of()
    banned = tuple(model.tokenizer.encode("ab ").tolist())
    for settings in ({}, {"temperature": 0}, {"temperature": 5, "top_p": 0.9}):
        drawn = ids_of(stream(model, "ab", seed=1, banned_tokens=banned, **settings))
        assert len(drawn) == 256
        assert not set(drawn) & set(banned)


def test_begin_and_unknown_tokens_are_drawn_only_where_they_are_named() -> None:
    model = model_of(layout=CorpusLayout.LINES, policy=UnknownPolicy.UNKNOWN)
    tokenizer = model.tokenizer
    assert tokenizer.begin is not None
    assert tokenizer.unknown is not None
    strange = {tokenizer.begin, tokenizer.unknown}
    drawn = [ids_of(stream(model, seed=seed, temperature=100)) for seed in range(30)]
    assert not strange & {token for ids in drawn for token in ids}
    named = tuple((token, 1.0) for token in sorted(strange))
    drawn = [ids_of(stream(model, seed=seed, temperature=100, token_biases=named))
             for seed in range(30)]  # fmt: skip
    assert strange <= {token for ids in drawn for token in ids}


def test_a_bias_is_added_and_the_log_probability_stays_the_models_own() -> None:
    model = model_of()
    token = int(model.tokenizer.encode("c")[0])
    pieces = stream(model, "ab", seed=1, token_biases=((token, 100.0),), max_new_tokens=20)
    assert ids_of(pieces) == [token] * 20
    assert tokens_of(pieces) == list(model.score("c" * 20, "ab").tokens)
    never = ids_of(stream(model, "ab", seed=1, token_biases=((token, -100.0),)))
    assert token not in never


def test_forced_tokens_come_first_and_are_scored_as_the_model_does() -> None:
    model = model_of()
    forced = tuple(model.tokenizer.encode("cab!").tolist())
    pieces = stream(model, "ab", seed=1, forced_tokens=forced, max_new_tokens=40)
    assert text_of(pieces).startswith("cab!")
    assert tokens_of(pieces) == list(model.score(text_of(pieces), "ab").tokens)
    # What follows is what follows the same text as a prompt, at the same draws.
    state = replace(state_of(stream(model, "abcab!", max_new_tokens=0)), seed=1, position=4)
    rest = stream(model, "", state=state, max_new_tokens=36)
    assert text_of(pieces) == "cab!" + text_of(rest)


def test_what_is_named_must_be_in_the_vocabulary() -> None:
    model = letters()
    named: list[tuple[str, Any]] = [
        ("banned_tokens", (10,)), ("forced_tokens", (3, 10)), ("token_biases", ((11, 1.0),)),
    ]  # fmt: skip
    for name, value in named:
        with pytest.raises(ConfigError, match=r"must be a token, 0 to 9") as caught:
            model.stream("a", **{name: value})
        assert caught.value.field.startswith(f"{name}[")
    with pytest.raises(ConfigError, match="no token to draw"):
        model.stream("a", banned_tokens=tuple(range(10)))


def test_settings_that_leave_nothing_together_say_so() -> None:
    model = lines()
    others = tuple(range(model.tokenizer.ordinary))
    with pytest.raises(ConfigError, match="no token is left to draw"):
        stream(model, banned_tokens=others, min_new_tokens=2)


def test_a_repetition_penalty_is_against_what_was_there() -> None:
    model = model_of()
    plain, against = (
        ids_of(stream(model, "ab", seed=3, max_new_tokens=60, repetition_penalty=penalty))
        for penalty in (1.0, 100.0)
    )
    assert plain != against
    # With all that was there all but excluded, everything comes before anything comes again.
    V = model.vocabulary_size
    seen = set(model.tokenizer.encode("ab").tolist())
    first = ids_of(
        stream(model, "ab", temperature=0, max_new_tokens=V - len(seen), repetition_penalty=100)
    )
    logits_all_positive_or_not = set(first) & seen
    assert len(set(first)) >= len(first) - len(logits_all_positive_or_not) - 2


def test_penalties_count_the_new_text_only() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(), ["abcz"])
    model = chain_of(tokenizer, tokenizer.encode("abc").tolist())  # each 100 ahead of all others
    assert text_of(stream(model, "abc", temperature=0, max_new_tokens=5)) == "abcab"
    # Each may come once, and is then a little behind what never came.
    once = {"presence_penalty": 100, "frequency_penalty": 1}
    assert text_of(stream(model, "a", temperature=0, max_new_tokens=4, **once)) == "bcaz"
    # At three times 40 it is behind.
    thrice = text_of(stream(model, "a", temperature=0, max_new_tokens=10, frequency_penalty=40))
    assert thrice == "bcabcabcaz"


def test_the_end_comes_no_earlier_than_asked() -> None:
    model = lines("ab")
    assert text_of(stream(model)) == "ab"
    pieces = stream(model, min_new_tokens=7)
    assert len(ids_of(pieces)) >= 7
    assert model.tokenizer.end not in ids_of(pieces)[:7]


def test_stops_are_not_looked_for_before_the_least_tokens() -> None:
    for chunk in (1, 3, 16):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generate, "CHUNK", chunk)
            found = stream(letters(), "a", stop_sequences=("de",), min_new_tokens=4)
            assert text_of(found) == "bcdefghijabc"
            assert result_of(found).new_tokens == 14
            within = stream(letters(), "a", stop_sequences=("de",), min_new_tokens=3)
            assert text_of(within) == "bcdefghijabc"


def test_a_time_limit_ends_a_text() -> None:
    began = time.monotonic()
    pieces = stream(letters(), "a", max_new_tokens=10**7, max_time_s=0.05)
    assert time.monotonic() - began < 30
    assert result_of(pieces).stop_reason is StopReason.TIME_LIMIT
    assert len(ids_of(pieces)) == result_of(pieces).new_tokens > 0
    assert state_of(pieces).position == result_of(pieces).new_tokens


# ---------------------------------------------------------------- what is reported


def test_ranks_and_alternatives_are_those_of_the_models_own_probabilities() -> None:
    model = model_of()
    asked: dict[str, Any] = {"seed": 5, "max_new_tokens": 30, "temperature": 2}
    plain = tokens_of(stream(model, "ab", **asked))
    reported = tokens_of(stream(model, "ab", **asked, ranks=True, top_log_probabilities=20))
    assert [replace(token, rank=0, alternatives=()) for token in reported] == plain
    for token in reported:
        every = token.alternatives
        assert len(every) == model.vocabulary_size
        order = sorted(every, key=lambda other: (-other.log_probability, other.id))
        assert list(every) == order
        assert [other.id for other in every][token.rank - 1] == token.id
        assert every[token.rank - 1].log_probability == token.log_probability
        assert sum(np.exp(other.log_probability) for other in every) == pytest.approx(1)
    few = tokens_of(stream(model, "ab", **asked, top_log_probabilities=3))
    assert [token.alternatives for token in few] == [token.alternatives[:3] for token in reported]


def test_a_prompt_is_echoed_as_it_scores() -> None:
    model = model_of()
    settings = {"ranks": True, "top_log_probabilities": 2}
    prepared = PreparedPrompt(model.trained, "cab abc", _sampling(**settings), None)
    pieces = [piece for piece in prepared.echo(True) if piece is not None]
    echoed = tokens_of(pieces)
    assert text_of(pieces) == "cab abc"
    assert same_state(prepared.after, read_prompt(model, "cab abc").after)
    scored = model.score("cab abc").tokens
    assert [(t.id, t.log_probability) for t in echoed] == [
        (t.id, t.log_probability) for t in scored
    ]
    assert echoed[0].log_probability is None
    assert all(token.rank and len(token.alternatives) == 2 for token in echoed[1:])


def read_prompt(model: Model, text: str) -> PreparedPrompt:
    prepared = PreparedPrompt(model.trained, text, _sampling(seed=1), None)
    list(prepared.read())
    return prepared


def _sampling(**settings: Any) -> Any:
    from treadle.model.config import SamplingConfig

    return SamplingConfig(**settings)


def test_seeds_of_many_texts_are_far_apart_and_the_first_is_the_given_one() -> None:
    assert seed_of(7, 0) == 7
    assert len({seed_of(7, index) for index in range(1000)}) == 1000
    model = model_of()
    texts = [text_of(list(model.stream("ab", seed=7, index=index))) for index in range(5)]
    assert len(set(texts)) == 5
    again = result_of(list(model.stream("ab", seed=7, index=3))).seed
    assert text_of(list(model.stream("ab", seed=again))) == texts[3]


# ---------------------------------------------------------------- states


@pytest.mark.parametrize("kind", TokenizerKind)
@pytest.mark.parametrize("layout", CorpusLayout)
def test_a_text_in_two_halves_is_the_text(kind: TokenizerKind, layout: CorpusLayout) -> None:
    model = model_of(kind, layout, layers=2)
    whole = stream(model, "cab", seed=9, max_new_tokens=40)
    for cut in (0, 1, 13, 16, 17, 39):
        first = stream(model, "cab", seed=9, max_new_tokens=cut)
        if result_of(first).stop_reason is StopReason.END_TOKEN:
            continue
        data = model.state_bytes(state_of(first))
        rest = stream(model, state=model.read_state(data), max_new_tokens=40 - cut)
        assert tokens_of(first) + tokens_of(rest) == tokens_of(whole)
        assert text_of(first) + text_of(rest) == text_of(whole)
        assert result_of(rest).seed == 9
        assert same_state(state_of(rest), state_of(whole))


def same_state(one: SessionState, other: SessionState) -> bool:
    arrays = one.hs.tobytes() == other.hs.tobytes(), one.cs.tobytes() == other.cs.tobytes()
    return all(arrays) and (one.token, one.seed, one.position, one.held) == (
        other.token, other.seed, other.position, other.held,
    )  # fmt: skip


def test_half_a_character_is_left_to_the_text_that_continues() -> None:
    model = bytes_of("a€")
    first = stream(model, "a€", max_new_tokens=3)
    assert text_of(first) == "a"
    rest = stream(model, state=state_of(first), max_new_tokens=4)
    assert text_of(rest) == "€a"
    assert list(model.stream("a€", max_new_tokens=3))[-1].text.endswith("\ufffd")


@pytest.mark.parametrize("chunk", [1, 2, 16])
@pytest.mark.parametrize(
    ("stops", "kept"), [(("de",), 2), (("j",), 8), (("hijab",), 6), (("b",), 0), (("bx", "cd"), 1)]
)
def test_the_state_at_a_stop_is_that_of_the_text_before_it(
    stops: tuple[str, ...], kept: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "CHUNK", chunk)
    model = letters()
    stopped = stream(model, "a", seed=3, stop_sequences=stops, max_new_tokens=60)
    shorter = stream(model, "a", seed=3, max_new_tokens=kept)
    assert result_of(stopped).stop_reason is StopReason.STOP_SEQUENCE
    assert text_of(stopped) == text_of(shorter)
    assert same_state(state_of(stopped), state_of(shorter))
    assert result_of(stopped).ids == result_of(shorter).ids
    on = stream(model, stops[-1] if kept == 1 else stops[0], state=state_of(stopped), seed=1,
                max_new_tokens=3)  # fmt: skip
    assert text_of(on)[0] == "abcdefghija"[("abcdefghij".index(result_of(stopped).stop_sequence[-1])
                                            + 1) % 10]  # fmt: skip


def test_the_state_at_a_stop_within_a_token_is_that_before_the_token() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(TokenizerKind.WORDS), [" one two"])
    model = chain_of(tokenizer, tokenizer.encode(" one two").tolist())
    stopped = stream(model, " one", seed=3, stop_sequences=("wo",))
    assert text_of(stopped) == " t"
    assert result_of(stopped).ids == ()
    nothing = stream(model, " one", seed=3, max_new_tokens=0)
    assert same_state(state_of(stopped), state_of(nothing))


def test_the_state_at_the_end_is_that_before_the_end_token() -> None:
    model = lines()
    ended = stream(model, "ab", seed=3)
    assert result_of(ended).stop_reason is StopReason.END_TOKEN
    shorter = stream(model, "ab", seed=3, max_new_tokens=len(text_of(ended)))
    assert same_state(state_of(ended), state_of(shorter))
    assert model.tokenizer.end not in result_of(ended).ids


def test_a_prompt_follows_a_state() -> None:
    model = model_of(layers=2)
    first = stream(model, "cab", seed=1, max_new_tokens=10)
    text = "cab" + text_of(first)
    after = stream(model, " abc", state=state_of(first), seed=5, max_new_tokens=20)
    whole = stream(model, text + " abc", seed=5, max_new_tokens=20)
    assert tokens_of(after) == tokens_of(whole)
    assert result_of(after).prompt_tokens == 4


def test_a_state_is_small_and_says_what_is_wrong_with_it() -> None:
    model = model_of(layers=2, hidden_size=128, embedding_size=3)
    data = model.state_bytes(state_of(stream(model, "ab", max_new_tokens=3)))
    assert 2048 < len(data) <= 2048 + 80
    for bad in (b"", data[:-1], data[:100], bytes([data[0] ^ 1]) + data[1:], data + b"x"):
        with pytest.raises(StateError, match="damaged"):
            model.read_state(bad)
    flipped = bytearray(data)
    flipped[200] ^= 4
    with pytest.raises(StateError, match="damaged"):
        model.read_state(bytes(flipped))
    other = model_of(layers=2, hidden_size=128, embedding_size=3)
    assert other.read_state(data).token == model.read_state(data).token  # the same weights
    other = model_of(layers=2, hidden_size=128, embedding_size=4)
    with pytest.raises(ForeignStateError, match="other weights"):
        other.read_state(data)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cell", Cell)
def test_a_state_with_numbers_that_are_not_finite_is_refused(cell: Cell, odd: float) -> None:
    model = model_of(cell=cell)
    begun = state_of(stream(model, "ab", max_new_tokens=3))
    damaged = {"hs": begun.hs.copy(), "cs": begun.cs.copy()}
    for name, array in damaged.items():
        array[0, 0] = odd
        data = model.state_bytes(replace(begun, **{name: array}), b"key")  # type: ignore[arg-type]
        if name == "hs" or cell is Cell.LSTM:
            with pytest.raises(StateError, match="not finite"):
                model.read_state(data, b"key")


@pytest.mark.parametrize("kind", TokenizerKind)
def test_a_state_holds_back_what_its_tokenizer_may(kind: TokenizerKind) -> None:
    model = model_of(kind)
    begun = state_of(stream(model, "ab", max_new_tokens=3))
    cuts = kind in (TokenizerKind.BYTES, TokenizerKind.SUBWORDS)
    blanks = kind in (TokenizerKind.EVENTS, TokenizerKind.WHITESPACE)
    for held, legal in (
        (b"", True), (b"\xe2\x82", cuts), (b"\1", blanks), (b"\2", False), (b"abc", False),
        (b"\xff", False), (b"\xe2\x82\xac", False), (b"\xe2\x82\0\0", False),
    ):  # fmt: skip
        data = model.state_bytes(replace(begun, held=held))
        if legal:
            assert model.read_state(data).held == held
        else:
            with pytest.raises(StateError, match="was not made by this model"):
                model.read_state(data)


def test_a_state_with_too_much_held_back_is_refused() -> None:
    model = model_of(TokenizerKind.BYTES)
    data = model.state_bytes(state_of(stream(model, "ab", max_new_tokens=3)))
    place = _HEAD.size - _HELD_BYTES - 1
    for change in (bytes([8]), bytes([255]), b"\0x"):
        body = data[:place] + change + data[place + len(change) : -16]
        with pytest.raises(StateError, match="does not fit"):
            model.read_state(body + hashlib.sha256(body).digest()[:16])


def test_a_key_keeps_out_states_that_were_not_made_with_it() -> None:
    model = model_of()
    state = state_of(stream(model, "ab", max_new_tokens=3))
    data = model.state_bytes(state, b"a secret of the server")
    assert same_state(model.read_state(data, b"a secret of the server"), state)
    for made, key in ((data, b""), (data, b"another"), (model.state_bytes(state), b"another")):
        with pytest.raises(StateError):
            model.read_state(made, key)


def test_a_state_never_stands_within_the_first_character_of_a_stop() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(TokenizerKind.SUBWORDS), ["xé xé xé xé"])
    half = bytes_of("xé").tokenizer.encode("é").tolist()[0]
    marks = {tokenizer.decode_bytes([t]): t for t in range(tokenizer.ordinary)}
    order = [marks[b"x"], marks[bytes([half])], marks["é".encode()[1:]]]
    model = chain_of(tokenizer, order)
    for chunk in (1, 2, 16):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generate, "CHUNK", chunk)
            begun = replace(SessionState.fresh(model.parameters.shape, order[-1]), seed=1)
            stopped = stream(model, state=begun, stop_sequences=("é",))
            assert text_of(stopped) == "x"
            assert result_of(stopped).ids == (order[0],)
            assert (state_of(stopped).token, state_of(stopped).held) == (order[0], b"")


def test_an_expression_of_the_empty_text_alone_is_complete_at_once() -> None:
    for model in (letters(), lines()):
        pieces = stream(model, regex="a{0}")
        assert text_of(pieces) == ""
        assert result_of(pieces).regex_complete
    assert result_of(stream(letters(), regex="a{0}")).new_tokens == 0


@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
def test_a_stop_before_nothing_is_left_ends_the_text(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "CHUNK", chunk)
    model = letters("abc")
    banned = tuple(model.tokenizer.encode("c").tolist())
    pieces = stream(model, regex="abc", stop_sequences=("b",), banned_tokens=banned)
    assert text_of(pieces) == "a"
    assert result_of(pieces).stop_reason is StopReason.STOP_SEQUENCE
    with pytest.raises(ConfigError, match="no token is left"):
        stream(model, regex="abc", banned_tokens=banned)


def test_a_state_made_by_hand_is_refused() -> None:
    model, text = lines(), model_of()
    for state in (
        SessionState.fresh(model.parameters.shape, -1),
        SessionState.fresh(model.parameters.shape, model.tokenizer.end or 0),
        replace(SessionState.fresh(model.parameters.shape, 0), seed=1, position=2**64 - 1),
    ):
        with pytest.raises(StateError, match="was not made by this model"):
            model.read_state(model.state_bytes(state))
    assert text.read_state(text.state_bytes(SessionState.fresh(text.parameters.shape))).token == -1


# ---------------------------------------------------------------- penalties across states

PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.8},
    {"repetition_penalty": 1.3, "presence_penalty": -0.5, "frequency_penalty": 0.4},
]


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("kind", TokenizerKind)
def test_two_halves_are_the_text_where_tokens_are_counted(
    kind: TokenizerKind, penalty: dict[str, Any]
) -> None:
    model = model_of(kind, layers=2)
    settings: dict[str, Any] = {"temperature": 0.8, **penalty}
    whole = stream(model, "cab", seed=9, max_new_tokens=40, **settings)
    assert tokens_of(whole) != tokens_of(stream(model, "cab", seed=9, max_new_tokens=40))
    for cut in (0, 1, 16, 17, 39):
        first = stream(model, "cab", seed=9, max_new_tokens=cut, **settings)
        data = model.state_bytes(state_of(first))
        rest = stream(model, state=model.read_state(data), max_new_tokens=40 - cut, **settings)
        assert tokens_of(first) + tokens_of(rest) == tokens_of(whole)
        assert model.state_bytes(state_of(rest)) == model.state_bytes(state_of(whole))


def test_a_state_counts_what_stands_before_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "CHUNK", 3)
    ended = stream(
        letters(), "aab", stop_sequences=("fg",), max_new_tokens=60, presence_penalty=0.1
    )
    counts = state_of(ended).counts
    assert counts is not None
    assert counts.tolist() == [[0, 0, 1, 1, 1, *[0] * 5], [2, 1, *[0] * 8]]  # cde after aab
    on = stream(letters(), "c", state=state_of(ended), max_new_tokens=2, presence_penalty=0.1)
    again = state_of(on).counts
    assert again is not None
    assert again.tolist() == [[0, 0, 1, 2, 2, *[0] * 5], [2, 1, 1, *[0] * 7]]


def test_a_state_is_no_larger_where_nothing_is_counted() -> None:
    model = letters()
    plain = state_of(stream(model, "ab", seed=1, max_new_tokens=300))
    counted = state_of(stream(model, "ab", seed=1, max_new_tokens=300, presence_penalty=0.1))
    assert plain.counts is None
    data, longer = model.state_bytes(plain), model.state_bytes(counted)
    assert data[:4] == b"TRS\x01"  # what every version of Treadle reads
    assert longer[:4] == b"TRS\x02"
    assert len(data) < len(longer) <= len(data) + 1 + 10 * 4
    assert same_state(model.read_state(data), plain)
    read = model.read_state(longer)
    assert read.counts is not None
    assert counted.counts is not None
    assert read.counts.tobytes() == counted.counts.tobytes()
    # A call that counts may continue from a state without counts; it begins to count there.
    begun = state_of(stream(model, state=plain, max_new_tokens=1, presence_penalty=0.1)).counts
    assert begun is not None
    assert begun.sum() == 1


@pytest.mark.parametrize(
    "numbers",
    [
        b"", b"\x01", b"\x01\x0a\x01\x01", b"\x02\x01\x01\x01\x00\x01\x01", b"\x80", b"\xff" * 40,
        b"\x01\x00\xff\xff\xff\xff\x7f\x01", b"\x00\x00", b"\xff\xff\xff\x7f" + b"\x01" * 50,
        b"\x01\x00\x81\x80\x80\x80\x04\x01",  # so many that the next call could overflow
    ],
)  # fmt: skip
def test_counts_that_are_none_are_refused(numbers: bytes) -> None:
    # Without a key, anyone who knows the format can make a state.
    model = letters()
    data = model.state_bytes(state_of(stream(model, "a", max_new_tokens=1)))
    body = b"TRS\x02" + data[4:-16] + numbers
    with pytest.raises(StateError, match=r"damaged|fit the model"):
        model.read_state(body + hashlib.sha256(body).digest()[:16])


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("prompt", ["ab" * 5000, "ab" * 400])
@pytest.mark.parametrize("echoes", [False, True])
def test_time_ends_the_reading_of_a_prompt(
    prompt: str, echoes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, model = StillClock(monkeypatch), model_of()
    prepared = PreparedPrompt(model.trained, prompt, _sampling(max_time_s=5, seed=4), None)
    steps = prepared.echo(True) if echoes else prepared.read()
    next(steps)
    clock.now += 4.9
    next(steps)
    clock.now += 0.1
    assert list(steps) == []  # not one more
    assert prepared.timed_out
    result = result_of([prepared.timed_out_piece(0)])
    assert (result.stop_reason, result.new_tokens, result.seed) == (StopReason.TIME_LIMIT, 0, 4)
    assert result.state is None


def test_a_text_whose_time_is_over_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, model = StillClock(monkeypatch), model_of()
    prepared = PreparedPrompt(model.trained, "ab", _sampling(max_time_s=5, seed=4), None)
    list(prepared.read())
    sequence = prepared.sequence(0, OutputOptions(state=True))
    assert sequence.nothing_to_draw() is None
    clock.now += 5
    only = sequence.nothing_to_draw()
    assert only is not None
    result = result_of([only])
    assert result.stop_reason is StopReason.TIME_LIMIT
    assert result.state is not None  # that after the prompt
    assert same_state(result.state, prepared.begun(0))


def test_a_prompt_is_decoded_and_read_in_short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # Neither what is encoded nor what is read in one step may grow with the prompt.
    sizes: list[int] = []
    model, prompt = model_of(), "abc " * 20_000
    encode, push = CharacterTokenizer.encode, LookupDecoder.push

    def encoding(self: CharacterTokenizer, text: str, policy: UnknownPolicy | None = None) -> Any:
        sizes.append(len(text))
        return encode(self, text, policy)

    def pushing(self: LookupDecoder, tokens: Any) -> str:
        sizes.append(len(tokens))
        return push(self, tokens)

    monkeypatch.setattr(CharacterTokenizer, "encode", encoding)
    monkeypatch.setattr(LookupDecoder, "push", pushing)
    prepared = PreparedPrompt(model.trained, prompt, _sampling(seed=1), None)
    assert sum(1 for _ in prepared.read()) > len(prompt) / 64
    echoed = [piece for piece in prepared.echo(True) if piece is not None]
    assert text_of(echoed) == prompt
    assert max(map(len, (piece.tokens for piece in echoed))) <= 16
    assert max(sizes) <= 4096
