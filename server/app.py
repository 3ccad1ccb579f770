"""`App` puts a server together, starts it and ends it; `run` runs one until SIGTERM or SIGINT.

The order of an end: health says NOT_SERVING, and no new call is accepted. Uploads get an error,
running jobs keep their state for the next server to continue, and generations and scorings finish.
Shortly before the grace period is over, calls that still run end with UNAVAILABLE. When it is
over, the process ends, even if a disk or a thread hangs.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.model import InferencePrecision, temporary_kernels
from treadle.model.warmup.groups import KernelGroup
from treadle.server import limits
from treadle.server.access.audit.audit_log import AuditLog
from treadle.server.access.authenticator import Authenticator, OpenAuthenticator
from treadle.server.access.callers.authenticator import CallersAuthenticator
from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.request_id import log_to_stderr
from treadle.server.access.state_key_file import StateKeyFile
from treadle.server.address import AddressError, address_fault
from treadle.server.config import PUBLIC_SERVICES, MalformedSettingError, ServerConfig, SettingError
from treadle.server.errors import unavailable
from treadle.server.exposure_warning import exposure_warning
from treadle.server.failures import DatabaseError, DatabaseUrlError
from treadle.server.http.metrics_page import MetricsPage
from treadle.server.inference.admission import Admission
from treadle.server.inference.generate import GenerateHandler
from treadle.server.inference.learn import LearnHandler
from treadle.server.inference.model_cache import ModelCache
from treadle.server.inference.model_resolver import ModelResolver
from treadle.server.inference.open_streams import PendingStreams, SilentStreamCloser
from treadle.server.inference.scheduler import Scheduler
from treadle.server.inference.score import ScoreHandler
from treadle.server.jobs.executors.executor import Executor
from treadle.server.jobs.executors.worker_pool import WorkerPool
from treadle.server.jobs.manager import JobManager
from treadle.server.jobs.submissions.submission import Submission
from treadle.server.process import FAREWELL_S, end_by, keep_pauses_short, leave_threads
from treadle.server.release import RELEASE
from treadle.server.resources import open_files, thread_pools
from treadle.server.resources.disk_usage import DiskUsage
from treadle.server.resources.malloc_trim import MallocTrimmer, resident_bytes
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.resources.memory_guard import guard_memory
from treadle.server.rpc.guarded_server import guarded_server
from treadle.server.rpc.health_server import HealthServer
from treadle.server.rpc.in_process import InProcessService
from treadle.server.rpc.interceptor import Interceptor
from treadle.server.rpc.listening import listen
from treadle.server.rpc.model_descriptions import ModelDescriptions
from treadle.server.rpc.public_services import PublicServices
from treadle.server.rpc.reflection import add_reflection
from treadle.server.rpc.server_metrics import server_state
from treadle.server.rpc.server_options import server_options
from treadle.server.rpc.servicer import SERVICE, SequenceService
from treadle.server.storage import files
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.files import StoreError
from treadle.server.storage.model_limits import ModelLimits
from treadle.server.storage.retention import RetentionPeriods, run_retention
from treadle.server.telemetry import tracing
from treadle.server.telemetry.loop_lag import measure_loop_lag
from treadle.server.tls.certificate_reloader import CertificateReloader
from treadle.server.transfer.export_handler import ExportHandler
from treadle.server.transfer.import_handler import ImportHandler
from treadle.server.uploads.file_handler import FileHandler
from treadle.server.warmup import Warmup
from treadle.v1 import sequence_pb2_grpc

if TYPE_CHECKING:
    from treadle.server.http.http_server import HttpServer
    from treadle.server.sharing import Sharing
    from treadle.server.storage.shared.shared_storage import SharedStorage

logger = logging.getLogger(__name__)

_CLOSING_S = 1.5
"""Seconds at the end of the grace period in which calls that still run are ended. A shorter grace
period is extended to them."""

_SILENT_S = 2.0
"""Seconds of silence after which a stream ends if the server takes more memory than it may."""

_HEALTH = health_pb2.HealthCheckResponse


class App:
    """One server: its parts, its start and its end.

    Args:
        config: Its settings.

    Raises:
        StoreError: The data directory cannot be used.
        SettingError: The key for states, the audit log, a file of TLS, the callers file, or the
            address for traces cannot be used.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        is_shared = config.shares_storage()
        _start_tracing(config)
        self._state_keys = StateKeyFile(config)
        self._audit = AuditLog(config.audit_log, config.audit_log_bytes, config.audit_log_files)
        self._certificate = CertificateReloader.of(config)
        self._callers: CallersAuthenticator | None = None
        if config.callers_file:
            self._callers = CallersAuthenticator(Path(config.callers_file), self._audit)

        # What everything else stands on: the disk, memory for callers, compiled kernels.
        self._sharing = _sharing(config) if is_shared else None
        self._data_dir = DataDir(
            config.data_dir,
            config.min_free_bytes,
            ModelLimits(config.model_limit, config.version_limit, config.alias_limit),
            None if self._sharing is None else _storage(config, self._sharing),
        )
        training_bytes = config.training_bytes()
        self._budget = MemoryBudget(config.memory_budget_bytes())
        self._warmup = Warmup()

        # Who calls, and how much each caller uses.
        authenticator: Authenticator = self._callers or OpenAuthenticator()
        quotas = QuotaBook(authenticator.quotas_of)

        # Training: uploads become jobs, and jobs run in processes of their own.
        self._workers = _executor(config)
        self._jobs = JobManager(
            self._data_dir,
            self._workers,
            limits.job_limits(config),
            limits.run_limits(config, training_bytes),
            hold_reason=self._hold_reason,
            quotas=quotas,
            replica=None if self._sharing is None else self._sharing.replica,
        )
        submission = Submission(
            self._data_dir,
            self._jobs,
            limits.upload_limits(config, config.max_corpus_bytes),
            training_bytes,
            self._budget,
            quotas,
            has_nodes=bool(config.mpirun),
        )

        # Inference: models in memory, and threads that calls share.
        self._admission = limits.admission(config, self._warmup, quotas)
        control_admission = limits.control_admission(config)
        self._models = models = ModelCache(self._data_dir, config.model_cache_bytes, self._budget)
        precision = InferencePrecision(config.inference_precision)
        resolver = ModelResolver(models, self._jobs.registry.row, precision, self._warmup.require)
        self._scheduler = Scheduler(config.threads)
        pending_streams = PendingStreams(
            config.stream_limit + config.learning_limit, config.first_message_s
        )
        generating = GenerateHandler(
            resolver,
            self._admission,
            self._scheduler,
            self._budget,
            max_new_tokens_limit=config.max_new_tokens_limit,
            max_call_s=config.max_call_s,
            max_message_bytes=config.max_message_bytes,
            sealer=self._state_keys.sealer,
        )
        scoring = ScoreHandler(
            resolver,
            self._admission,
            pending_streams,
            self._scheduler,
            self._budget,
            max_message_bytes=config.max_message_bytes,
            max_call_s=config.max_call_s,
            sealer=self._state_keys.sealer,
        )
        learning = LearnHandler(
            resolver,
            self._data_dir.models,
            self._admission,
            pending_streams,
            self._scheduler,
            self._budget,
            max_message_bytes=config.max_message_bytes,
            max_call_s=config.max_call_s,
        )

        # Models that travel: their files leave, and others come.
        descriptions = ModelDescriptions(self._data_dir.models, config.max_message_bytes)
        exporting = ExportHandler(
            self._data_dir.models,
            descriptions.describe,
            limits.upload_limits(config, config.max_model_bytes),
            Admission(config.export_limit, "models that are exported"),
            config.max_message_bytes,
        )
        importing = ImportHandler(
            self._data_dir,
            self._jobs,
            submission,
            limits.upload_limits(config, config.max_model_bytes),
            Admission(config.upload_limit, "models that are imported"),
            self._budget,
            quotas,
        )

        # gRPC: every call passes the interceptor, and the servicer hands it to its handler.
        authenticator.on_change(self._jobs.queue.schedule)  # a quota of running jobs may be higher
        self._interceptor = Interceptor(
            SERVICE,
            authenticator,
            quotas,
            self._budget,
            config.max_message_bytes,
            audit=self._audit,
        )
        public = PublicServices(
            config.public_services,
            authenticator,
            self._budget,
            config.max_message_bytes,
            self._audit,
        )
        self._health = health.aio.HealthServicer()
        self._server = guarded_server(
            interceptors=[self._interceptor, public],
            options=server_options(config.max_message_bytes),
        )
        self._health_server: HealthServer | None = None
        self._serving = False
        service = SequenceService(
            config,
            self._data_dir.models,
            models,
            submission,
            self._jobs,
            generating,
            scoring,
            learning,
            exporting,
            importing,
            descriptions,
            FileHandler(
                self._data_dir,
                self._jobs,
                limits.upload_limits(config, config.max_corpus_bytes),
                quotas,
                control_admission,
                config.max_message_bytes,
            ),
            self._admission,
            control_admission,
            self._budget,
            self._warmup,
        )
        sequence_pb2_grpc.add_SequenceServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, (SERVICE, health.SERVICE_NAME))

        # What the server reports of itself.
        self._disk_usage = DiskUsage(config.data_dir)
        state = server_state(
            is_ready=lambda: self._serving,
            inference=self._admission,
            control=control_admission,
            scheduler=self._scheduler,
            models=models,
            budget=self._budget,
            jobs=self._jobs,
            workers=self._workers,
            disk=self._disk_usage,
        )
        metrics_page = MetricsPage(
            state,
            self._disk_usage.refresh,
            authenticator,
            self._audit,
            is_public=config.metrics_access == "public",
        )

        # HTTP: its requests are the same calls, made in this process.
        self._http: HttpServer | None = None
        if config.http_address:
            in_process = InProcessService(service, self._interceptor)
            self._http = _http_server(
                config,
                in_process,
                self._budget,
                self._certificate,
                lambda: self._serving,
                metrics_page,
            )
        self.http_url = ""
        """Where the HTTP address is, once the server has started; empty: it has none."""

        # What runs in the background once the server has started.
        self._tasks: list[asyncio.Task[None]] = []
        self._malloc_trimmer: MallocTrimmer | None = None

    async def start(self) -> str:
        """Listens, compiles or loads the kernels, and then reports SERVING.

        Returns:
            The address at which it is listening, with the real port where port 0 was asked for.

        Raises:
            AddressError: An address is taken or not of this machine.
            SettingError: The address of health checks cannot be one, or no cluster answers.
        """
        await self._workers.start()
        await self._set_health(_HEALTH.NOT_SERVING)
        certificate = self._certificate
        address = listen(
            self._server, self._config.address, certificate.credentials() if certificate else None
        )
        await self._start_health_server(address)
        if self._http is not None:
            self.http_url = await self._http.start(self._config.http_address)
        silent = SilentStreamCloser(
            (self._admission.learning_streams, self._admission.streams), asyncio.get_running_loop()
        )
        self._budget.on_shortage(silent.close_one)
        await self._jobs.recover()  # from now on callers may ask for jobs
        if self._sharing is not None:
            following = self._sharing.follow(self._data_dir, self._models, self._jobs)
            self._tasks.append(asyncio.create_task(following))
        if self._callers is not None:
            self._tasks.append(asyncio.create_task(self._callers.watch()))
        await self._server.start()
        # Kernels are ready before health says so: compiling would delay requests. Those that few
        # calls need follow; see `Warmup`.
        if temporary_kernels():
            logger.warning(
                "compiled kernels are kept only until this server ends: %s", temporary_kernels()
            )
        await self._warmup.run(self._jobs.explain_wait)
        keep_pauses_short()
        self._malloc_trimmer = MallocTrimmer.begin()
        self._start_housekeeping()
        await self._set_health(_HEALTH.SERVING)
        finishing = self._warmup.finish(self._jobs.explain_wait, self._begin_jobs)
        self._tasks.append(asyncio.create_task(finishing))
        return address

    def _hold_reason(self) -> str:
        """Returns why no job runs here yet; empty where they do, or run on other servers alone."""
        return self._warmup.reason(KernelGroup.TRAINING) if self._config.training_slots else ""

    def _begin_jobs(self, group: KernelGroup) -> None:
        """Runs jobs, once the kernels of training are ready."""
        if group is KernelGroup.TRAINING:
            self._jobs.open()
            self._workers.refill()

    async def _start_health_server(self, address: str) -> None:
        """Answers health checks elsewhere as well, if requested, or if the address may refuse them.

        Args:
            address: The address of the server, with its port.
        """
        config = self._config
        refused = self._certificate or "health" not in PUBLIC_SERVICES[config.public_services]
        if not (config.health_address or refused):
            return
        self._health_server = HealthServer(self._health, self._budget)
        if config.health_address:
            self._health_server.listen(config.health_address)
        if refused:
            self._health_server.listen_on_machine(address)
        await self._health_server.start()

    def _start_housekeeping(self) -> None:
        """Starts to delete what is past its retention, and to watch the memory and files."""
        config = self._config
        rules = RetentionPeriods(config.job_retention_s, config.corpus_retention_s)
        guard = guard_memory(
            self._budget.limit, config.max_message_bytes, resident_bytes, self._end_silent
        )
        self._tasks += [
            asyncio.create_task(run_retention(self._data_dir, rules)),
            asyncio.create_task(guard),
            asyncio.create_task(self._state_keys.follow()),
            asyncio.create_task(measure_loop_lag()),
        ]
        if self._certificate is not None:
            self._tasks.append(asyncio.create_task(self._certificate.follow()))

    def _end_silent(self, count: int) -> None:
        """Ends so many silent streams, first those that lose less."""
        why = "the server had too little memory"
        for _ in range(count):
            if self._admission.streams.close_silent(why, _SILENT_S) is None:
                self._admission.learning_streams.close_silent(why)

    async def _set_health(self, status: int) -> None:
        self._serving = status == _HEALTH.SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def stop(self) -> None:
        """Ends the server within its grace period; see the module's docstring."""
        began = time.monotonic()
        grace = self._config.grace_s
        for task in self._tasks:
            task.cancel()
        if self._callers is not None:
            self._callers.close()
        self._serving = False
        self._disk_usage.close()
        await self._health.enter_graceful_shutdown()
        if self._http is not None:
            self._http.drain()
        stopping = asyncio.create_task(self._server.stop(grace + _CLOSING_S))
        patience = max(grace - _CLOSING_S, 0.75 * grace)
        await self._finish(began, patience)
        # What keeps the server up now are health watchers, who never leave by themselves.
        await asyncio.wait([stopping], timeout=FAREWELL_S)
        await self._server.stop(None)
        await stopping
        if self._health_server is not None:
            await self._health_server.stop()
        if self._http is not None:
            await self._http.stop(FAREWELL_S)
        left = began + grace - 2 * FAREWELL_S - time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._workers.close(), max(left, FAREWELL_S))
        self._workers.kill()
        self._scheduler.close()
        if self._malloc_trimmer is not None:
            self._malloc_trimmer.close()
        self._warmup.close()
        thread_pools.close()
        self._audit.close(FAREWELL_S)
        self._data_dir.close()
        tracing.stop(max(began + grace - FAREWELL_S - time.monotonic(), FAREWELL_S))

    async def _finish(self, began: float, patience: float) -> None:
        """Waits for jobs and calls to end, and ends what has not after `patience` seconds."""
        finishing = asyncio.gather(
            self._jobs.close("the server shut down"), self._interceptor.wait_idle()
        )
        try:
            await asyncio.wait_for(finishing, max(0.0, began + patience - time.monotonic()))
        except TimeoutError:
            reason = f"the server shut down, and this did not end within {patience:g} seconds"
            with suppress(TimeoutError):  # a job may be storing a model; it is stored again
                await asyncio.wait_for(self._jobs.kill(), FAREWELL_S)
            with suppress(TimeoutError):  # callers whose job has just ended get its end
                await asyncio.wait_for(self._interceptor.wait_idle(), FAREWELL_S)
            lost = "what a session learned and did not publish is lost"
            self._admission.learning_streams.close_all_silent(unavailable(f"{reason}; {lost}"))
            self._interceptor.evict(unavailable(reason))


