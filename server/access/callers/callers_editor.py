"""`CallersEditor` changes a callers file: new callers and tokens, revoked and replaced ones.

Comments and layout stay. The file is locked while it is changed, and replaced in one step, so that
commands that run at once lose nothing, and a server never reads half a file. Each result is read
again before it is stored, and must say what was meant and nothing else.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from treadle.server.access.callers.access_token import AccessToken, new_access_token
from treadle.server.access.callers.callers_file import (
    MAX_FILE_BYTES,
    CallerRecord,
    CallersFileError,
    TokenRecord,
    parse_callers,
)
from treadle.server.access.trusted_file import TrustedFile, TrustedFileError

_LOCK_S = 30.0
"""Seconds for which a command waits for others that change the file."""

_FIRST_LINE = (
    "# Who may call this server. `treadle-server token` changes this file; see docs/callers.md."
)


class EditError(Exception):
    """The file cannot be changed as asked. The message is one sentence."""


@dataclass(frozen=True)
class NewCaller:
    """What `[callers.NAME]` of a new caller has; what is empty is left out."""

    role: str = ""
    """The name of its role."""
    models: Sequence[str] = ()
    """Patterns of models to read and write."""
    read_models: Sequence[str] = ()
    """Patterns of models to read."""
    write_models: Sequence[str] = ()
    """Patterns of models to write."""
    quotas: Mapping[str, int | str] | None = None
    """Its quotas by name."""

    def values(self) -> dict[str, Any]:
        """Returns the values by key, without those that are empty."""
        values = {
            "role": self.role,
            "models": list(self.models),
            "read_models": list(self.read_models),
            "write_models": list(self.write_models),
            "quotas": dict(self.quotas or {}),
        }
        return {key: value for key, value in values.items() if value}


class CallersEditor:
    """A callers file while it is changed; see `edit_callers`.

    Args:
        path: The file, for messages.
        text: Its content.

    Raises:
        CallersFileError: It cannot be used as it is.
    """

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._document = tomlkit.parse(text)
        self.before = parse_callers(text.encode(), path)
        """What the file says before the changes."""
        self._meant = dict(self.before.callers)
        self._now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)

    def create(
        self, name: str, settings: NewCaller, lifetime: datetime.timedelta | None
    ) -> AccessToken:
        """Adds a token, and its caller if that is new.

        Args:
            name: The name of the caller.
            settings: What a new caller has. For a known one it may be empty, or say the same.
            lifetime: How long the token is valid; None: without an end.

        Returns:
            The token.

        Raises:
            CallersFileError: A value cannot be used.
            EditError: The caller is known, and the file says something else about it.
        """
        known = self.before.callers.get(name)
        if known is None:
            record = self._new_caller(name, settings)
        else:
            self._check_same(name, known, settings)
            record = known
        return self._add_token(name, record, lifetime)

    def revoke(self, name_or_id: str) -> list[TokenRecord]:
        """Removes a token, or every token of a caller.

        Args:
            name_or_id: The name of a caller, or the id of a token.

        Returns:
            The tokens that were removed.

        Raises:
            EditError: There is no such caller or token, or the caller has none.
        """
        name, ids = self._find(name_or_id)
        record = self._meant[name]
        removed = [token for token in record.tokens if token.id in ids]
        kept = tuple(token for token in record.tokens if token.id not in ids)
        self._meant[name] = replace(record, tokens=kept)
        tokens = self._table(name)["tokens"]
        for place in reversed(range(len(tokens))):
            if tokens[place]["id"] in ids:
                del tokens[place]
        if not kept:
            del self._table(name)["tokens"]
        return removed

    def rotate(
        self,
        name_or_id: str,
        overlap: datetime.timedelta,
        lifetime: datetime.timedelta | None,
        keep_lifetime: bool,
    ) -> AccessToken:
        """Adds a token for a caller, and has its tokens so far expire.

        Args:
            name_or_id: The name of a caller, or the id of the one token that is replaced.
            overlap: How long the old tokens stay valid at most.
            lifetime: How long the new token is valid; None: without an end.
            keep_lifetime: Whether it is as long as that of the newest old token instead.

        Returns:
            The new token.

        Raises:
            EditError: There is no such caller or token, or the caller has none.
        """
        name, ids = self._find(name_or_id)
        end = self._now + overlap
        record = self._meant[name]
        old = [token for token in record.tokens if token.id in ids]
        if keep_lifetime:
            lifetime = _lifetime(old)
        tokens = self._table(name)["tokens"]
        for token in tokens:
            expires = token.get("expires")
            if token["id"] in ids and (expires is None or expires > end):
                token["expires"] = end
        changed = tuple(
            replace(token, expires=end)
            if token.id in ids and (token.expires is None or token.expires > end)
            else token
            for token in record.tokens
        )
        return self._add_token(name, replace(record, tokens=changed), lifetime)

    def finish(self) -> bytes:
        """Returns the new content.

        Raises:
            CallersFileError: It would not be a callers file.
            EditError: It would say something that was not meant.
        """
        data = tomlkit.dumps(self._document).encode()
        after = parse_callers(data, self._path)
        if after != replace(self.before, callers=self._meant):
            raise EditError(
                f"{str(self._path)!r} is written in a way that this command cannot change: write "
                "each caller as a table [callers.NAME]"
            )
        return data

    def _new_caller(self, name: str, settings: NewCaller) -> CallerRecord:
        values = settings.values()
        # With the defaults of the file, so that its quotas are those of the caller.
        trial = {"callers": {name: values}}
        defaults = self._document.get("defaults")
        if defaults is not None:
            trial["defaults"] = defaults.unwrap()
        record = parse_callers(tomlkit.dumps(trial).encode(), self._path).callers[name]
        table = tomlkit.table()
        for key, value in values.items():
            table.add(key, _inline(value) if isinstance(value, dict) else value)
        callers = self._document.get("callers")
        if callers is None:
            self._document["callers"] = tomlkit.table(is_super_table=True)
            callers = self._document["callers"]
        table.add(tomlkit.nl())
        callers[name] = table
        return record

    def _check_same(self, name: str, known: CallerRecord, settings: NewCaller) -> None:
        """Checks that settings for a caller that is known say what the file says."""
        table = self._table(name)
        for key, value in settings.values().items():
            found = table.get(key)
            found = found.unwrap() if hasattr(found, "unwrap") else found
            if found != value:
                role = known.caller.role.title
                raise EditError(
                    f"there is a caller {name!r} already, with the role {role}: leave out "
                    f"--{key.replace('_', '-').replace('quotas', 'quota')} to give it one more "
                    f"token, or edit [callers.{name}] in {str(self._path)!r}"
                )

    def _add_token(
        self, name: str, record: CallerRecord, lifetime: datetime.timedelta | None
    ) -> AccessToken:
        token = new_access_token()
        expires = None
        if lifetime is not None:
            try:
                expires = self._now + lifetime
            except OverflowError:
                raise EditError("the token would expire after the year 9999") from None
        values: dict[str, Any] = {"id": token.id, "sha256": token.sha256.hex()}
        values["created"] = self._now
        if expires is not None:
            values["expires"] = expires
        table = self._table(name)
        is_inline = isinstance(table, InlineTable)
        if "tokens" not in table:
            table["tokens"] = tomlkit.array() if is_inline else tomlkit.aot()
        tokens = table["tokens"]
        if isinstance(tokens, list) and type(tokens).__name__ == "Array":
            tokens.append(_inline(values))
        else:
            entry = tomlkit.table()
            entry.update(values)
            entry.add(tomlkit.nl())
            tokens.append(entry)
        added = TokenRecord(token.id, token.sha256, self._now, expires)
        self._meant[name] = replace(record, tokens=(*record.tokens, added))
        return token

    def _find(self, name_or_id: str) -> tuple[str, set[str]]:
        """Returns the caller that is meant, and the ids of the tokens that are meant."""
        callers = self.before.callers
        by_id = [
            name
            for name, record in callers.items()
            if any(token.id == name_or_id for token in record.tokens)
        ]
        if name_or_id in callers:
            if by_id:
                raise EditError(f"{name_or_id!r} is a caller and a token; rename the caller")
            ids = {token.id for token in callers[name_or_id].tokens}
            if not ids:
                raise EditError(f"the caller {name_or_id!r} has no token")
            return name_or_id, ids
        if not by_id:
            # Not repeated: it may be a token instead of its id.
            raise EditError(
                f"{str(self._path)!r} has no such caller and no such token id; see "
                "`treadle-server token list`"
            )
        return by_id[0], {name_or_id}

    def _table(self, name: str) -> Any:
        return self._document["callers"][name]


@contextmanager
def edit_callers(path: Path, create: bool = False) -> Iterator[CallersEditor]:
    """Locks a callers file, gives what changes it, and stores the result if nothing fails.

    Args:
        path: The file; the target of a symbolic link is replaced, not the link.
        create: Whether to make the file if it is missing.

    Yields:
        What changes it.

    Raises:
        CallersFileError: It cannot be used as it is, or as it would be.
        EditError: It cannot be locked or written, or changed as asked.
    """
    path = Path(os.path.realpath(path))
    with _locked(path):
        file = TrustedFile(path, MAX_FILE_BYTES)
        try:
            data = file.read()
        except TrustedFileError as error:
            if not (create and isinstance(error.__cause__, FileNotFoundError)):
                raise CallersFileError(path, str(error)) from error
            data = f"{_FIRST_LINE}\n".encode()
        parse_callers(data, path)
        try:
            editor = CallersEditor(path, data.decode())
            yield editor
            new = editor.finish()
        except TOMLKitError as error:
            raise EditError(f"{str(path)!r} cannot be changed: {error}") from error
        try:
            _replace(path, new)
        except OSError as error:
            reason = error.strerror or str(error)
            raise EditError(f"{str(path)!r} cannot be written: {reason}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Locks the folder of a file, since the file itself is replaced, and its lock with it."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EditError(
            f"the folder of {str(path)!r} cannot be opened: {error.strerror}"
        ) from error
    try:
        end_s = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end_s:
                    text = f"another command has held it for {_LOCK_S:g} seconds; try again"
                    raise EditError(f"{str(path)!r} is locked: {text}") from None
                time.sleep(0.02)
            except OSError as error:
                raise EditError(f"{str(path)!r} cannot be locked: {error.strerror}") from error
        yield
    finally:
        os.close(folder)


def _replace(path: Path, data: bytes) -> None:
    """Replaces a file in one step; its owner and group stay, and a new one is its owner's alone.

    `treadle.model.atomic_files` does the same for model files. It imports NumPy, which takes longer
    than the whole command.
    """
    try:
        before = os.stat(path)
    except FileNotFoundError:
        before = None
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as file:
            if before is not None:
                # Another user, as root, changes the file of the user of the server.
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    with suppress(PermissionError):
                        os.fchown(handle, before.st_uid, before.st_gid)
                os.fchmod(handle, stat.S_IMODE(before.st_mode) & 0o644)
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _lifetime(tokens: Sequence[TokenRecord]) -> datetime.timedelta | None:
    """Returns how long the newest of some tokens is valid; None: without an end."""
    newest = tokens[-1]
    if newest.expires is None or newest.created is None:
        return None
    return max(newest.expires - newest.created, datetime.timedelta(0))


def _inline(values: Mapping[str, Any]) -> InlineTable:
    table = tomlkit.inline_table()
    table.update(values)
    return table
