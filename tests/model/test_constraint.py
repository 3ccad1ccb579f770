"""Constraints against Python's `re`: what the table allows, what it excludes, and its limits."""

from __future__ import annotations

import itertools
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import treadle.model.generation.constraint as constraint_module
import treadle.model.generation.regex_automaton as automaton_module
from treadle.model.config import TokenizerConfig
from treadle.model.enums import CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError, EffortError
from treadle.model.generation.constraint import Constraint, cached_constraint, compile_constraint
from treadle.model.generation.regex_automaton import (
    GLANCE,
    QUICK,
    THOROUGH,
    Effort,
    compile_automaton,
)
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.tokenizers.bytes import ByteTokenizer
from treadle.model.tokenizers.characters import CharacterTokenizer
from treadle.model.tokenizers.whitespace import EventTokenizer, WhitespaceTokenizer
from treadle.model.tokenizers.words import WordTokenizer

pytestmark = pytest.mark.jit  # what it calls in kernels is tested uncompiled elsewhere

LINES, TEXT = CorpusLayout.LINES, CorpusLayout.TEXT
KIND = TokenizerKind


PANICS = """
class PanicException(BaseException):
    pass

PanicException.__module__ = "pyo3_runtime"

class Vocabulary:
    def __init__(self, *arguments):
        raise PanicException("attempt to subtract with overflow")

Index = Vocabulary
"""


def test_an_expression_that_the_package_panics_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outlines_core.py").write_text(PANICS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match="is malformed"):
        compile_automaton("a+b")


def characters(symbols: str, layout: CorpusLayout = TEXT, **config: Any) -> CharacterTokenizer:
    return CharacterTokenizer(TokenizerConfig(KIND.CHARACTERS, **config), layout, symbols)


def words(*texts: str, layout: CorpusLayout = TEXT) -> WordTokenizer:
    return WordTokenizer(TokenizerConfig(KIND.WORDS), layout, texts)


def events(*texts: str, layout: CorpusLayout = TEXT) -> EventTokenizer:
    return EventTokenizer(TokenizerConfig(KIND.EVENTS), layout, texts)


def spaced(*texts: str, layout: CorpusLayout = TEXT) -> WhitespaceTokenizer:
    return WhitespaceTokenizer(TokenizerConfig(KIND.WHITESPACE), layout, texts)


def raw_bytes(layout: CorpusLayout = TEXT) -> ByteTokenizer:
    return ByteTokenizer(TokenizerConfig(KIND.BYTES), layout)


def state_after(constraint: Constraint, ids: list[int]) -> int:
    """The state after tokens; -1 once one of them is excluded."""
    state = 0
    for token in ids:
        state = int(constraint.table[state, token])
        if state < 0:
            return -1
    return state


# ---------------------------------------------------------------- brute force


def languages(tokenizer: Tokenizer, ids: list[int], regex: str, T: int) -> tuple[set[Any], ...]:
    """All sequences of up to T tokens that match, and all of fewer that begin one of those."""
    matches, begins = set(), set()
    for length in range(T + 1):
        for chosen in itertools.product(ids, repeat=length):
            if re.fullmatch(regex, tokenizer.decode(list(chosen))):
                matches.add(chosen)
                begins |= {chosen[:cut] for cut in range(length + 1)}
    return matches, begins


def check(regex: str, tokenizer: Tokenizer, T: int, longest: int) -> None:
    """Compare with `re` for all sequences of up to T tokens.

    Args:
        regex: an expression whose beginnings can all be completed within `longest` tokens more.
        tokenizer: of a small vocabulary.
        T: the tokens to look at.
        longest: the tokens it takes at most to complete a text.
    """
    ids = list(range(tokenizer.ordinary))
    matches, begins = languages(tokenizer, ids, regex, T + longest)
    if not begins:
        with pytest.raises(ConfigError, match="cannot be written"):
            compile_constraint(regex, tokenizer)
        return
    constraint = compile_constraint(regex, tokenizer)
    assert constraint.table.shape == (constraint.complete.size, tokenizer.vocabulary_size)
    for length in range(T + 1):
        for chosen in itertools.product(ids, repeat=length):
            state = state_after(constraint, list(chosen))
            assert (state >= 0) == (chosen in begins)
            if state >= 0:
                assert constraint.complete[state] == (chosen in matches)
                follows = any((*chosen, token) in begins for token in ids)
                assert constraint.ended(state) == (not follows)
                if tokenizer.end is not None:
                    after_end = constraint.table[state, tokenizer.end]
                    assert after_end == (state if chosen in matches else -1)


