"""What the commands share: options, durations, input and the connection."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from treadle.client.console import one_line, printable, table
from treadle.client.errors import InputError
from treadle.client.numbers import number_text, share_text

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.client.text_input import Line, TextSource
    from treadle.v1.sequence_pb2 import Job, Token

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add_subparsers` returns."""

UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Seconds in each unit of a duration."""

SIZES = {"": 1, "b": 1, "k": 1e3, "m": 1e6, "g": 1e9, "kb": 1e3, "mb": 1e6, "gb": 1e9,
         "kib": 2**10, "mib": 2**20, "gib": 2**30}  # fmt: skip
"""Bytes in each unit of a size."""

LATEST = "latest"
"""Stands for the newest job."""

JOB_HELP = "the job's id, the beginning of it, or `latest`"

UNKNOWN_POLICIES = ("error", "skip", "unknown")


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and complains in one sentence."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses, and finds an optional MODEL and FILE, and TEXTs, behind options as well.

        Python 3.11's argparse looks for them only before the first option, or right behind the
        words before them (python/cpython#59317).
        """
        parsed, rest = super().parse_known_args(args, namespace)
        open_ = [name for name in ("model", "file") if getattr(parsed, name, "") is None]
        words = all(word == "-" or not word.startswith("-") for word in rest)
        if words and (len(rest) <= len(open_) or "texts" in parsed):
            for name in open_[: len(rest)]:
                setattr(parsed, name, rest.pop(0))
        if words and "texts" in parsed:
            parsed.texts += rest
            rest = []
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Exits with 2, as argparse does, but without the usage's many lines."""
        self.exit(2, f"treadle: {printable(message)} (see `{self.prog} --help`)\n")


class Version(argparse.Action):
    """Prints the version; it is looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Prints it and exits."""
        from importlib.metadata import version

        print(f"treadle {version('treadle')}")
        parser.exit()


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Adds the options that stand before or after the command's name.

    They have no default: a command's parser would lay it over what stood before its name.
    """
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--server",
        metavar="ADDRESS",
        default=argparse.SUPPRESS,
        help="the server's HOST:PORT or unix:/PATH (default: $TREADLE_SERVER, or 127.0.0.1:50051)",
    )
    group.add_argument(
        "--timeout",
        metavar="TIME",
        type=duration,
        default=argparse.SUPPRESS,
        help="give up a call that takes longer, such as 10s or 2m (default: wait)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print JSON, an object a line",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the name of a model and its version, or a job in their place."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="the model's name, or NAME@ALIAS")
    add_version(parser, "the model's version (default: the newest)")
    parser.add_argument(
        "--job",
        metavar="JOB",
        default=argparse.SUPPRESS,
        help="use the weights of a job, running or not, in place of a MODEL; " + JOB_HELP,
    )
    parser.add_argument(
        "--best",
        dest="job_weights",
        action="store_const",
        const="best",
        default=argparse.SUPPRESS,
        help="with --job: its best weights by validation (its last ones)",
    )


def check_model(args: argparse.Namespace) -> None:
    """Checks that the command line names either a model or a job.

    Raises:
        InputError: It names both or neither, or asks for a job's best weights without a job.
    """
    job = getattr(args, "job", "")
    if bool(args.model) == bool(job):
        raise InputError("give either a MODEL or --job JOB")
    if not job and "job_weights" in vars(args):
        raise InputError("--best chooses among the weights of a job: give --job JOB as well")


def add_job(parser: argparse.ArgumentParser) -> None:
    """Adds the id of a job."""
    parser.add_argument("job", metavar="JOB", help=JOB_HELP)


def find_job(client: Client, job: str) -> Job:
    """Finds a job by its id, the beginning of it, or `latest`.

    Raises:
        InputError: Several ids begin like that.
        ServerError: There is no such job, or a call failed.
    """
    from treadle.client.errors import InvalidArgumentError, NotFoundError

    if job == LATEST:
        newest = next(client.jobs(page_size=1), None)
        if newest is None:
            raise InputError("there is no latest job: the server keeps none")
        return newest
    try:
        return client.get_job(job)
    except (InvalidArgumentError, NotFoundError):
        found = [each for each in client.jobs(page_size=1000) if each.id.startswith(job)]
        if not job or not found:
            raise
    if len(found) > 1:
        ids = ", ".join(each.id for each in found[:3]) + (", ..." if len(found) > 3 else "")
        raise InputError(f"{len(found)} jobs begin with {job!r}: {ids}; give more of the id")
    return found[0]


def weights_of(args: argparse.Namespace, client: Client, options: type) -> Any:
    """Picks a TypedDict's options, with a job's id in full."""
    picked = chosen(args, options)
    if "job" in picked:
        picked["job"] = find_job(client, picked["job"]).id
    return picked


def add_version(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds a model's version."""
    parser.add_argument("--version", metavar="N", type=version_number, default=0, help=text)


def version_number(text: str) -> int:
    """Reads a model's version.

    Raises:
        argparse.ArgumentTypeError: It is none: versions count from 1.
    """
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no version: versions count from 1")
    return int(text)


def add_unknown(parser: argparse._ActionsContainer, text: str) -> None:
    """Adds the policy for unknown symbols."""
    parser.add_argument(
        "--unknown",
        "--unknown-policy",
        dest="unknown_policy",
        choices=UNKNOWN_POLICIES,
        default=argparse.SUPPRESS,
        help=text,
    )


