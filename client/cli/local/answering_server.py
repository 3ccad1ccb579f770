"""`answering_server` finds the server of a command, or starts one that ends with it."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from functools import partial
from typing import Self

from treadle.client.cli.connect import connect, read_settings
from treadle.client.cli.display.console import CLEAR_LINE, Console, one_line, printable
from treadle.client.cli.local.local_server import (
    LocalServer,
    announce,
    log_file,
    stopped_by_signals,
)
from treadle.client.errors import UnavailableError

ANSWER_S = 3.0
"""The longest to wait for a server that may be there."""

READY_S = 3600.0
"""The longest that its kernels may take."""

LOOK_S = 2.0
"""How often to look whether a server that was started still runs."""

LOADING_S = 4.0
"""Seconds in which a server loads its kernels if they are compiled: nothing is shown before."""

NOTICE_S = 10.0
"""Seconds between two lines of the progress of its kernels, where none can be overwritten."""


@contextlib.contextmanager
def answering_server(args: argparse.Namespace, console: Console) -> Iterator[None]:
    """Makes sure that a server answers; one that is started ends with the block.

    Raises:
        UnavailableError: None answers at an address of another machine.
    """
    from treadle.client.address import has_replicas, is_loopback
    from treadle.client.connection import DEFAULT_ADDRESS

    settings = read_settings(args).values
    address = str(settings["server"].value) if "server" in settings else DEFAULT_ADDRESS
    try:
        with connect(args, ANSWER_S) as client, _StartProgress(console) as progress:
            client.health()
            client.wait_ready(READY_S, progress)
        yield
        return
    except UnavailableError:
        if has_replicas(address) or not is_loopback(address):
            raise
    words = [] if args.data_dir is None else ["--data-dir", args.data_dir]
    server = LocalServer(address, log_file(), words)
    console.before_exit = server.stop
    with stopped_by_signals(server):
        server.start()
        announce(server)
        args.server = address
        args.tls = False
        _wait_ready(args, server, console)
        args.is_own_server = True
        console.interruption = partial(_resumable, args.file)
        server.is_kept = args.keep_server
        yield


def _wait_ready(args: argparse.Namespace, server: LocalServer, console: Console) -> None:
    """Waits until a server that was started serves.

    Raises:
        ServerStartError: It ended instead.
        UnavailableError: It took too long.
    """
    deadline = time.monotonic() + READY_S
    with connect(args) as client, _StartProgress(console) as progress:
        while True:
            server.check()
            try:
                client.wait_ready(LOOK_S, progress)
                return
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise


class _StartProgress:
    """Shows on standard error what a starting server does, in a `with` block.

    Args:
        console: The output of the command.
    """

    def __init__(self, console: Console) -> None:
        self._console = console.errors
        self._shown = ""
        self._begin_s = time.monotonic()
        self._due_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.has_live_line:
            self._console.has_live_line = False
            self._draw("")

    def __call__(self, progress: str) -> None:
        """Shows the progress; where no line can be overwritten, not more often than is useful."""
        if progress == self._shown or time.monotonic() - self._begin_s < LOADING_S:
            return
        line = f"treadle: first start of the server: {printable(progress)}"
        if self._console.can_overwrite:
            self._console.has_live_line = True
            self._draw(one_line(line, self._console.width - 1))
        elif time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + NOTICE_S
            self._console.line(line)
        else:
            return
        self._shown = progress

    def _draw(self, line: str) -> None:
        """Replaces the line of the cursor."""
        self._console.out.write(CLEAR_LINE + line)
        self._console.out.flush()


def _resumable(path: str) -> str:
    """Returns the message after a Ctrl-C while the server ends with the command."""
    return f"interrupted; `treadle run {path}` continues where this ended"
