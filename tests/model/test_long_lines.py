"""A corpus without places to cut: read in parts, to the tokens that it has as a whole."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from treadle.model.config import DataConfig, TokenizerConfig
from treadle.model.data.corpus import Corpus, read_corpus
from treadle.model.enums import CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import ModelError
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import build_tokenizer

SYMBOLS = ["a", "b", "A", ".", "_", " ", "\r", "\n", "\r\n", "\u03a3", "\u00e9", "'"]
"""A sigma is the letter whose lower case depends on what comes after it."""


KNOWN = "ab .\nA'b_ ab a.b \n\u03c3b"
"""What tokenizers are built from: the rest is unknown to most kinds."""


def read(data: bytes, tokenizer: Tokenizer, policy: UnknownPolicy | None) -> Corpus | str:
    settings = DataConfig(validation_fraction=0)
    try:
        return read_corpus(data, None, settings, fixed=tokenizer, unknown_policy=policy)
    except ModelError as error:
        return str(error)


@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("kind", TokenizerKind)
def test_parts_give_the_tokens_of_the_whole(
    kind: TokenizerKind, layout: CorpusLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(f"{kind} {layout}")
    bytewise = kind is TokenizerKind.BYTES
    compared = 0
    for number in range(90):
        lower = number % 2 == 1 and not bytewise
        unknown = None if bytewise else UnknownPolicy.UNKNOWN
        config = TokenizerConfig(
            kind=kind, lower_case=lower, max_vocabulary_size=270, unknown_policy=unknown
        )
        tokenizer = build_tokenizer(config, [KNOWN], layout)
        # From texts that are mostly breaks to such as have hardly any.
        weights = [1.0] * 5 + [0.01 * 3 ** (number % 6)] * 4 + [0.5] * 3
        count = generator.randrange(1, 200)
        data = "".join(generator.choices(SYMBOLS, weights, k=count)).encode()
        policy = None if bytewise else list(UnknownPolicy)[number % 3]
        expected = read(data, tokenizer, policy)
        with monkeypatch.context() as patch:
            patch.setattr("treadle.model.data.files.BLOCK", generator.randrange(1, 9))
            patch.setattr("treadle.model.data.files.LONG_LINE", generator.randrange(1, 20))
            got = read(data, tokenizer, policy)
        if isinstance(expected, str) or isinstance(got, str):
            assert got == expected
            continue
        compared += 1
        assert got.notices == expected.notices
        np.testing.assert_array_equal(
            np.asarray(got.train.tokens), np.asarray(expected.train.tokens)
        )
        assert (got.train.offsets is None) == (expected.train.offsets is None)
        if got.train.offsets is not None and expected.train.offsets is not None:
            np.testing.assert_array_equal(got.train.offsets, expected.train.offsets)
    assert compared > 10


@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("kind", [TokenizerKind.CHARACTERS, TokenizerKind.BYTES])
def test_a_line_without_an_end_takes_little_more_than_itself(
    kind: TokenizerKind, layout: CorpusLayout, tmp_path: Path
) -> None:
    path = tmp_path / "corpus"
    size = 8 << 20
    path.write_bytes(b"abcdefgh" * (size // 8))
    tracemalloc.start()
    try:
        read_corpus(path, TokenizerConfig(kind=kind), DataConfig(layout), folder=tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 7 * size  # it was 11 and 12 times as much