def run(config: ServerConfig) -> int:
    """Runs a server until SIGTERM or SIGINT.

    Args:
        config: Its settings.

    Returns:
        The exit code: 0 after a clean end, 1 where it cannot run, 2 for a malformed setting.
    """
    log_to_stderr(config.log_level.upper(), config.log_format)
    open_files.allow_many()
    try:
        with files.shared_with_group(config.data_dir):
            asyncio.run(_run(config))
    except (AddressError, DatabaseError, SettingError, StoreError) as error:
        if config.log_format == "json":
            logger.critical("%s", error)
        else:
            print(f"treadle-server: {error}", file=sys.stderr)
        return 2 if isinstance(error, DatabaseUrlError | MalformedSettingError) else 1
    leave_threads()
    return 0


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
        announce(await starting, config, app.http_url)
        await signalled
    else:
        starting.cancel()
    logger.info("shutting down")
    end_by(max(config.grace_s, _CLOSING_S))
    await app.stop()


def announce(address: str, config: ServerConfig | None = None, http_url: str = "") -> None:
    """Prints where the server listens, and warns of what other machines can do to it.

    Args:
        address: The address at which it is listening.
        config: Its settings; None: the defaults.
        http_url: The URL of its HTTP address; empty: it has none.
    """
    print(f"treadle-server {RELEASE} listening on {address}", flush=True)
    config = config or ServerConfig()
    if http_url:
        print(f"treadle-server {RELEASE} answers HTTP at {http_url}", flush=True)
    tls = bool(config.tls_cert_file)
    callers = bool(config.callers_file)
    client_ca_file = config.tls_client_ca_file
    warning = exposure_warning(address, tls, client_ca_file, callers)
    if http_url and not warning:
        warning = exposure_warning(
            config.http_address, tls, client_ca_file, callers, "--http-address"
        )
    if warning:
        logger.warning("%s", warning)