def expressions() -> st.SearchStrategy[str]:
    """Small expressions over a, b and c, all of whose beginnings are completed by 3 tokens more."""
    atoms = st.sampled_from(["a", "b", "c", "[ab]", "[^a]", "ab", "."])

    def longer(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(parts, parts).map("".join),
            st.tuples(parts, parts).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
            st.tuples(parts, st.sampled_from("*+?")).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
            parts.map(lambda part: f"(?:{part}){{1,2}}"),
        )

    return st.recursive(atoms, longer, max_leaves=3)


TOKENIZERS = [
    characters("abc", LINES),
    characters("ab", TEXT),
    words("a", "ab", "bc", layout=LINES),
    words("ab", "ba", "c"),
]


@settings(max_examples=25, deadline=None)
@given(regex=expressions(), which=st.integers(0, len(TOKENIZERS) - 1))
def test_random_expressions_allow_what_re_matches(regex: str, which: int) -> None:
    assume(len(regex) < 30)
    # Three atoms, each doubled at most twice, are completed within four tokens.
    check(regex, TOKENIZERS[which], 3, 4)


@pytest.mark.parametrize(
    ("regex", "tokenizer"),
    [
        ("(x y|x) z?", events("x", "y", "z", layout=LINES)),
        ("x( y| z)*", events("x", "y", "z")),
        ("(x|y)*", events("x", "y")),
        ("( x)+", events("x", "y")),
        ("xy x", events("x", "y", "xy", layout=LINES)),
        ("a?(b a)*", events("a", "b", "ba", layout=LINES)),
        ("(x y\n)*", spaced("x", "y", "\n")),
        ("(x( y)?\n)+z", spaced("x", "y", "\n", "z")),
        ("\n*(x|x y|y)", spaced("x", "y", "\n", layout=LINES)),
        ("x ?\n ?y", spaced("x", "y", "\n")),
        (r"\s*x\s+x", spaced("\n", "x", layout=LINES)),
        ("(x y|x) z?", spaced("x", "y", "z", layout=LINES)),
        ("[ab]*c|é", characters("abcé")),
        ("é|a", characters("ab")),
        ("a*", words("aa", "aaa", layout=LINES)),
        ("a{2,7}", words("aa", "aaa")),
        ("", characters("ab", LINES)),
        ("a{0}", characters("ab")),
        ("(?i)A+", characters("aAb")),
        ("a|ab|abc", characters("abc")),
        ("a*?b??", characters("ab", LINES)),
        ("a(bba)?", characters("ab")),
        ("[ab]{2}(b[ab])?", words("ab", "a", "bb")),
        ("(?x) a b # :) comment", characters("ab")),
        (".{1,2}", characters("a\0b")),
        ("ab|x", characters("ab")),
        ("^a|b$", characters("ab")),
        ("[^^$]b[$]", characters("ab$^")),
        (r"\^a\$", characters("^a$")),
    ],
)
def test_expressions_allow_what_re_matches(regex: str, tokenizer: Tokenizer) -> None:
    check(regex, tokenizer, 3, 4)


@pytest.mark.parametrize("seed", range(3))
def test_walks_of_the_table_are_texts_that_match(seed: int) -> None:
    regex = r"(?:[A-Z][a-zé]{1,6}, )?[0-9]{1,3}(?:[.][0-9]+)?( €| \$)"
    corpus = "Abéc, 12.3 € and 4 $, Zébra, 999 €. " * 20
    for tokenizer in (
        build_tokenizer(TokenizerConfig(KIND.CHARACTERS), [corpus], LINES),
        build_tokenizer(TokenizerConfig(KIND.SUBWORDS, max_vocabulary_size=300), [corpus], TEXT),
        raw_bytes(LINES),
    ):
        rng, constraint = np.random.default_rng(seed), compile_constraint(regex, tokenizer)
        for _ in range(20):
            ids: list[int] = []
            state = 0
            while not constraint.ended(state):
                if constraint.complete[state] and rng.random() < 0.3:
                    break
                allowed = np.flatnonzero(constraint.table[state] >= 0)
                token = int(rng.choice(allowed[allowed != tokenizer.end]))
                ids.append(token)
                state = int(constraint.table[state, token])
            text = tokenizer.decode(ids)
            assert constraint.complete[state]
            assert re.fullmatch(regex, text), text
            # Whatever else spells the same text leads to a complete state, too.
            assert constraint.complete[state_after(constraint, tokenizer.encode(text).tolist())]


