"""`add_connection`, `add_json` and the others add options that several commands have."""

from __future__ import annotations

import argparse

from treadle.client.cli.options.option import add_option
from treadle.client.cli.options.output_options import add_plain
from treadle.client.cli.options.values import duration, version_number

JOB_HELP = "the job's id, the beginning of it, or `latest`"


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Adds the options that may precede or follow the command's name.

    They have no default: the command's parser would set it over the value before the name.
    """
    group = parser.add_argument_group("connection")
    add_option(
        group,
        "--server",
        "the server's HOST:PORT or unix:/PATH, or several: HOST:PORT,HOST:PORT or dns:///NAME:PORT",
        default="$TREADLE_SERVER, the profile, or 127.0.0.1:50051",
        metavar="ADDRESS",
    )
    add_option(
        group,
        "--timeout",
        "the longest that a call may take, such as 10s or 2m",
        values="0 or more",
        default="no limit",
        type=duration,
        metavar="TIME",
    )
    add_option(
        group,
        "--tls",
        "encrypt; --no-tls does not",
        default="$TREADLE_TLS, the profile, or whether a file for it is given",
        action="store_true",
    )
    group.add_argument(
        "--no-tls",
        dest="tls",
        action="store_false",
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )
    add_option(
        group,
        "--ca-file",
        "the certificate authority that signed the server's certificate",
        default="$TREADLE_CA_FILE, the profile, or those of this machine",
        metavar="FILE",
    )
    add_option(
        group,
        "--cert-file",
        "the certificate to show to the server",
        default="$TREADLE_CERT_FILE, the profile, or none",
        metavar="FILE",
    )
    add_option(
        group,
        "--key-file",
        "the private key of --cert-file",
        default="$TREADLE_KEY_FILE, the profile, or none",
        metavar="FILE",
    )
    add_option(
        group,
        "--token-file",
        "the file that holds the token to send",
        default="$TREADLE_TOKEN, $TREADLE_TOKEN_FILE, the profile, or none",
        metavar="FILE",
    )
    add_option(
        group,
        "--allow-plaintext-token",
        "send the token without encryption to another machine, where others can read it",
        action="store_true",
    )
    add_profile(group)
    add_plain(parser)


def add_profile(parser: argparse._ActionsContainer) -> None:
    """Adds --profile."""
    add_option(
        parser,
        "--profile",
        "the profile of the configuration file to use; see `treadle config`",
        default="$TREADLE_PROFILE, or the file's default_profile",
        metavar="NAME",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print JSON, one object per line",
    )


def add_job(parser: argparse.ArgumentParser) -> None:
    """Adds the id of a job."""
    parser.add_argument("job", metavar="JOB", help=JOB_HELP)


def add_version(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds a model's version."""
    parser.add_argument("--version", metavar="N", type=version_number, default=0, help=text)


def add_encoding(parser: argparse._ActionsContainer) -> None:
    """Adds --encoding."""
    parser.add_argument(
        "--encoding",
        metavar="NAME",
        default="utf-8",
        help="the encoding of the file or standard input: latin-1, utf-16, ... (default: utf-8)",
    )


def add_follow(parser: argparse.ArgumentParser) -> None:
    """Adds how a run is shown, and how long to try to reconnect to it."""
    parser.add_argument("--quiet", action="store_true", help="print only the finished model")
    add_reconnect(parser)


def add_reconnect(parser: argparse._ActionsContainer) -> None:
    """Adds --reconnect."""
    parser.add_argument(
        "--reconnect",
        dest="reconnect_s",
        metavar="TIME",
        type=duration,
        default=60.0,
        help="how long to try to reconnect where the connection breaks, 0 never (0 or more; "
        "default: 60s)",
    )
