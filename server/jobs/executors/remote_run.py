"""`RemoteRun` has an actor on a node of a Ray cluster run the worker of one job.

It brings the job's files to the node and back, and passes messages on. What a worker reports as
written is in the job's directory before the server hears of it, so that nothing behind the executor
differs from a worker of this machine.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions
import ray.util

from treadle.model.atomic_files import remove_leftovers
from treadle.server.failures import is_full
from treadle.server.jobs import worker_protocol
from treadle.server.jobs.executors.file_transfer import (
    DamagedTransferError,
    IncomingFile,
    OutgoingFile,
)
from treadle.server.jobs.executors.job_actor import JobActor
from treadle.server.jobs.executors.job_scratch import RESULTS
from treadle.server.jobs.worker_protocol import Message
from treadle.server.release import RELEASE
from treadle.server.resources import process_memory, thread_pools
from treadle.server.storage.files import DiskSpace
from treadle.server.storage.job_files import (
    FINAL_FILE,
    INIT_FILE,
    PREVIOUS_STATE_FILE,
    STATE_FILE,
)

logger = logging.getLogger(__name__)

NAMESPACE = "treadle"
"""The namespace of all actors, so that every server on a cluster finds those of the others."""

_CLUSTER = thread_pools.ThreadPool("cluster", 4)
"""Calls of Ray that wait for the head of the cluster."""

CONNECTION_LOST = "was lost: the connection to the Ray cluster broke"
"""Why a run is over that the cluster may not even notice; it follows "the training process"."""

_LOOK_S = 3.0
"""Seconds between two looks for why a job does not start yet."""

_ALIVE_S = 1.0
"""Seconds between two signs of life while files are on their way."""

_END_S = 15.0
"""Seconds that an actor may take to end its worker; then it is killed."""

_TRIES = 3
"""How often a file is sent that does not arrive as it was."""

_LAST = frozenset({"saved", "paused", "stopped", "failed", "died"})
"""The events after which a worker has nothing to say."""

_WITH_FILES = frozenset({"checkpoint", "saved", "paused", "stopped"})
"""The events before which the worker's files have to be here."""


class _OverError(Exception):
    """The run is over.

    Args:
        message: The last event.
    """

    def __init__(self, **message: Any) -> None:
        super().__init__(message["event"])
        self.message: Message = message