# ---------------------------------------------------------------- vocabularies


def test_special_tokens_are_never_allowed_but_the_end() -> None:
    tokenizer = characters("ab", LINES, unknown_policy=UnknownPolicy.UNKNOWN)
    constraint = compile_constraint(".*", tokenizer)
    assert tokenizer.end is not None
    for token in (tokenizer.begin, tokenizer.unknown):
        assert (constraint.table[:, token] == -1).all()
    assert constraint.complete.all()
    assert (constraint.table[:, tokenizer.end] == np.arange(len(constraint.table))).all()


def test_half_characters_are_not_complete() -> None:
    tokenizer = raw_bytes()
    constraint = compile_constraint("[€é]", tokenizer)
    states = [state_after(constraint, list("€".encode()[:cut])) for cut in range(4)]
    assert [bool(constraint.complete[state]) for state in states] == [False, False, False, True]
    assert state_after(constraint, [0xFF]) == -1


def test_texts_that_come_to_a_dead_end_are_excluded_from_the_start() -> None:
    constraint = compile_constraint("ax|b|a*y", characters("ab"))
    assert constraint.table.tolist() == [[-1, 1], [-1, -1]]
    assert constraint.complete.tolist() == [False, True]


def test_the_table_is_what_kernels_take() -> None:
    constraint = compile_constraint("[ab]+c", characters("abc", LINES))
    assert constraint.table.dtype == np.int32
    assert constraint.table.flags.c_contiguous
    assert constraint.complete.dtype == np.bool_
    assert constraint.ends.tolist() == [constraint.ended(s) for s in range(len(constraint.ends))]


def test_what_the_vocabulary_cannot_write_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"regex '\[0-9\]\+' cannot be written") as error:
        compile_constraint("[0-9]+", characters("abc"))
    assert error.value.field == "regex"
    with pytest.raises(ConfigError, match="which is in lower case"):
        compile_constraint("ABC", characters("abc", lower_case=True))
    with pytest.raises(ConfigError, match="cannot be written"):
        compile_constraint("x  y", events("x", "y"))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "regex", ["(", "a)(b", "a\\", "[a", "a{2", "*a", r"\p{Nothing}", "a\ud800", r"\xff\1"]
)
def test_malformed_expressions_are_refused(regex: str) -> None:
    with pytest.raises(ConfigError, match="is malformed") as error:
        compile_constraint(regex, characters("ab"))
    assert error.value.field == "regex"


@pytest.mark.parametrize("regex", ["(?=a)b", "a(?!b)", "(?<=a)b", r"\bfoo", "a$b", "(^a|b)c"])
def test_look_around_is_refused(regex: str) -> None:
    with pytest.raises(ConfigError, match="look-around") as error:
        compile_constraint(regex, characters("ab"))
    assert error.value.field == "regex"


@pytest.mark.parametrize(
    "regex",
    [
        "(a{1000}){1000}",
        ".{100000}",
        r"\w{1000}",
        "((((a{9}){9}){9}){9}){9}",
        "a{" + 4000 * "9" + "}",
        "a{" + 5000 * "9" + "}",
        "a{2," + 5000 * "9" + "}",
    ],
)
def test_what_repeats_too_much_is_refused_without_a_process(
    regex: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automaton_module, "_run", None)
    with pytest.raises(ConfigError, match="too large") as error:
        compile_constraint(regex, characters("ab"), GLANCE)
    assert error.value.field == "regex"


def test_what_takes_too_long_is_ended_by_the_system() -> None:
    begun = time.monotonic()
    with pytest.raises(EffortError, match="too large"):
        compile_automaton("[ab]*a[ab]{40}", Effort(0.2, 60.0, 1 << 30))
    assert time.monotonic() - begun < 120


def test_what_takes_too_much_memory_is_ended_by_the_system() -> None:
    with pytest.raises(EffortError, match="too large"):
        compile_automaton("[ab]*a[ab]{20}", Effort(60, 60.0, 1 << 27))


def test_what_never_comes_back_is_given_up() -> None:
    with pytest.raises(EffortError, match="too large"):
        compile_automaton("[ab]*a[ab]{40}", Effort(60, 0.3, 1 << 30))


