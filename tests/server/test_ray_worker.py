"""The server's side of a job on a Ray cluster, without a cluster; tests/shared has the rest."""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.util
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from treadle.server.config import ServerConfig, SettingError
from treadle.server.errors import StatusError
from treadle.server.jobs import executors, worker_protocol
from treadle.server.jobs.executors import ray_executor, ray_worker
from treadle.server.jobs.executors.executor import JobNeeds
from treadle.server.jobs.executors.ray_executor import ClusterError, RayExecutor, _Bridge
from treadle.server.jobs.executors.ray_worker import RayWorker

from .harness import PATIENCE_S, until

NEEDS = JobNeeds("j", 3, 2, 1000)


class Bridge:
    """The other side of a worker's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def tell(self, event: str, **fields: Any) -> None:
        self._writer.write(worker_protocol.encode({"event": event} | fields))

    async def heard(self) -> dict[str, Any]:
        line = await asyncio.wait_for(self._reader.readline(), PATIENCE_S)
        return worker_protocol.decode(line) if line else {}

    def close(self) -> None:
        self._writer.close()


def run(work: Callable[[RayWorker, Bridge], Awaitable[None]]) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        bridge = Bridge(*await asyncio.open_connection(sock=theirs))
        worker = RayWorker("j", *await asyncio.open_connection(sock=ours))
        await work(worker, bridge)
        bridge.close()
        await asyncio.wait_for(worker.end(), PATIENCE_S)

    asyncio.run(main())


def test_it_waits_for_a_node_and_says_why() -> None:
    async def work(worker: RayWorker, bridge: Bridge) -> None:
        reasons = []

        async def on_wait(reason: str) -> None:
            reasons.append(reason)

        placing = asyncio.create_task(worker.place(NEEDS, 7, on_wait))
        needs = {"job": "j", "fence": 3, "threads": 2, "memory_bytes": 1000, "min_free_bytes": 7}
        assert await bridge.heard() == needs
        bridge.tell("waiting", reason="no node is free")
        bridge.tell("ready", node="n")
        assert await placing
        assert reasons == ["no node is free"]
        worker.send({"threads": 1})
        worker.ask_to_leave({"pause": "why"})
        assert await bridge.heard() == {"send": {"threads": 1}}
        assert await bridge.heard() == {"ask_to_leave": {"pause": "why"}}

    run(work)


def test_a_worker_that_does_not_get_ready_is_an_error() -> None:
    async def nothing(reason: str) -> None:
        pass

    async def work(worker: RayWorker, bridge: Bridge) -> None:
        bridge.tell("died", reason="cannot run on node n: it has another release")
        with pytest.raises(StatusError, match="training process cannot run on node n: it has an"):
            await worker.place(NEEDS, 0, nothing)

    async def broken(worker: RayWorker, bridge: Bridge) -> None:
        bridge.close()
        assert not await worker.place(NEEDS, 0, nothing)

    run(work)
    run(broken)


def test_a_bridge_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job would wait for ever for a node."""
    monkeypatch.setattr(ray_worker, "_SILENT_S", 0.05)
    monkeypatch.setattr(ray_worker, "_END_S", 0.05)
    monkeypatch.setattr(ray_executor, "_AGAIN_S", 0.0)
    killed: list[str] = []
    others: list[Bridge] = []

    async def nothing(reason: str) -> None:
        pass

    class SilentBridge:
        is_up = True

        async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            ours, theirs = socket.socketpair()
            others.append(Bridge(*await asyncio.open_connection(sock=theirs)))
            return await asyncio.open_connection(sock=ours)

        def kill(self) -> None:
            killed.append("bridge")

    async def work(worker: RayWorker, bridge: Bridge) -> None:
        assert not await asyncio.wait_for(worker.place(NEEDS, 0, nothing), PATIENCE_S)
        assert worker.is_bridge_silent
        executor = RayExecutor("auto", 0)
        connections: list[Any] = [SilentBridge(), None]

        async def connected() -> Any:
            if connections[0] is None:
                raise StopTestError
            return connections.pop(0)

        monkeypatch.setattr(executor, "_connected", connected)
        with pytest.raises(StopTestError):
            await executor.take(NEEDS, nothing)
        assert killed == ["bridge"]
        await asyncio.wait(executor._ending, timeout=PATIENCE_S)
        others[0].close()

    class StopTestError(Exception):
        pass

    run(work)


