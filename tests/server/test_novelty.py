"""A novelty index from the spec of a training to the model that it leaves."""

from __future__ import annotations

from collections.abc import Callable

from treadle.model import Model
from treadle.server.storage.job_files import LAST_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Server, tiny_spec

Start = Callable[..., Server]

NAMES = b"".join(b"name%d\n" % number for number in range(60))


def spec_of(model: str, *, indexed: bool) -> pb.TrainSpec:
    spec = tiny_spec(model)
    spec.data.layout = pb.CORPUS_LAYOUT_LINES
    spec.data.novelty_index = indexed
    return spec


def test_a_model_that_was_trained_with_it_has_it(start: Start) -> None:
    server = start()
    caller = server.caller
    *_, last = caller.train(spec_of("indexed", indexed=True), NAMES)
    assert last.completed.novelty_index
    assert last.completed.training.spec.data.novelty_index
    assert not caller.trained(spec_of("plain", indexed=False), NAMES).novelty_index
    for name in ("indexed", "plain"):
        got = caller.stub.GetModel(pb.GetModelRequest(model=name), timeout=PATIENCE_S).model
        assert got.novelty_index == (name == "indexed")
    model = Model.load(server.data_dir / "models" / "indexed" / "1" / "model.safetensors")
    assert model.novelty is not None
    texts = NAMES.decode().split()
    new = [model.novelty.novelty(model.tokenizer.encode(t), model.tokenizer).is_new for t in texts]
    assert new.count(True) == 6, "the tenth that validates was not trained on"
    # What a job publishes on its way is small.
    published = Model.load(server.data_dir / "jobs" / last.job / LAST_FILE)
    assert published.novelty is None
    listed = caller.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models
    assert {model.name: model.novelty_index for model in listed} == {
        "indexed": True,
        "plain": False,
    }
