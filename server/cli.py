"""`main` is the `treadle-server` command: it reads flags and the environment and runs the server.

Every flag has an environment variable, which is read once. A flag takes precedence over it.
Exit codes: 0 after a clean end, 1 if the server cannot run, 2 for a wrong flag or variable.
`treadle-server token` is `token_command`.
With --fsck: 0 if nothing is wrong, 1 if something is or was wrong, 2 if it cannot be checked.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from treadle.server.access.callers.access_token import without_secrets
from treadle.server.config import ServerConfig, SettingError, range_of

PREFIX = "TREADLE_"
"""What the environment variables begin with."""

_REMEDY = "Give it a writable /tmp (docker run --tmpfs /tmp) or NUMBA_CACHE_DIR."

_FEATURES = re.compile(r"([+-][\w.-]+(,[+-][\w.-]+)*)?")

_SHOWN = 60
"""Characters of a wrong value that a message repeats."""

_READERS: dict[str, Any] = {"int": int, "float": float, "str": str, "Path": Path}
_AT_ADDRESS = object()
"""--check-health without an address."""

_METAVARS = {"int": "N", "float": "SECONDS", "str": "TEXT", "Path": "DIRECTORY"}
_OWN_METAVARS = {
    "address": "ADDRESS",
    "inference_precision": "PRECISION",
    "memory_budget": "BYTES",
    "executor": "WHERE",
    "health_address": "ADDRESS",
    "http_address": "ADDRESS",
    "http_allow_host": "NAMES",
    "http_allow_origin": "ORIGINS",
    "public_services": "NAMES",
    "ray_address": "ADDRESS",
    "blob_cache_bytes": "BYTES",
    "blobs_url": "URL",
    "database_url": "URL",
    "state_key_file": "FILE",
    "audit_log": "FILE",
    "callers_file": "FILE",
    "tls_cert_file": "FILE",
    "tls_client_ca_file": "FILE",
    "tls_key_file": "FILE",
    "log_format": "FORMAT",
    "log_level": "LEVEL",
    "mpirun": "COMMAND",
    "metrics_access": "WHO",
    "otlp_endpoint": "URL",
}
"""What the help calls the value of a flag: by its type, and for these flags by their names."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line; `sys.argv` where None.

    Returns:
        The exit code.
    """
    try:
        return _main(arguments)
    except ModuleNotFoundError as error:  # the bare install is the client alone
        if error.name is None or error.name.startswith("treadle"):
            raise
        print(
            f"treadle-server: {error.name} is not installed; install treadle with its extra "
            "`server`: pip install '.[server]' in a checkout of Treadle",
            file=sys.stderr,
        )
        return 1


class Parser(argparse.ArgumentParser):
    """A parser that accepts no abbreviations and reports an error in one sentence."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exits with 2, as argparse does, but without the usage's many lines."""
        self.exit(2, f"{self.prog}: {without_secrets(message)} (see `{self.prog} --help`)\n")