def _http_server(
    config: ServerConfig,
    service: InProcessService,
    budget: MemoryBudget,
    certificate: CertificateReloader | None,
    is_ready: Callable[[], bool],
    metrics_page: MetricsPage,
) -> HttpServer:
    """Returns what serves the HTTP address.

    Raises:
        SettingError: The address cannot be one, or the extra with its packages is not installed.
    """
    if fault := address_fault(config.http_address):
        raise MalformedSettingError("http_address", f"{config.http_address!r} {fault}")
    try:
        from treadle.server.http.app import http_app
        from treadle.server.http.guarded_protocol import ConnectionLimits
        from treadle.server.http.http_server import HttpServer
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("treadle"):
            raise
        fault = (
            f"needs {error.name}, which is not installed: pip install '.[server,http]' in a "
            "checkout of Treadle"
        )
        raise SettingError("http_address", fault) from None
    app = http_app(service, config, budget, is_ready, metrics_page)
    return HttpServer(app, certificate, ConnectionLimits(config.http_connection_limit))


def _executor(config: ServerConfig) -> Executor:
    """Returns what runs the processes of jobs.

    Raises:
        SettingError: There is no program of the name that starts several processes.
    """
    if not config.training_slots:  # no process stands by, and no cluster is asked for
        return WorkerPool(0)
    if config.executor == "ray":
        from treadle.server.jobs.executors.ray_executor import RayExecutor

        return RayExecutor(config.ray_address, config.min_free_bytes)
    program = next(iter(shlex.split(config.mpirun)), "")
    if program and shutil.which(program) is None:
        raise SettingError(
            "mpirun",
            f"begins with {program!r}, which is no program here: install it, or correct it",
        )
    return WorkerPool(config.standby_workers, config.mpirun)