class RemoteRun:
    """One job on a node.

    Args:
        needs: What it needs, as `JobNeeds` has it, and the server's `min_free_bytes`.
        tell: Sends the server a message.
    """

    def __init__(self, needs: Message, tell: Callable[[Message], Awaitable[None]]) -> None:
        self._needs = needs
        self._tell = tell
        self._actor: Any = None
        self._node = ""
        self._request: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._watch: Message = {}
        """How the worker is supervised."""
        self._early: list[Message] = []
        """What the server sent before the worker had its job."""
        self.is_placed = False
        """Whether an actor has been ready for the job."""
        self._submitted = False
        self._leaving = asyncio.Event()
        """Set once the worker need not get its job any more; `_last_event` says why."""
        self._last_event: Message = {}
        self._known: dict[str, str] = {}
        """The versions of the worker's files that are here."""
        self._alive_at = 0.0

    async def work(self) -> None:
        """Runs the job until its worker has nothing more to say."""
        try:
            await self._place()
            await self._submit(await self._request)
            await self._forward()
        except _OverError as over:
            await self._tell(over.message)
        except ray.exceptions.RayError as error:
            await self._tell(await self._death(error))
        except OSError as error:  # of this machine's disk
            await self._tell({"event": "failed", "error": worker_protocol.pack_error(error)})
        except Exception:
            logger.exception("job %s: its run on the Ray cluster failed", self._needs["job"])
            await self._tell({"event": "died", "reason": "failed on its way to the Ray cluster"})

    async def hear(self, message: Message) -> None:
        """Takes a message of the server: `send`, `ask_to_leave`, or `supervise`."""
        [(kind, content)] = message.items()
        if kind == "supervise":
            self._watch = content
        elif kind == "send" and "job" in content:
            self._request.set_result(content["job"])
        elif self._submitted:
            with suppress(ray.exceptions.RayError, _OverError):  # `_forward` notices as well
                await _result(getattr(self._actor, kind), content)
        else:
            self._early.append(message)
            self._leave_early(content)

    async def end(self) -> None:
        """Ends the worker and the actor, wherever they are."""
        if self._actor is None:
            return
        with suppress(Exception):  # it is gone, or its node, or the cluster
            for message in await asyncio.wait_for(_result(self._actor.end), _END_S):
                await self._tell(message)
        with suppress(Exception):  # it is gone already
            await _CLUSTER.run(ray.kill, self._actor)

    async def abandon(self) -> None:
        """Kills the actor, which may not be placed yet, and its worker with it."""
        if self._actor is not None:
            with suppress(Exception):  # it is gone already
                await _CLUSTER.run(ray.kill, self._actor)

    async def _place(self) -> None:
        """Waits until an actor is on a node and its worker is ready."""
        await _CLUSTER.run(_end_leftovers, self._needs["job"], self._needs["fence"])
        self._actor = await _CLUSTER.run(self._new_actor)
        starting = asyncio.ensure_future(_result(self._actor.start))
        try:
            while not (await asyncio.wait([starting], timeout=_LOOK_S))[0]:
                reason = await _CLUSTER.run(_why_waiting, *self._resources())
                await self._tell({"event": "waiting", "reason": reason})
        finally:
            starting.cancel()
        about = starting.result()
        address = await _result(self._actor.__ray_call__, _node_address)
        self._node = f"{about['host']} ({address})"
        if about["release"] != RELEASE:
            raise _OverError(
                event="died",
                reason=f"cannot run on node {self._node}: it has release {about['release']} of "
                f"Treadle and this server {RELEASE}; install the same on all nodes",
            )
        if "fault" in about:
            raise _OverError(event="died", reason=f"on node {self._node}: {about['fault']}")
        self.is_placed = True
        await self._tell({"event": "ready", "node": self._node})

    def _resources(self) -> tuple[int, int]:
        """Returns the CPUs and the bytes of memory that the job needs; 0: nobody knows."""
        memory = self._needs["memory_bytes"]
        return self._needs["threads"], process_memory.most_bytes(memory) if memory else 0

    def _new_actor(self) -> Any:
        """Returns the actor, which Ray places once a node has what the job needs.

        It belongs to this process: Ray ends it when this process or its machine dies.
        """
        threads, memory = self._resources()
        job = self._needs["job"]
        return (
            ray.remote(JobActor)
            .options(
                name=_actor_name(job, self._needs["fence"]),
                namespace=NAMESPACE,
                num_cpus=threads,
                memory=memory or None,
                max_restarts=0,
                max_task_retries=0,
            )
            .remote(job, self._needs["min_free_bytes"])
        )

    def _leave_early(self, content: Message) -> None:
        """Ends the run at once where the worker has no job yet, and so nothing to lose.

        A worker that prepares a job does the same.
        """
        if "pause" in content:
            self._last_event = {"event": "paused", "reason": content["pause"], "needs_bytes": 0}
            self._leaving.set()
        elif "stop" in content and content.get("at_once"):
            self._last_event = {"event": "stopped", "reason": content["stop"]}
            self._leaving.set()

    async def _submit(self, request: Message) -> None:
        """Brings the files of the job to the node and gives the worker its job."""
        directory = Path(request["directory"])
        await _on_disk(_clean, directory)
        sending = asyncio.ensure_future(self._send_files(request, directory))
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()
        if self._leaving.is_set():
            raise _OverError(**self._last_event)
        sending.result()
        watch = self._watch
        await _result(self._actor.submit, request, watch["timeout_s"], watch["limit_bytes"])
        self._submitted = True
        for early in self._early:
            await self.hear(early)

    async def _send_files(self, request: Message, directory: Path) -> None:
        corpora = {file["sha256"]: Path(file["path"]) for file in request["files"]}
        for sha256, path in corpora.items():
            await self._send_file("corpora", sha256, path)
        for name in (STATE_FILE, PREVIOUS_STATE_FILE, INIT_FILE):
            if (directory / name).exists():
                await self._send_file("job", name, directory / name)

    async def _send_file(self, folder: str, name: str, path: Path) -> None:
        """Sends the node a file.

        Raises:
            OSError: It cannot be read.
            _OverError: It did not arrive, or the node's disk is full.
        """
        for _ in range(_TRIES):
            file = await thread_pools.STORE.run(OutgoingFile, path)
            try:
                begun = await self._checked(self._actor.begin_file, folder, name, file.size)
                while piece := await thread_pools.STORE.run(file.read):
                    await self._checked(self._actor.write_file, begun["number"], piece)
                    await self._show_life()
                done = await self._checked(self._actor.finish_file, begun["number"], file.sha256)
                damage = done.get("damaged", "")
            finally:
                file.close()
            if not damage:
                return
        raise _OverError(event="died", reason=f"cannot run on node {self._node}: {damage}")

    async def _checked(self, method: Any, *arguments: Any) -> Message:
        """Returns the reply of the actor to a part of a file.

        Args:
            method: A method of the actor.
            arguments: Its arguments.

        Raises:
            _OverError: The node's disk is full.
        """
        reply: Message = await _result(method, *arguments)
        if "full" in reply:
            reason = f"the disk of node {self._node} is full: {reply['full']}"
            raise _OverError(event="paused", reason=reason, needs_bytes=reply["needs_bytes"])
        return reply

    async def _forward(self) -> None:
        """Passes on what the worker reports, once its files are here."""
        request = self._request.result()
        directory = Path(request["directory"])
        space = DiskSpace(directory, request["min_free_bytes"])
        while True:
            for message in await _result(self._actor.receive):
                if message["event"] in _WITH_FILES:
                    await self._fetch_files(directory, space)
                if message["event"] == "died":
                    message["reason"] += f" (on node {self._node})"
                await self._tell(message)
                if message["event"] in _LAST:
                    return
            await self._show_life()

    async def _fetch_files(self, directory: Path, space: DiskSpace) -> None:
        """Brings what the worker has written since the last time into the job's directory.

        Raises:
            _OverError: This disk is full, or failed, or a file did not arrive.
        """
        try:
            for name, version in await _result(self._actor.results):
                if name not in RESULTS:  # it would be a path on this machine
                    reason = f"sent a file that is no result, {name!r} (on node {self._node})"
                    raise _OverError(event="died", reason=reason)
                if self._known.get(name) != version:
                    await self._fetch_file(directory, name, space)
                    self._known[name] = version
        except ray.exceptions.RayError:  # some are an OSError as well, of the node
            raise
        except OSError as error:
            if is_full(error):  # the last checkpoint here is whole; the rest is computed again
                reason = f"the disk is full: {error.strerror or error}"
                needs = max(1, getattr(error, "size", 1))
                raise _OverError(event="paused", reason=reason, needs_bytes=needs) from error
            packed = worker_protocol.pack_error(error)
            raise _OverError(event="failed", error=packed) from error

    async def _fetch_file(self, directory: Path, name: str, space: DiskSpace) -> None:
        previous = directory / PREVIOUS_STATE_FILE if name == STATE_FILE else None
        for _ in range(_TRIES):
            number, size = await _result(self._actor.open_result, name)
            file = await _on_disk(IncomingFile, directory / name, size, space.require, previous)
            try:
                while piece := await _result(self._actor.read_result, number):
                    await _on_disk(file.write, piece)
                    await self._show_life()
                sha256 = await _result(self._actor.close_result, number)
                await _on_disk(file.finish, sha256)
            except DamagedTransferError as error:
                damage = str(error)
            else:
                return
            finally:
                await _on_disk(file.discard)
        raise _OverError(event="died", reason=f"ran on node {self._node}, but {damage}", lost=True)

    async def _show_life(self) -> None:
        """Reports to the server now and then that the run continues."""
        now = time.monotonic()
        if now >= self._alive_at:
            self._alive_at = now + _ALIVE_S
            await self._tell({"event": "alive"})

    async def _death(self, error: ray.exceptions.RayError) -> Message:
        """Returns the event of an actor that ended by itself, with its node or alone."""
        text = " ".join(str(error).split())
        logger.warning("job %s: Ray says: %s", self._needs["job"], text)
        if not self._node:
            return {"event": "died", "reason": f"could not be started: {text[-_SHOWN:]}"}
        if not isinstance(error, ray.exceptions.RayActorError):
            return {"event": "died", "reason": f"failed on node {self._node}: {text[-_SHOWN:]}"}
        starved = "memory pressure" in text or "OOM" in text
        how = " for lack of memory" if starved else ""
        reason = f"was lost: its node {self._node} or the actor there died{how}"
        return {"event": "died", "reason": reason, "starved": starved, "lost": not starved}