def _main(arguments: Sequence[str] | None) -> int:
    # gRPC's own log would mix with ours; what matters in it arrives as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["token"]:
        from treadle.server.token_command import main as run_token

        return run_token(words[1:])
    parser = build_parser()
    flags = vars(parser.parse_args(words))
    try:
        config = read_config(flags, os.environ)
    except ValueError as error:
        parser.error(str(error))
    if not _FEATURES.fullmatch(os.environ.get("NUMBA_CPU_FEATURES", "")):  # LLVM would abort
        parser.error("NUMBA_CPU_FEATURES must be of the form +avx2,-avx512f")
    if flags["repair"] and not flags["fsck"]:
        parser.error("--repair goes with --fsck")
    if flags["fsck"] and config.database_url:
        parser.error(
            "--fsck checks a data directory, and with --database-url nothing that counts is there: "
            "check PostgreSQL with pg_amcheck, and restore a backup of it and of --blobs-url"
        )
    # Before NumPy is imported: its BLAS would start a thread for each processor, which nobody uses.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if flags["check_health"] is not None:
        from treadle.server.healthcheck import check_health

        asked = flags["check_health"]
        if asked == "":
            parser.error("--check-health is empty; give an address, or leave it out")
        own = config.health_address or config.address
        return check_health(own if asked is _AT_ADDRESS else asked)
    try:
        # Its kernels look for a folder for what is compiled.
        from treadle.model.kernel_cache import all_compiled
    except OSError as error:
        print(
            f"treadle-server: compiled kernels cannot be stored: {error}. {_REMEDY}",
            file=sys.stderr,
        )
        return 1
    except ValueError as error:  # of the variables that choose a processor
        parser.error(str(error))
    if flags["warm"]:
        from treadle.server.warmup import warm_up

        warm_up()
        return 0
    if flags["fsck"]:
        from treadle.server.fsck.check import run as check

        return check(config.data_dir, flags["repair"])
    if not all_compiled():
        from treadle.model.warmup.compilers import start_early

        start_early()
    from treadle.server.app import run

    return run(config)


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser; the flags are the fields of `ServerConfig`."""
    parser = Parser(
        prog="treadle-server",
        description="Train, serve and score small recurrent sequence models over gRPC.",
        epilog="Each setting may also come from the environment variable in its brackets. "
        "`treadle-server token --help` describes the command that makes, lists, revokes and "
        "replaces the tokens of callers.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('treadle')}")
    parser.add_argument(
        "--check-health",
        nargs="?",
        const=_AT_ADDRESS,
        metavar="ADDRESS",
        help="ask a running server for its health and exit with 0 if it is serving, else with 1; "
        "the default ADDRESS is that of --health-address or else --address",
    )
    parser.add_argument(
        "--warm",
        action="store_true",
        help="compile every kernel into the cache and exit; a server otherwise does so at start",
    )
    parser.add_argument(
        "--fsck",
        action="store_true",
        help="check the data directory while no server uses it, and exit with 0 if nothing is "
        "wrong, else with 1; nothing is changed without --repair",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="with --fsck: repair what is wrong, and move what is damaged to damaged/ in the data "
        "directory",
    )
    texts = field_docs(ServerConfig)
    defaults = ServerConfig()
    for item in dataclasses.fields(ServerConfig):
        facts = [f"{PREFIX}{item.name.upper()}"]
        if item.metadata:
            facts.append(f"range: {range_of(item)}")
        facts.append(f"default: {getattr(defaults, item.name) or _none(item)}")
        parser.add_argument(
            "--" + item.name.replace("_", "-"),
            metavar=_metavar(item),
            help=f"{_in_flags(texts[item.name])} [{', '.join(facts)}]".replace("%", "%%"),
        )
    return parser


def _metavar(item: dataclasses.Field[Any]) -> str:
    if item.name.endswith("_bytes"):
        return "BYTES"
    return _OWN_METAVARS.get(item.name, _METAVARS[str(item.type)])


def _in_flags(text: str) -> str:
    """Replaces names of settings in a text by their flags."""
    names = "|".join(item.name for item in dataclasses.fields(ServerConfig) if "_" in item.name)
    return re.sub(rf"\b(?:{names})\b", lambda name: "--" + name[0].replace("_", "-"), text)


def _none(item: dataclasses.Field[Any]) -> str:
    """Returns what the help says of a default that is 0 or empty."""
    return "none" if item.type == "str" else "0"


def read_config(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> ServerConfig:
    """Builds the config from flags, then the environment, then the defaults.

    Args:
        flags: Value a field name, as text; None where the flag was not given.
        environment: The process' environment.

    Returns:
        The config.

    Raises:
        ValueError: A value is empty, cannot be read, or is out of its range; the message names
            its flag or variable.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for item in dataclasses.fields(ServerConfig):
        flag = "--" + item.name.replace("_", "-")
        variable = PREFIX + item.name.upper()
        given = flags.get(item.name)
        source, text = (variable, environment.get(variable)) if given is None else (flag, given)
        if text is None:
            continue
        if not text.strip():  # not the default: the variable that it came from may be misspelled
            raise ValueError(f"{source} is empty; give a value, or leave it out for the default")
        sources[item.name] = source
        try:
            values[item.name] = _READERS[str(item.type)](text)
        except ValueError:
            kind = "a whole number" if item.type == "int" else "a number"
            raise ValueError(f"{source} must be {kind}, not {text[:_SHOWN]!r}") from None
    try:
        return ServerConfig(**values)
    except SettingError as error:
        if error.setting not in sources:
            raise
        raise ValueError(f"{sources[error.setting]} {error.fault}") from error


def field_docs(kind: type) -> dict[str, str]:
    """Returns the docstring under each field of a class, which Python itself discards.

    Args:
        kind: A class whose source is at hand.
    """
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = inspect.cleandoc(str(following.value.value))
    return docs
