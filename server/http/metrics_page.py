"""`MetricsPage` writes all metrics as Prometheus reads them, as text or as OpenMetrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import grpc
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from treadle.server.access.audit.audited_call import AuditedCall
from treadle.server.access.request_id import request_id_of, set_request_id
from treadle.server.errors import StatusError
from treadle.server.resources import thread_pools
from treadle.server.telemetry.metrics import REGISTRY

if TYPE_CHECKING:
    from treadle.server.access.audit.audit_log import AuditLog
    from treadle.server.access.authenticator import Authenticator
    from treadle.server.rpc.in_process import CallOrigin
    from treadle.server.telemetry.server_state import ServerState

PATH = "/metrics"


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
        await self._refresh()
        encode, content_type = _encoder(accept)
        # Here and not in the thread: what is read belongs to the event loop.
        page = _Page([*self._state.read()])
        return await thread_pools.METRICS.run(encode, page), content_type

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


class _Page(Collector):
    """What is counted, and what was read."""

    def __init__(self, read: Iterable[Metric]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        yield from REGISTRY.collect()
        yield from self._read


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(accept)
    except (ValueError, TypeError):  # what it asks for is no version
        return generate_latest, CONTENT_TYPE_PLAIN_0_0_4
