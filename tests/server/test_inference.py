"""Limits, deadlines, cancelled calls, and models that go while they are used."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.model import (
    InferencePrecision,
    Model,
    train,
)
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    TrainConfig,
)
from treadle.model.network.packed_weights import PackedWeights
from treadle.server.errors import StatusError
from treadle.server.inference.model_cache import ModelCache
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.model_version import MODEL_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Server, detail_of, fields_of, tiny_spec, until, wait_for

Start = Callable[..., Server]
ENDLESS = 4_000_000_000


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with limits of two calls, and a model `m`."""
    flags = ("--inference-limit", "2", "--max-new-tokens-limit", str(ENDLESS))
    server = Server(tmp_path_factory.mktemp("busy") / "data", *flags)
    server.caller.trained(tiny_spec("m"))
    yield server
    server.close()


def endless(server: Server, timeout: float = PATIENCE_S) -> Any:
    """Begins a generation that continues until it is cancelled."""
    request = pb.GenerateRequest(model="m", max_new_tokens=ENDLESS)
    call = server.caller.stub.Generate(request, timeout=timeout)
    next(call)
    return call


def test_cancelled_calls_count_no_more(busy: Server) -> None:
    for _ in range(10):
        calls = [endless(busy), endless(busy)]
        for call in calls:
            call.cancel()
        wait_for(lambda: busy.caller.info().inference_running == 0)


def test_calls_beyond_the_limit_are_refused(busy: Server) -> None:
    calls = [endless(busy), endless(busy)]
    attempts: list[Callable[[], object]] = [
        lambda: busy.caller.generate("m"),
        lambda: busy.caller.score("m", ["x"]),
    ]
    for attempt in attempts:
        with pytest.raises(grpc.RpcError) as caught:
            attempt()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = detail_of(caught.value, "RetryInfo")
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToMilliseconds() > 0
    assert busy.caller.serving()
    for call in calls:
        call.cancel()
    wait_for(lambda: busy.caller.info().inference_running == 0)


def test_a_deadline_ends_a_generation(busy: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(endless(busy, timeout=0.5))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: busy.caller.info().inference_running == 0)


def test_a_deadline_ends_a_scoring(busy: Server) -> None:
    request = pb.ScoreRequest(model="m", texts=["the fox " * 1000] * 400)
    with pytest.raises(grpc.RpcError) as caught:
        busy.caller.stub.Score(request, timeout=0.01)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: busy.caller.info().inference_running == 0)


def test_a_deleted_model_is_used_to_the_end(busy: Server) -> None:
    busy.caller.trained(tiny_spec("gone"))
    request = pb.GenerateRequest(model="gone", max_new_tokens=20_000)
    call = busy.caller.stub.Generate(request, timeout=PATIENCE_S)
    replies = [next(call)]
    busy.caller.stub.DeleteModel(pb.DeleteModelRequest(model="gone", all_versions=True))
    replies += list(call)
    assert replies[-1].result.new_tokens == 20_000


def test_a_new_version_does_not_change_a_stream_that_began_before(busy: Server) -> None:
    busy.caller.trained(tiny_spec("twice"))
    request = pb.GenerateRequest(model="twice", max_new_tokens=20_000)
    call = busy.caller.stub.Generate(request, timeout=PATIENCE_S)
    replies = [next(call)]
    busy.caller.trained(tiny_spec("twice"))
    replies += list(call)
    assert replies[-1].result.version == 1
    assert busy.caller.generate("twice")[-1].result.version == 2


def test_a_message_holds_more_than_a_piece(busy: Server) -> None:
    replies = busy.caller.generate("m", max_new_tokens=20_000, log_probabilities=True)
    assert 1 <= len(replies[0].tokens) <= 16
    assert sum(len(reply.tokens) for reply in replies) == 20_000
    assert len(replies) < 20_000 / 16


def test_a_long_prompt_and_a_long_text_give_what_they_gave(busy: Server) -> None:
    text = "the fox jumps. " * 400
    assert busy.caller.score("m", [text]).scores[0].token_count == len(text) - 1
    replies = busy.caller.generate("m", prompt=text, max_new_tokens=5)
    assert replies[-1].result.prompt_tokens == len(text)
    assert all(reply.text for reply in replies[:-1])


def test_too_many_texts_are_refused(busy: Server) -> None:
    assert len(busy.caller.score("m", ["a"] * 10_000).scores) == 10_000
    with pytest.raises(grpc.RpcError) as caught:
        busy.caller.score("m", ["a"] * 10_001)
    assert fields_of(caught.value) == ["texts"]


def test_nothing_was_left_running_and_nothing_went_wrong(busy: Server) -> None:
    # The last test on this server on purpose.
    wait_for(lambda: busy.caller.info().inference_running == 0)
    assert "Traceback" not in busy.log


