"""What is new, against a plain search of the training part's items and text."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_runs import NAMES, TEXT, config_of

from treadle.kernels import suffix_array
from treadle.model.config import DataConfig, LimitsConfig, TokenizerConfig, TrainConfig
from treadle.model.data.corpus import Corpus, CorpusFile, read_corpus
from treadle.model.enums import CorpusLayout, TokenizerKind
from treadle.model.errors import ConfigError
from treadle.model.generation import novelty
from treadle.model.generation.novelty import Novelty, NoveltyIndex, indexing_bytes
from treadle.model.model import Model
from treadle.model.network.shape import Shape
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.training.trainer import Trainer
from treadle.model.training_memory import check_memory, training_bytes

pytestmark = pytest.mark.jit  # what it calls in kernels is tested uncompiled elsewhere

PAGE = Path(__file__).parents[2] / "docs" / "novelty.md"
LINES, PLAIN = CorpusLayout.LINES, CorpusLayout.TEXT


def read(text: str, layout: CorpusLayout, kind: TokenizerKind = TokenizerKind.CHARACTERS) -> Corpus:
    """A corpus all of which is trained on."""
    data = DataConfig(layout, validation_fraction=0)
    return read_corpus(text.encode(), TokenizerConfig(kind, max_vocabulary_size=300), data)


def index_of(corpus: Corpus) -> NoveltyIndex:
    return NoveltyIndex.build(corpus.train.tokens, corpus.train.offsets, corpus.tokenizer)


def novelty_of(corpus: Corpus, text: str) -> Novelty:
    return index_of(corpus).novelty(corpus.tokenizer.encode(text), corpus.tokenizer)


def overlap(text: str, held: Sequence[str]) -> int:
    pieces = (text[i:j] for i in range(len(text)) for j in range(i, len(text) + 1))
    return max((len(piece) for piece in pieces if any(piece in one for one in held)), default=0)


@pytest.mark.parametrize("kind", [TokenizerKind.CHARACTERS, TokenizerKind.BYTES])
def test_items_are_distinguished_from_new_ones(kind: TokenizerKind) -> None:
    rng = np.random.default_rng(1)
    items = ["".join(rng.choice(list("abé"), rng.integers(1, 9))) for _ in range(60)]
    corpus = read("\n".join([*items, *items[:20], ""]), LINES, kind)
    index = index_of(corpus)
    asked = ["".join(rng.choice(list("abé"), rng.integers(12))) for _ in range(150)]
    seen = set()
    for text in [*items, *asked]:
        found = index.novelty(corpus.tokenizer.encode(text), corpus.tokenizer)
        assert found.is_new == (text not in items)
        if kind is TokenizerKind.CHARACTERS:
            assert found.longest_overlap == overlap(text, items)
        else:  # which may begin or end within a character
            assert overlap(text, items) <= found.longest_overlap <= overlap(text, items) + 1
        seen.add((found.is_new, found.longest_overlap == len(text)))
    assert seen == {(False, True), (True, False), (True, True)}


def test_texts_are_distinguished_from_new_ones() -> None:
    rng = np.random.default_rng(2)
    text = "".join(rng.choice(list("ab\n"), 200))
    corpus = read(text, PLAIN)
    index = index_of(corpus)
    for _ in range(100):
        asked = "".join(rng.choice(list("ab\n"), rng.integers(1, 15)))
        found = index.novelty(corpus.tokenizer.encode(asked), corpus.tokenizer)
        assert found == Novelty(overlap(asked, [text]), asked not in text)
    assert novelty_of(corpus, text) == Novelty(200, False)
    assert novelty_of(corpus, "") == Novelty(0, False), "what is empty stands everywhere"


def test_no_overlap_crosses_two_items() -> None:
    corpus = read("anna\nbert\n", LINES)
    assert novelty_of(corpus, "annabert") == Novelty(4, True)
    assert novelty_of(corpus, "ann") == Novelty(3, True)
    assert novelty_of(corpus, "anna") == Novelty(4, False)
    assert novelty_of(corpus, "") == Novelty(0, True)
    with_empty = NoveltyIndex.build(np.array([0, 1]), np.array([0, 1, 1, 2]), corpus.tokenizer)
    assert with_empty.novelty([], corpus.tokenizer) == Novelty(0, False)
    assert with_empty.novelty([0, 1], corpus.tokenizer) == Novelty(1, True)
    begin, end = corpus.tokenizer.begin, corpus.tokenizer.end
    assert begin is not None
    assert end is not None
    inner = corpus.tokenizer.encode("anna").tolist()
    index = index_of(corpus)
    assert index.novelty([begin, *inner, end], corpus.tokenizer) == Novelty(4, False)
    # What separates items is no part of any.
    both = [*inner, begin, *corpus.tokenizer.encode("bert").tolist()]
    assert index.novelty(both, corpus.tokenizer) == Novelty(4, True)


@pytest.mark.parametrize(
    ("kind", "held", "asked", "expected"),
    [
        # The longest in code points: one long word, with its blank, outweighs two short ones.
        (TokenizerKind.WORDS, "a b c. incomprehensible", "b c ,incomprehensible", 17),
        # With the blanks between events.
        (TokenizerKind.EVENTS, "open read close", "read close open", 10),
    ],
)
def test_overlaps_are_counted_in_code_points(
    kind: TokenizerKind, held: str, asked: str, expected: int
) -> None:
    corpus = read((held + "\n") * 4, LINES, kind)
    ids = corpus.tokenizer.encode(asked.replace(",", ""))
    assert index_of(corpus).novelty(ids, corpus.tokenizer).longest_overlap == expected


def test_subwords_are_found_however_they_are_cut() -> None:
    pytest.importorskip("tokenizers")
    corpus = read("low lower lowest newer\n" * 40, LINES, TokenizerKind.SUBWORDS)
    tokenizer = corpus.tokenizer
    text = "low lower lowest newer"
    whole = tokenizer.encode(text)
    letters = np.concatenate([tokenizer.encode(letter) for letter in text])
    assert len(whole) < len(letters)
    assert tokenizer.decode(letters) == text
    for ids in (whole, letters):
        assert index_of(corpus).novelty(ids, tokenizer) == Novelty(len(text), False)


def test_an_id_that_is_none_is_refused() -> None:
    corpus = read("anna\n" * 9, LINES)
    with pytest.raises(ValueError, match="a token is not in 0 to"):
        index_of(corpus).novelty([99], corpus.tokenizer)


@pytest.mark.parametrize(("size", "kind"), [(200, np.uint8), (300, np.uint16), (70_000, np.int32)])
def test_tokens_are_kept_small(size: int, kind: type[np.number]) -> None:
    words = " ".join(f"w{number}" for number in range(size))
    config = TokenizerConfig(TokenizerKind.EVENTS, max_vocabulary_size=10**6)
    corpus = read_corpus(words.encode(), config, DataConfig(validation_fraction=0))
    index = index_of(corpus)
    assert index.tensors()[novelty.TOKENS].dtype == kind
    assert index.nbytes == size * (np.dtype(kind).itemsize + 4)
    assert novelty_of(corpus, "w5 w6 w9 w10 w11") == Novelty(10, True)


def test_an_item_given_often_is_held_once() -> None:
    once, often = read("anna\nbert\n", LINES), read("bert\n" * 5 + "anna\nbert\n" * 50, LINES)
    assert index_of(often).nbytes == index_of(once).nbytes == (2 * 4 + 3) * 5


# ---------------------------------------------------------------- in a run


def settings(layout: CorpusLayout = LINES, *, indexed: bool = True, steps: int = 6) -> TrainConfig:
    data = DataConfig(
        layout, batch_size=3, window=5, validation_fraction=0.25, novelty_index=indexed
    )
    return config_of(data=data, limits=LimitsConfig(max_steps=steps))


def finished(trainer: Trainer) -> Model:
    list(trainer.run())
    return trainer.finish()


def test_a_run_makes_it_of_its_training_part_alone(tmp_path: Path) -> None:
    items = [f"{a}{b}{c}" for a in "abcdefgh" for b in "klmn" for c in "xyz"]
    (tmp_path / "train").write_text("\n".join(items) + "\n")
    config = settings()
    trainer = Trainer(tmp_path / "train", config)
    model = finished(trainer)
    assert model.novelty is not None
    corpus = read_corpus(tmp_path / "train", config.tokenizer, config.data, config.seed)
    assert corpus.valid is not None
    offsets, tokens = corpus.valid.offsets, corpus.valid.tokens
    assert offsets is not None
    held_out = {corpus.tokenizer.decode(tokens[a:b]) for a, b in itertools.pairwise(offsets)}
    assert 0 < len(held_out) < len(items)
    for text in items:
        found = model.novelty.novelty(model.tokenizer.encode(text), model.tokenizer)
        assert found.is_new == (text in held_out)
    assert trainer.model.novelty is None, "only the finished model needs it"


def test_a_run_without_it_has_none_and_learns_the_same() -> None:
    with_it, without = (
        finished(Trainer(NAMES, settings(indexed=found))) for found in (True, False)
    )
    assert with_it.novelty is not None
    assert without.novelty is None
    assert with_it.parameters.flat.tobytes() == without.parameters.flat.tobytes()
    assert with_it.content_hash == without.content_hash


@pytest.mark.parametrize("layout", CorpusLayout)
def test_a_run_gone_on_with_makes_the_same_one(layout: CorpusLayout, tmp_path: Path) -> None:
    corpus, config = (NAMES if layout is LINES else TEXT[:420]), settings(layout)
    left = Trainer(corpus, config, folder=tmp_path)
    list(left.run(between=lambda: left.steps == 3))
    left.save_state(tmp_path / "state")
    again = Trainer(corpus, config, folder=tmp_path)
    assert again.restore_state(tmp_path / "state")
    models = [finished(again), finished(Trainer(corpus, config, threads=2))]
    for number, model in enumerate(models):
        assert model.training is not None
        model.training = replace(model.training, elapsed_s=0.0)  # which alone may differ
        model.save(tmp_path / str(number))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_too_large_a_part_gets_none_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [CorpusFile(NAMES, weight=2)]
    tokens = len(NAMES) * 2  # a line's end counts as well
    config = replace(settings(), data=replace(settings().data, validation_fraction=0))
    monkeypatch.setattr(novelty, "MAX_TOKENS", tokens)
    assert finished(Trainer(files, config)).novelty is not None
    monkeypatch.setattr(novelty, "MAX_TOKENS", tokens - 1)
    trainer = Trainer(files, config)
    notice = (
        f"the training part has {tokens:,} tokens, more than the {tokens - 1:,} of the "
        "largest novelty index: the model gets none"
    )
    assert notice in trainer.started.notices
    assert finished(trainer).novelty is None
    unasked = replace(config, data=replace(config.data, novelty_index=False))
    assert notice not in Trainer(files, unasked).started.notices
    corpus = read("anna\n" * 99, LINES)
    monkeypatch.setattr(novelty, "MAX_TOKENS", 9)
    with pytest.raises(ValueError, match="the training part has 495 tokens"):
        index_of(corpus)


def test_the_pages_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    example = PAGE.read_text().partition("```python\n")[2].partition("```")[0]
    exec(example, {})
    assert "# prints: " + capsys.readouterr().out.strip() in example


# ---------------------------------------------------------------- memory


def part_of(kind: str, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    rng = np.random.default_rng(3)
    if kind == "alternating":  # as many pieces to put in order as there can be
        tokens = (
            rng.integers(2, size=size, dtype=np.uint8) * 2 + np.arange(size, dtype=np.uint8) % 2
        )
        return tokens, None
    tokens = rng.integers(26, size=size, dtype=np.uint8)
    return tokens, None if kind == "random" else np.arange(0, size + 1, 5, dtype=np.int64)


@pytest.mark.parametrize("kind", ["random", "alternating", "short items"])
def test_what_making_it_takes_is_estimated(kind: str) -> None:
    tokens, offsets = part_of(kind, 200_000)
    layout = PLAIN if offsets is None else LINES
    tokenizer: Tokenizer = build_tokenizer(TokenizerConfig(TokenizerKind.BYTES), (), layout)
    suffix_array.suffix_array(np.zeros(9, np.int32), 1)  # loads the kernels, which is memory too
    tracemalloc.start()
    NoveltyIndex.build(tokens, offsets, tokenizer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found = indexing_bytes(novelty.indexed_tokens(tokens, offsets))
    assert 0.4 * found < peak < found


def test_a_run_whose_index_does_not_fit_is_refused() -> None:
    config = settings()
    shape = Shape.of(config.network, 65)
    run = training_bytes(shape, 3, 5, config.optimizer.kind)
    check_memory(config, 65, run + 1000, indexing=1000)
    with pytest.raises(ConfigError, match="leave novelty_index out") as caught:
        check_memory(config, 65, run + 999, indexing=1000)
    assert caught.value.field == "data.novelty_index"
    with pytest.raises(ConfigError, match="to make the novelty index"):
        Trainer(NAMES * 1000, config, memory_limit_bytes=2**22)
    Trainer(NAMES * 1000, settings(indexed=False), memory_limit_bytes=2**22)
