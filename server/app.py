"""Puts the server together, runs it, and ends it in good order.

The order of an end: health says NOT_SERVING; no new call is taken; uploads are told so, running
jobs keep their state for the next server to go on with, generations and scorings finish. Shortly
before the grace is over, whatever still runs is ended with UNAVAILABLE; when it is over, so is the
process, whatever a disk or a thread is at.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from importlib.metadata import version

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.model import drop_temporary_kernels, temporary_kernels
from treadle.server.address import (
    AddressError,
    clear_socket,
    exposure,
    listening_fault,
    socket_path,
)
from treadle.server.config import ServerConfig, SettingError
from treadle.server.errors import unavailable
from treadle.server.failures import DatabaseError
from treadle.server.inference.admission import Admission, Inquiries, Load
from treadle.server.inference.generate import GenerateHandler
from treadle.server.inference.learn import LearnHandler
from treadle.server.inference.model_cache import ModelCache
from treadle.server.inference.resolve import Sources
from treadle.server.inference.scheduler import Scheduler
from treadle.server.inference.score import ScoreHandler
from treadle.server.inference.stream_places import Openings, SilentStreams, StreamPlaces
from treadle.server.jobs.manager import JobLimits, JobManager
from treadle.server.jobs.runner import RunLimits
from treadle.server.jobs.submission import Submission
from treadle.server.jobs.upload import Limits
from treadle.server.jobs.worker_pool import Workers
from treadle.server.resources import open_files, pools
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.resources.memory_guard import guard_memory
from treadle.server.resources.memory_return import MemoryReturn, resident_bytes
from treadle.server.rpc.interceptor import Interceptor
from treadle.server.rpc.reflection import add_reflection
from treadle.server.rpc.servicer import SERVICE, SequenceService
from treadle.server.storage import files
from treadle.server.storage.data_dir import Store
from treadle.server.storage.files import StoreError
from treadle.server.storage.model_limits import ModelLimits
from treadle.server.storage.retention import Rules, keep_house
from treadle.server.warmup import Warming
from treadle.v1 import sequence_pb2_grpc

logger = logging.getLogger(__name__)

_GOODBYE_S = 0.2
"""What a reply may need to leave, and what a late end is allowed to take."""

_CLOSING_S = 1.5
"""The last part of the grace, in which what still runs is ended; no less, however short it is."""

_SILENT_S = 2.0
"""Silence after which a stream ends where the server takes more memory than it may."""

_SWITCH_S = 0.001
"""How long a thread that runs Python may keep the event loop waiting: a call needs it several times
over, and Python's own 5 ms each time would add up."""

_READ_AHEAD_BYTES = 1 << 18
"""What gRPC may take of a stream before it is asked for: enough for 25 MB/s at a round trip of
10 ms, and 128 MiB of 512 streams."""

_HEALTH = health_pb2.HealthCheckResponse