# Models in memory


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path)
    config = TrainConfig(
        network=NetworkConfig(hidden_size=4, embedding_size=2),
        data=DataConfig(batch_size=1, window=4),
        limits=LimitsConfig(max_steps=1),
    )
    model = train(b"abcabcabcabc", config)
    for name in ("a", "b", "c"):
        draft = data_dir.models.new_draft()
        model.save(draft / MODEL_FILE)
        data_dir.models.claim(name, draft)
    yield data_dir
    data_dir.close()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models loaded from disk so far."""
    names: list[str] = []
    lock = threading.Lock()
    load = Model.load

    def counted(path: Path) -> Model:
        with lock:
            names.append(path.parent.parent.name)
        return load(path)

    monkeypatch.setattr(Model, "load", counted)
    return names


def test_a_model_is_loaded_once_for_many_callers(data_dir: DataDir, loads: list[str]) -> None:
    async def run() -> None:
        models = ModelCache(data_dir, 1 << 30, MemoryBudget(1 << 30))
        found = await asyncio.gather(*(models.get("a") for _ in range(20)))
        assert len({id(source.model) for source in found}) == 1

    asyncio.run(run())
    assert loads == ["a"]


def test_the_longest_unused_model_goes_first(data_dir: DataDir, loads: list[str]) -> None:
    async def run() -> None:
        # Next to the parameters lie packed weights and a table.
        models = ModelCache(
            data_dir, 6 * data_dir.models.find("a").size_bytes, MemoryBudget(1 << 30)
        )
        for name in ("a", "b", "a", "c", "a", "b"):
            await models.get(name)
            await asyncio.sleep(0.05)  # the thread that has loaded it lets it go

    asyncio.run(run())
    assert loads == ["a", "b", "c", "b"]


def test_one_model_stays_however_large_it_is(data_dir: DataDir, loads: list[str]) -> None:
    async def run() -> None:
        models = ModelCache(data_dir, 0, MemoryBudget(1 << 30))
        for name in ("a", "a", "b", "b"):
            await models.get(name)

    asyncio.run(run())
    assert loads == ["a", "b"]


def test_a_loaded_model_holds_its_bytes_until_nobody_uses_it(
    data_dir: DataDir, loads: list[str]
) -> None:
    size = 3 * data_dir.models.find("a").size_bytes

    async def run() -> None:
        budget = MemoryBudget(1 << 30)
        models = ModelCache(data_dir, size, budget)
        first = await models.get("a")
        "".join(piece.text for piece in first.model.stream("a", max_new_tokens=3))
        assert budget.used == size
        await models.get("b")  # "a" is dropped, but in use
        assert (models.count, budget.used) == (1, 2 * size)
        assert (await models.get("a")).model is first.model  # the model is in memory once
        # The thread that loaded "b" may hold it for a moment more.
        await until(lambda: (models.count, budget.used) == (1, size))
        models.forget("a", data_dir.models.delete("a", None))
        assert (models.count, budget.used) == (0, size)
        del first
        assert budget.used == 0

    asyncio.run(run())
    assert loads == ["a", "b"]


def test_models_that_no_call_uses_are_dropped_and_others_are_not(
    data_dir: DataDir, loads: list[str]
) -> None:
    size = 3 * data_dir.models.find("a").size_bytes

    async def run() -> None:
        budget = MemoryBudget(4 * size)  # of which half a model is for small requests
        models = ModelCache(data_dir, 1 << 30, budget)
        used = await models.get("a")
        await models.get("b")
        await models.get("c")
        await models.get("b")
        with budget.reserve(int(1.4 * size), "requests"):  # "c" was not used for longest
            assert (models.count, budget.used) == (2, int(3.4 * size))
        with budget.reserve(0, "requests") as held:
            # The thread that loaded "b" may hold it a moment longer than its caller.
            await held.resize_patiently(int(2.4 * size), PATIENCE_S)
            assert (models.count, budget.used) == (1, int(3.4 * size))
            with pytest.raises(StatusError) as caught:
                await models.get("b")
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "version 1 of model 'b'" in caught.value.message
            assert (await models.get("a")).model is used.model
        await models.get("b")

    asyncio.run(run())
    assert loads == ["a", "b", "c", "b"]


def test_a_model_that_cannot_be_loaded_holds_nothing(data_dir: DataDir) -> None:
    data_dir.models.find("a").path.write_bytes(b"\0" * 1000)

    async def run() -> None:
        budget = MemoryBudget(1000)
        models = ModelCache(data_dir, 1 << 30, budget)
        with pytest.raises(StatusError) as caught:
            await models.get("b")
        assert "larger --memory-budget" in caught.value.message
        assert (budget.used, models._loading) == (0, {})
        budget.limit = 1 << 30
        with pytest.raises(StatusError) as caught:
            await models.get("a")
        assert caught.value.code is grpc.StatusCode.DATA_LOSS
        assert (budget.used, models._loading) == (0, {})
        assert (await models.get("b")).version == 1

    asyncio.run(run())


def test_a_caller_that_goes_does_not_take_the_load_along(
    data_dir: DataDir, loads: list[str]
) -> None:
    async def run() -> None:
        models = ModelCache(data_dir, 1 << 30, MemoryBudget(1 << 30))
        first, second = (asyncio.create_task(models.get("a")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).version == 1

    asyncio.run(run())
    assert loads == ["a"]


def test_a_damaged_file_is_data_loss_every_time(data_dir: DataDir) -> None:
    data_dir.models.find("a").path.write_bytes(b"\0" * 100)

    async def run() -> None:
        models = ModelCache(data_dir, 1 << 30, MemoryBudget(1 << 30))
        for _ in range(2):
            with pytest.raises(StatusError) as caught:
                await models.get("a")
            assert caught.value.code is grpc.StatusCode.DATA_LOSS

    asyncio.run(run())


def test_a_model_deleted_while_it_is_loaded_is_not_kept(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = threading.Event()
    free = threading.Event()
    load = Model.load

    def held(path: Path) -> Model:
        model = load(path)
        entered.set()
        assert free.wait(PATIENCE_S)
        return model

    async def run() -> None:
        models = ModelCache(data_dir, 1 << 30, MemoryBudget(1 << 30))
        monkeypatch.setattr(Model, "load", held)
        waiting = asyncio.create_task(models.get("a"))
        assert await asyncio.to_thread(entered.wait, PATIENCE_S)
        models.forget("a", data_dir.models.delete("a", None))
        free.set()
        assert (await waiting).version == 1  # who asked before still gets it
        assert not models._models
        assert not models._loading

    asyncio.run(run())


def int8_bytes(model: Model) -> int:
    """What a model's int8 form is counted as."""
    return model.parameters.flat.nbytes // 2


