"""Figures, percentiles and watchers of `benchmarks/abuse.py`; its scenarios need a real server."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from treadle.benchmarks import abuse
from treadle.benchmarks.channels import THIS_MACHINE
from treadle.benchmarks.scenarios import watchers
from treadle.benchmarks.scenarios.memory_use import (
    MIB,
    MemorySampler,
    descendants,
    resident_bytes,
    start_time,
)
from treadle.benchmarks.scenarios.report import (
    Figure,
    as_json,
    beyond,
    common_line,
    comparison,
    line,
    number,
    percentile,
)
from treadle.benchmarks.scenarios.stored_attacks import change_header
from treadle.benchmarks.scenarios.target import SCENARIOS, counted


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)]
)
def test_percentiles_are_by_the_nearest_rank(share: float, expected: float) -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, share) == expected


def test_a_few_values_have_percentiles_too() -> None:
    assert percentile([], 0.99) is None
    assert percentile([3.0], 0.01) == 3.0
    assert percentile([1.0, 2.0, 3.0], 0.99) == 3.0


@pytest.mark.parametrize(
    ("value", "bound", "verdict"),
    [
        (1.0, 1.0, "within"),
        (1.1, 1.0, "beyond"),
        (None, 1.0, "beyond"),
        (1e9, math.inf, "-"),
        (None, math.inf, "-"),
    ],
)
def test_a_figure_is_within_or_beyond_its_bound(
    value: float | None, bound: float, verdict: str
) -> None:
    figure = Figure("peak", value, "MiB", bound)
    assert figure.verdict == verdict
    assert beyond({"one": [figure]}) == (["one"] if verdict == "beyond" else [])
    assert verdict in line("one", figure)


def test_a_line_says_all_that_there_is() -> None:
    text = line("echo", Figure("grew", 1234.5, "MiB", 512.0, "4 OK"))
    assert text.split() == ["echo", "grew", "1,234", "MiB", "<=", "512", "beyond", "4", "OK"]
    assert number(None) == "none"
    assert number(0.123) == "0.12"
    assert number(12.34) == "12.3"


def test_what_all_scenarios_have_is_one_line() -> None:
    figures = [
        Figure("health p99", 12.0, "ms", 100.0),
        Figure("failed", 3.0, "", 0.0, "3 INTERNAL"),
    ]
    assert common_line("echo", figures).split(maxsplit=1)[1] == (
        "health p99 12 ms, failed 3 (3 INTERNAL) BEYOND 0"
    )


def test_json_has_no_infinite_numbers() -> None:
    stored = json.loads(json.dumps(as_json({"one": [Figure("grew", 2.0), Figure("p99", None)]})))
    assert stored["one"][0]["value"] == 2.0
    assert stored["one"][0]["bound"] is None
    assert stored["one"][1]["verdict"] == "-"


def test_two_files_make_a_table() -> None:
    common = Figure("health p99", 9.0, "ms", 100.0, is_common=True)
    slow = Figure("health p99", 900.0, "ms", 100.0, is_common=True)
    before = as_json({"one": [Figure("grew", 900.0, "MiB", 512.0), slow], "two": [common]})
    after = as_json({"one": [Figure("grew", 20.0, "MiB", 512.0), common], "two": [common]})
    assert comparison(before, after).splitlines()[2:] == [
        "| one | grew | 512 | 900 MiB | 20 MiB |",
        "| one | health p99 | 100 | 900 ms | 9 ms |",
    ]


def test_every_scenario_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert abuse.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(SCENARIOS) > 40
    assert all(item.about for item in SCENARIOS.values())


def test_a_scenario_that_there_is_not_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert abuse.main(["nothing"]) == 2
    assert "no scenario is called nothing" in capsys.readouterr().err


def test_statuses_are_counted() -> None:
    assert counted(["OK", "INTERNAL", "OK"]) == "1 INTERNAL, 2 OK"
    assert counted([]) == ""


def test_memory_is_that_of_the_process_and_of_its_children() -> None:
    size = 64 * MIB
    program = f"import sys; data = bytearray(b'x' * {size}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert resident_bytes(child.pid) > size
        assert child.pid in list(descendants(os.getpid()))
        assert start_time(child.pid)
        sampler = MemorySampler(child.pid)
        until = time.monotonic() + 60.0
        while sampler.peak_bytes <= size and time.monotonic() < until:
            time.sleep(0.01)
        sampler.close()
        assert sampler.peak_bytes > size
        child.communicate(b"")
    assert resident_bytes(child.pid) == 0


class _Stalling(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers its first checks at once and then nobody for a while, as a busy loop does."""

    def __init__(self) -> None:
        self.checks = 0
        self.until = 0.0

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.checks += 1
        if self.checks == 5:
            self.until = time.monotonic() + 0.5
        await asyncio.sleep(max(0.0, self.until - time.monotonic()))
        return health_pb2.HealthCheckResponse()


def test_a_stall_counts_as_often_as_checks_were_due() -> None:
    async def watch() -> dict[str, Any]:
        server = aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(_Stalling(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ended = asyncio.Event()
        async with aio.insecure_channel(f"127.0.0.1:{port}", THIS_MACHINE) as channel:
            watching = asyncio.create_task(watchers.watch_health(channel, ended))
            await asyncio.sleep(1.5)
            ended.set()
            seen = await watching
        await server.stop(None)
        return seen

    seen = asyncio.run(watch())
    assert not seen["failures"]
    # A caller who asks again only after an answer would have seen one late one.
    assert sum(milliseconds >= 50.0 for milliseconds in seen["times"]) >= 5


def test_a_header_is_changed_and_the_weights_are_not(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = json.dumps({"training": {"steps": 3}})
    header = json.dumps({"__metadata__": {"treadle": content}, "w": {"data_offsets": [0, 4]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"abcd")
    (tmp_path / "model.sha256").write_text("hash")
    change_header(path, lambda content: content["training"].update(steps=-1))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert data[8 + length :] == b"abcd"
    changed = json.loads(data[8 : 8 + length])
    assert json.loads(changed["__metadata__"]["treadle"]) == {"training": {"steps": -1}}
    assert not (tmp_path / "model.sha256").exists()