class App:
    """One server: what it consists of, its start and its end.

    Args:
        config: Its settings.

    Raises:
        StoreError: The data directory cannot be used.
        SettingError: The key for states cannot be used.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        key = config.state_key_bytes()
        self._store = Store(
            config.data_dir,
            config.min_free_bytes,
            ModelLimits(config.model_limit, config.version_limit, config.alias_limit),
        )
        self._warming = Warming()
        self._workers = Workers(config.standby_workers)
        training_bytes = config.training_bytes()
        budget = MemoryBudget(config.memory_budget_bytes())
        self._jobs = JobManager(
            self._store,
            self._workers,
            JobLimits(
                slots=config.training_slots,
                queue=config.training_queue_limit,
                uploads=config.upload_limit,
                restarts=config.max_restarts,
            ),
            RunLimits(
                threads=config.threads,
                checkpoint_interval_s=config.checkpoint_interval_s,
                min_free_bytes=config.min_free_bytes,
                max_run_s=config.max_training_s,
                max_run_bytes=training_bytes,
            ),
            held_by=lambda: self._warming.reason,
        )
        uploads = Limits(
            config.max_corpus_bytes,
            config.upload_idle_s,
            config.upload_min_rate,
            config.upload_max_s or math.inf,
            config.first_message_s,
        )
        intake = Submission(self._store, self._jobs, uploads, training_bytes, budget)
        models = ModelCache(self._store, config.model_cache_bytes, budget)
        self._scheduler = Scheduler(config.threads)
        load = Load(
            calls=Admission(
                config.inference_limit, "generations and scorings", self._warming.check
            ),
            sessions=Admission(config.session_limit, "texts being generated"),
            streams=StreamPlaces(
                config.stream_limit,
                "streams to score",
                config.stream_idle_s,
                "open it again, with context or state for what came before",
                check=self._warming.check,
            ),
            learners=StreamPlaces(
                config.learning_limit,
                "learning streams",
                config.stream_idle_s,
                "what it learned and did not publish is lost: publish before a pause",
                check=self._warming.check,
            ),
        )
        inquiries = Inquiries(
            lists=Admission(config.list_limit, "lists"),
            watchers=Admission(config.watch_limit, "calls that watch jobs"),
            orders=Admission(config.watch_limit, "calls that bring or follow a job of theirs"),
        )
        self._learners = load.learners
        self._streams = load.streams
        self._budget = budget
        openings = Openings(config.stream_limit + config.learning_limit, config.first_message_s)
        sources = Sources(models, self._jobs.book.row)
        generating = GenerateHandler(
            sources,
            load,
            self._scheduler,
            budget,
            max_new_tokens_limit=config.max_new_tokens_limit,
            max_call_s=config.max_call_s,
            max_message_bytes=config.max_message_bytes,
            state_key=key,
        )
        scoring = ScoreHandler(
            sources,
            load,
            openings,
            self._scheduler,
            budget,
            max_message_bytes=config.max_message_bytes,
            max_call_s=config.max_call_s,
            state_key=key,
        )
        learning = LearnHandler(
            sources,
            self._store,
            load.learners,
            openings,
            self._scheduler,
            budget,
            max_message_bytes=config.max_message_bytes,
            max_call_s=config.max_call_s,
        )
        self._house: asyncio.Task[None] | None = None
        self._guard: asyncio.Task[None] | None = None
        self._memory_return: MemoryReturn | None = None
        self._boundary = Interceptor(SERVICE, budget, config.max_message_bytes)
        self._health = health.aio.HealthServicer()
        self._server = aio.server(interceptors=[self._boundary], options=_options(config))
        service = SequenceService(
            config,
            self._store,
            models,
            intake,
            self._jobs,
            generating,
            scoring,
            learning,
            load,
            inquiries,
            budget,
            self._warming,
        )
        sequence_pb2_grpc.add_SequenceServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, (SERVICE, health.SERVICE_NAME))

    async def start(self) -> str:
        """Listens, compiles or loads the kernels, and then says SERVING.

        Returns:
            The address at which it is listening, with the real port where 0 was asked for.

        Raises:
            AddressError: The address is taken or not of this machine.
        """
        address = self._config.address
        await self._set_health(_HEALTH.NOT_SERVING)
        path = socket_path(address)
        if path is not None:
            clear_socket(path)
        try:
            # A socket's file has the mode that the umask leaves, and goes with the server.
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            fault = listening_fault(address)
            raise AddressError(f"cannot listen on {address}: {fault}") from None
        loop = asyncio.get_running_loop()
        silent = SilentStreams((self._learners, self._streams), loop)
        self._budget.on_shortage(silent.make_way)
        await self._jobs.recover()  # callers may ask for them from now on
        await self._server.start()
        # Every kernel is there before health says so: compiling would hold up requests.
        if temporary_kernels():
            logger.warning("compiled kernels are kept until this ends: %s", temporary_kernels())
        await self._warming.run(self._jobs.tell_why)
        keep_pauses_short()
        self._memory_return = MemoryReturn.begin()
        self._jobs.open()
        self._workers.refill()
        rules = Rules(self._config.job_retention_s, self._config.corpus_retention_s)
        self._house = asyncio.create_task(keep_house(self._store, rules))
        guard = guard_memory(
            self._budget.limit,
            self._config.max_message_bytes,
            resident_bytes,
            self._end_silent,
        )
        self._guard = asyncio.create_task(guard)
        await self._set_health(_HEALTH.SERVING)
        is_socket = address.startswith(("unix:", "unix-abstract:"))
        return address if is_socket else f"{address.rpartition(':')[0]}:{port}"

    async def stop(self) -> None:
        """Ends the server within its grace; see the module's docstring."""
        began = time.monotonic()
        grace = self._config.grace_s
        patience = max(grace - _CLOSING_S, 0.75 * grace)
        for task in (self._house, self._guard):
            if task is not None:
                task.cancel()
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(grace + _CLOSING_S))
        finishing = asyncio.gather(
            self._jobs.close("the server shut down"), self._boundary.wait_idle()
        )
        try:
            await asyncio.wait_for(finishing, max(0.0, began + patience - time.monotonic()))
        except TimeoutError:
            reason = f"the server shut down, and this did not end within {patience:g} seconds"
            with suppress(TimeoutError):  # one may be storing a model; it is stored again
                await asyncio.wait_for(self._jobs.kill(), _GOODBYE_S)
            with suppress(TimeoutError):  # those whose job has just ended hear how
                await asyncio.wait_for(self._boundary.wait_idle(), _GOODBYE_S)
            lost = "what a session learned and did not publish is lost"
            self._learners.evict(unavailable(f"{reason}; {lost}"))
            self._boundary.evict(unavailable(reason))
        # What now keeps it up are health watchers, who never leave by themselves.
        await asyncio.wait([stopping], timeout=_GOODBYE_S)
        await self._server.stop(None)
        await stopping
        left = began + grace - 2 * _GOODBYE_S - time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._workers.close(), max(left, _GOODBYE_S))
        self._workers.kill()
        self._scheduler.close()
        if self._memory_return is not None:
            self._memory_return.close()
        self._warming.close()
        pools.close()
        self._store.close()

    def _end_silent(self, count: int) -> None:
        """Ends so many silent streams, those first that lose less."""
        for _ in range(count):
            why = "the server had too little memory"
            if self._streams.give_up_one(why, _SILENT_S) is None:
                self._learners.give_up_one(why)

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)


