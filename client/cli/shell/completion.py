"""The command `treadle completion` prints what makes a shell complete `treadle`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from treadle.client.cli.connect import connect
from treadle.client.cli.display.console import Console
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_connection
from treadle.client.errors import InputError, TreadleError

if TYPE_CHECKING:
    from treadle.client.client import Client

SHELLS = ("bash", "zsh", "fish")

LIST_S = 0.5
"""The longest that a call for the names of models or jobs may take: somebody waits at a prompt."""

MOST_NAMES = 500

SAFE = re.compile(r"[A-Za-z0-9._-]+")
"""Names that a shell takes as they are; a server could send others."""

DESCRIPTION = """\
Print a script that makes a shell complete commands, flags, words and files, and the names of
models and jobs of a server that answers at once. It needs the extra [cli]:

    treadle completion bash > ~/.local/share/bash-completion/completions/treadle
    treadle completion zsh > ~/.zfunc/_treadle       # with ~/.zfunc in $fpath, before compinit
    treadle completion fish > ~/.config/fish/completions/treadle.fish
"""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle completion`."""
    parser = commands.add_parser(
        "completion",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "shell", metavar="SHELL", nargs="?", choices=SHELLS, help="bash, zsh or fish"
    )
    which.add_argument(
        "--list",
        choices=tuple(LISTS),
        help="print the names that such a script offers, and no error",
    )
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    """Prints the script, or names.

    Raises:
        InputError: shtab is not installed.
    """
    if args.list is not None:
        for name in _names(args):
            console.line(name)
        return
    try:
        import shtab  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise InputError(
            "completion needs the package shtab: pip install '.[cli]' in a checkout of Treadle"
        ) from None
    _prepare(args.whole_parser, shtab)
    console.line(shtab.complete(args.whole_parser, args.shell))


def _models(client: Client) -> Iterator[str]:
    return (model.name for model in client.models(page_size=MOST_NAMES))


def _jobs(client: Client) -> Iterator[str]:
    return (job.id for job in client.jobs(page_size=MOST_NAMES))


LISTS: Mapping[str, Callable[[Client], Iterator[str]]] = {"models": _models, "jobs": _jobs}
"""What can be listed."""


def _names(args: argparse.Namespace) -> list[str]:
    """Returns the names that the server has; none if it does not answer at once."""
    try:
        with connect(args, LIST_S) as client:
            return [
                name
                for name in islice(LISTS[args.list](client), MOST_NAMES)
                if SAFE.fullmatch(name)
            ]
    except TreadleError:
        return []


def _prepare(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Says how each argument of a parser, and of its commands, is completed."""
    for action in parser._actions:
        if isinstance(action, Commands):
            action.choices = dict(action.choices or {})  # with all arguments; shtab knows no other
            for command in action.choices.values():
                _prepare(command, shtab)
            continue
        complete = _completion(action, shtab)
        if complete is not None:
            action.complete = complete  # type: ignore[attr-defined]


def _completion(action: argparse.Action, shtab: Any) -> Any:
    """Returns how the value of an argument is completed; None: by its words, or not at all."""
    metavar = str(action.metavar or "")
    if action.nargs == 0 or action.choices is not None:
        return None
    if metavar.startswith("FILE"):
        return shtab.FILE
    if metavar == "DIRECTORY":
        return shtab.DIRECTORY
    for dest, listed in (("job", "jobs"), ("model", "models"), ("init_from", "models")):
        if action.dest == dest:
            return _by_server(listed)
    return None


def _by_server(listed: str) -> dict[str, Any]:
    """Returns how a name of the server is completed; it is asked when the name is typed."""
    command = f"treadle completion --list {listed} 2>/dev/null"
    function = f"_treadle_{listed}"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({command})",
        "preamble": {
            "bash": f'{function}() {{\n  compgen -W "$({command})" -- "$1"\n}}\n',
            "zsh": f"{function}() {{\n  compadd -- $({command})\n}}\n",
        },
    }
