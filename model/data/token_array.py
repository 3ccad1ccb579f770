"""`TokenWriter` collects tokens into an array in memory or in a mapped file.

`JoinedTokens` reads several arrays as one. Both keep large corpora out of memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import Any, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from treadle.model.scratch_files import Folder, scratch_folder
from treadle.model.tokenizers.token_ids import check_tokens

TokenArray = NDArray[np.integer[Any]]
"""Tokens in the smallest type that holds the vocabulary, (n,)."""

BLOCK = 1 << 22
"""Tokens that are processed together."""


def token_type(vocabulary_size: int) -> type[np.integer[Any]]:
    """Returns the smallest type that holds every token."""
    if vocabulary_size <= 1 << 8:
        return np.uint8
    return np.uint16 if vocabulary_size <= 1 << 16 else np.int32


class TokenWriter:
    """Collects tokens, in memory or in an unnamed temporary file.

    The file is deleted with its last map.

    Use it in a `with` block.

    Args:
        vocabulary_size: Tokens in the vocabulary, which determines the array's type.
        folder: The folder of the file; None: tokens are held in memory.
    """

    def __init__(self, vocabulary_size: int, folder: Folder | None) -> None:
        self._type = token_type(vocabulary_size)
        self._vocabulary_size = vocabulary_size
        self._parts: list[TokenArray] = []
        self._scratch = None if folder is None else scratch_folder(folder)
        self._file = None if self._scratch is None else self._scratch.new_file()
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()  # a map of it stays valid

    def write(self, tokens: TokenArray) -> None:
        """Adds tokens, (n,) of any integer type.

        Raises:
            TokenError: A token is not in the vocabulary.
            OSError: The disk failed or is full.
        """
        check_tokens(tokens, self._vocabulary_size)
        part = tokens.astype(self._type)
        self._size += part.size
        if self._file is None or self._scratch is None:
            self._parts.append(part)
        else:
            self._scratch.require(part.nbytes)
            self._file.write(part.data)

    def finish(self) -> TokenArray:
        """Returns all tokens, (n,), mapped if they are in a file."""
        if self._file is None:
            parts = self._parts
            self._parts = []
            return np.concatenate([np.zeros(0, self._type), *parts])
        if not self._size:
            return np.zeros(0, self._type)
        self._file.flush()
        tokens: TokenArray = np.memmap(self._file, self._type, "r", shape=(self._size,))
        return tokens


class JoinedTokens:
    """A concatenation of token arrays without copies; an array may occur several times.

    It is indexed like an array of one dimension: by a number, a slice without a step, or an array
    of numbers.

    Args:
        parts: The arrays, one or more, all of the same type.
    """

    def __init__(self, parts: Sequence[TokenArray]) -> None:
        self._arrays: list[TokenArray] = []
        """Every distinct array."""
        numbers: dict[int, int] = {}
        sources: list[int] = []
        sizes: list[int] = []
        for part in parts:
            if id(part) not in numbers:
                numbers[id(part)] = len(self._arrays)
                self._arrays.append(part)
            sources.append(numbers[id(part)])
            sizes.append(part.size)
        self._sources = np.array(sources, np.int64)
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._starts = self._ends - sizes
        self.dtype = parts[0].dtype
        self.size = int(self._ends[-1])
        self.shape = (self.size,)

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> np.integer[Any]: ...

    @overload
    def __getitem__(self, index: slice | NDArray[np.int64]) -> TokenArray: ...

    def __getitem__(self, index: int | slice | NDArray[np.int64]) -> np.integer[Any] | TokenArray:
        if isinstance(index, slice):
            start, stop, _ = index.indices(self.size)
            return self._slice(start, stop)
        if isinstance(index, np.ndarray):
            return self._gather(index)
        return self._slice(index, index + 1)[0]  # type: ignore[no-any-return]

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> TokenArray:
        whole = self._slice(0, self.size)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    @property
    def memory_bytes(self) -> int:
        """The memory of its arrays, in bytes, without mapped files."""
        return sum(map(memory_bytes, self._arrays))

    def release_pages(self) -> None:
        """Releases the memory of mapped files; see `release_pages`."""
        for array in self._arrays:
            release_pages(array)

    def _slice(self, start: int, stop: int) -> TokenArray:
        first = int(np.searchsorted(self._ends, start, side="right"))
        pieces = [np.zeros(0, self.dtype)]
        for number in range(first, len(self._ends)):
            before = int(self._starts[number])
            if before >= stop:
                break
            array = self._arrays[self._sources[number]]
            pieces.append(array[max(start - before, 0) : stop - before])
        return np.concatenate(pieces)

    def _gather(self, places: NDArray[np.int64]) -> TokenArray:
        numbers = np.searchsorted(self._ends, places, side="right")
        inside = places - self._starts[numbers]
        sources = self._sources[numbers]
        out = np.empty(places.shape, self.dtype)
        for source in np.unique(sources):
            here = sources == source
            out[here] = self._arrays[source][inside[here]]
        return out


def joined_view(parts: Sequence[TokenArray]) -> TokenArray:
    """Returns the concatenation of parts without copying them; see `JoinedTokens`."""
    return cast(TokenArray, JoinedTokens(parts))  # used like a read-only array


def join(parts: Sequence[TokenArray], vocabulary_size: int, folder: Folder | None) -> TokenArray:
    """Returns a concatenated copy of parts; a single part is not copied.

    Args:
        parts: Token arrays.
        vocabulary_size: Tokens in the vocabulary.
        folder: The folder of the file that holds the array; None: in memory.
    """
    if len(parts) == 1:
        return parts[0]
    with TokenWriter(vocabulary_size, folder) as writer:
        for part in parts:
            for block in blocks(part):
                writer.write(block)
        return writer.finish()


def blocks(tokens: TokenArray) -> Iterator[TokenArray]:
    """Yields a token array in blocks, and releases the memory of those already processed."""
    for start in range(0, tokens.size, BLOCK):
        yield tokens[start : start + BLOCK]
        release_pages(tokens)


def memory_bytes(tokens: TokenArray) -> int:
    """Returns the memory of a token array, in bytes; 0 for a mapped file."""
    if isinstance(tokens, JoinedTokens):
        return tokens.memory_bytes
    return tokens.nbytes if _map_of(tokens) is None else 0


def release_pages(tokens: TokenArray) -> None:
    """Releases the memory of a mapped file; its pages are read again when they are used."""
    if isinstance(tokens, JoinedTokens):
        tokens.release_pages()
        return
    found = _map_of(tokens)
    if found is not None and hasattr(mmap, "MADV_DONTNEED"):
        found.madvise(mmap.MADV_DONTNEED)


def _map_of(tokens: TokenArray) -> mmap.mmap | None:
    """Returns the mapped file that holds a token array; None if it is in memory."""
    base: object = tokens
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
