"""`run_requests` throws many calls at a server: odd messages, damaged bytes, callers that leave.

A fault is a status that no caller may get, a call without an end, and whatever `FuzzedServer` finds
wrong with the server afterwards.
"""

from __future__ import annotations

import base64
import json
import math
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from treadle.server.rpc.servicer import SERVICE

from .connections import odd_connection
from .request_server import FuzzedServer
from .requests import FOLLOWING, DrawnCall, draw_call

AT_ONCE = 64
"""Calls in flight."""

_BATCH = 1024
"""Calls after which the server is looked at."""

_PATIENCE_S = 240.0
"""Seconds for one call. The server gives it 10, and the machine may be busy."""

_FOLLOWED_S = 0.5
"""Seconds for which a job is followed."""

_SILENT_S = 0.3
"""Seconds for which a caller waits that does not say that nothing more comes."""

_BAD = ("INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE")


KINDS = ("request", "request_bytes", "connection")
"""Odd messages; messages that are damaged as bytes; bytes that are no calls at all."""


@dataclass
class Result:
    """What came of a campaign."""

    count: int = 0
    """Calls."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Calls by how they ended."""
    slowest_s: float = 0.0
    """Seconds of the slowest call."""
    peak_bytes: int = 0
    """The most memory that the server took."""
    limit_bytes: int = 0
    """The most memory that it may take."""
    faults: list[str] = field(default_factory=list)
    """What is wrong."""

    def __str__(self) -> str:
        ends = ", ".join(f"{name} {count:,}" for name, count in sorted(self.statuses.items()))
        return (
            f"{self.count:,} calls, {len(self.faults)} faults; {ends}; slowest "
            f"{self.slowest_s:.1f} s; memory at most {self.peak_bytes >> 20} of "
            f"{self.limit_bytes >> 20} MiB"
        )


def run_requests(
    kind: str,
    count: int,
    first: int = 0,
    *,
    until_s: float = math.inf,
    report: bool = False,
    credentials: bool = False,
) -> Result:
    """Makes the calls of consecutive seeds.

    Args:
        kind: One of `KINDS`.
        count: How many.
        first: The first seed.
        until_s: The time, as of `time.monotonic`, after which no more begin.
        report: Whether to print on stderr how far it has come.
        credentials: Whether the server knows its callers, and most calls have a token.

    Returns:
        What came of it.
    """
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        server = FuzzedServer(Path(folder), credentials=credentials)
        try:
            _Campaign(server, result, kind).run(count, first, until_s, report)
        finally:
            result.faults += server.close()
    return result


class _Campaign:
    def __init__(self, server: FuzzedServer, result: Result, kind: str) -> None:
        self._server = server
        self._result = result
        self._kind = kind
        self._lock = threading.Lock()

    def run(self, count: int, first: int, until_s: float, report: bool) -> None:
        """Makes the calls of consecutive seeds, and looks at the server now and then."""
        result = self._result
        server = self._server
        with ThreadPoolExecutor(AT_ONCE) as pool:
            batch = _BATCH if math.isinf(until_s) else AT_ONCE
            for begin in range(first, first + count, batch):
                if begin > first and time.monotonic() > until_s:
                    break
                list(pool.map(self._make, range(begin, min(begin + batch, first + count))))
                faults = server.faults()
                result.faults += [f"after the calls from {begin} on: {fault}" for fault in faults]
                if any("ended with status" in fault for fault in faults):
                    return
                result.peak_bytes = server.peak_bytes()
                result.limit_bytes = server.limit_bytes
                if report:
                    print(f"{self._kind}: {result}", file=sys.stderr, flush=True)
        for _ in range(100):
            left = server.left_behind()
            if not left:
                break
            time.sleep(0.2)
        result.faults += left

    def _make(self, seed: int) -> None:
        """Makes the call of a seed, and writes down how it ended."""
        if self._kind == "connection":
            odd_connection(seed, self._server.address)
            with self._lock:
                self._result.count += 1
            return
        drawn = draw_call(seed, self._server.known, self._kind == "request_bytes")
        self.make(drawn)

    def make(self, drawn: DrawnCall) -> None:
        """Makes a call, and writes down how it ended."""
        if self._server.metadata and not any(key == "authorization" for key, _ in drawn.metadata):
            drawn = replace(drawn, metadata=(*drawn.metadata, *self._server.metadata))
        began = time.monotonic()
        code, text = _outcome(self._server.channel, drawn)
        took = time.monotonic() - began
        result = self._result
        with self._lock:
            result.count += 1
            result.statuses[code] += 1
            result.slowest_s = max(result.slowest_s, took)
        if code in _BAD or (code == "DEADLINE_EXCEEDED" and took >= _PATIENCE_S):
            messages = [base64.b64encode(data).decode() for data in drawn.messages]
            said = json.dumps({"method": drawn.method, "messages": messages})
            fault = f"{drawn.method}, seed {drawn.seed}: {code} after {took:.1f} s: {text}\n{said}"
            result.faults.append(fault[:20_000])
            print(fault[:1000], file=sys.stderr, flush=True)


def _outcome(channel: grpc.Channel, drawn: DrawnCall) -> tuple[str, str]:
    """Makes a call; returns the name of its status, or how else it ended, and what it said."""
    ended = threading.Event()

    def messages() -> Iterator[bytes]:
        yield from drawn.messages
        if not drawn.half_closes:
            ended.wait()

    # Every method is a stream on the wire, so that one that takes one message may get several.
    method: Any = channel.stream_stream(f"/{SERVICE}/{drawn.method}")
    call = method(messages(), timeout=_PATIENCE_S, metadata=drawn.metadata)
    leaves_s = drawn.leaves_s
    if leaves_s is None and not drawn.half_closes:
        leaves_s = _SILENT_S
    if leaves_s is None and drawn.method in FOLLOWING:
        leaves_s = _FOLLOWED_S
    leaving = None
    if leaves_s is not None:
        leaving = threading.Timer(leaves_s, call.cancel)
        leaving.start()
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        left = error is call and call.code() is grpc.StatusCode.CANCELLED and leaving is not None
        return ("left" if left else call.code().name), call.details() or ""
    finally:
        ended.set()
        if leaving is not None:
            leaving.cancel()
    return "OK", ""


def make_calls(server: FuzzedServer, calls: Iterable[tuple[str, DrawnCall]]) -> list[str]:
    """Makes calls one after the other; returns what is wrong with them and with the server.

    Args:
        server: The server.
        calls: The calls, and their names in what is returned.
    """
    faults = []
    for name, call in calls:
        result = Result()
        _Campaign(server, result, "request").make(call)
        faults += [f"{name}: {fault}" for fault in result.faults]
    return faults + server.faults()
