"""The command `treadle serve` becomes a server: `treadle-server` with the same flags."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from treadle.client.cli.display.console import Console
from treadle.client.cli.options.parser import Commands
from treadle.client.errors import InputError

MODULE = "treadle.server"
"""The module of the server, which is not imported: only the extra `server` makes it run."""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle serve`."""
    parser = commands.add_parser(
        "serve",
        description="Run a server on this machine until Ctrl-C. The flags are those of "
        "treadle-server: `treadle serve --help` lists them where the extra `server` is installed "
        "(pip install '.[server]' in a checkout of Treadle).",
    )
    parser.takes_every_word = True
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> NoReturn:
    """Replaces this process by the server, which says what it lacks if it cannot run.

    Raises:
        InputError: An option of a connection precedes the command.
    """
    given = [name for name in ("server", "profile", "timeout") if name in vars(args)]
    if given:
        raise InputError(
            f"--{given[0]} is for commands that call a server: `treadle serve --address HOST:PORT` "
            "says where to listen"
        )
    console.out.flush()
    os.execv(sys.executable, [sys.executable, "-m", MODULE, *args.words])
