"""The commands `treadle info` and `treadle health` describe the server itself."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from treadle.client.cli.connect import connect
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.tables import print_facts, print_message
from treadle.client.cli.options.output_options import add_output, output_format
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_connection
from treadle.client.cli.options.values import duration
from treadle.client.errors import ServerError

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import GetServerInfoResponse

NOTICE_INTERVAL_S = 5.0
"""Seconds between two notices while the command waits."""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle info` and `treadle health`."""
    info = commands.add_parser(
        "info",
        description="Describe the server: its version, its limits and the load on it. A server "
        "that knows its callers also says who you are, what you may do, and what you have used.",
    )
    add_output(info)
    add_connection(info)
    info.set_defaults(run=run_info)
    health = commands.add_parser(
        "health",
        description="Ask the standard health service; exit with 0 if the server serves, with 1 "
        "if it does not, with 3 if it cannot be reached.",
    )
    health.add_argument(
        "--wait",
        metavar="TIME",
        type=duration,
        help="the longest to wait until it serves, such as 30s (0 or more; default: ask once)",
    )
    add_connection(health)
    health.set_defaults(run=run_health)


def run_info(args: argparse.Namespace, console: Console) -> None:
    """Describes the server."""
    from treadle.client.cli.display.caller import caller_facts
    from treadle.client.cli.display.progress import duration_text, size_text

    with connect(args) as client:
        info = client.server_info()
    if print_message(info, output_format(args), console):
        return
    facts = [
        ("version", info.version),
        *([("replica", info.replica)] if info.replica else []),
        *_starting(info),
        ("up", duration_text(info.uptime_s)),
        ("compiled for", info.cpu_target),
        ("threads", str(info.threads)),
        *_load(info),
        *_precision(info),
        ("new tokens", f"up to {info.max_new_tokens_limit:,}"),
        ("corpus", f"up to {size_text(info.max_corpus_bytes)}"),
        ("message", f"up to {size_text(info.max_message_bytes)}"),
        *(caller_facts(info.caller) if info.HasField("caller") else ()),
    ]
    print_facts(facts, console)


def _load(info: GetServerInfoResponse) -> list[tuple[str, str]]:
    """Returns what all callers use, or what they may use where the server shows that alone.

    It shows the load to admins only, and to everybody where it knows no callers.
    """
    from treadle.client.cli.display.progress import size_text
    from treadle.v1.sequence_pb2 import CALLER_ROLE_ADMIN

    memory = size_text(info.memory_budget_bytes)
    none = "none on this server"
    if info.HasField("caller") and info.caller.role != CALLER_ROLE_ADMIN:
        slots = f"up to {info.training_slots}" if info.training_slots else none
        return [
            ("training", f"{slots}, {info.training_queue_limit} waiting"),
            ("inference", f"up to {info.inference_limit}"),
            ("streams", f"up to {info.score_stream_limit}"),
            ("sessions", f"up to {info.session_limit}"),
            ("learners", f"up to {info.learning_limit}"),
            ("memory", f"up to {memory}"),
        ]
    running = f"{info.training_running} of {info.training_slots} running"
    training = running if info.training_slots else none
    queue = f"{info.training_queued} of {info.training_queue_limit} waiting"
    used = f"{size_text(info.memory_used_bytes)} of {memory}"
    return [
        ("training", f"{training}, {queue}"),
        ("inference", f"{info.inference_running} of {info.inference_limit}"),
        ("streams", f"{info.score_streams_running} of {info.score_stream_limit}"),
        ("sessions", f"{info.sessions_running} of {info.session_limit}"),
        ("learners", f"{info.learning_running} of {info.learning_limit}"),
        # An older server does not report its memory.
        ("memory", used if info.memory_budget_bytes else "unknown"),
        ("models loaded", f"{info.models_loaded}, {size_text(info.models_loaded_bytes)}"),
    ]


def _precision(info: GetServerInfoResponse) -> list[tuple[str, str]]:
    """Returns the precision of generating and scoring; an older server does not say it."""
    from treadle.client.messages.enums import field_word

    return [("precision", field_word(info, "inference_precision"))] * bool(info.inference_precision)


def _starting(info: GetServerInfoResponse) -> list[tuple[str, str]]:
    """Returns the progress of a server that does not serve yet."""
    if not info.kernels_total:
        return []
    return [("starting", f"{info.kernels_ready} of {info.kernels_total} kernels are compiled")]


def run_health(args: argparse.Namespace, console: Console) -> None:
    """Prints whether the server serves."""
    with connect(args) as client:
        if args.wait:  # 0 asks once, as without it
            client.wait_ready(args.wait, _WaitNotice(client.address))
        elif not client.health():
            progress = client.starting()
            raise ServerError(
                f"the server at {client.address} is up but not serving"
                + (f": {progress}" if progress else "")
            )
    console.line("serving")


class _WaitNotice:
    """Writes the progress of a starting server to standard error every few seconds.

    Args:
        address: The server's address.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._due_s = 0.0

    def __call__(self, progress: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + NOTICE_INTERVAL_S
            print(
                f"treadle: waiting for the server at {self._address}: {progress}",
                file=sys.stderr,
                flush=True,
            )
