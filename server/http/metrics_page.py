"""`MetricsPage` writes all metrics as Prometheus reads them, as text or as OpenMetrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from treadle.server.resources import thread_pools
from treadle.server.telemetry.metrics import REGISTRY
from treadle.server.telemetry.server_state import ServerState


class MetricsPage:
    """The metrics of one server.

    Args:
        state: Reads what is not counted.
        refresh: Brings values up to date that take a while to read.
    """

    def __init__(self, state: ServerState, refresh: Callable[[], Awaitable[None]]) -> None:
        self._state = state
        self._refresh = refresh

    async def write(self, accept: str = "") -> tuple[bytes, str]:
        """Returns the page and its content type.

        Args:
            accept: The formats that the reader takes, as HTTP's Accept says it.
        """
        await self._refresh()
        encode, content_type = _encoder(accept)
        # Here and not in the thread: what is read belongs to the event loop.
        page = _Page([*self._state.read()])
        return await thread_pools.METRICS.run(encode, page), content_type


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
    except ValueError:  # what it asks for is no version
        return generate_latest, CONTENT_TYPE_PLAIN_0_0_4