def test_a_bridge_that_takes_no_job_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hang while it leaves the cluster, and would be asked again and again."""
    monkeypatch.setattr(ray_executor, "_AGAIN_S", 0.001)
    bridges: list[_Bridge] = []
    waits: list[str] = []

    async def on_wait(reason: str) -> None:
        waits.append(reason)

    async def start(address: str) -> _Bridge:
        if bridges:
            raise ClusterError("there is one already")
        ours, theirs = socket.socketpair()
        theirs.close()
        code = "import time; time.sleep(600)"
        bridges.append(
            _Bridge(await asyncio.create_subprocess_exec(sys.executable, "-c", code), ours)
        )
        return bridges[0]

    async def main() -> None:
        executor = RayExecutor("auto", 0)
        taking = asyncio.create_task(executor.take(NEEDS, on_wait))
        try:
            await until(lambda: waits)
            assert waits == ["waiting for the Ray cluster, which does not answer"]
        finally:
            taking.cancel()
            await asyncio.wait([taking])
            bridges[0].kill()
            await executor.close()

    monkeypatch.setattr(_Bridge, "start", start)
    asyncio.run(main())


def test_a_wait_for_a_node_ends_even_if_there_is_news_at_that_moment() -> None:
    """Or the job would keep its place in the queue of the cluster, and get a node for nothing."""

    async def nothing(reason: str) -> None:
        pass

    async def work(worker: RayWorker, bridge: Bridge) -> None:
        placing = asyncio.create_task(worker.place(NEEDS, 0, nothing))
        await bridge.heard()
        worker._reader.feed_data(worker_protocol.encode({"event": "waiting", "reason": "r"}))
        placing.cancel()
        bridge.close()
        await asyncio.wait([placing], timeout=PATIENCE_S)
        assert placing.cancelled()

    run(work)


def test_a_job_is_placed_again_whose_node_or_connection_is_lost_meanwhile() -> None:
    """It waits as before, and that is no crash of it."""

    async def nothing(reason: str) -> None:
        pass

    async def work(worker: RayWorker, bridge: Bridge) -> None:
        bridge.tell("died", reason="was lost: the connection to the Ray cluster broke", lost=True)
        assert not await worker.place(NEEDS, 0, nothing)

    run(work)


@pytest.fixture
def remote_run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that uses Ray, with a Ray that has nothing but its errors."""
    ray: Any = ModuleType("ray")
    ray.exceptions = ModuleType("ray.exceptions")
    ray.exceptions.RayError = type("RayError", (Exception,), {})
    ray.util = ModuleType("ray.util")
    modules = {"ray": ray, "ray.exceptions": ray.exceptions, "ray.util": ray.util}
    name = "treadle.server.jobs.executors.remote_run"
    for each, module in modules.items():
        monkeypatch.setitem(sys.modules, each, module)
    monkeypatch.delitem(sys.modules, name, raising=False)
    made = importlib.import_module(name)
    del sys.modules[name]  # others may need the one with the real Ray
    vars(executors).pop("remote_run")
    return made


def test_a_lost_connection_is_no_fault_of_the_disk(remote_run: Any, tmp_path: Path) -> None:
    """Ray's client raises a ConnectionError, an OSError, where it is to send something."""

    class Method:
        @staticmethod
        def remote(*arguments: Any) -> Any:
            raise ConnectionError("Ray client has already been disconnected")

    async def main() -> None:
        run = remote_run.RemoteRun({"job": "j"}, None)
        run._actor = SimpleNamespace(receive=Method, submit=Method, results=Method, send=Method)
        request = {"directory": str(tmp_path), "min_free_bytes": 0, "files": []}
        run._request.set_result(request)
        run._watch = {"timeout_s": 1, "limit_bytes": None}
        for work in (run._forward(), run._submit(request), run._fetch_files(tmp_path, None)):
            with pytest.raises(remote_run._OverError) as caught:
                await work
            assert caught.value.message["event"] == "died"
            assert caught.value.message["lost"]
        run._submitted = True
        await run.hear({"send": {"threads": 1}})  # and says nothing

    asyncio.run(main())


def test_a_node_names_no_other_file(remote_run: Any, tmp_path: Path) -> None:
    """A name is a path in the directory of the job."""

    class Results:
        @staticmethod
        async def remote() -> list[tuple[str, str]]:
            return [("../../other/state.safetensors", "1")]

    async def main() -> None:
        run = remote_run.RemoteRun({"job": "j"}, None)
        run._actor = SimpleNamespace(results=Results)
        with pytest.raises(remote_run._OverError) as caught:
            await run._fetch_files(tmp_path, None)
        assert caught.value.message["event"] == "died"
        assert "'../../other/state.safetensors'" in caught.value.message["reason"]

    asyncio.run(main())