_SHOWN = 300
"""Characters of Ray's own messages that callers see."""


Result = TypeVar("Result")


async def _on_disk(work: Callable[..., Result], *arguments: Any) -> Result:
    """Returns the result of work that blocks, which is over even where the caller is cancelled."""
    working = asyncio.ensure_future(thread_pools.STORE.run(work, *arguments))
    try:
        return await asyncio.shield(working)
    finally:
        if not working.done():
            await asyncio.wait([working])


async def _result(method: Any, *arguments: Any) -> Any:
    """Calls an actor.

    Args:
        method: A method of the actor.
        arguments: Its arguments.

    Returns:
        What it returned.

    Raises:
        RayError: The call failed, or the actor died.
        _OverError: The connection to the cluster broke.
    """
    try:
        return await method.remote(*arguments)
    except (ray.exceptions.RayError, asyncio.CancelledError):
        raise
    except Exception as error:
        logger.warning("the Ray cluster does not answer: %s", error)
        raise _OverError(event="died", reason=CONNECTION_LOST, lost=True) from error


def _node_address(_: JobActor) -> str:
    """Returns the address of the node on which an actor runs it."""
    return str(ray.util.get_node_ip_address())


def _actor_name(job: str, fence: int) -> str:
    return f"{job} {fence} {secrets.token_hex(4)}"


