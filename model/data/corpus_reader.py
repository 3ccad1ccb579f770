"""`CorpusReader` turns the files of a corpus into tokens, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from treadle.model.data.files import (
    CorpusFile,
    byte_line_parts,
    cut_anywhere,
    cut_at_space,
    encoding_notices,
    line_blocks,
    line_parts,
    text_blocks,
    text_parts,
)
from treadle.model.data.record_reader import RecordReader
from treadle.model.data.token_array import TokenArray, TokenWriter
from treadle.model.enums import CorpusFormat, CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.errors import UnknownSymbolError
from treadle.model.tokenizers.bytes import ByteTokenizer
from treadle.model.tokenizers.incremental_encoder import IncrementalEncoder

if TYPE_CHECKING:
    from treadle.model.config import DataConfig, TokenizerConfig
    from treadle.model.scratch_files import Folder
    from treadle.model.tokenizers.base import Tokenizer

_RECORDS = 10_000
"""Most items of JSON lines or CSV that are encoded together."""
_RECORD_CHARACTERS = 1 << 20
"""Characters after which a batch of encoded items ends."""

_UNBROKEN = (TokenizerKind.WHITESPACE, TokenizerKind.EVENTS)
"""Kinds whose tokens may have any length: a text is read up to the next white space."""

EncodedItems = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Tokens, (n,), and the start of each item that ends in them, (items + 1,).

The first start is 0 even if the item began in an earlier block. The tokens after the last start
belong to an item that continues in the next block.
"""


@dataclass(frozen=True)
class FileTokens:
    """One file as tokens."""

    tokens: TokenArray
    """The tokens, (n,)."""
    offsets: NDArray[np.int64] | None
    """The start of each item, (items + 1,); no item is empty. None for the layout TEXT."""
    left_out: int = 0
    """Items that were left out: they are empty, or hold only unknown symbols."""
    missing: int = 0
    """Rows of JSON lines or CSV that were left out: they have no text."""
    notices: tuple[str, ...] = ()
    """Notices about the way in which the file was read."""

    @property
    def items(self) -> int:
        """Number of items; 0 for the layout TEXT."""
        return 0 if self.offsets is None else self.offsets.size - 1