def test_the_int8_form_is_made_once_away_from_the_loop_and_counted(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[str] = []
    pack = PackedWeights.get

    def watched(self: PackedWeights, precision: InferencePrecision) -> Any:
        packed.append(threading.current_thread().name)
        return pack(self, precision)

    monkeypatch.setattr(PackedWeights, "get", watched)
    file_bytes = 3 * data_dir.models.find("a").size_bytes

    async def run() -> None:
        budget = MemoryBudget(1 << 30)
        models = ModelCache(data_dir, 1 << 30, budget)
        plain = await models.get("a")
        assert await models.at_precision(plain, InferencePrecision.FP32) is plain
        calls = [models.at_precision(plain, InferencePrecision.INT8) for _ in range(5)]
        found = await asyncio.gather(*calls)
        assert {id(source.model) for source in found} == {id(found[0].model)}
        assert found[0] == replace(plain, model=plain.model.at(InferencePrecision.INT8))
        assert budget.used == models.size_bytes == file_bytes + int8_bytes(plain.model)
        del plain, calls
        models.forget("a", data_dir.models.delete("a", None))
        assert (models.count, models.size_bytes) == (0, 0)
        assert budget.used > file_bytes  # a call uses it
        del found
        await until(lambda: budget.used == 0)  # the thread may hold it for a moment more

    asyncio.run(run())
    assert len(packed) == 1
    assert packed[0].startswith("models")


def test_an_int8_form_that_does_not_fit_is_refused_and_nothing_is_held(data_dir: DataDir) -> None:
    async def run() -> None:
        budget = MemoryBudget(1 << 30)
        models = ModelCache(data_dir, 1 << 30, budget)
        plain = await models.get("a")
        budget.limit = before = budget.used
        for _ in range(2):
            with pytest.raises(StatusError) as caught:
                await models.at_precision(plain, InferencePrecision.INT8)
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "bytes of memory for int8 weights do not fit now" in caught.value.message
        assert (budget.used, models._packing) == (before, {})
        budget.limit = 1 << 30
        found = await models.at_precision(plain, InferencePrecision.INT8)
        assert found.model.precision is InferencePrecision.INT8

    asyncio.run(run())


def test_a_model_with_an_int8_form_leaves_as_a_whole(data_dir: DataDir, loads: list[str]) -> None:
    async def run() -> None:
        budget = MemoryBudget(1 << 30)
        models = ModelCache(data_dir, 6 * data_dir.models.find("a").size_bytes, budget)
        for name in ("a", "b", "b"):
            plain = await models.get(name)
            await models.at_precision(plain, InferencePrecision.INT8)
            del plain
        assert (models.count, loads) == (1, ["a", "b"])  # both would fit without int8
        await until(lambda: budget.used == models.size_bytes)

    asyncio.run(run())
