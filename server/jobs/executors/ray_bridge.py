"""`main` runs the process through which a server uses a Ray cluster.

It is the driver of the server's actors, in Ray's words. Ray ends a driver whose cluster does not
answer for a minute, and that must not be the server; and the server need not load Ray. The process
ends with the server, and Ray then ends the actors.

Each job has a socket of its own, which arrives through the socket that the process inherits. On it
are lines of JSON as in `worker_protocol`. The server sends first what the job needs, and then
`{"send": MESSAGE}` and `{"ask_to_leave": MESSAGE}` for the worker, and `{"supervise": {...}}`; the
end of the socket ends the job's worker. Besides the events of the worker the server gets

- `waiting`: there is no node for the job yet; `reason` says why;
- `ready`: the job may be sent; `node` says where the worker is;
- `alive`: files are on their way, or the worker has nothing to say;
- `log`: the worker wrote a line to its log;
- `died`: the worker ended without a last event; `reason` says how, after "the training process",
  and `lost`, `starved` and `took_too_much` are as in `Worker`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import IO

from treadle.server.access.request_id import log_to_stderr
from treadle.server.jobs import worker_protocol
from treadle.server.jobs.executors.remote_run import NAMESPACE, RemoteRun
from treadle.server.jobs.worker import die_with_parent, private_output

_LOOK_S = 2.0
"""Seconds between two looks whether the cluster is connected."""

_RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_SCHEDULER_EVENTS": "0",  # the job's reason says why it waits
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def main() -> int:
    """Connects to a cluster and runs jobs on it until the server is gone.

    Returns:
        The exit code: 1 where the cluster does not answer; the server has the reason.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--log-level", type=int, default=logging.WARNING)
    parser.add_argument("--log-format", default="text")
    options = parser.parse_args()
    die_with_parent()
    replies = private_output()
    log_to_stderr(options.log_level, options.log_format)
    fault = connect(options.address)
    # The server ends this process, and a service manager's signal to all processes must not.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _reply(replies, {"event": "failed", "reason": fault} if fault else {"event": "connected"})
    if fault:
        return 1
    asyncio.run(_serve(socket.socket(fileno=options.socket)))
    _disconnect()
    return 0


def connect(address: str) -> str:
    """Connects this process to a cluster, and never starts one.

    Args:
        address: As for `ray.init`.

    Returns:
        What is wrong with the address; empty if it is connected.
    """
    os.environ |= _RAY_VARIABLES
    import ray

    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
        )
    except Exception as error:  # Ray raises errors of many kinds
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def _disconnect() -> None:
    import ray

    with suppress(Exception):  # the cluster may be gone
        ray.shutdown()


def _reply(replies: IO[bytes], message: worker_protocol.Message) -> None:
    replies.write(worker_protocol.encode(message))


async def _serve(control: socket.socket) -> None:
    """Runs a job for each socket that arrives, until the server is gone."""
    control.setblocking(False)
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    jobs: set[asyncio.Task[None]] = set()

    def accept() -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            gone.set()
            return
        for descriptor in descriptors:
            job = asyncio.create_task(_run_job(socket.socket(fileno=descriptor)))
            jobs.add(job)
            job.add_done_callback(jobs.discard)

    loop.add_reader(control, accept)
    watching = asyncio.create_task(_watch_connection(gone))
    await gone.wait()
    loop.remove_reader(control)
    watching.cancel()
    for job in jobs:
        job.cancel()
    if jobs:
        await asyncio.wait(jobs)


async def _watch_connection(gone: asyncio.Event) -> None:
    """Sets an event once this process is connected no more; the server starts another one.

    Ray itself ends a process whose cluster is gone, but not one that is connected from outside.
    """
    import ray.util.client

    is_outside = bool(ray.util.client.ray.is_connected())
    while not is_outside or ray.util.client.ray.is_connected():
        await asyncio.sleep(_LOOK_S)
    gone.set()


async def _run_job(channel: socket.socket) -> None:
    """Runs the job of one socket."""
    reader, writer = await asyncio.open_connection(
        sock=channel, limit=worker_protocol.MAX_LINE_BYTES
    )

    async def tell(message: worker_protocol.Message) -> None:
        with suppress(ConnectionError):  # then the end of the socket is read as well
            writer.write(worker_protocol.encode(message))
            await writer.drain()

    try:
        line = await reader.readline()
        if not line:
            return
        run = RemoteRun(worker_protocol.decode(line), tell)
        working = asyncio.create_task(run.work())
        hearing = asyncio.create_task(_hear(reader, run))
        is_placed = False
        try:
            await asyncio.wait([working, hearing], return_when=asyncio.FIRST_COMPLETED)
            is_placed = run.is_placed
        finally:
            working.cancel()
            hearing.cancel()
            await asyncio.wait([working, hearing])
            await (run.end() if is_placed else run.abandon())
    finally:
        writer.close()


async def _hear(reader: asyncio.StreamReader, run: RemoteRun) -> None:
    """Passes on what the server sends, until it sends no more."""
    with suppress(ConnectionError):
        while line := await reader.readline():
            await run.hear(worker_protocol.decode(line))


if __name__ == "__main__":
    sys.exit(main())
