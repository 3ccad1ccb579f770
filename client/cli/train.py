"""The command `treadle train` sends a corpus and shows the progress of the training."""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Literal

from treadle.client.cli.connect import connect
from treadle.client.cli.display.console import Console
from treadle.client.cli.follow import follow, interruption
from treadle.client.cli.input.text_input import input_name, open_input
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import (
    add_connection,
    given_options,
)
from treadle.client.cli.options.train_options import add_train_options
from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.client.files.corpus import Corpora, CorpusFile
    from treadle.client.training_run import TrainingRun

Role = Literal["train", "valid", "test"]

_INTERRUPTION_S = 0.1
"""How long after the end of a pipe the Ctrl-C may arrive that ended the program feeding it."""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle train`."""
    parser = commands.add_parser(
        "train",
        help="train a model on a file, or on several",
        description="Train a model on a file, or on several. A terminal shows a live progress "
        "bar; piped, or with --json, each event is one JSON object per line.",
    )
    add_train_options(parser)
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    """Trains and shows each event as it arrives, or only starts the job."""
    from treadle.client.options import TrainOptions

    choose_format(args)
    with (
        connect(args) as client,
        ExitStack() as files,
        client.train(
            open_corpora(args, files),
            model=args.model,
            timeout_s=getattr(args, "timeout", None),
            reconnect_s=args.reconnect_s,
            **given_options(args, TrainOptions),
        ) as training,
    ):
        if args.detach:
            _detach(training, args, console)
        else:
            follow(training, args, console)


def _detach(training: TrainingRun, args: argparse.Namespace, console: Console) -> None:
    """Leaves the job as soon as it is accepted, and prints its id."""
    from treadle.client.cli.display.json_lines import to_line

    console.interruption = partial(interruption, training)
    first = next(training, None)
    job = training.detach()
    if getattr(args, "json", False) and first is not None:
        console.line(to_line(first))
    else:
        console.line(job)


def choose_format(args: argparse.Namespace) -> None:
    """Chooses the files' format by their names, where it is not given, and says so.

    Raises:
        InputError: The names differ, or are those of files that are not text; or an option is
            for another format.
    """
    from treadle.client.files.format_detection import check_readable, format_of

    names = [*args.file, *args.valid, *args.test]
    if "format" not in args:
        found = format_of(names, "--format")
        if found is not None:
            args.format = found
            subject = f"{names[0]} is" if len(names) == 1 else "the files are"
            print(
                f"treadle: {subject} read as {found}, by the name; --format plain reads plain text",
                file=sys.stderr,
            )
        if getattr(args, "tokenizer", "") != "bytes":
            check_readable(names, "--format plain")
    if getattr(args, "format", "plain") == "plain":
        for name in ("column", "missing"):
            if name in args:
                raise InputError(f"--{name} needs --format jsonl or csv")


def open_corpora(args: argparse.Namespace, files: ExitStack) -> Corpora:
    """Opens the files of the corpus; one plain file is a plain corpus.

    Returns:
        What `Client.train` takes as the corpus.

    Raises:
        InputError: One cannot be opened, or a weight is for none of them.
    """
    roles: list[tuple[Role, Sequence[str]]] = [
        ("train", args.file),
        ("valid", args.valid),
        ("test", args.test),
    ]
    weights = dict(args.weights)
    for path in weights:
        if path not in args.file:
            raise InputError(f"--weight names {path!r}, which is not a FILE of the training part")
    if sum(paths.count("-") for _, paths in roles) > 1:
        raise InputError("standard input can be read only once: give - for one FILE")
    opened = [
        _corpus_file(path, role, weights.get(path, 1.0) if role == "train" else 1.0, files)
        for role, paths in roles
        for path in paths
    ]
    return opened[0].data if len(opened) == 1 and not weights else opened


def _corpus_file(path: str, role: Role, weight: float, files: ExitStack) -> CorpusFile:
    """Opens one file of the corpus."""
    from treadle.client.files.corpus import CorpusFile

    data: Any = CorpusInput(files.enter_context(open_input(path)))
    return CorpusFile(data, name=input_name(path), role=role, weight=weight)


class CorpusInput:
    """A corpus file that waits a moment before it reports its end.

    Ctrl-C in a shell ends the program that feeds a pipe as well as this one, and the pipe may
    end first. The server must not take half a corpus for a whole one then.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        """Returns up to `size` bytes; nothing at the end."""
        data = self._file.read(size)
        if not data and stat.S_ISFIFO(os.fstat(self._file.fileno()).st_mode):
            time.sleep(_INTERRUPTION_S)
        return data