def keep_pauses_short() -> None:
    """Sees to it that Python itself keeps the event loop waiting for a few milliseconds at most.

    Called once everything is imported and compiled: a full collection looks at every object that
    was not there then, instead of at some hundred thousand that never go, which takes 80 ms.
    """
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()


def run(config: ServerConfig) -> int:
    """Runs a server until SIGTERM or SIGINT.

    Args:
        config: Its settings.

    Returns:
        The exit code: 0 after a clean end, 1 where it cannot run.
    """
    layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format=layout)
    logging.getLogger("treadle").setLevel(config.log_level.upper())
    open_files.allow_many()
    try:
        with files.shared_with_group(config.data_dir):
            asyncio.run(_run(config))
    except (AddressError, DatabaseError, SettingError, StoreError) as error:
        print(f"treadle-server: {error}", file=sys.stderr)
        return 1
    _leave_threads()
    return 0


def _leave_threads() -> None:
    """Ends the process where a thread is still in a kernel; Python itself would wait for it."""
    until = time.monotonic() + _GOODBYE_S
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                _exit()


def _say_so() -> None:
    logger.warning("the end took longer than the grace: the process ends at once")
    _exit()


def _exit() -> None:
    """Ends the process without waiting for its threads."""
    drop_temporary_kernels()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def announce(address: str) -> None:
    """Says where the server listens, and warns where others than this machine reach it.

    Args:
        address: The address at which it is listening.
    """
    print(f"treadle-server {version('treadle')} listening on {address}", flush=True)
    if callers := exposure(address):
        logger.warning(
            "%s may read, train and delete every model: the server has no authentication. "
            "Listen on 127.0.0.1 or a unix: socket (--address), publish a container's port on "
            "127.0.0.1, or let a firewall, a NetworkPolicy or a proxy that knows your users "
            "decide who calls",
            callers,
        )


async def _run(config: ServerConfig) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    app = App(config)
    starting = asyncio.create_task(app.start())
    signalled = asyncio.create_task(ending.wait())
    await asyncio.wait([starting, signalled], return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        announce(await starting)
        await signalled
    else:
        starting.cancel()
    logger.info("shutting down")
    end_at_last(config.grace_s)
    await app.stop()


def end_at_last(grace_s: float) -> None:
    """Sees to it that the process ends, whatever it waits for, once the grace is over.

    What is on disk is whole at every moment: the next server takes it up as after a kill.
    """

    def end() -> None:
        time.sleep(max(grace_s, _CLOSING_S))
        # In another thread: whoever holds up the end may hold the lock of the log, too.
        last_words = threading.Thread(target=_say_so, daemon=True)
        last_words.start()
        last_words.join(_GOODBYE_S)
        os._exit(0)

    threading.Thread(target=end, name="treadle-grace", daemon=True).start()


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # Otherwise a second server would share a busy port without a word.
        ("grpc.so_reuseport", 0),
        # A client that vanished without a goodbye is noticed within two minutes ...
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # ... and clients may ask as often as every ten seconds whether we are still here.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # What gRPC reads ahead of a stream is in no budget: by itself it would read whole messages.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _READ_AHEAD_BYTES),
    ]