class CorpusReader:
    """Reads files of one corpus.

    Args:
        tokenizer: How text becomes tokens.
        data: How files are read.
        layout: How they are cut into sequences.
    """

    def __init__(self, tokenizer: TokenizerConfig, data: DataConfig, layout: CorpusLayout) -> None:
        self._config = tokenizer
        self._data = data
        self._layout = layout
        by_character = tokenizer.kind in (TokenizerKind.CHARACTERS, TokenizerKind.BYTES)
        self._cut = cut_anywhere if by_character and not tokenizer.lower_case else cut_at_space

    def texts(self, files: list[CorpusFile]) -> Iterator[str]:
        """Yields the text of files, from which a tokenizer is built.

        Returns:
            An iterator of parts of the text.

        Raises:
            CorpusError, EncodingError, ConfigError: See `read_corpus`.
            OSError: A file cannot be read.
        """
        return chain.from_iterable(map(self._texts, files))

    def read(
        self,
        file: CorpusFile,
        tokenizer: Tokenizer,
        policy: UnknownPolicy | None,
        folder: Folder | None,
    ) -> FileTokens:
        """Reads a file.

        Args:
            file: The file.
            tokenizer: The tokenizer.
            policy: What to do with unknown symbols; None: the tokenizer's own policy.
            folder: The folder of the files that hold the tokens; None: in memory.

        Returns:
            The tokens of the file.

        Raises:
            UnknownSymbolError: A symbol is unknown, and the policy is ERROR.
            CorpusError, EncodingError: See `read_corpus`.
            OSError: The file cannot be read, or the folder cannot be written.
        """
        notices = self._notices(file)
        with TokenWriter(tokenizer.vocabulary_size, folder) as writer:
            if self._layout is CorpusLayout.LINES:
                return replace(self._read_items(file, tokenizer, policy, writer), notices=notices)
            for tokens in self._encoded_texts(file, tokenizer, policy):
                writer.write(tokens)
            return FileTokens(writer.finish(), None, notices=notices)

    def _notices(self, file: CorpusFile) -> tuple[str, ...]:
        if self._config.kind is TokenizerKind.BYTES:
            return ()
        plain = self._data.format is CorpusFormat.PLAIN
        by_line = plain and self._layout is CorpusLayout.LINES
        notices = encoding_notices(file, self._data.encoding, by_line)
        if self._config.kind is TokenizerKind.EVENTS and not by_line and plain:
            notices += _lost_line_ends(file)
        return notices

    def _read_items(
        self,
        file: CorpusFile,
        tokenizer: Tokenizer,
        policy: UnknownPolicy | None,
        writer: TokenWriter,
    ) -> FileTokens:
        starts = [np.zeros(1, np.int64)]
        left_out = 0
        size = 0
        begun = 0
        records = RecordReader(self._data, self._text_policy(policy))
        if self._data.format is CorpusFormat.PLAIN:
            encoded = self._encoded_items(file, tokenizer, policy)
        else:
            encoded = self._encoded_records(records.items(file), file, tokenizer, policy)
        for tokens, offsets in encoded:
            ends = offsets[1:]
            lengths = np.diff(offsets)
            lengths[:1] += begun
            begun = tokens.size - int(offsets[-1]) + (0 if ends.size else begun)
            # An item that ends where the one before ends is empty.
            filled = ends[lengths > 0]
            left_out += ends.size - filled.size
            starts.append(filled + size)
            size += tokens.size
            writer.write(tokens)
        return FileTokens(writer.finish(), np.concatenate(starts), left_out, records.missing)

    def _text_policy(self, policy: UnknownPolicy | None = None) -> UnknownPolicy:
        """Returns the policy for bytes that are not text: that for unknown symbols."""
        return self._config.policy if policy is None else policy

    def _as_bytes(self, policy: UnknownPolicy | None) -> bool:
        """Returns whether a plain file is read as bytes, without decoding.

        A tokenizer of bytes does so, unless a policy for bytes that are not text is given.
        """
        chosen = self._config.unknown_policy if policy is None else policy
        return self._config.kind is TokenizerKind.BYTES and chosen is None

    @property
    def _encoding(self) -> str:
        """The encoding of plain files; always UTF-8 for a tokenizer of bytes."""
        return "utf-8" if self._config.kind is TokenizerKind.BYTES else self._data.encoding

    def _texts(self, file: CorpusFile) -> Iterator[str]:
        """Yields a file's text, for counting its symbols."""
        encoding = self._data.encoding
        policy = self._text_policy()
        if self._config.kind is TokenizerKind.BYTES:
            return
        if self._data.format is not CorpusFormat.PLAIN:
            items = RecordReader(self._data, policy).items(file)
            if self._config.kind is TokenizerKind.CHARACTERS:
                yield from map("".join, _batched(items))
            else:
                yield from items
        elif self._layout is CorpusLayout.LINES:
            yield from line_blocks(file, encoding, policy)
        else:
            yield from text_blocks(file, encoding, policy, self._cut)

    def _encoded_texts(
        self, file: CorpusFile, tokenizer: Tokenizer, policy: UnknownPolicy | None
    ) -> Iterator[NDArray[np.int32]]:
        if isinstance(tokenizer, ByteTokenizer) and self._as_bytes(policy):
            yield from map(tokenizer.encode_bytes, file.byte_blocks())
            return
        before = 0
        begun = 0
        encoder = IncrementalEncoder(tokenizer, policy, max_held=None)
        whole = self._config.kind in _UNBROKEN
        policy_of_bytes = self._text_policy(policy)
        for text, ends in text_parts(file, self._encoding, policy_of_bytes, self._cut, whole=whole):
            try:
                if ends and not begun:
                    yield tokenizer.encode(text, policy)
                else:  # the encoder finds the cuts: a text without white space is read in parts
                    yield encoder.push(text)
                    begun += len(text)
                    if ends:
                        yield encoder.end()
            except UnknownSymbolError as fault:
                raise _in_file(fault, file, before) from None
            if ends:
                before = before + (begun or len(text))
                begun = 0

    def _encoded_items(
        self, file: CorpusFile, tokenizer: Tokenizer, policy: UnknownPolicy | None
    ) -> Iterator[EncodedItems]:
        if isinstance(tokenizer, ByteTokenizer) and self._as_bytes(policy):
            for data in byte_line_parts(file):
                whole = data.endswith(b"\n")
                yield (
                    tokenizer.encode_byte_items(data)
                    if whole
                    else _open(tokenizer.encode_bytes(data))
                )
            return
        before = 0
        begun = 0
        encoder = IncrementalEncoder(tokenizer, policy, max_held=None)
        whole = self._config.kind in _UNBROKEN
        for text in line_parts(file, self._encoding, self._text_policy(policy), whole=whole):
            head, end, lines = text.partition("\n") if begun or "\n" not in text else ("", "", text)
            try:
                if head or begun:
                    yield _open(encoder.push(head))
                begun += len(head)
                if end:
                    last = encoder.end()
                    yield last, np.array([0, last.size], np.int64)
                    before = before + begun + 1
                    begun = 0
            except UnknownSymbolError as fault:
                raise _in_file(fault, file, before) from None
            try:
                if lines:
                    yield tokenizer.encode_items(lines, policy)
            except UnknownSymbolError as fault:
                raise _in_file(fault, file, before) from None
            before += len(lines)

    def _encoded_records(
        self,
        items: Iterator[str],
        file: CorpusFile,
        tokenizer: Tokenizer,
        policy: UnknownPolicy | None,
    ) -> Iterator[EncodedItems]:
        before = 0
        for some in _batched(items):
            try:
                yield tokenizer.encode_records(some, policy)
            except UnknownSymbolError:
                for number, text in enumerate(some, before + 1):
                    _check_item(tokenizer, text, policy, f"{file.title}, item {number:,}")
                raise
            before += len(some)


