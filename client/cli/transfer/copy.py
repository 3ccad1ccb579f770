"""The action `treadle models copy` copies a model to another server."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.notices import print_notice
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_version
from treadle.client.cli.transfer.transfer_options import (
    Outcome,
    add_target,
    add_transfer_options,
    shown,
    stored,
)
from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.client.client import Client


def add_copy(actions: Commands) -> argparse.ArgumentParser:
    """Adds the action; returns its parser."""
    copy = actions.add_parser(
        "copy",
        help="copy a model to another server",
        description="Copy one version of a model to another server. The file passes through this "
        "machine in pieces and is not kept here.",
    )
    copy.add_argument("source", metavar="NAME", help="the model's name, or NAME@ALIAS")
    add_version(copy, "the model's version (1 or more; default: the newest)")
    copy.add_argument(
        "--to",
        metavar="ADDRESS",
        default="",
        help="the other server's HOST:PORT or unix:/PATH (default: that of --to-profile)",
    )
    copy.add_argument(
        "--to-profile",
        metavar="NAME",
        default="",
        help="the profile of the configuration file for the other server, with its TLS and token; "
        "the environment and the other flags do not count there (default: none)",
    )
    add_target(copy, needs_name=False)
    add_transfer_options(copy)
    copy.set_defaults(transfer=run)
    return copy


def run(args: argparse.Namespace, console: Console, client: Client) -> Outcome:
    """Copies the model; returns the version."""
    with (
        _other(args) as other,
        shown(args, console, f"copying {args.source} to {other.address}") as transfer,
    ):
        reply = client.copy_model(
            args.source,
            other,
            version=args.version,
            name=args.model,
            alias=args.alias,
            reuse_identical=args.reuse_identical,
            **transfer,
        )
    return stored(reply, args.alias)


def _other(args: argparse.Namespace) -> Client:
    """Returns the client of the other server. It gets no token of this one.

    Raises:
        InputError: No server is named, or a setting of it is wrong.
    """
    from treadle.client.client import Client
    from treadle.client.settings.connection_settings import resolve_settings

    if not args.to and not args.to_profile:
        raise InputError("give --to ADDRESS, or --to-profile NAME, or both")
    flags = {"server": args.to} if args.to else {}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TREADLE_")
    }
    settings = resolve_settings(flags, environment, args.to_profile)
    if "server" not in settings.values:
        raise InputError(f"profile {args.to_profile!r} names no server: give --to ADDRESS")
    for warning in settings.warnings():
        print_notice(f"warning: {warning}")
    try:
        return Client(timeout_s=getattr(args, "timeout", None), **settings.arguments())
    except InputError as error:
        raise settings.blamed(error) from None
