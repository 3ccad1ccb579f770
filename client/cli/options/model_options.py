"""`add_model` adds the model that a command uses, or a job instead; `check_model` checks them."""

from __future__ import annotations

import argparse

from treadle.client.cli.options.field_flags import OPTIONS, add_flags
from treadle.client.errors import InputError


def add_model(parser: argparse.ArgumentParser, command: str) -> None:
    """Adds the name of a model and its version, or a job instead."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="the model's name, or NAME@ALIAS")
    add_flags(parser, command, OPTIONS, of="model")


def check_model(args: argparse.Namespace) -> None:
    """Checks that the command line names either a model or a job.

    Raises:
        InputError: It names both or neither, or asks for a job's best weights without a job.
    """
    job = getattr(args, "job", "")
    if bool(args.model) == bool(job):
        raise InputError("give either a MODEL or --job JOB")
    if not job and "job_weights" in vars(args):
        raise InputError("--best chooses among the weights of a job: give --job JOB as well")