def _end_leftovers(job: str, fence: int) -> None:
    """Kills actors of a job that an earlier server, or one that lost the job, has left.

    Ray ends those of a server that died, but that may take a while.
    """
    for actor in ray.util.list_named_actors(all_namespaces=True):
        words = actor["name"].split(" ")
        if actor["namespace"] != NAMESPACE or len(words) != 3 or words[0] != job:
            continue
        if int(words[1]) <= fence:
            with suppress(ValueError):  # it is gone meanwhile
                logger.warning("job %s: an actor from before still runs, and is ended", job)
                ray.kill(ray.get_actor(actor["name"], NAMESPACE))


def _why_waiting(threads: int, memory: int) -> str:
    """Returns why an actor has no node yet.

    Args:
        threads: The CPUs that it needs.
        memory: The bytes of memory that it needs; 0: nobody knows.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = f"{threads} CPU{'s' if threads > 1 else ''}"
    if memory:
        needs += f" and {memory:,} bytes of memory"
    fitting = [
        node
        for node in nodes
        if node.get("CPU", 0.0) >= threads and node.get("memory", 0.0) >= memory
    ]
    if fitting:
        return f"waiting for a node of the Ray cluster with {needs} free"
    most = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    remedy = "add a node, or have the server started with fewer --threads"
    if memory:
        remedy += " or --max-training-bytes"
    return (
        f"waiting for a node with {needs}: the Ray cluster has {len(nodes)} nodes, of which the "
        f"largest has {most:g} CPUs; {remedy}"
    )


def _clean(directory: Path) -> None:
    """Removes what an earlier run left, as a worker does in its directory."""
    (directory / FINAL_FILE).unlink(missing_ok=True)
    remove_leftovers(directory)
