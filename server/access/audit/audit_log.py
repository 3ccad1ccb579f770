"""`AuditLog` writes one line of JSON for each entry, in a thread of its own.

Nobody waits for the disk. Where it is full or hangs, entries are lost, and the server's log and the
next line of the file say how many. The refusals of each caller, and those of all clients without a
valid credential together, get a limited number of lines: they could otherwise push all others out
of the files.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime

from treadle.server.access.audit.audit_file import AuditFile
from treadle.server.config import SettingError

logger = logging.getLogger(__name__)

Entry = dict[str, object]
"""What a line contains."""

_WAITING = 10_000
"""Entries that may wait for the disk; more are lost."""

_AT_ONCE = 500
"""Entries that are written together."""

_REFUSED_AT_ONCE = 1000
_REFUSED_PER_S = 10
"""Refusals of one caller that are written at once, and per second after that."""

_MANY = 1000
"""Callers from which those without refusals for a while are forgotten."""


class _Allowance:
    """Counts the refusals of one caller, or of all unknown clients."""

    def __init__(self) -> None:
        self._allowed = float(_REFUSED_AT_ONCE)
        self._seen_s = time.monotonic()
        self.left_out = 0
        """Refusals that were not written since the last one that was."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost if this is forgotten."""
        self._fill()
        return not self.left_out and self._allowed >= _REFUSED_AT_ONCE

    def take(self) -> bool:
        """Returns whether one more refusal may be written."""
        self._fill()
        if self._allowed < 1:
            self.left_out += 1
            return False
        self._allowed -= 1
        return True

    def _fill(self) -> None:
        now_s = time.monotonic()
        more = (now_s - self._seen_s) * _REFUSED_PER_S
        self._seen_s = now_s
        self._allowed = min(_REFUSED_AT_ONCE, self._allowed + more)


class AuditLog:
    """A file of entries, or none.

    Args:
        path: The file; `-` is standard output, and empty for no audit log.
        most_bytes: Size from which another file is begun; 0: none is.
        files: How many earlier files are kept.

    Raises:
        SettingError: The file cannot be opened.
    """

    def __init__(self, path: str = "", most_bytes: int = 0, files: int = 1) -> None:
        self._path = path
        self._waiting: queue.Queue[Entry | None] = queue.Queue(_WAITING)
        self._lost = 0
        self._counting = threading.Lock()
        self._allowances: dict[str, _Allowance] = {}
        self._thread: threading.Thread | None = None
        if not path:
            return
        try:
            file = AuditFile(path, most_bytes, files)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            fault = f"names {path!r}, which cannot be written: {reason}"
            raise SettingError("audit_log", fault) from error
        self._thread = threading.Thread(
            target=self._serve, args=(file,), name="audit-log", daemon=True
        )
        self._thread.start()

    @property
    def is_on(self) -> bool:
        """Whether entries are written anywhere."""
        return self._thread is not None

    def write(self, entry: Entry, refused: str | None = None) -> None:
        """Has an entry written, with the time of now, and returns at once.

        Args:
            entry: The entry; its values are numbers, short texts, or lists or objects of them.
            refused: Whose refusal it is, which may be left out: the name of a caller, or an empty
                text for a client that is not known; None: it is no refusal.
        """
        if not self.is_on:
            return
        if refused is not None:
            allowance = self._allowance(refused)
            if not allowance.take():
                return
            if allowance.left_out:
                entry = entry | {"left_out": allowance.left_out}
                allowance.left_out = 0
        try:
            self._waiting.put_nowait({"time": _now()} | entry)
        except queue.Full:
            self._lose(1)

    def close(self, patience_s: float = 1.0) -> None:
        """Writes what waits, for a limited time.

        Args:
            patience_s: Seconds that this may take.
        """
        if self._thread is None:
            return
        try:
            self._waiting.put(None, timeout=patience_s)
        except queue.Full:
            return
        self._thread.join(patience_s)

    def _allowance(self, name: str) -> _Allowance:
        found = self._allowances.get(name)
        if found is None:
            if len(self._allowances) >= _MANY:
                busy = {name: each for name, each in self._allowances.items() if not each.is_idle}
                self._allowances = busy
            found = self._allowances[name] = _Allowance()
        return found

    def _lose(self, count: int) -> int:
        """Adds to the entries that were lost since the last one that was written."""
        with self._counting:
            self._lost += count
            return self._lost

    def _serve(self, file: AuditFile) -> None:
        failing = False
        while (entries := self._next()) is not None:
            lost = self._lose(0)
            gap = [{"time": _now(), "lost": lost}] if lost else []
            try:
                file.write(_lines([*gap, *entries]))
            except OSError as error:
                if not failing:
                    logger.error(
                        "the audit log %s cannot be written, and entries are lost until it can: %s",
                        self._path,
                        error,
                    )
                failing = True
                self._lose(len(entries))
                continue
            if lost:
                logger.error("%d entries of the audit log %s were lost", lost, self._path)
                self._lose(-lost)
            failing = False
        file.close()

    def _next(self) -> list[Entry] | None:
        """Waits for entries; returns those that wait, or None at the end."""
        entries = [self._waiting.get()]
        while len(entries) < _AT_ONCE and entries[-1] is not None:
            try:
                entries.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        if entries[-1] is None:
            if len(entries) > 1:
                self._waiting.put(None)  # there is space: this thread has just taken it
            else:
                return None
        return [entry for entry in entries if entry is not None]


def _now() -> str:
    """Returns the time as RFC 3339 has it, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _lines(entries: Iterable[Entry]) -> bytes:
    # ASCII alone: no text can end a line, or hide a part of it.
    lines = [json.dumps(entry, ensure_ascii=True, separators=(",", ":")) for entry in entries]
    return "".join(f"{line}\n" for line in lines).replace("\x7f", "\\u007f").encode("ascii")
