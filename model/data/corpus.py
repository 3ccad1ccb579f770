r"""`read_corpus` turns files into tokens and divides them into the parts of a `Corpus`.

A text is one sequence per file. Its end is kept for validation, and the very end for the test.
Items (the layout LINES) are independent of each other; those for validation and the test are drawn
by the seed, per file. Validation and the test may also have files of their own. A line ends with
"\n" or "\r\n", which is not part of it; empty lines are left out.

Files are read in blocks, and tokens are kept in the smallest type that holds the vocabulary, in a
file if a folder for it is given. So a corpus needs at most about its own size in memory.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from treadle.model.config import DataConfig, TokenizerConfig
from treadle.model.data.corpus_reader import CorpusReader, FileTokens
from treadle.model.data.files import CorpusFile, check_data, check_not_empty
from treadle.model.data.splits import MIN_HELD_OUT_TOKENS, Shares, Splitter, TokenData
from treadle.model.data.token_array import TokenArray, blocks
from treadle.model.enums import CorpusFormat, CorpusLayout, CorpusRole, Split, UnknownPolicy
from treadle.model.errors import CorpusError
from treadle.model.field_checks import member
from treadle.model.tokenizers.build import build_tokenizer

if TYPE_CHECKING:
    from treadle.model.scratch_files import Folder
    from treadle.model.tokenizers.base import Tokenizer

__all__ = ["Corpus", "CorpusFile", "TokenData", "read_corpus"]


@dataclass(frozen=True)
class Corpus:
    """A corpus as tokens, divided into its parts."""

    tokenizer: Tokenizer
    """The tokenizer of the tokens."""
    layout: CorpusLayout
    """Its division into sequences."""
    train: TokenData
    """The part for training."""
    valid: TokenData | None
    """The part for validation; None without one."""
    notices: tuple[str, ...] = ()
    """Notices about data that was left out and values that were chosen."""
    test: TokenData | None = None
    """The part for the final test; None without one."""
    valid_split: Split | None = None
    """The source of the validation part; None without one."""
    test_split: Split | None = None
    """The source of the test part; None without one."""
    valid_characters: int = 0
    """Number of code points of the predicted tokens of the validation part; 0 without the part, or
    if it has unknown tokens, whose length is not known."""
    test_characters: int = 0
    """Number of code points of the predicted tokens of the test part; 0 as above."""


def read_corpus(
    data: bytes | os.PathLike[str] | Sequence[CorpusFile],
    tokenizer: TokenizerConfig | None = None,
    data_config: DataConfig | None = None,
    seed: int = 0,
    *,
    fixed: Tokenizer | None = None,
    folder: Folder | None = None,
    unknown_policy: UnknownPolicy | None = None,
) -> Corpus:
    """Reads a corpus.

    Args:
        data: The corpus, the file that holds it, or several files.
        tokenizer: How text becomes tokens; None: the defaults.
        data_config: How it is read and cut; None: the defaults.
        seed: Seed for drawing items: for validation, the test, and fractions of files.
        fixed: The tokenizer to use, that of a base model; `tokenizer` and the layout are then
            ignored.
        folder: The folder of the unnamed temporary files that hold the tokens; None: the tokens are
            held in memory.
        unknown_policy: With `fixed`, what to do with symbols that it lacks; None: its own policy.

    Returns:
        The corpus as tokens.

    Raises:
        ConfigError: Settings contradict each other, or an encoding is unknown.
        CorpusError: The corpus is empty, too small for one step of training, or malformed.
        EncodingError: A file does not have its encoding, and the policy is ERROR.
        UnknownSymbolError: The vocabulary lacks a symbol, and the policy is ERROR.
        OSError: A file cannot be read, or the folder cannot be written.
    """
    config = tokenizer or TokenizerConfig()
    data_config = data_config or DataConfig()
    if unknown_policy is not None:
        unknown_policy = member(UnknownPolicy, unknown_policy, "unknown_policy")
    files = _files(data)
    layout = check_data(data_config, None if fixed is None else fixed.layout)
    check_not_empty(files)
    if fixed is not None:
        config = fixed.config
    reader = CorpusReader(config, data_config, layout)
    training = [file for file in files if file.role is CorpusRole.TRAIN]
    if fixed is None:
        texts = reader.texts(training)
        items_hold_lines = data_config.format is not CorpusFormat.PLAIN
        used = build_tokenizer(config, texts, layout, items_hold_lines)
    else:
        used = fixed
    read = {
        role: [reader.read(f, used, unknown_policy, folder) for f in files if f.role is role]
        for role in CorpusRole
    }
    splitter = Splitter(used.vocabulary_size, folder, seed)
    _check_size(read[CorpusRole.TRAIN])
    return _cut(used, read, [file.weight for file in training], data_config, splitter)


def _files(data: bytes | os.PathLike[str] | Sequence[CorpusFile]) -> list[CorpusFile]:
    """Returns the files of a corpus."""
    if isinstance(data, bytes | os.PathLike):
        return [CorpusFile(data)]
    files = [] if isinstance(data, str) else list(data)
    if isinstance(data, str) or not all(isinstance(file, CorpusFile) for file in files):
        raise CorpusError("a corpus must be bytes, a path (os.PathLike), or a list of CorpusFile")
    return files


def _check_size(files: Sequence[FileTokens]) -> None:
    if files[0].offsets is None:
        size = sum(file.tokens.size for file in files)
        unit = "token"
        least = 2
    else:
        size = sum(file.items for file in files)
        unit = "line with text"
        least = 1
    if size < least:
        unit = unit if size == 1 else unit.replace("line", "lines").replace("token", "tokens")
        raise CorpusError(
            f"the corpus has {size} {unit}, and training needs {least} or more: give it more text"
        )


def _cut(
    tokenizer: Tokenizer,
    read: dict[CorpusRole, list[FileTokens]],
    weights: Sequence[float],
    data: DataConfig,
    splitter: Splitter,
) -> Corpus:
    """Makes the parts of a corpus that are large enough."""
    training = read[CorpusRole.TRAIN]
    every = [file for files in read.values() for file in files]
    notices = tuple(itertools.chain.from_iterable(file.notices for file in every))
    notices += _missing_notice(sum(file.missing for file in every), data.column)
    notices += _left_out_notice(sum(file.left_out for file in every), tokenizer)
    held_out = (CorpusRole.VALID, CorpusRole.TEST)
    own = {role: splitter.whole(read[role]) for role in held_out if read[role]}
    shares = Shares(
        0.0 if CorpusRole.VALID in own else data.validation_fraction,
        0.0 if CorpusRole.TEST in own else data.test_fraction,
    )
    while True:
        train, valid, test = splitter.split(training, shares, weights)
        if shares.test and not _large_enough(test, train):
            notices += (_too_small_notice("the test", train, test, "test"),)
            shares = Shares(shares.valid, 0.0)
        elif shares.valid and not _large_enough(valid, train):
            notices += (_too_small_notice("validation", train, valid, "validate"),)
            shares = Shares(0.0, shares.test)
        else:
            break
    split_off = (valid if shares.valid else None, test if shares.test else None)
    parts = []
    for role, part in zip(held_out, split_off, strict=True):
        kept, split = _held_out(own.get(role), part)
        if role in own and kept is None:
            notices += (f"the files of the role {role.value} hold nothing to predict",)
        parts.append((kept, split, 0 if kept is None else _characters(tokenizer, kept)))
    (valid_part, valid_split, valid_size), (test_part, test_split, test_size) = parts
    notices += _unknown_notice(tokenizer, train, "to train on")
    if valid_part is not None:
        notices += _unknown_notice(tokenizer, valid_part, "to validate with")
    return Corpus(
        tokenizer,
        tokenizer.layout,
        train,
        valid_part,
        notices,
        test_part,
        valid_split,
        test_split,
        valid_size,
        test_size,
    )


def _held_out(
    own: TokenData | None, part: TokenData | None
) -> tuple[TokenData | None, Split | None]:
    """Returns a held-out part and its source."""
    if own is not None:
        return (own, Split.FILES) if own.predicted else (None, None)
    if part is None:
        return None, None
    return part, Split.TAIL if part.offsets is None else Split.ITEMS


def _large_enough(part: TokenData, train: TokenData) -> bool:
    return part.predicted >= MIN_HELD_OUT_TOKENS and train.predicted >= 1


def _too_small_notice(purpose: str, train: TokenData, part: TokenData, verb: str) -> str:
    return (
        f"nothing kept for {purpose}: it would leave {train.predicted:,} tokens to train on "
        f"and {part.predicted:,} to {verb} with"
    )


def _missing_notice(count: int, column: str) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"{count:,} {'row' if count == 1 else 'rows'} left out: no text in {column!r}",)


def _left_out_notice(count: int, tokenizer: Tokenizer) -> tuple[str, ...]:
    if not count:
        return ()
    skips = tokenizer.config.policy is UnknownPolicy.SKIP
    reason = "empty or of unknown symbols only" if skips else "empty"
    return (f"{count:,} {'line' if count == 1 else 'lines'} left out: {reason}",)


def _count_unknown(tokenizer: Tokenizer, tokens: TokenArray) -> int:
    """Returns the number of unknown tokens in a large array."""
    if tokenizer.unknown is None:
        return 0
    return sum(map(tokenizer.count_unknown, blocks(tokens)))


def _unknown_notice(tokenizer: Tokenizer, data: TokenData, purpose: str) -> tuple[str, ...]:
    """Returns a notice about the share of unknown tokens, if there are any."""
    count = _count_unknown(tokenizer, data.tokens)
    whole = max(len(data.tokens), 1)
    if not count:
        return ()
    share = 100 * count / whole
    shown = "less than 0.1" if share < 0.1 else f"{share:.3g}"
    return (
        f"{shown} % of the tokens {purpose} are unknown: {count:,} of {whole:,} stand for what the "
        f"vocabulary of {tokenizer.ordinary:,} {tokenizer.config.kind} lacks",
    )


def _characters(tokenizer: Tokenizer, data: TokenData) -> int:
    """Returns the number of code points of the predicted tokens of a part; 0 if unknown."""
    predicted = data.tokens if data.offsets is not None else data.tokens[1:]
    if _count_unknown(tokenizer, predicted):
        return 0
    count = 0
    before = predicted[:0]
    for block in blocks(predicted):
        # Counted together with the previous token, since there may be a space between them.
        count += tokenizer.characters(np.append(before, block)) - tokenizer.characters(before)
        before = block[-1:]
    return count
