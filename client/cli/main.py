"""`main` runs the `treadle` command.

Exit codes: 0 done; 1 the server refused or failed; 2 wrong usage or unusable input; 3 the
server cannot be reached; 130 interrupted by Ctrl-C. Where the output has no reader any more,
141, as with any other program in a pipe.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from types import FrameType

from treadle.client.access.bearer_token import without_secrets
from treadle.client.argument_names import ArgumentNames
from treadle.client.cli.display.console import Console, printable
from treadle.client.cli.options.parser import Parser, Version
from treadle.client.cli.options.shared import add_connection
from treadle.client.errors import NotFoundError, ServerError, TreadleError

COMMANDS = {
    "run": ("local.run", "train on a file and talk with the model, in one step"),
    "train": ("train", "train a model on a file, or on several"),
    "sweep": ("sweep.command", "train a model with many settings, and find the best ones"),
    "jobs": ("jobs", "list, show, cancel, pause, resume or delete training jobs"),
    "watch": ("watch", "watch a job"),
    "curve": ("curve", "draw the losses of a job"),
    "generate": ("generate", "generate text from a model"),
    "chat": ("chat", "talk with a model that has a memory"),
    "score": ("score", "score text with a model"),
    "score-stream": ("score_stream", "score lines as they arrive, and learn from them"),
    "embed": ("embed", "turn texts into vectors"),
    "models": ("models", "list, show, name, delete, move or export models"),
    "info": ("info", "describe the server: version, limits and load"),
    "health": ("info", "ask whether the server serves"),
    "config": ("config", "show and change profiles of connections"),
    "serve": ("local.serve", "run a server on this machine"),
    "completion": ("shell.completion", "print a script that completes commands in a shell"),
    "help": ("shell.help", "explain a topic or a command"),
}
"""The commands in the order of the help: the module of each below `treadle.client.cli`, which is
imported when the command is named, and what the command does."""

INTERRUPTED = 130
BROKEN_PIPE = 141

EPILOG = """\
Exit codes: 0 done, 1 the server refused or failed, 2 wrong usage or unusable input,
3 the server cannot be reached, 130 interrupted, 141 the output has no reader any more.
`score-stream` ends with 129 after a hang-up and with 143 after SIGTERM.
"""


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line; it loads no gRPC."""
    parser = Parser(
        prog="treadle",
        description="Train small recurrent sequence models, generate from them and score text.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, help="print the version and exit")
    add_connection(parser)
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    for name, (module, text) in COMMANDS.items():
        commands.add_module(name, f"treadle.client.cli.{module}", text)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The words after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    # gRPC's own log would mix with the output; what matters of it arrives as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    console = Console.standard()
    try:
        with _interruptible(console):
            code = _run(arguments, console)
            sys.stdout.flush()
    except BrokenPipeError:
        # Python would print the notice once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except TreadleError as error:
        return _fail(_sentence(error, console), error.exit_code)
    except OSError as error:
        # Errors of files that commands read and write are InputErrors: this is the output.
        return _fail(f"cannot write the output: {error.strerror or error}", 1)
    except Exception as error:
        if os.environ.get("TREADLE_DEBUG"):
            raise
        return _fail(
            f"this is a bug: {type(error).__name__}: {error} (TREADLE_DEBUG=1 shows where)", 1
        )
    return code


@contextlib.contextmanager
def _interruptible(console: Console) -> Iterator[None]:
    """Makes Ctrl-C end the process at once, which ends its call as well.

    Python would raise KeyboardInterrupt anywhere in the main thread, also within gRPC. With a
    lock held there, the end of the program would wait for ever.
    """

    def end(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            console.restore()
            os.write(sys.stderr.fileno(), f"treadle: {console.interruption()}\n".encode())
        console.before_exit()
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run(arguments: Sequence[str] | None, console: Console) -> int:
    """Parses the command line and runs its command."""
    parser = make_parser()
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as end:  # --help, --version and wrong usage
        return end.code if isinstance(end.code, int) else 2
    console.argument_names = partial(_argument_names, parser, parsed)
    if getattr(parsed, "plain", False):
        console.use_plain_lines()
    try:
        return parsed.run(parsed, console) or 0
    except NotFoundError as error:
        from treadle.client.cli.connect import model_suggestion

        sentence = error.in_names_of(console.argument_names())
        return _fail(sentence + model_suggestion(parsed, sentence), error.exit_code)


def _argument_names(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> ArgumentNames:
    """Returns the names of the parsed command; see `argument_names`."""
    from treadle.client.cli.options.flag_names import argument_names

    return argument_names(parser, parsed)


def _sentence(error: TreadleError, console: Console) -> str:
    """Returns an error's sentence with the command's flags and the time of the next try."""
    sentence = error.in_names_of(console.argument_names())
    if not isinstance(error, ServerError) or not error.retry_delay_s:
        return sentence
    delay = error.retry_delay_s
    shown = f"in {math.ceil(delay) if delay > 10 else delay:g} s"
    return sentence if shown in sentence else f"{sentence} (try again {shown})"


def _fail(sentence: str, code: int) -> int:
    """Writes an error to standard error."""
    with contextlib.suppress(OSError):  # it may be closed as well
        print(f"treadle: {printable(without_secrets(sentence))}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
