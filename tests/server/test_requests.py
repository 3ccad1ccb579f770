"""Specs and other requests become settings, and settings become specs again."""

from __future__ import annotations

import enum
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.model import enums
from treadle.model.config import TrainConfig
from treadle.model.network import precision
from treadle.server.errors import StatusError
from treadle.server.messages import requests, responses
from treadle.v1 import sequence_pb2 as pb


def violations(error: StatusError) -> dict[str, str]:
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    (details,) = error.details
    assert isinstance(details, error_details_pb2.BadRequest)
    return {item.field: item.description for item in details.field_violations}


@pytest.mark.parametrize(
    ("contract", "words"),
    [
        (pb.Cell, enums.Cell),
        (pb.TokenizerKind, enums.TokenizerKind),
        (pb.UnknownPolicy, enums.UnknownPolicy),
        (pb.CorpusLayout, enums.CorpusLayout),
        (pb.Optimizer, enums.OptimizerKind),
        (pb.Schedule, enums.Schedule),
        (pb.Precision, enums.Precision),
        (pb.CorpusFormat, enums.CorpusFormat),
        (pb.CorpusRole, enums.CorpusRole),
        (pb.Split, enums.Split),
        (pb.Preset, enums.Preset),
        (pb.Keep, enums.Keep),
    ],
)
def test_both_sides_know_the_same_values(contract: Any, words: type[enum.StrEnum]) -> None:
    values = contract.DESCRIPTOR.values
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    names = {value.name.removeprefix(prefix).lower() for value in values[1:]}
    assert names == {member.value for member in words}


def test_defaults_are_filled_in() -> None:
    config = requests.train_config(pb.TrainSpec(model="m"), 1 << 30)
    assert config == TrainConfig()
    spec = responses.spec("m", config)
    assert spec.network.cell == pb.CELL_LSTM
    assert spec.optimizer.optimizer == pb.OPTIMIZER_ADAM
    assert spec.optimizer.learning_rate == 0.003
    assert spec.optimizer.precision == pb.PRECISION_FP32
    assert spec.tokenizer.unknown_policy == pb.UNKNOWN_POLICY_ERROR
    assert spec.network.embedding_size == 64
    assert not spec.limits.HasField("max_steps")


def test_a_precision_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "BF16_MISSING", "this processor lacks AVX512_BF16")
    spec = pb.TrainSpec(model="m", optimizer=pb.OptimizerSpec(precision=pb.PRECISION_BF16))
    with pytest.raises(StatusError) as caught:
        requests.train_config(spec)
    assert violations(caught.value) == {
        "spec.optimizer.precision": "spec.optimizer.precision cannot be bf16: this processor "
        "lacks AVX512_BF16; set precision to fp32"
    }


def test_a_full_spec_comes_back_as_it_was() -> None:
    spec = pb.TrainSpec(
        model="m",
        tokenizer=pb.TokenizerSpec(
            kind=pb.TOKENIZER_KIND_WORDS,
            max_vocabulary_size=7,
            unknown_policy=pb.UNKNOWN_POLICY_SKIP,
            min_frequency=2,
            lower_case=True,
        ),
        data=pb.DataSpec(
            layout=pb.CORPUS_LAYOUT_LINES,
            validation_fraction=0,
            batch_size=3,
            window=5,
            test_fraction=0.25,
            format=pb.CORPUS_FORMAT_JSONL,
            column="message",
            encoding="latin-1",
            novelty_index=True,
            missing=pb.MISSING_POLICY_SKIP,
        ),
        network=pb.NetworkSpec(
            cell=pb.CELL_GRU,
            hidden_size=9,
            layers=2,
            embedding_size=9,
            dropout=0.25,
            output_dropout=0.5,
            tied_weights=True,
            softmax=pb.SOFTMAX_FACTORED,
            softmax_clusters=[512, 2048],
        ),
        optimizer=pb.OptimizerSpec(
            optimizer=pb.OPTIMIZER_SGD,
            learning_rate=0.25,
            schedule=pb.SCHEDULE_PLATEAU,
            accumulation_steps=3,
            plateau_factor=0.25,
            plateau_patience=4,
            averaging=4,
            final_rate=0.5,
            warmup_steps=0,
            beta1=0,
            beta2=0.5,
            weight_decay=0.125,
            clip_norm=0,
            clip_value=2,
            precision=pb.PRECISION_FP32,
        ),
        limits=pb.LimitsSpec(
            max_steps=10,
            max_epochs=0.5,
            max_time_s=3,
            max_tokens=1000,
            max_wall_time_s=9,
            early_stopping_patience=5,
            max_memory_bytes=1 << 40,
        ),
        report=pb.ReportSpec(progress_interval_s=0.5, validation_interval_steps=4, sample_tokens=0),
        seed=2**64 - 1,
        preset=pb.PRESET_AUTO,
        keep=pb.KEEP_LAST,
        request_id="again",
        init_from="base",
        init_from_version=3,
    )
    config = requests.train_config(spec)
    assert set(config.given) >= {"network.hidden_size", "limits.max_steps", "seed"}
    assert responses.spec("m", config, spec) == spec
    assert TrainConfig.from_json(config.to_json()) == config


def test_all_faults_of_a_spec_are_told_at_once() -> None:
    spec = pb.TrainSpec(
        model="../up",
        tokenizer=pb.TokenizerSpec(kind=9),  # type: ignore[arg-type]
        network=pb.NetworkSpec(hidden_size=5000, layers=9, dropout=1),
        data=pb.DataSpec(validation_fraction=1.0),
        optimizer=pb.OptimizerSpec(optimizer=44, learning_rate=float("nan")),  # type: ignore[arg-type]
        limits=pb.LimitsSpec(max_steps=0, max_epochs=-1),
        report=pb.ReportSpec(progress_interval_s=0.01),
    )
    with pytest.raises(StatusError) as caught:
        requests.train_config(spec)
    found = violations(caught.value)
    assert set(found) == {
        "spec.model",
        "spec.tokenizer.kind",
        "spec.network.hidden_size",
        "spec.network.layers",
        "spec.network.dropout",
        "spec.data.validation_fraction",
        "spec.optimizer.optimizer",
        "spec.optimizer.learning_rate",
        "spec.limits.max_steps",
        "spec.limits.max_epochs",
        "spec.report.progress_interval_s",
    }
    assert found["spec.network.layers"].startswith("spec.network.layers must be a whole number")


def test_pages() -> None:
    for kind in (pb.ListModelsRequest, pb.ListJobsRequest):
        assert requests.page_size(kind()) == 100
        assert requests.page_size(kind(page_size=5)) == 5
        assert requests.page_size(kind(page_size=2**32 - 1)) == 1000


def test_what_is_none_stays_unset() -> None:
    progress = responses.progress({"step": 3, "sample": "a", "valid_loss": None, "other": 1})
    assert (progress.step, progress.sample) == (3, "a")
    assert not progress.HasField("valid_loss")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (pb.TrainSpec(network=pb.NetworkSpec(hidden_size=4096)), "spec.network.hidden_size"),
        (pb.TrainSpec(data=pb.DataSpec(batch_size=1024, window=1024)), "spec.data.batch_size"),
    ],
)
def test_a_run_that_cannot_fit_in_memory_is_refused(spec: pb.TrainSpec, field: str) -> None:
    spec.model = "m"
    requests.train_config(spec)
    with pytest.raises(StatusError, match="of memory") as caught:
        requests.train_config(spec, 200 << 20)
    (request,) = caught.value.details
    assert isinstance(request, error_details_pb2.BadRequest)
    assert [violation.field for violation in request.field_violations] == [field]