def _lost_line_ends(file: CorpusFile) -> tuple[str, ...]:
    if b"\n" not in file.head().rstrip():
        return ()
    return (
        f"{file.title} has several lines, but the kind 'events' drops line ends: set data.layout "
        "to 'lines' if a line is a sequence, or set tokenizer.kind to 'whitespace' if a line end "
        "is a token",
    )


def _check_item(tokenizer: Tokenizer, text: str, policy: UnknownPolicy | None, where: str) -> None:
    """Encodes an item; an error about an unknown symbol names the place of the item."""
    try:
        tokenizer.encode(text, policy)
    except UnknownSymbolError as fault:
        raise UnknownSymbolError(f"{where}: {fault}", fault.symbol, fault.position) from None


def _open(tokens: NDArray[np.int32]) -> EncodedItems:
    """Returns tokens of an item that continues."""
    return tokens, np.zeros(1, np.int64)


def _batched(items: Iterator[str]) -> Iterator[list[str]]:
    some: list[str] = []
    size = 0
    for item in items:
        some.append(item)
        size += len(item)
        if len(some) == _RECORDS or size >= _RECORD_CHARACTERS:
            yield some
            some = []
            size = 0
    if some:
        yield some


def _in_file(fault: UnknownSymbolError, file: CorpusFile, before: int) -> UnknownSymbolError:
    """Converts an error about a block, which begins at `before`, to one about its file."""
    position = before + fault.position
    message = str(fault).replace(f"at position {fault.position} ", f"at position {position} ", 1)
    where = "" if file.name == "corpus" else f"{file.title}: "
    return UnknownSymbolError(where + message, fault.symbol, position)
