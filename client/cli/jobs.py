"""The command `treadle jobs` lists, shows, cancels, pauses, resumes and deletes jobs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from treadle.client.cli.connect import connect, find_job
from treadle.client.cli.display.console import Console, one_line
from treadle.client.cli.display.numbers import number_text
from treadle.client.cli.display.tables import (
    print_facts,
    print_message,
    print_rows,
    print_table,
    when_text,
)
from treadle.client.cli.options.field_flags import OPTIONS, add_flags
from treadle.client.cli.options.flag_names import in_training_flags
from treadle.client.cli.options.output_options import add_output, output_format
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_connection, add_job
from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.v1.sequence_pb2 import Job

PAUSE_TIMEOUT_S = 60.0
"""How long `pause` waits for the job to be paused; the server kills the process sooner."""

_POLL_S = 0.2

FOLLOW_S = 1.0
"""Seconds between two lists of --follow."""

DAY_S = 86_400

OUTCOMES = {"cancel": "cancelled", "pause": "paused"}

MIN_ID_CHARACTERS = 6
"""Characters of an id that an action needs to end a job."""

DROP = (5, 3, 4)
"""The columns that a narrow terminal leaves out, the first one first."""

HEAD = ("id", "model", "state", "step", "loss", "age")

PLAIN_COLUMNS = (
    "id",
    "model",
    "state",
    "progress.step",
    "started.total_steps",
    "progress.train_loss",
    "progress.best_valid_loss",
    "create_time",
)
"""The columns of the list as plain rows. New ones come last."""

ACTIONS = {
    "show": "describe one job",
    "cancel": "end a job for good; if it has trained, its model is stored",
    "pause": "keep a job's state on disk, free its slot, and wait until it is paused",
    "resume": "put a paused job back into the queue",
    "delete": "delete a job that has ended or is paused; stored models stay",
}


def add_parsers(commands: Commands) -> None:
    """Adds `treadle jobs` and its actions."""
    parser = commands.add_parser(
        "jobs",
        description="List training jobs, newest first, or show or control one.",
        fill=_add_actions,
    )
    parser.set_defaults(run=run_list)


def _add_actions(parser: argparse.ArgumentParser) -> None:
    """Adds the actions and their options."""
    actions = parser.add_subparsers(title="actions", dest="action")
    listing = actions.add_parser("list", help="list training jobs, newest first (default)")
    for each in (parser, listing):
        add_flags(each, "jobs", OPTIONS)
        each.add_argument(
            "--follow",
            action="store_true",
            default=argparse.SUPPRESS,
            help="list again every second until q or Ctrl-C; what is no terminal with the extra "
            "[cli] gets a plain row for each change",
        )
        each.set_defaults(run=run_list)
    added = [parser, listing]
    for action, text in ACTIONS.items():
        one = actions.add_parser(action, help=text, description=text.capitalize() + ".")
        add_job(one)
        one.set_defaults(run=run_show if action == "show" else run_action)
        added.append(one)
    for each in added:
        add_output(each)
        add_connection(each)


def run_list(args: argparse.Namespace, console: Console) -> None:
    """Lists jobs, newest first."""
    with connect(args) as client:
        if "follow" in args:
            _follow(args, client, console)
            return
        jobs = _jobs(args, client)
        if output_format(args) != "table":
            print_rows(jobs, PLAIN_COLUMNS, output_format(args), console)
            return
        rows = [(*_row(job), tags_text(job, brief=True)) for job in jobs]
    if any(row[-1] for row in rows):
        print_table(console, (*HEAD, "tags"), rows, left=3, cut=1, drop=(len(HEAD), *DROP))
    elif rows:
        print_table(console, HEAD, [row[:-1] for row in rows], left=3, cut=1, drop=DROP)
    else:
        is_filtered = {"states", "of_model", "tags"} & set(vars(args))
        console.line("no such jobs" if is_filtered else "no jobs yet")


def _jobs(args: argparse.Namespace, client: Client, page_size: int = 0) -> Iterator[Job]:
    """Yields the requested jobs, newest first."""
    states = getattr(args, "states", ())
    return client.jobs(
        states,
        model=getattr(args, "of_model", ""),
        tags=getattr(args, "tags", None),
        page_size=page_size,
    )


def _follow(args: argparse.Namespace, client: Client, console: Console) -> None:
    """Lists jobs again and again: in place, or each one that has changed."""
    if console.has_rich and output_format(args) == "table":
        from treadle.client.cli.display.terminal.live_jobs import show_jobs

        def load(most: int) -> list[tuple[str, ...]]:
            return [_row(job) for job in islice(_jobs(args, client, min(most, 1000)), most)]

        show_jobs(console, HEAD, load, DROP)
        return
    output = "json" if output_format(args) == "json" else "plain"
    seen: dict[str, bytes] = {}
    while True:
        jobs = list(_jobs(args, client))
        changed = [job for job in jobs if seen.get(job.id) != job.SerializeToString()]
        print_rows(reversed(changed), PLAIN_COLUMNS, output, console)
        seen = {job.id: job.SerializeToString() for job in jobs}
        time.sleep(FOLLOW_S)


def _row(job: Job) -> tuple[str, ...]:
    """Describes a job in a row of the list."""
    from treadle.client.messages.enums import field_word

    if job.damage:
        return job.id, job.model, "damaged", "-", "-", "-"
    return (
        job.id,
        job.model,
        field_word(job, "state"),
        step_text(job) or "-",
        loss_text(job) or "-",
        age_text(time.time() - job.create_time.ToNanoseconds() / 1e9),
    )


def step_text(job: Job) -> str:
    """Writes how far a job has come: "1,200/20,000"; empty before it has begun."""
    if not job.HasField("progress"):
        return ""
    total = job.started.total_steps
    return f"{job.progress.step:,}" + (f"/{total:,}" if total else "")


def loss_text(job: Job) -> str:
    """Writes a job's best validation loss, else its newest training loss."""
    if not job.HasField("progress"):
        return ""
    for field in ("best_valid_loss", "valid_loss"):
        if job.progress.HasField(field):
            return f"{number_text(getattr(job.progress, field))} valid"
    return f"{number_text(job.progress.train_loss)} train"


