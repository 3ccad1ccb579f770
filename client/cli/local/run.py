"""The command `treadle run` goes from a file to a conversation: a server, a model, its text."""

from __future__ import annotations

import argparse
import secrets
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from treadle.client.cli.connect import connect
from treadle.client.cli.conversation.conversation import talk
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.notices import print_notice
from treadle.client.cli.follow import follow, interruption, make_report
from treadle.client.cli.local.answering_server import answering_server
from treadle.client.cli.local.corpus_file import CorpusFile
from treadle.client.cli.options.field_flags import OPTIONS, add_flags
from treadle.client.cli.options.option import given_options
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_connection
from treadle.client.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.v1.sequence_pb2 import Job, Model

TIME_S = 30.0
"""How long a model is trained by default."""

LINES = 10
"""How many lines are printed of a model of lines."""

TOKENS = 200
"""How many tokens are printed of a model of text."""

DESCRIPTION = """\
Train a model on FILE, print some of its text, and talk with it on a terminal.

The server is the one that --server, the environment or a profile names, if it answers. Otherwise
one is started on this machine, which ends with the command. A second run with the same file uses
the model that the first one has made.
"""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle run`."""
    parser = commands.add_parser(
        "run",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fill=_add_options,
    )
    parser.set_defaults(run=run, quiet=False, is_own_server=False)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the file and the options."""
    parser.add_argument("file", metavar="FILE", help="the text to learn from")
    parser.add_argument(
        "--model", metavar="NAME", help="the name of the model (default: that of the file)"
    )
    add_flags(parser, "run", OPTIONS)
    parser.add_argument(
        "--continue",
        dest="further",
        action="store_true",
        help="train the model further where there is one, also on another file",
    )
    parser.add_argument(
        "--keep-server",
        action="store_true",
        help="leave a server that was started running when the command ends",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIRECTORY",
        help="the data directory of a server that is started (default: its own default)",
    )
    add_connection(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Trains, prints, and talks.

    Returns:
        The exit code.

    Raises:
        InputError: The file cannot be used, or the model's name is in use for another text.
    """
    from treadle.client.files.format_detection import check_readable, format_of
    from treadle.client.options import GenerateOptions

    if "format" not in args:
        if getattr(args, "tokenizer", "") != "bytes":
            check_readable([args.file], "--format plain")
        if (found := format_of([args.file], "--format")) is not None:
            args.format = found
    corpus = CorpusFile(args.file)
    args.model = args.model or corpus.model_name
    with answering_server(args, console), connect(args) as client:
        model = _trained_model(client, args, corpus, console)
        _print_text(client, model, console)
        if sys.stdin is None or not (sys.stdin.isatty() and console.is_terminal):
            return 0
        options = GenerateOptions(version=model.version, stop_sequences=["\n"])
        return talk(client, model, options, console, None)


def _trained_model(
    client: Client, args: argparse.Namespace, corpus: CorpusFile, console: Console
) -> Model:
    """Returns the model of the file: the one that there is, or a new one.

    Raises:
        InputError: There is a model of this name that was trained on something else.
    """
    model = _model(client, args.model)
    job = _job_of(client, args.model, corpus)
    if job is not None and _is_unfinished(client, job):
        print_notice(f"job {job.id} trains on {corpus.path} already")
        return _follow(client.watch(job.id), args, console)
    if model is not None and not args.further:
        if job is None:
            raise InputError(
                f"there is a model {args.model!r}, and nothing says that it was trained on "
                f"{corpus.path}: add --continue to train it further on this file, or give "
                "another name with --model"
            )
        print_notice(f"model {args.model!r} was trained on this file: --continue trains it further")
        return model
    return _train(client, args, corpus, console, None if model is None else args.model)


def _model(client: Client, name: str) -> Model | None:
    """Returns the newest version of a model, if there is one."""
    try:
        return client.get_model(name).model
    except NotFoundError:
        return None


def _request_id(corpus: CorpusFile) -> str:
    """Returns the beginning of the request ids of this command for a file."""
    return f"treadle run {corpus.sha256[:40]} "


def _job_of(client: Client, model: str, corpus: CorpusFile) -> Job | None:
    """Returns the newest job of this command that trains the model on the file."""
    begin = _request_id(corpus)
    for job in client.jobs(model=model):
        if job.spec.request_id.startswith(begin):
            return job
    return None


def _is_unfinished(client: Client, job: Job) -> bool:
    """Returns whether a job still trains; a paused one is resumed."""
    from treadle.v1.sequence_pb2 import JOB_STATE_PAUSED, JOB_STATE_QUEUED, JOB_STATE_RUNNING

    if job.state == JOB_STATE_PAUSED:
        client.resume_job(job.id)
        return True
    return job.state in (JOB_STATE_QUEUED, JOB_STATE_RUNNING)


def _train(
    client: Client,
    args: argparse.Namespace,
    corpus: CorpusFile,
    console: Console,
    init_from: str | None,
) -> Model:
    """Trains a new version."""
    from pathlib import Path

    from treadle.client.options import TrainOptions

    options = given_options(args, TrainOptions)
    options.setdefault("max_time_s", TIME_S)
    options["request_id"] = _request_id(corpus) + secrets.token_hex(4)
    options["preset"] = "auto"
    if init_from is not None:
        options["init_from"] = init_from
    elif "layout" not in options and options.get("format", "plain") == "plain" and corpus.is_list:
        options["layout"] = "lines"
        print_notice(
            f"{corpus.path} is read as a list, one item per line; --layout text reads it as a text"
        )
    return _follow(client.train(Path(corpus.path), model=args.model, **options), args, console)


def _follow(training: Any, args: argparse.Namespace, console: Console) -> Model:
    """Shows a run on standard error.

    Returns:
        Its model.
    """
    from treadle.client.cli.display.reports import PlainReport
    from treadle.client.cli.options.flag_names import in_training_flags

    errors = console.errors
    errors.argument_names = console.argument_names
    if errors.is_terminal:
        report = make_report(args, errors)
    else:
        report = PlainReport(errors, in_training_flags)
    with training:
        if not args.is_own_server:
            console.interruption = partial(interruption, training)
        follow(training, args, errors, report=report)
        model: Model = training.result()
    return model


def _print_text(client: Client, model: Model, console: Console) -> None:
    """Prints some text of a model."""
    from treadle.v1.sequence_pb2 import CORPUS_LAYOUT_LINES

    if model.layout == CORPUS_LAYOUT_LINES:
        with client.generate_many(model.name, "", LINES, version=model.version) as items:
            for item in items:
                console.text(item.text + "\n")
        return
    with client.generate(
        model.name, "", version=model.version, max_new_tokens=TOKENS
    ) as generation:
        for piece in generation:
            console.text(piece)
    console.text("\n")
