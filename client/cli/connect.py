"""`connect` makes the client of a command; `find_job` finds the job that a word names."""

from __future__ import annotations

import argparse
import os
import re
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any

from treadle.client.cli.display.console import printable
from treadle.client.cli.options.option import given_options
from treadle.client.errors import InputError, TreadleError

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.client.settings.connection_settings import ConnectionSettings
    from treadle.v1.sequence_pb2 import Job

SUGGESTION_S = 1.0
"""The longest to ask for the models that there are, once a command has failed."""

LATEST = "latest"
"""The word for the newest job."""


def connect(args: argparse.Namespace, timeout_s: float | None = None) -> Client:
    """Returns the client for the server that flags, the environment or a profile name.

    Args:
        args: The parsed arguments.
        timeout_s: The longest that a call may take, instead of --timeout.
    """
    from treadle.client.client import Client

    settings = read_settings(args)
    try:
        return Client(timeout_s=timeout_s or getattr(args, "timeout", None), **settings.arguments())
    except InputError as error:
        raise settings.blamed(error) from None


def read_settings(args: argparse.Namespace) -> ConnectionSettings:
    """Returns the settings of the connection, and prints what is wrong with their file."""
    from treadle.client.settings.connection_settings import resolve_settings
    from treadle.client.settings.setting import SETTINGS

    flags = {name: vars(args)[name] for name in SETTINGS if name in vars(args)}
    profile = getattr(args, "profile", None)
    if profile == "":
        raise InputError("--profile is empty: give the name of a profile, or leave it out")
    settings = resolve_settings(flags, os.environ, profile or "")
    for warning in settings.warnings():
        print(f"treadle: warning: {printable(warning)}", file=sys.stderr, flush=True)
    return settings


def model_suggestion(args: argparse.Namespace, sentence: str) -> str:
    """Returns the model that an unknown one may stand for, if the server says so quickly.

    Args:
        args: The parsed arguments of the command that failed.
        sentence: The error of the server, which quotes the name.

    Returns:
        The end of the sentence; empty if no name is near.
    """
    from treadle.client.cli.options.suggestion import suggestion

    unknown = re.search(r"there is no model '([\w.-]+)'$", sentence)
    if unknown is None:
        return ""
    try:
        with connect(args, SUGGESTION_S) as client:
            names = [model.name for model in islice(client.models(page_size=1000), 1000)]
    except TreadleError:
        return ""
    return suggestion(unknown[1], names)


def find_job(client: Client, job: str) -> Job:
    """Returns the job with an id, the beginning of an id, or `latest`.

    Raises:
        InputError: Several ids begin with it.
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


def request_options(args: argparse.Namespace, client: Client, options: type) -> Any:
    """Returns the given options of a TypedDict, with a job's id in full."""
    picked = given_options(args, options)
    if "job" in picked:
        picked["job"] = find_job(client, picked["job"]).id
    return picked