def _storage(config: ServerConfig, sharing: Sharing) -> SharedStorage:
    """Returns what a server shares with others, for its data directory."""
    from treadle.server.storage.shared.shared_storage import SharedStorage

    name = sharing.replica.id
    return SharedStorage(sharing.database, sharing.blobs, config.blob_cache_bytes, name)


def _sharing(config: ServerConfig) -> Sharing:
    # Not imported where the server shares nothing.
    from treadle.server.sharing import Sharing

    return Sharing(config)


def _start_tracing(config: ServerConfig) -> None:
    """Sends traces to a collector, if a setting or a variable of OpenTelemetry asks for it.

    Raises:
        SettingError: The setting does, and is no address, or OpenTelemetry is not installed.
    """
    fault = tracing.endpoint_fault(config.otlp_endpoint) if config.otlp_endpoint else ""
    if fault:
        raise MalformedSettingError("otlp_endpoint", fault)
    if not (config.otlp_endpoint or tracing.asked_by_environment()):
        return
    try:
        tracing.start(config.otlp_endpoint, RELEASE)
    except ImportError as error:
        if config.otlp_endpoint:
            raise SettingError("otlp_endpoint", tracing.MISSING) from error
        logger.warning("OTEL_EXPORTER_OTLP_ENDPOINT %s", tracing.MISSING)