def duration(text: str) -> float:
    """Reads a duration: "180s", "3m", "1.5h", "250ms", or plain seconds.

    Returns:
        Seconds.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 3m or 1h")
    return float(match[1]) * UNITS[match[2]]


def size(text: str) -> int:
    """Reads a size: "500MB", "2g", "1.5GiB", or plain bytes.

    Returns:
        Bytes.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in SIZES:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 2GB")
    return round(float(match[1]) * SIZES[match[2]])


def chosen(args: argparse.Namespace, options: type) -> dict[str, Any]:
    """Picks what was given of a TypedDict's options."""
    return {name: vars(args)[name] for name in options.__annotations__ if name in vars(args)}


def connect(args: argparse.Namespace) -> Client:
    """Makes the client for the server that the command line or the environment names."""
    from treadle.client.client import DEFAULT_ADDRESS, Client

    address = getattr(args, "server", os.environ.get("TREADLE_SERVER", DEFAULT_ADDRESS))
    return Client(address, timeout_s=getattr(args, "timeout", None))


def open_input(path: str) -> Any:
    """Opens a file, or standard input for "-", for reading bytes.

    Both are unbuffered: a thread may be waiting in a read when the program ends, and must not
    hold the lock of a buffer then.

    Raises:
        InputError: The file cannot be opened.
    """
    from treadle.client.corpus import open_file

    if path == "-":
        if sys.stdin is None:
            raise InputError("cannot read standard input: it is closed")
        if sys.stdin.isatty():
            print("treadle: reading from the terminal; Ctrl-D ends it", file=sys.stderr)
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    return open_file(path)


def add_encoding(parser: argparse._ActionsContainer) -> None:
    """Adds how an input encodes text."""
    parser.add_argument(
        "--encoding",
        metavar="NAME",
        default="utf-8",
        help="how the file, or standard input, encodes text: latin-1, utf-16, ... (utf-8)",
    )


def text_source(args: argparse.Namespace, path: str) -> TextSource:
    """Tells how a file, or standard input for "-", is made text.

    Bytes that are not text follow --unknown, as in training; without it they are refused.
    """
    from treadle.client.text_input import Errors, TextSource

    chosen: dict[str, Errors] = {"skip": "ignore", "unknown": "replace"}
    errors = chosen.get(getattr(args, "unknown_policy", ""), "strict")
    return TextSource(named(path), args.encoding, errors, "--encoding ")


def read_text(args: argparse.Namespace, path: str) -> str:
    """Reads a whole file, or standard input for "-", as text.

    Raises:
        InputError: It cannot be read, or is not of its encoding.
    """
    from treadle.client.text_input import decode_text

    try:
        with open_input(path) as file:
            return decode_text(bytes(file.readall()), text_source(args, path))
    except OSError as error:
        raise InputError(f"cannot read {named(path)}: {error.strerror}") from error


def input_lines(args: argparse.Namespace, path: str) -> Iterator[Line]:
    """Yields the lines of a file, or of standard input for "-", each as soon as it is whole.

    Raises:
        InputError: The file cannot be read, or is another encoding by its byte order mark.
    """
    from treadle.client.text_input import READ_BYTES, cut_lines

    source = text_source(args, path)
    try:
        with open_input(path) as file:
            yield from cut_lines(iter(lambda: file.read(READ_BYTES), b""), source)
    except OSError as error:
        raise InputError(f"cannot read {source.title}: {error.strerror}") from error


def complain(text: str) -> None:
    """Says something on standard error, which may be closed."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):
        print(f"treadle: {printable(text)}", file=sys.stderr, flush=True)


def named(path: str) -> str:
    """Names an input in a sentence."""
    from treadle.client.text_input import shown_path

    return "standard input" if path == "-" else shown_path(path)


def tell_unknown(unknown: int, tokens: int) -> None:
    """Says on standard error what share of the scored tokens is unknown, if any is."""
    if unknown:
        complain(
            f"{share_text(unknown / tokens)} of the tokens are unknown ({unknown:,} of "
            f"{tokens:,}): bits a character are not told, since each may stand for any number of "
            "characters"
        )


def token_table(tokens: Iterable[Token]) -> list[str]:
    """Lays out tokens with their log-probabilities, and ranks and alternatives where there are any.

    A dash stands for what has no value.
    """
    tokens = list(tokens)
    ranks = any(token.rank for token in tokens)
    top = any(token.alternatives for token in tokens)
    rows = []
    for token in tokens:
        row = [one_line(token.text) or f"({token.id})", "-", "-"]
        if token.HasField("log_probability"):
            row[1:] = _nats_and_share(token.log_probability)
        row += [str(token.rank or "-")] if ranks else []
        row += [_alternatives(token)] if top else []
        rows.append(row)
    heads = ["token", "nats", "probability"] + ["rank"] * ranks + ["likeliest"] * top
    return table(heads, rows)


def _nats_and_share(log_probability: float) -> list[str]:
    """Writes a log-probability in nats, and the probability."""
    return [number_text(log_probability), f"{math.exp(log_probability):.1%}"]


def _alternatives(token: Token) -> str:
    """Lists the likeliest tokens in the place of one."""
    shown = (
        f"{one_line(each.text) or f'({each.id})'} {math.exp(each.log_probability):.1%}"
        for each in token.alternatives
    )
    return ", ".join(shown)
