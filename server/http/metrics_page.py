"""`MetricsPage` writes all metrics as Prometheus reads them, as text or as OpenMetrics."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import grpc
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from treadle.server.access.audit.audited_call import AuditedCall
from treadle.server.access.request_id import request_id_of, set_request_id
from treadle.server.errors import StatusError
from treadle.server.resources import thread_pools
from treadle.server.telemetry.metrics import REGISTRY

if TYPE_CHECKING:
    from treadle.server.access.audit.audit_log import AuditLog
    from treadle.server.access.authenticator import Authenticator
    from treadle.server.access.call_origin import CallOrigin
    from treadle.server.telemetry.server_state import ServerState

PATH = "/metrics"

_RATIO = 9
"""Times as long as a page took to write for which it answers further readers: many that ask for it
all the time would take too much of the server's."""


class MetricsPage:
    """The metrics of one server.

    Args:
        state: Reads what is not counted.
        refresh: Brings values up to date that take a while to read.
        authenticator: Finds out who reads.
        audit: Where readers that are refused are written down.
        is_public: Whether everybody may read.
    """

    def __init__(
        self,
        state: ServerState,
        refresh: Callable[[], Awaitable[None]],
        authenticator: Authenticator,
        audit: AuditLog,
        *,
        is_public: bool,
    ) -> None:
        self._state = state
        self._refresh = refresh
        self._authenticator = authenticator
        self._audit = audit
        self._is_public = is_public
        self._pages: dict[str, _Written] = {}

    async def read(self, origin: CallOrigin, accept: str = "") -> tuple[bytes, str]:
        """Returns the page and its content type.

        Args:
            origin: Who reads.
            accept: The formats that the reader takes, as HTTP's Accept says it.

        Raises:
            StatusError: UNAUTHENTICATED, or PERMISSION_DENIED: the reader is no admin.
        """
        if not self._is_public:
            await self._check(origin)
        encode, content_type = _form(accept)
        page = self._pages.get(content_type)
        if page is None or page.is_old:
            page = self._pages[content_type] = _Written(self._write(encode))
        return await page.data(), content_type

    async def _write(self, encode: Callable[[Collector], bytes]) -> bytes:
        await self._refresh()
        # Here and not in the thread: what is read belongs to the event loop.
        page = _Page([*self._state.read()])
        return await thread_pools.METRICS.run(encode, page)

    async def _check(self, origin: CallOrigin) -> None:
        request_id = request_id_of(origin.metadata)
        set_request_id(request_id)
        audited = AuditedCall(self._audit, PATH, request_id, origin.peer)
        try:
            caller = await self._authenticator.authenticate(origin.metadata, origin.auth_context)
            audited.caller = caller
            if not caller.is_admin:
                message = (
                    f"{PATH} requires the role admin; you have the role {caller.role.title}: use "
                    "the token of an admin, or start the server with --metrics-access public"
                )
                raise StatusError(grpc.StatusCode.PERMISSION_DENIED, message)
        except StatusError as error:
            audited.refused(error)
            raise


class _Written:
    """A page that is written, or is being written, for all who read it meanwhile.

    Args:
        write: Writes it.
    """

    def __init__(self, write: Coroutine[Any, Any, bytes]) -> None:
        self._began_s = time.monotonic()
        self._until_s = math.inf
        self._task = asyncio.create_task(write)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[bytes]) -> None:
        now_s = time.monotonic()
        failed = task.cancelled() or task.exception() is not None
        self._until_s = now_s if failed else now_s + _RATIO * (now_s - self._began_s)

    @property
    def is_old(self) -> bool:
        """Whether the next reader needs a new one."""
        return time.monotonic() >= self._until_s

    async def data(self) -> bytes:
        """Returns the page, once it is written."""
        return await asyncio.shield(self._task)


class _Page(Collector):
    """What is counted, and what was read."""

    def __init__(self, read: Iterable[Metric]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        yield from REGISTRY.collect()
        yield from self._read


def _form(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Returns the one of the two forms that a reader takes, and its content type.

    A reader's version and escaping make no difference, since our names are plain ones. Each
    further form would have to be written once more.
    """
    kinds = [entry.partition(";")[0].strip().lower() for entry in accept.split(",")]
    if "application/openmetrics-text" in kinds:
        return openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest, CONTENT_TYPE_PLAIN_0_0_4