def test_what_was_only_tried_quickly_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    efforts = []

    def compiling(regex: str, effort: Effort) -> Any:
        efforts.append(effort)
        if effort is QUICK and "x" in regex:
            raise EffortError("too large", "regex")
        return compile_automaton(regex, effort)

    monkeypatch.setattr(constraint_module, "compile_automaton", compiling)
    tokenizer = characters("abx")
    with pytest.raises(EffortError):
        compile_constraint("x", tokenizer, QUICK)
    assert cached_constraint("x", tokenizer) is None
    made = compile_constraint("x", tokenizer, THOROUGH)
    assert cached_constraint("x", tokenizer) is made
    assert compile_constraint("x", tokenizer, QUICK) is made
    assert efforts == [QUICK, THOROUGH]
    assert cached_constraint("a", tokenizer) is None
    assert compile_constraint("a", tokenizer, QUICK) is cached_constraint("a", tokenizer)
    monkeypatch.setattr(constraint_module, "_QUICK_TABLE", 5)
    with pytest.raises(EffortError):
        compile_constraint("ab", tokenizer, QUICK)
    assert compile_constraint("ab", tokenizer).complete.size == 3


def test_too_many_states_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than 32,768 states"):
        compile_automaton("[ab]*a[ab]{15}")


def test_tables_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint_module, "MAX_TABLE", 50)
    assert compile_constraint("a{9}", characters("abcde")).table.size == 50
    with pytest.raises(ConfigError, match=r"more than 10 states, with the 5 tokens"):
        compile_constraint("a{10}", characters("abcde"))


def test_brackets_leave_most_expressions_as_they_are() -> None:
    for regex, whole in [
        ("(a)(b)", True),
        (r"[)]\(", True),
        (r"\\\\", True),
        ("a)(b", False),
        ("(", False),
        ("a\\", False),
        ("(?x)a # )", False),
    ]:
        assert automaton_module._stays_whole(regex) == whole, regex


@pytest.mark.parametrize(
    ("regex", "low", "high"),
    [
        ("a{20}", 20, 20),
        ("(a{3}b){5}", 20, 20),
        ("[0-9]{3,7}", 50, 60),
        (r"[a\]b]{2}", 16, 16),
        (r"[]a]{2}", 16, 16),
        (r"a\{20}", 3, 6),
        (r"(\w+ ){2}", 600, 700),
        ("a{2}{3}", 6, 6),
        ("x|y*", 2, 2),
        (")((a", 1, 1),
        ("[a", 8, 8),
    ],
)
def test_estimated_states_are_about_right(regex: str, low: int, high: int) -> None:
    assert low <= automaton_module.estimated_states(regex) <= high


# ---------------------------------------------------------------- the cache


def test_what_was_compiled_or_refused_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiling(regex: str, effort: Effort) -> Any:
        calls.append(regex)
        return compile_automaton(regex, effort)

    monkeypatch.setattr(constraint_module, "compile_automaton", compiling)
    one, other = characters("ab"), characters("ab")
    first = compile_constraint("ab*", one)
    assert compile_constraint("ab*", one) is first
    assert compile_constraint("ab*", other) is not first
    assert len(calls) == 2
    for _ in range(2):
        with pytest.raises(ConfigError, match="malformed"):
            compile_constraint("(", one)
    assert calls.count("(") == 1


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = constraint_module._Cache(max_elements=30, max_entries=3)
    tokenizer = characters("ab")
    made = [cache.get("a" * length, tokenizer) for length in (1, 2, 3)]  # 4 + 6 + 8 elements
    assert cache.get("a", tokenizer) is made[0]
    cache.get("b", tokenizer)  # the fourth: "aa" was used least recently
    assert [key[0] for key in cache._entries] == ["aaa", "a", "b"]
    cache.get("b" * 12, tokenizer)  # 26 elements: space for another one of 4
    assert [key[0] for key in cache._entries] == ["b", "b" * 12]
    cache.get("b" * 40, tokenizer)  # more than all: kept alone
    assert [key[0] for key in cache._entries] == ["b" * 40]
    del tokenizer
    cache.get("a", characters("ab"))
    assert len(cache._entries) == 1


def test_threads_that_ask_for_the_same_wait_for_one_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def compiling(regex: str, effort: Effort) -> Any:
        calls.append(regex)
        time.sleep(0.05)
        return compile_automaton(regex, effort)

    monkeypatch.setattr(constraint_module, "compile_automaton", compiling)
    tokenizer, gate = characters("abc"), threading.Barrier(4)

    def compile_all(_: int) -> list[Constraint]:
        gate.wait()
        return [compile_constraint(f"[ab]{{{n}}}", tokenizer) for n in (1, 2, 3)]

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(compile_all, range(4))
    assert others == [first] * 3
    assert len(calls) == 3
