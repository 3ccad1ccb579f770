"""A file that is read many times in a pass lies on the disk once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from treadle.model.config import DataConfig
from treadle.model.data.corpus import CorpusFile, read_corpus
from treadle.model.data.splits import TokenData
from treadle.model.data.token_array import JoinedTokens, TokenArray, blocks, joined_view
from treadle.model.enums import CorpusLayout
from treadle.model.training.checkpoint import corpus_fingerprint

TEXT = b"the quick brown fox\njumps over\nthe lazy dog\n" * 500


def nameless(folder: Path) -> int:
    """Returns the bytes of the files without a name that this process has in a folder."""
    found = 0
    for handle in Path("/proc/self/fd").iterdir():
        found += handle.stat().st_size if _is_in(handle, folder) else 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.split()[0].partition("-")
        if f"{folder}/" in line:
            found += int(end, 16) - int(begin, 16)
    return found


def _is_in(handle: Path, folder: Path) -> bool:
    try:
        return os.readlink(handle).startswith(f"{folder}/")
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("layout", CorpusLayout)
def test_a_weight_multiplies_no_bytes_on_the_disk(tmp_path: Path, layout: CorpusLayout) -> None:
    data = DataConfig(layout=layout, validation_fraction=0.1)
    corpus = read_corpus([CorpusFile(TEXT, weight=100.0)], data_config=data, folder=tmp_path)
    assert corpus.train.tokens.size > 80 * len(TEXT)
    # The file's tokens, what was taken of them, and a page of each map.
    assert 0 < nameless(tmp_path) < 3 * len(TEXT) + 8 * 4096


@pytest.mark.parametrize("layout", CorpusLayout)
def test_it_is_read_as_if_it_were_there_as_often(tmp_path: Path, layout: CorpusLayout) -> None:
    data = DataConfig(layout=layout, validation_fraction=0.1)
    files = [CorpusFile(TEXT, "a", weight=3.0), CorpusFile(TEXT[:2000], "b", weight=2.5)]
    corpus = read_corpus(files, data_config=data, folder=tmp_path)
    train = corpus.train
    assert isinstance(train.tokens, JoinedTokens)
    copied = TokenData(np.array(train.tokens), train.offsets)
    twin = type(corpus)(**{**vars(corpus), "train": copied})
    assert corpus_fingerprint(corpus) == corpus_fingerprint(twin)
    assert train.predicted == copied.predicted


def test_joined_tokens_are_indexed_as_one_array() -> None:
    draw = np.random.default_rng(1)
    first: TokenArray = draw.integers(0, 200, 57).astype(np.uint8)
    second: TokenArray = draw.integers(0, 200, 5).astype(np.uint8)
    empty: TokenArray = np.zeros(0, np.uint8)
    parts = [first, second, first, empty, first, second]
    joined = joined_view(parts)
    whole = np.concatenate(parts)
    assert (joined.size, len(joined), joined.shape) == (whole.size, whole.size, whole.shape)
    assert joined.dtype == whole.dtype
    assert [joined[place] for place in (0, 56, 57, 61, 62)] == whole[[0, 56, 57, 61, 62]].tolist()
    for start, stop in draw.integers(0, whole.size + 1, (50, 2)):
        np.testing.assert_array_equal(joined[start:stop], whole[start:stop])
    np.testing.assert_array_equal(joined[:10], whole[:10])
    places = draw.integers(0, whole.size, (7, 11))
    np.testing.assert_array_equal(joined[places], whole[places])
    np.testing.assert_array_equal(np.concatenate(list(blocks(joined))), whole)
    np.testing.assert_array_equal(np.array(joined, np.int32), whole)
