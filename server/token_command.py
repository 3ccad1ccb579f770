"""`main` is `treadle-server token`: it makes, lists, revokes and replaces the tokens of callers.

A secret is printed once, alone on standard output, and stored nowhere. Everything else is for
people and goes to standard error. The command imports neither NumPy nor gRPC.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from treadle.server.access.caller import Role
from treadle.server.access.callers.access_token import (
    ID,
    AccessToken,
    read_access_token,
    without_secrets,
)
from treadle.server.access.callers.callers_editor import EditError, NewCaller, edit_callers
from treadle.server.access.callers.callers_file import (
    MAX_FILE_BYTES,
    CallerRecord,
    CallersFile,
    CallersFileError,
    TokenRecord,
    name_fault,
    parse_callers,
)
from treadle.server.access.rights import QUOTAS, ROLES, UNLIMITED, pattern_fault, quota_fault
from treadle.server.access.trusted_file import TrustedFile, TrustedFileError

PROG = "treadle-server token"
VARIABLE = "TREADLE_CALLERS_FILE"

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_NEVER = "never"
_MAX_DAYS = 36_500
_DURATIONS = "a number with s, m, h, d or w, such as 12h or 90d"


class _Parser(argparse.ArgumentParser):
    """A parser that accepts no abbreviations and reports an error in one sentence."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        self.exit(2, f"{self.prog}: {without_secrets(message)} (see `{self.prog} --help`)\n")


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
        arguments: The words after `treadle-server token`.

    Returns:
        The exit code: 0, or 1 where the file cannot be used or changed as asked.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    text = options.callers_file
    if text is None:
        text = os.environ.get(VARIABLE)
    if not text or not text.strip():
        parser.error(f"--callers-file or {VARIABLE} must name the callers file")
    options.callers_file = Path(text)
    try:
        result: int = options.run(options)
        return result
    except (CallersFileError, EditError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command."""
    parser = _Parser(
        prog=PROG,
        description="Make, list, revoke and replace the tokens of those who may call a server. A "
        "running server takes a change over within seconds.",
    )
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", title="commands", parser_class=_Parser
    )

    create = commands.add_parser(
        "create",
        help="make a token, and its caller if that is new",
        description="Make a token, and its caller if that is new. The token is printed once, alone "
        "on standard output; the file has its hash only.",
    )
    create.add_argument("name", metavar="NAME", type=_name, help="the name of the caller")
    create.add_argument(
        "--role",
        choices=ROLES,
        help="what a new caller may do; each role includes those before it",
    )
    create.add_argument(
        "--models",
        metavar="PATTERNS",
        type=_patterns,
        action="extend",
        default=[],
        help="models that a new caller may read and, as a trainer, write: names or patterns such "
        "as 'team-a-*', separated by commas; '*' is every model",
    )
    create.add_argument(
        "--read-models",
        metavar="PATTERNS",
        type=_patterns,
        action="extend",
        default=[],
        help="models that it may read in addition",
    )
    create.add_argument(
        "--write-models",
        metavar="PATTERNS",
        type=_patterns,
        action="extend",
        default=[],
        help="models that it may read and write in addition",
    )
    create.add_argument(
        "--quota",
        metavar="NAME=N",
        type=_quota,
        action="append",
        default=[],
        help=f"a quota of a new caller, a number or {UNLIMITED}; may be repeated; NAME is one of "
        f"{', '.join(QUOTAS)}",
    )
    _add_expires(create, "default: never")
    _add_file(create)
    create.set_defaults(run=_create)

    list_ = commands.add_parser(
        "list", help="list callers and tokens", description="List callers and tokens; no secrets."
    )
    list_.add_argument("--json", action="store_true", help="print JSON")
    _add_file(list_)
    list_.set_defaults(run=_list)

    revoke = commands.add_parser(
        "revoke",
        help="remove a token, or all tokens of a caller",
        description="Remove a token, or all tokens of a caller. Its running calls end as well.",
    )
    revoke.add_argument("target", metavar="NAME|ID", type=_target, help="a caller, or a token's id")
    _add_file(revoke)
    revoke.set_defaults(run=_revoke)

    rotate = commands.add_parser(
        "rotate",
        help="make a new token, and have the old ones expire",
        description="Make a new token for a caller, and have its tokens so far expire after a "
        "while. The new token is printed once, alone on standard output.",
    )
    rotate.add_argument(
        "target", metavar="NAME|ID", type=_target, help="a caller, or the id of one token"
    )
    rotate.add_argument(
        "--overlap",
        metavar="TIME",
        type=_duration,
        default=datetime.timedelta(hours=24),
        help="how long the old tokens stay valid: 0s, or as for --expires (default: 24h)",
    )
    _add_expires(rotate, "default: as long as the newest old token was valid in total")
    _add_file(rotate)
    rotate.set_defaults(run=_rotate)
    return parser


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--callers-file", metavar="FILE", help=f"the callers file [{VARIABLE}, default: none]"
    )


def _add_expires(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--expires",
        metavar="TIME",
        type=_expires,
        help=f"how long the token is valid: {_DURATIONS}, or {_NEVER} ({default})",
    )


def _create(options: argparse.Namespace) -> int:
    settings = NewCaller(
        options.role or "",
        options.models,
        options.read_models,
        options.write_models,
        dict(options.quota),
    )
    path = options.callers_file
    with edit_callers(path, create=True) as editor:
        if options.name not in editor.before.callers:
            missing = f"{str(path)!r} has no caller {options.name!r}, and to make one it needs"
            if not options.role:
                raise EditError(f"{missing} --role, one of {', '.join(ROLES)}")
            patterns = [*options.models, *options.read_models, *options.write_models]
            if not patterns and options.role != Role.ADMIN.title:
                raise EditError(f"{missing} --models, such as 'team-a-*', or '*' for every model")
        token = editor.create(options.name, settings, _lifetime(options.expires))
    return _print_secret(path, options.name, token)


def _rotate(options: argparse.Namespace) -> int:
    path = options.callers_file
    with edit_callers(path) as editor:
        token = editor.rotate(
            options.target, options.overlap, _lifetime(options.expires), options.expires is None
        )
    file = _read(path)
    name = next(
        name
        for name, record in file.callers.items()
        if any(known.id == token.id for known in record.tokens)
    )
    return _print_secret(path, name, token)


def _print_secret(path: Path, name: str, token: AccessToken) -> int:
    """Prints a token on standard output, and what it is for on standard error."""
    try:
        print(token.text, flush=True)
    except OSError as error:
        print(
            f"{PROG}: the token could not be printed ({error.strerror}): revoke it with "
            f"`{PROG} revoke {token.id}` and make another",
            file=sys.stderr,
        )
        # Python would write the rest when it ends, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    record = _read(path).callers.get(name)
    known = (
        next((known for known in record.tokens if known.id == token.id), None) if record else None
    )
    if record is not None and known is not None:
        end = f"until {_shown(known.expires)}" if known.expires else "until it is revoked"
        print(
            f"Token {token.id} of {name} ({_summary(record)}) is valid {end}. It is shown only "
            f"now; {str(path)!r} has its hash.",
            file=sys.stderr,
        )
    return 0


def _revoke(options: argparse.Namespace) -> int:
    path = options.callers_file
    with edit_callers(path) as editor:
        removed = editor.revoke(options.target)
        before = editor.before
    for name, record in before.callers.items():
        for token in record.tokens:
            if token in removed:
                print(f"Token {token.id} of {name} is revoked.", file=sys.stderr)
        if record.certificates and name == options.target:
            print(
                f"The client certificates of {name} are still accepted: remove `certificates` of "
                f"[callers.{name}] in {str(path)!r} to refuse them.",
                file=sys.stderr,
            )
    return 0


def _list(options: argparse.Namespace) -> int:
    file = _read(options.callers_file)
    if options.json:
        print(json.dumps(_as_json(file), indent=2))
        return 0
    now = datetime.datetime.now(datetime.UTC)
    rows = [("CALLER", "ROLE", "MODELS", "CREDENTIAL", "CREATED", "EXPIRES")]
    for name, record in file.callers.items():
        who = (name, record.caller.role.title, _models(record))
        rows += [
            (*who, token.id, _shown(token.created), _expiry(token, now)) for token in record.tokens
        ]
        rows += [(*who, certificate, "", "") for certificate in record.certificates]
        if not record.tokens and not record.certificates:
            rows.append((*who, "none", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def _as_json(file: CallersFile) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "callers": [
            {
                "name": name,
                "role": record.caller.role.title,
                "read_models": list(record.caller.read_models),
                "write_models": list(record.caller.write_models),
                "quotas": asdict(record.caller.quotas),
                "certificates": list(record.certificates),
                "tokens": [
                    {
                        "id": token.id,
                        "created": token.created.isoformat() if token.created else None,
                        "expires": token.expires.isoformat() if token.expires else None,
                        "expired": token.is_expired(now),
                    }
                    for token in record.tokens
                ],
            }
            for name, record in file.callers.items()
        ]
    }


def _read(path: Path) -> CallersFile:
    try:
        return parse_callers(TrustedFile(path, MAX_FILE_BYTES).read(), path)
    except TrustedFileError as error:
        raise CallersFileError(path, str(error)) from error


def _summary(record: CallerRecord) -> str:
    return f"{record.caller.role.title}, models {_models(record)}"


def _models(record: CallerRecord) -> str:
    """Returns the patterns of a caller, such as `team-a-*, shared (read)`."""
    caller = record.caller
    both = list(caller.write_models)
    read = [pattern for pattern in caller.read_models if pattern not in both]
    mark = " (read)" if both else ""
    return ", ".join([*both, *(pattern + mark for pattern in read)])


def _shown(moment: datetime.datetime | None) -> str:
    if moment is None:
        return "unknown"
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _expiry(token: TokenRecord, now: datetime.datetime) -> str:
    if token.expires is None:
        return _NEVER
    return _shown(token.expires) + (" (expired)" if token.is_expired(now) else "")


def _lifetime(expires: datetime.timedelta | str | None) -> datetime.timedelta | None:
    return expires if isinstance(expires, datetime.timedelta) else None


def _name(text: str) -> str:
    if read_access_token(text):
        raise argparse.ArgumentTypeError("is a token; give the name of a caller")
    if fault := name_fault(text):
        raise argparse.ArgumentTypeError(fault)
    return text


def _target(text: str) -> str:
    if ID.fullmatch(text):
        return text
    return _name(text)


def _patterns(text: str) -> list[str]:
    patterns = text.split(",")
    for pattern in patterns:
        if fault := pattern_fault(pattern):
            raise argparse.ArgumentTypeError(fault)
    return patterns


def _quota(text: str) -> tuple[str, int | str]:
    name, mark, value = text.partition("=")
    if name not in QUOTAS or not mark:
        raise argparse.ArgumentTypeError(
            f"must be NAME=N with one of {', '.join(QUOTAS)}, not {text[:60]!r}"
        )
    number: int | str = int(value) if re.fullmatch(r"[0-9]{1,20}", value) else value
    if fault := quota_fault(name, number):
        raise argparse.ArgumentTypeError(f"{name} {fault}")
    return name, number


def _duration(text: str) -> datetime.timedelta:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be {_DURATIONS}, not {text[:60]!r}")
    seconds = int(found[1]) * _UNITS[found[2]]
    if seconds > _MAX_DAYS * 86_400:
        raise argparse.ArgumentTypeError(f"must be at most {_MAX_DAYS}d, not {text[:60]!r}")
    return datetime.timedelta(seconds=seconds)


def _expires(text: str) -> datetime.timedelta | str:
    if text == _NEVER:
        return text
    lifetime = _duration(text)
    if not lifetime:
        raise argparse.ArgumentTypeError(f"must be longer than 0, or {_NEVER}")
    return lifetime
