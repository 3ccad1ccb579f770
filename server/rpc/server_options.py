"""`server_options` gives the settings of the gRPC library for a server."""

from __future__ import annotations

_READ_AHEAD_BYTES = 1 << 18
"""Bytes that gRPC may read of a stream before they are asked for: enough for 25 MB/s at a round
trip of 10 ms, and 128 MiB for 512 streams."""

_HANDSHAKE_MS = 20_000
"""Milliseconds within which a new connection must finish TLS and send its settings of HTTP/2. By
itself gRPC waits for two minutes."""


def server_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Returns the options of `grpc.aio.server`.

    Args:
        max_message_bytes: The largest request or reply, in bytes.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Otherwise a second server would silently share a port that is in use.
        ("grpc.so_reuseport", 0),
        # A client that vanished without closing is noticed within two minutes ...
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # ... and a client may check every ten seconds that the server is still there.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        # No budget counts what gRPC reads ahead, and by itself it would read whole messages.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _READ_AHEAD_BYTES),
    ]
