from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from treadle.server.errors import StatusError
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.model_limits import ModelLimits
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, first_progress, long_spec, tiny_spec
from .samples import put_model


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path, limits=ModelLimits(models=3, versions=4, aliases=2))
    yield data_dir
    data_dir.close()


@contextmanager
def refused(complaint: str) -> Iterator[None]:
    """Expects FAILED_PRECONDITION."""
    with pytest.raises(StatusError, match=complaint) as caught:
        yield
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION


def test_versions(data_dir: DataDir) -> None:
    for _ in range(3):
        put_model(data_dir, "m")
    data_dir.models.check_new("m")
    data_dir.models.check_new("m", coming=["other"] * 10)
    with refused("model 'm' has 3 versions and 1 unfinished job, and no more may be made"):
        data_dir.models.check_new("m", coming=["other", "m"])
    put_model(data_dir, "m")
    with refused("model 'm' has 4 versions, and no more may be made: delete versions first"):
        data_dir.models.check_new("m")
    data_dir.models.delete("m", 2)
    data_dir.models.check_new("m")


def test_models(data_dir: DataDir) -> None:
    for name in ("a", "b"):
        put_model(data_dir, name)
    data_dir.models.check_new("c")
    with refused("the server has 2 models, and no more may be made"):
        data_dir.models.check_new("c", coming=["d"])
    put_model(data_dir, "c")
    with refused("the server has 3 models"):
        data_dir.models.check_new("d")
    data_dir.models.check_new("a")
    data_dir.models.delete("b", None)
    data_dir.models.check_new("d")


def test_aliases(data_dir: DataDir) -> None:
    put_model(data_dir, "m")
    for alias in ("a", "b", "a"):
        data_dir.models.set_alias("m", alias, 1)
    with refused("model 'm' has 2 aliases, and no more may be made"):
        data_dir.models.set_alias("m", "c", 1)
    with refused("model 'm' has 2 aliases"):
        data_dir.models.check_new("m", "c")
    data_dir.models.check_new("m", "b")
    data_dir.models.delete_alias("m", "a")
    assert data_dir.models.set_alias("m", "c", 1).version == 1


def test_a_train_call_is_refused_before_its_corpus(start: Callable[..., Server]) -> None:
    server = start("--version-limit", "2", "--alias-limit", "1")
    caller = server.caller
    assert caller.trained(tiny_spec("m")).version == 1
    running = caller.train(long_spec("m"), TEXT)
    job = first_progress(running).job
    with pytest.raises(grpc.RpcError, match="has 1 version and 1 unfinished job,") as caught:
        list(caller.train(tiny_spec("m"), source=[pb.TrainRequest(spec=tiny_spec("m"))]))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    caller.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=PATIENCE_S)
    caller.stub.SetAlias(pb.SetAliasRequest(model="m", alias="a"), timeout=PATIENCE_S)
    with pytest.raises(grpc.RpcError, match="has 1 alias, and") as caught:
        caller.stub.SetAlias(pb.SetAliasRequest(model="m", alias="b"), timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
