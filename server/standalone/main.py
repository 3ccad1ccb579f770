"""`main` is `treadle-train`: it trains a model from a file of settings, on one machine or on many.

    treadle-train names.toml
    mpirun -n 4 treadle-train names.toml

Under mpirun the processes share the work. Rank 0 reads and writes all files and prints; the others
need none. Exit codes: 0 the model is written, 1 the run failed, 2 a wrong option or spec, 130 and
143 interrupted by Ctrl-C or SIGTERM, with a checkpoint from which the same command continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from treadle.model import Progress
    from treadle.model.config import TrainConfig
    from treadle.model.network.ranks.ranks import Ranks
    from treadle.model.training.progress import Started
    from treadle.server.standalone.run import RunFiles

PROG = "treadle-train"

_MAX_THREADS = 1024
_MAX_SECONDS = 86_400.0


class _Parser(argparse.ArgumentParser):
    """A parser that accepts no abbreviations and reports an error in one sentence."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        self.exit(2, f"{self.prog}: {message} (see `{self.prog} --help`)\n")


class UsageError(Exception):
    """An option or the spec is at fault."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line; `sys.argv` where None.

    Returns:
        The exit code.
    """
    options = build_parser().parse_args(arguments)
    # Before NumPy is imported: its BLAS would start a thread for each processor, which nobody uses.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        return _join_and_run(options)
    except ModuleNotFoundError as error:  # the bare install is the client alone
        if error.name is None or error.name.startswith("treadle"):
            raise
        return _fail(
            f"{error.name} is not installed; install treadle with its extra `server`: "
            "pip install '.[server]' in a checkout of Treadle",
            1,
        )


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = _Parser(
        prog=PROG,
        description="Train a model from a file of settings, without a server. Started by mpirun, "
        "several processes, on one machine or on many, share the work, and the model is the same "
        "to the bit.",
        epilog="Exit codes: 0 the model is written; 1 the run failed; 2 a wrong option or SPEC; "
        "130 or 143 interrupted by Ctrl-C or SIGTERM, and the same command continues. Under mpirun "
        "the code is that of mpirun.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('treadle')}")
    parser.add_argument(
        "spec", metavar="SPEC", type=Path, help="TOML or JSON: the fields of TrainSpec, and [files]"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="the model file to write (default: MODEL.safetensors, by `model` in SPEC)",
    )
    parser.add_argument(
        "--checkpoint-dir",
        metavar="DIRECTORY",
        type=Path,
        help="where the checkpoint is while the run lasts (default: FILE.checkpoint)",
    )
    parser.add_argument(
        "--checkpoint-interval-s",
        metavar="SECONDS",
        type=_seconds,
        default=10.0,
        help="seconds between two checkpoints (range: 0 to 86400, default: 10)",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=_threads,
        help="threads of every process (range: 1 to 1024, default: the processors that it may "
        "use, divided among the processes of a machine)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print each report as a JSON object on a line"
    )
    return parser


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_THREADS:
        raise argparse.ArgumentTypeError(f"must be 1 to {_MAX_THREADS}, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    fault = f"must be 0 to {_MAX_SECONDS:.0f}, not {text!r}"
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(fault) from None
    if not 0 <= seconds <= _MAX_SECONDS:
        raise argparse.ArgumentTypeError(fault)
    return seconds


def _join_and_run(options: argparse.Namespace) -> int:
    """Joins the other processes, if there are any, and leads or follows."""
    from treadle.model.errors import PackageError
    from treadle.model.training.ranks.follower import follow_to_the_end
    from treadle.model.training.ranks.join import join

    try:
        ranks = join()
    except PackageError as error:
        return _fail(str(error), 1)
    if ranks is None:
        return _lead(options, None)
    _end_with_parent()
    if not ranks.leads:
        for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 decides
            signal.signal(number, signal.SIG_IGN)
        return follow_to_the_end(ranks)
    try:
        return _lead(options, ranks)
    finally:
        ranks.leave()


def _end_with_parent() -> None:
    """Lets no process of the run outlive a killed mpirun."""
    from treadle.server.jobs.worker import die_with_parent

    die_with_parent()


def _lead(options: argparse.Namespace, ranks: Ranks | None) -> int:
    """Reads the spec, trains and writes the model; returns the exit code."""
    from treadle.model.errors import ConfigError, ModelError
    from treadle.server.config import available_cpus
    from treadle.server.standalone.asked_run import OtherRunError
    from treadle.server.standalone.held_folder import HeldFolderError
    from treadle.server.standalone.spec_file import SpecFileError

    sharing = 1 if ranks is None else ranks.on_this_host
    threads = options.threads or max(1, available_cpus() // sharing)
    try:
        return _train(options, threads, ranks)
    except (SpecFileError, UsageError, OtherRunError, ConfigError) as error:
        return _fail(str(error), 2)
    except (HeldFolderError, ModelError) as error:
        return _fail(str(error), 1)
    except MemoryError as error:
        return _fail(f"there is too little memory{f': {error}' if str(error) else ''}", 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}", 1)


def _train(options: argparse.Namespace, threads: int, ranks: Ranks | None) -> int:
    from treadle.server.messages.requests import train_config
    from treadle.server.standalone.held_folder import held
    from treadle.server.standalone.run import RunFiles
    from treadle.server.standalone.spec_file import read_spec_file

    made = read_spec_file(options.spec)
    output = options.output
    if output is None:
        if not made.spec.model:
            raise UsageError(f'{options.spec} has no key `model`: add model = "NAME", or --output')
        output = Path(f"{made.spec.model}.safetensors")
    made.spec.model = made.spec.model or "model"
    config = _checked(lambda: train_config(made.spec))
    folder = options.checkpoint_dir or output.with_name(f"{output.name}.checkpoint")
    _check_places(output, folder)
    files = RunFiles(made.files, made.init_from, output, folder)
    with held(folder):
        return _trained(config, files, options, threads, ranks)


def _check_places(output: Path, folder: Path) -> None:
    """Checks where the run is to write, before it trains for hours.

    Raises:
        UsageError: It cannot write there.
    """
    if output.is_dir():
        raise UsageError(f"--output {output} is a folder: name a file")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one for the checkpoint by --checkpoint-dir")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"there is no folder {output.parent}, and it cannot be made ({error.strerror}): name "
            "another --output"
        ) from error
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{output.parent} cannot be written: name another --output")


def _trained(
    config: TrainConfig,
    files: RunFiles,
    options: argparse.Namespace,
    threads: int,
    ranks: Ranks | None,
) -> int:
    """Trains and writes the model; returns the exit code."""
    from treadle.server.standalone.run import Run

    signals: list[int] = []
    runs: list[Run] = []

    def interrupt(number: int, frame: object) -> None:
        if signals or not runs:  # a second time, or while the corpus is read: nothing is lost
            if ranks is not None:
                ranks.abort(128 + number)
            os._exit(128 + number)
        signals.append(number)
        runs[0].interrupted = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    training = Run(config, files, threads, options.checkpoint_interval_s, ranks)
    runs.append(training)
    report = _Report(options.json)
    report.started(training.started, training.steps, threads, 1 if ranks is None else ranks.size)
    model = training.train(report.progress)
    if model is None:
        where = f"the checkpoint in {files.checkpoints}" if training.steps else "the beginning"
        report.say(
            f"interrupted after {training.steps:,} steps: the same command continues from {where}"
        )
        return 128 + signals[0]
    report.say(f"wrote {files.output}", event="saved", output=str(files.output))
    return 0


def _checked(make: Callable[[], Any]) -> Any:
    """Returns settings; their faults are named as the file has them.

    Raises:
        UsageError: A setting is at fault.
    """
    from treadle.server.errors import StatusError

    try:
        return make()
    except StatusError as error:
        raise UsageError(error.message.replace("spec.", "")) from None


class _Report:
    """Prints how a run goes.

    Args:
        as_json: Whether each report is a JSON object on a line.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def started(self, started: Started, steps: int, threads: int, processes: int) -> None:
        """Prints what the run does."""
        if self._as_json:
            values = dataclasses.asdict(started) | {"config": started.config.to_json()}
            self._print(event="started", step=steps, processes=processes, threads=threads, **values)
            return
        for notice in started.notices:
            print(notice, file=sys.stderr)
        unit = "thread" if threads == 1 else "threads"
        where = f"{processes} processes of {threads} {unit}" if processes > 1 else ""
        whence = f"from step {steps:,} on" if steps else ""
        numbers = f"{started.parameter_count:,} parameters, {started.train_tokens:,} tokens"
        print("; ".join(filter(None, [numbers, where, whence])), flush=True)

    def progress(self, progress: Progress) -> None:
        """Prints one progress."""
        if self._as_json:
            self._print(event="progress", **dataclasses.asdict(progress))
            return
        for notice in progress.notices:
            print(notice, file=sys.stderr)
        valid = "" if progress.valid_loss is None else f"  valid {progress.valid_loss:.4f}"
        print(
            f"step {progress.step:,}  epoch {progress.epoch:.2f}  train {progress.train_loss:.4f}"
            f"{valid}  {progress.tokens_per_second:,.0f} tokens/s",
            flush=True,
        )

    def say(self, sentence: str, **values: Any) -> None:
        """Prints a sentence about the end."""
        if self._as_json:
            self._print(**(values or {"event": "interrupted", "reason": sentence}))
        else:
            print(sentence, flush=True)

    def _print(self, **values: Any) -> None:
        print(json.dumps(values, separators=(",", ":")), flush=True)


def _fail(sentence: str, code: int) -> int:
    print(f"{PROG}: {sentence}", file=sys.stderr, flush=True)
    return code