def tags_text(job: Job, *, brief: bool = False) -> str:
    """Writes a job's tags, sorted by name.

    Args:
        job: The job.
        brief: Whether to leave out those with a slash in their name, which are for programs.

    Returns:
        The tags: "sweep=names trial=7"; empty without any.
    """
    return " ".join(
        f"{name}={value}"
        for name, value in sorted(job.spec.tags.items())
        if not (brief and "/" in name)
    )


def age_text(seconds: float) -> str:
    """Writes an age: "12 s", "3:05", "1:02:03", "4 d"."""
    from treadle.client.cli.display.progress import duration_text

    if seconds >= 2 * DAY_S:
        return f"{seconds // DAY_S:.0f} d"
    return duration_text(max(0.0, round(seconds)))


def run_show(args: argparse.Namespace, console: Console) -> None:
    """Describes one job."""
    with connect(args) as client:
        job = find_job(client, args.job)
    if not print_message(job, output_format(args), console):
        print_facts([(name, value) for name, value in _facts(job) if value], console)


def _facts(job: Job) -> list[tuple[str, str]]:
    """Describes a job at length; a fact that is not known yet is empty."""
    from treadle.client.cli.display.progress import duration_text, size_text, started_lines

    started = started_lines(job.started) if job.HasField("started") else []
    times = [
        ("accepted", when_text(job.create_time)),
        ("began", when_text(job.start_time) if job.HasField("start_time") else ""),
        ("ended", when_text(job.end_time) if job.HasField("end_time") else ""),
    ]
    left = ""
    if job.HasField("progress") and job.progress.HasField("time_left_s"):
        left = duration_text(job.progress.time_left_s)
    return [
        ("id", job.id),
        ("model", job.model + (f" version {job.version}" if job.version else "")),
        ("owner", job.owner),
        ("tags", tags_text(job)),
        ("state", state_text(job)),
        *times,
        ("queue", f"{job.queue_position:,} before it" if job.queue_position else ""),
        ("step", step_text(job)),
        ("loss", loss_text(job)),
        ("time left", left),
        ("memory", size_text(job.progress.memory_bytes) if job.progress.memory_bytes else ""),
        ("corpus", size_text(job.corpus_bytes)),
        *(("", one_line(in_training_flags(line))) for line in started),
        ("events", f"{job.last_sequence:,}"),
        ("restarts", f"{job.restarts:,}" if job.restarts else ""),
    ]


def state_text(job: Job) -> str:
    """Returns a job's state, with the reason where there is one."""
    from treadle.client.messages.enums import field_word

    reason = one_line(in_training_flags(job.reason))
    return field_word(job, "state") + (f": {reason}" if reason else "")


def run_action(args: argparse.Namespace, console: Console) -> None:
    """Cancels, pauses, resumes or deletes one job."""
    with connect(args) as client:
        job = find_job(client, args.job)
        _check_id(args.action, args.job, job)
        if args.action == "delete":
            client.delete_job(job.id)
            line = f"deleted job {job.id}"
        else:
            job = _job_calls(client)[args.action](job.id)
            if args.action == "pause":
                job = _wait_paused(client, job)
            line = _outcome(args.action, job)
    if not print_message(job, output_format(args), console):
        console.line(line)


def _check_id(action: str, given: str, job: Job) -> None:
    """Checks that an action that ends a job names it by enough of its id.

    Raises:
        InputError: The given beginning is too short: many ids begin with 0, for example.
    """
    if action in ("cancel", "delete") and len(given) < MIN_ID_CHARACTERS and given != job.id:
        raise InputError(
            f"{given!r} is too short to {action} a job by: give {MIN_ID_CHARACTERS} or more "
            "characters of its id"
        )


def _wait_paused(client: Client, job: Job) -> Job:
    """Waits until a job has paused, at most PAUSE_TIMEOUT_S, and returns it."""
    from treadle.v1.sequence_pb2 import JOB_STATE_RUNNING

    end = time.monotonic() + PAUSE_TIMEOUT_S
    while job.state == JOB_STATE_RUNNING and time.monotonic() < end:
        time.sleep(_POLL_S)
        job = client.get_job(job.id)
    return job


def _outcome(action: str, job: Job) -> str:
    """Describes the outcome of an action; ending or pausing may take a moment."""
    from treadle.v1.sequence_pb2 import JOB_STATE_RUNNING

    if action in ("cancel", "pause") and job.state == JOB_STATE_RUNNING:
        return f"job {job.id} is being {OUTCOMES[action]}"
    return f"job {job.id} is {state_text(job)}"


def _job_calls(client: Client) -> dict[str, Callable[[str], Job]]:
    """Returns the client's method for each action."""
    return {
        "cancel": client.cancel_job,
        "pause": client.pause_job,
        "resume": client.resume_job,
    }