def test_a_death_says_whose_fault_it_is() -> None:
    async def lost(worker: RayWorker, bridge: Bridge) -> None:
        bridge.tell("alive")
        bridge.tell("progress", step=1)
        bridge.tell("died", reason="was lost: its node n died", lost=True)
        assert await worker.receive() == {"event": "progress", "step": 1}
        with pytest.raises(StatusError, match=r"^the training process was lost: its node n died"):
            await worker.receive()
        assert worker.lost
        assert not worker.took_too_much

    async def too_much(worker: RayWorker, bridge: Bridge) -> None:
        reason = "the training process took 9 bytes of memory and was killed (on node n)"
        bridge.tell("died", reason=reason, took_too_much=True)
        with pytest.raises(StatusError, match=r"^the training process took 9 bytes"):
            await worker.receive()
        assert worker.took_too_much
        assert not worker.lost

    async def broken(worker: RayWorker, bridge: Bridge) -> None:
        bridge.close()
        with pytest.raises(StatusError, match="connection to the Ray cluster broke"):
            await worker.receive()
        assert worker.lost
        assert not worker.alive

    for work in (lost, too_much, broken):
        run(work)


def test_a_killed_worker_ends_at_once() -> None:
    async def work(worker: RayWorker, bridge: Bridge) -> None:
        receiving = asyncio.create_task(worker.receive())
        await asyncio.sleep(0)
        worker.kill("did something and was killed")
        with pytest.raises(StatusError, match="the training process did something and was killed"):
            await asyncio.wait_for(receiving, PATIENCE_S)
        assert not worker.lost
        assert await bridge.heard() == {}

    run(work)


def test_a_node_without_a_sign_of_life_is_given_up() -> None:
    async def work(worker: RayWorker, bridge: Bridge) -> None:
        supervising = asyncio.create_task(worker.supervise(0.4, 5))
        assert await bridge.heard() == {"supervise": {"timeout_s": 0.4, "limit_bytes": 5}}
        with pytest.raises(StatusError, match="gave no sign of life"):
            await asyncio.wait_for(worker.receive(), PATIENCE_S)
        assert worker.lost
        await asyncio.wait_for(supervising, PATIENCE_S)

    run(work)


@pytest.mark.parametrize(
    ("form", "line", "written"),
    [
        ("text", "INFO a: b", "job j on node n: INFO a: b\n"),
        ("json", '{"message": "b"}', '{"message": "b", "job": "j", "node": "n"}\n'),
        ("json", "Fatal Python error", ""),
    ],
)
def test_its_log_names_the_job_and_the_node(
    form: str,
    line: str,
    written: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("treadle.server.jobs.executors.ray_worker.log_form", lambda: form)

    async def nothing(reason: str) -> None:
        pass

    async def work(worker: RayWorker, bridge: Bridge) -> None:
        bridge.tell("ready", node="n")
        assert await worker.place(NEEDS, 0, nothing)
        bridge.tell("log", line=line)
        bridge.tell("saved")
        assert await worker.receive() == {"event": "saved"}

    run(work)
    assert capsys.readouterr().err == written
    if not written:
        assert f"job j on node n: {line}" in caplog.text


def test_the_end_waits_until_the_bridge_has_ended_the_worker() -> None:
    async def work(worker: RayWorker, bridge: Bridge) -> None:
        ending = asyncio.create_task(worker.end())
        assert await bridge.heard() == {}
        assert not ending.done()
        bridge.tell("log", line="last words")
        bridge.close()
        await asyncio.wait_for(ending, PATIENCE_S)
        await until(lambda: not worker.alive)

    run(work)


def test_without_ray_the_flag_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    async def main() -> None:
        executor = RayExecutor("auto", 0)
        with pytest.raises(SettingError, match=r"^--executor needs ray, .*server,ray"):
            await executor.start()
        await executor.close()

    asyncio.run(main())


def test_ray_is_loaded_by_its_own_process_alone() -> None:
    """A server without the flag must not pay for it, and one with it must not end with Ray."""
    folder = Path(executors.__file__).parent
    own = {"ray_bridge", "remote_run"}
    for path in folder.parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                loads_ray = name.split(".")[0] == "ray" or name.rpartition(".")[2] in own
                assert not loads_ray or path.stem in own, (path, name)


def test_the_settings_of_an_executor_go_together() -> None:
    with pytest.raises(SettingError, match="--executor must be local or ray, not 'moon'"):
        ServerConfig(executor="moon")
    with pytest.raises(SettingError, match="--ray-address needs --executor ray"):
        ServerConfig(ray_address="h:6379")
    with pytest.raises(SettingError, match="--mpirun goes with --executor local, not with ray"):
        ServerConfig(executor="ray", mpirun="mpirun")
    assert ServerConfig().training_bytes()
    assert ServerConfig(executor="ray", ray_address="h:6379").training_bytes() is None
    assert ServerConfig(executor="ray", max_training_bytes=5).training_bytes() == 5
