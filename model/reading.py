"""From the files of a corpus to tokens, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from treadle.model.config import (
    CorpusFormat,
    CorpusLayout,
    DataConfig,
    TokenizerConfig,
    TokenizerKind,
    UnknownPolicy,
)
from treadle.model.corpus_files import (
    CorpusFile,
    anywhere,
    at_blank,
    byte_lines,
    encoding_notices,
    line_blocks,
    text_blocks,
)
from treadle.model.errors import UnknownSymbolError
from treadle.model.records import RecordReader
from treadle.model.scratch import Folder
from treadle.model.token_array import Tokens, TokenWriter
from treadle.model.tokenizer import ByteTokenizer, Tokenizer, build_tokenizer

_RECORDS = 10_000
"""Items of JSON lines or CSV that are looked at together."""


@dataclass(frozen=True)
class FileTokens:
    """One file as tokens."""

    tokens: Tokens
    """The tokens, (n,)."""
    offsets: NDArray[np.int64] | None
    """Where each item starts, (items + 1,), none of them empty; None for the layout TEXT."""
    left_out: int = 0
    """Items that were left out: they were empty, or of nothing but unknown words."""
    missing: int = 0
    """Rows of JSON lines or CSV that were left out: they have no text."""
    notices: tuple[str, ...] = ()
    """Sentences about how the file was read."""

    @property
    def items(self) -> int:
        """How many items there are; 0 for the layout TEXT."""
        return 0 if self.offsets is None else self.offsets.size - 1


class Reader:
    """Reads files of one corpus.

    Args:
        tokenizer: How text becomes tokens.
        data: How files are read.
        layout: How they are cut.
    """

    def __init__(self, tokenizer: TokenizerConfig, data: DataConfig, layout: CorpusLayout) -> None:
        self._config = tokenizer
        self._data = data
        self._layout = layout
        by_character = tokenizer.kind in (TokenizerKind.CHARACTERS, TokenizerKind.BYTES)
        self._cut = anywhere if by_character and not tokenizer.lower_case else at_blank

    def build_tokenizer(self, files: list[CorpusFile]) -> Tokenizer:
        """Builds a tokenizer from the symbols of files.

        Raises:
            CorpusError, EncodingError, ConfigError: See `read_corpus`.
            OSError: A file cannot be read.
        """
        records_hold_lines = self._data.format is not CorpusFormat.PLAIN
        texts = chain.from_iterable(map(self._texts, files))
        return build_tokenizer(self._config, texts, self._layout, records_hold_lines)

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
            tokenizer: What makes the tokens.
            policy: What to do with unknown symbols; None: what the tokenizer does.
            folder: Where tokens are kept in files; None: in memory.

        Raises:
            UnknownSymbolError: A symbol is unknown, and the policy is ERROR.
            CorpusError, EncodingError: See `read_corpus`.
            OSError: The file cannot be read, or the folder not be written.
        """
        notices = self._notices(file)
        with TokenWriter(tokenizer.vocabulary_size, folder) as writer:
            if self._layout is CorpusLayout.LINES:
                return replace(self._read_items(file, tokenizer, policy, writer), notices=notices)
            for tokens in self._encoded_texts(file, tokenizer, policy):
                writer.write(tokens)
            return FileTokens(writer.done(), None, notices=notices)

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
        starts, left_out, size = [np.zeros(1, np.int64)], 0, 0
        records = RecordReader(self._data, self._text_policy(policy))
        if self._data.format is CorpusFormat.PLAIN:
            encoded = self._encoded_items(file, tokenizer, policy)
        else:
            encoded = self._encoded_records(records.items(file), file, tokenizer, policy)
        for tokens, offsets in encoded:
            ends = offsets[1:]
            # An item that ends where the one before ends is empty.
            filled = ends[np.diff(offsets) > 0]
            left_out += ends.size - filled.size
            starts.append(filled + size)
            size += tokens.size
            writer.write(tokens)
        return FileTokens(writer.done(), np.concatenate(starts), left_out, records.missing)

    def _text_policy(self, policy: UnknownPolicy | None = None) -> UnknownPolicy:
        """Returns what to do with bytes that are not text: the same as with unknown symbols."""
        return self._config.policy if policy is None else policy

    def _as_bytes(self, policy: UnknownPolicy | None) -> bool:
        """Returns whether a plain file is read byte by byte, whatever is in it.

        A tokenizer of bytes does so, unless it was said what to do with bytes that are not text.
        """
        chosen = self._config.unknown_policy if policy is None else policy
        return self._config.kind is TokenizerKind.BYTES and chosen is None

    @property
    def _encoding(self) -> str:
        """How plain files encode text; a tokenizer of bytes knows UTF-8 alone."""
        return "utf-8" if self._config.kind is TokenizerKind.BYTES else self._data.encoding

    def _texts(self, file: CorpusFile) -> Iterator[str]:
        """Yields a file's text for its symbols to be counted."""
        encoding, policy = self._data.encoding, self._text_policy()
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
        for text in text_blocks(file, self._encoding, self._text_policy(policy), self._cut):
            try:
                yield tokenizer.encode(text, policy)
            except UnknownSymbolError as fault:
                raise _in_file(fault, file, before) from None
            before += len(text)

    def _encoded_items(
        self, file: CorpusFile, tokenizer: Tokenizer, policy: UnknownPolicy | None
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        if isinstance(tokenizer, ByteTokenizer) and self._as_bytes(policy):
            yield from map(tokenizer.encode_byte_items, byte_lines(file))
            return
        before = 0
        for text in line_blocks(file, self._encoding, self._text_policy(policy)):
            try:
                yield tokenizer.encode_items(text, policy)
            except UnknownSymbolError as fault:
                raise _in_file(fault, file, before) from None
            before += len(text)

    def _encoded_records(
        self,
        items: Iterator[str],
        file: CorpusFile,
        tokenizer: Tokenizer,
        policy: UnknownPolicy | None,
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
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
        f"{file.title} has several lines, and events know no ends of lines: set data.layout to "
        "'lines' if a line is a sequence, or set tokenizer.kind to 'whitespace' if its end is a "
        "token",
    )


def _check_item(tokenizer: Tokenizer, text: str, policy: UnknownPolicy | None, where: str) -> None:
    """Raises what an item's symbols that are unknown deserve, and says where the item is."""
    try:
        tokenizer.encode(text, policy)
    except UnknownSymbolError as fault:
        raise UnknownSymbolError(f"{where}: {fault}", fault.symbol, fault.position) from None


def _batched(items: Iterator[str]) -> Iterator[list[str]]:
    while some := list(islice(items, _RECORDS)):
        yield some


def _in_file(fault: UnknownSymbolError, file: CorpusFile, before: int) -> UnknownSymbolError:
    """Returns an error about a block as one about its file, `before` characters further on."""
    position = before + fault.position
    message = str(fault).replace(f"at position {fault.position} ", f"at position {position} ", 1)
    where = "" if file.name == "corpus" else f"{file.title}: "
    return UnknownSymbolError(where + message, fault.symbol, position)
