"""`Salvage` reads the rows of a SQLite file that SQLite refuses to read, directly from its pages.

SQLite reads a table from its root down, and fails where a page on the way is damaged. `Salvage`
reads every page by itself, so that a lost page costs only the rows on it. The values of a row show
which table it belongs to. The format is described in https://sqlite.org/fileformat2.html; this
module reads only the part that the server's tables need.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from treadle.server.storage.schema import ADDED, COLUMNS, TABLES

Value = None | int | float | str | bytes
Row = tuple[Value, ...]

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_TABLE_LEAF = 0x0D
_TABLE_INTERIOR = 0x05
_INDEX_LEAF = 0x0A
_INDEX_INTERIOR = 0x02
_WAL_MAGICS = {0x377F0682: "<", 0x377F0683: ">"}
"""The first bytes of a write-ahead log, and the byte order of its checksums."""
_SIZES = (4096, 1024, 2048, 8192, 16384, 32768, 65536, 512)
"""Page sizes in bytes, that of the server's databases first."""
_SAMPLE_BYTES = 2 << 20
_OLDEST_COLUMNS = len(COLUMNS) - len(ADDED)
"""The columns of a job in the first version of the tables."""


class Salvage:
    """The readable rows of one database and its write-ahead log, neither of which is changed.

    Args:
        path: The database; its log is read as far as SQLite would.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._data = _mapped(path)
        self._log = _Log(path.with_name(path.name + "-wal"))
        self._chains: set[int] = set()
        """Pages that continue a row of another page, whose bytes may look like rows."""
        self._size, self._usable = self._layout()

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yields the table and the values of each row that can be read, table by table.

        A row comes more than once where an old copy of its page exists; the newest comes first.
        """
        pages: dict[str, dict[int, None]] = {table: {} for table in TABLES}
        for page in self._pages_with_rows():
            for row in self._rows_of(page):
                if table := _table(row):
                    pages[table][page] = None
        for table, places in pages.items():
            for row in (row for page in places for row in self._rows_of(page)):
                if _table(row) == table:
                    yield table, _complete(row) if table == "jobs" else row

    def _pages_with_rows(self) -> Iterator[int]:
        """Yields the pages that may hold rows, those that SQLite would reach first."""
        self._chains.clear()
        reached = list(self._reached())
        yield from reached
        seen = {*reached, *self._free()}
        for page in range(1, self._count() + 1):
            if page not in seen and page not in self._chains:
                yield page

    def _layout(self) -> tuple[int, int]:
        """Returns the size of a page and its usable bytes: those under which most rows appear."""
        header = self._data[:_HEADER_BYTES]
        stated = 0
        reserved = 0
        if len(header) == _HEADER_BYTES:
            stated = int.from_bytes(header[16:18], "big")
            if stated == 1:
                stated = 65536
            reserved = header[20]
        sizes = dict.fromkeys([stated, *_SIZES] if stated in _SIZES else _SIZES)
        if self._log.page_size:  # its checksum is right
            sizes = {self._log.page_size: None}
        best = (4096, 4096)
        most = 0
        for size in sizes:
            for unused in dict.fromkeys((reserved, 0)):
                if size - unused < 480:
                    continue
                self._size = size
                self._usable = size - unused
                # The same bytes for every size: too large a page shows only its first rows.
                pages = range(1, min(self._count(), _SAMPLE_BYTES // size) + 1)
                found = sum(bool(_table(row)) for page in pages for row in self._rows_of(page))
                if found > most:
                    best = (size, size - unused)
                    most = found
        return best

    def _count(self) -> int:
        """Returns how many pages there are."""
        return max(-(-len(self._data) // self._size), self._log.last)

    def _page(self, number: int) -> bytes:
        """Returns a page after its last change; less than a page beyond the end of the file."""
        if self._log.page_size == self._size and number in self._log.pages:
            return self._log.page(number)
        return self._data[(number - 1) * self._size : number * self._size]

    def _reached(self) -> Iterator[int]:
        """Yields the pages that SQLite would reach, from the list of the tables down."""
        waiting = [1]
        seen = set[int]()
        while waiting:
            number = waiting.pop()
            if number in seen or not 1 <= number <= self._count():
                continue
            seen.add(number)
            page = self._page(number)
            if _kind(page, number) is None:
                continue
            yield number
            waiting += self._children(page, number)
            if number == 1:
                roots = (row[3] for row in self._rows_of(1) if len(row) == 5)
                waiting += [root for root in roots if isinstance(root, int)]

    def _children(self, page: bytes, number: int) -> list[int]:
        if _kind(page, number) not in (_TABLE_INTERIOR, _INDEX_INTERIOR):
            return []
        begin = _begin(number)
        places = [begin + 8, *(place for place in _cells(page, number) if place + 4 <= len(page))]
        return [int.from_bytes(page[place : place + 4], "big") for place in places]

    def _free(self) -> Iterator[int]:
        """Yields the free pages, as far as their list can be read."""
        trunk = int.from_bytes(self._page(1)[32:36], "big")
        seen = set[int]()
        while 1 < trunk <= self._count() and trunk not in seen:
            seen.add(trunk)
            page = self._page(trunk)
            count = min(int.from_bytes(page[4:8], "big"), self._usable // 4 - 2)
            yield trunk
            for place in range(8, min(8 + 4 * count, len(page) - 3), 4):
                yield int.from_bytes(page[place : place + 4], "big")
            trunk = int.from_bytes(page[:4], "big")

    def _rows_of(self, number: int) -> Iterator[Row]:
        """Yields the rows on a page that can be read."""
        page = self._page(number)
        kind = _kind(page, number)
        if kind is None or kind == _TABLE_INTERIOR:
            return
        for place in _cells(page, number):
            with suppress(ValueError, LookupError, struct.error):
                yield _record(self._payload(page, place, kind))

    def _payload(self, page: bytes, place: int, kind: int) -> bytes:
        """Returns the bytes of a row, those on other pages included.

        Raises:
            ValueError, IndexError: It cannot be.
        """
        if kind == _INDEX_INTERIOR:
            place += 4
        size, place = _varint(page, place)
        if kind == _TABLE_LEAF:
            _, place = _varint(page, place)  # the number of the row
        local = self._local(size, kind)
        payload = page[place : place + local]
        if len(payload) < local or size > self._count() * self._size:
            raise ValueError("the row does not fit on its page")
        if local == size:
            return payload
        parts = [payload]
        chain = list[int]()
        following = page[place + local : place + local + 4]
        left = size - local
        while left > 0:
            number = int.from_bytes(following, "big")
            more = self._page(number) if 1 < number <= self._count() else b""
            if len(more) < self._usable or number in chain:
                raise ValueError("the rest of the row is missing")
            chain.append(number)
            parts.append(more[4 : min(self._usable, 4 + left)])
            left -= self._usable - 4
            following = more[:4]
        if any(following):
            raise ValueError("the row continues after its end")
        self._chains.update(chain)
        return b"".join(parts)

    def _local(self, size: int, kind: int) -> int:
        """Returns how many bytes of a row are on the page itself."""
        usable = self._usable
        most = usable - 35 if kind == _TABLE_LEAF else (usable - 12) * 64 // 255 - 23
        if size <= most:
            return size
        least = (usable - 12) * 32 // 255 - 23
        kept = least + (size - least) % (usable - 4)
        return kept if kept <= most else least


class _Log:
    """The write-ahead log of a database: the changes that are not in its file yet.

    Args:
        path: Its file, which need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._data = _mapped(path) if path.is_file() else b""
        self.page_size = 0
        """The size of its pages; 0 where there are none."""
        self.pages: dict[int, int] = {}
        """Where the newest committed copy of each page begins."""
        self.last = 0
        """The greatest number of a page in it."""
        header = self._data[:32]
        if len(header) < 32 or int.from_bytes(header[:4], "big") not in _WAL_MAGICS:
            return
        order = _WAL_MAGICS[int.from_bytes(header[:4], "big")]
        size = int.from_bytes(header[8:12], "big")
        sums = _checksum(order, header[:24], (0, 0))
        if size in _SIZES and header[24:32] == struct.pack(">II", *sums):
            self.page_size = size
            self._read(order, header[16:24], sums)

    def page(self, number: int) -> bytes:
        """Returns a page."""
        return self._data[self.pages[number] : self.pages[number] + self.page_size]

    def _read(self, order: str, salt: bytes, sums: tuple[int, int]) -> None:
        """Takes the pages of all transactions that were committed before the first damaged one."""
        pending: dict[int, int] = {}
        for begin in range(32, len(self._data) - 23 - self.page_size, 24 + self.page_size):
            frame = self._data[begin : begin + 24]
            if frame[8:16] != salt:
                return
            body = self._data[begin + 24 : begin + 24 + self.page_size]
            sums = _checksum(order, frame[:8] + body, sums)
            if frame[16:24] != struct.pack(">II", *sums):
                return
            pending[int.from_bytes(frame[:4], "big")] = begin + 24
            if any(frame[4:8]):  # the last frame of a transaction
                self.pages |= pending
                self.last = max(self.last, *pending)
                pending.clear()


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for one, two in struct.iter_unpack(f"{order}II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _begin(number: int) -> int:
    """Returns where the tree's part of a page begins: the file's own header is on the first."""
    return _HEADER_BYTES if number == 1 else 0


def _kind(page: bytes, number: int) -> int | None:
    """Returns the kind of a page of a tree; None where it is not such a page."""
    begin = _begin(number)
    if len(page) < begin + 12:
        return None
    kind = page[begin]
    kinds = (_TABLE_LEAF, _TABLE_INTERIOR, _INDEX_LEAF, _INDEX_INTERIOR)
    return kind if kind in kinds else None


def _cells(page: bytes, number: int) -> Iterator[int]:
    """Yields where the rows of a page begin, as far as that can be."""
    begin = _begin(number)
    interior = page[begin] in (_TABLE_INTERIOR, _INDEX_INTERIOR)
    first = begin + (12 if interior else 8)
    count = int.from_bytes(page[begin + 3 : begin + 5], "big")
    for place in range(first, min(first + 2 * count, len(page) - 1), 2):
        cell = int.from_bytes(page[place : place + 2], "big")
        if first <= cell < len(page):
            yield cell


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Returns a number of one to nine bytes, and where it ends."""
    value = 0
    for step in range(8):
        byte = data[place + step]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + step + 1
    return value << 8 | data[place + 8], place + 9


def _record(payload: bytes) -> Row:
    """Returns the values of a row.

    Raises:
        ValueError, LookupError, struct.error: The bytes are not a row.
    """
    header, place = _varint(payload, 0)
    kinds = []
    while place < header:
        kind, place = _varint(payload, place)
        kinds.append(kind)
    if place != header or not kinds:
        raise ValueError("the row's list of types is not whole")
    values = list[Value]()
    for kind in kinds:
        width = _WIDTHS[kind] if kind < 12 else (kind - 12) // 2
        data = payload[place : place + width]
        place += width
        values.append(_value(kind, data))
    if place != len(payload):
        raise ValueError("the row's values do not fill it")
    return tuple(values)


# Kinds 10 and 11 are not in any file.
_WIDTHS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8, 8: 0, 9: 0}


def _value(kind: int, data: bytes) -> Value:
    if kind == 0:
        return None
    if kind < 7:
        return int.from_bytes(data, "big", signed=True)
    if kind == 7:
        return float(struct.unpack(">d", data)[0])
    if kind < 10:
        return kind - 8
    if kind % 2 == 0:
        return bytes(data)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return bytes(data)


def _complete(row: Row) -> Row:
    """Returns a job with the columns that an older version of the tables did not have."""
    added = [*ADDED.values()]
    return (*row, *added[len(row) - _OLDEST_COLUMNS :])


def _table(row: Row) -> str:
    """Returns the table of a row by its values; empty for any other row, such as an index's."""
    if _OLDEST_COLUMNS <= len(row) <= len(COLUMNS):
        return "jobs"
    if len(row) == 6:
        return "files"
    if len(row) == 5 and not isinstance(row[1], str):
        return "version_owners"  # SQLite's own list of tables has a text there
    if len(row) == 4 and not isinstance(row[2], str):  # indexes of jobs have a text there
        return "corpus_owners" if isinstance(row[1], str) else "events"
    if len(row) == 3 and not isinstance(row[0], int | float):
        return "aliases" if isinstance(row[1], str) else "corpora"
    return ""
