"""A factored softmax in models: its clusters, training, generation, files and exports."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from treadle.model import (
    DataConfig,
    LimitsConfig,
    Model,
    NetworkConfig,
    OptimizerConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainConfig,
    Trainer,
    build_tokenizer,
    import_state_dict,
    train,
)
from treadle.model.enums import Cell, InferencePrecision, TokenizerKind
from treadle.model.errors import ConfigError, LoadError
from treadle.model.export import write_npz, write_rtneural
from treadle.model.generation.output import OutputOptions
from treadle.model.network.memory_estimate import scorer_bytes
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape, check_network
from treadle.model.network.softmax_clusters import (
    ALIGNMENT,
    LEAST_VOCABULARY,
    check_clusters_fit,
    choose_clusters,
)
from treadle.model.online.config import LearningConfig
from treadle.model.online.learner import Learner
from treadle.model.training_memory import training_bytes

ALPHABET = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 150))
CLUSTERS = (32, 64, 128)
SMALL: dict[str, Any] = {"hidden_size": 6, "embedding_size": 3}
FACTORED = NetworkConfig(**SMALL, softmax="factored", softmax_clusters=CLUSTERS)  # type: ignore[arg-type]


def text_of(length: int, seed: int = 0) -> str:
    """Random letters, of which the first are more frequent."""
    places = np.random.default_rng(seed).random(length) ** 3 * len(ALPHABET)
    return ALPHABET + "".join(ALPHABET[int(place)] for place in places)


def model_of(network: NetworkConfig = FACTORED, seed: int = 2) -> Model:
    tokenizer = build_tokenizer(TokenizerConfig(), [ALPHABET])
    parameters = Parameters.initial(Shape.of(network, len(ALPHABET)), seed)
    parameters.flat *= 2
    parameters.stacks.bc[:] = 2  # the head and each cluster are about as likely
    return Model(network, tokenizer, parameters)


def config_of(**more: Any) -> TrainConfig:
    return TrainConfig(
        network=replace(FACTORED, **more),
        data=DataConfig(batch_size=4, window=5),
        limits=LimitsConfig(max_steps=4),
    )


# ---------------------------------------------------------------- clusters


@pytest.mark.parametrize("V", [1000, 1024, 10_003, 100_000])
def test_clusters_ascend_in_whole_panels_and_hold_rare_tokens(V: int) -> None:
    counts = (10_000_000 / (np.arange(V) + 2.7)).astype(np.int64)
    clusters = choose_clusters(counts)
    assert clusters == choose_clusters(counts), "the same counts give the same clusters"
    assert all(first % ALIGNMENT == 0 for first in clusters)
    assert list(clusters) == sorted(set(clusters))
    assert 0 < clusters[0] <= V / 4
    assert clusters[-1] < V
    check_network(NetworkConfig(softmax="factored", softmax_clusters=clusters))  # type: ignore[arg-type]


def test_a_frequent_token_at_the_end_gets_a_small_cluster() -> None:
    counts = (10_000_000 / (np.arange(5000) + 2.7)).astype(np.int64)
    counts[-1] = counts.sum() // 10  # as the unknown token, or the end of a line
    assert 5000 - choose_clusters(counts)[-1] <= 5 * ALIGNMENT


def test_counts_may_be_zeros() -> None:
    assert choose_clusters(np.zeros(2000, np.int64))


def test_a_small_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="pays from 1,000 tokens on, but the vocabulary has 999"):
        choose_clusters(np.ones(LEAST_VOCABULARY - 1, np.int64))
    config = config_of(softmax_clusters=())
    with pytest.raises(ConfigError, match="the vocabulary has 150"):
        Trainer(text_of(2000).encode(), config)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"softmax_clusters": (32,)}, "belongs to network.softmax 'factored'"),
        ({"softmax": "factored", "softmax_clusters": (33,)}, "33 follows 0"),
        ({"softmax": "factored", "softmax_clusters": (64, 32)}, "32 follows 64"),
        ({"softmax": "factored", "softmax_clusters": (0,)}, "0 follows 0"),
    ],
)
def test_clusters_that_cannot_be_are_refused(network: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_network(NetworkConfig(**network))


def test_clusters_beyond_the_vocabulary_are_refused() -> None:
    check_clusters_fit((32, 64), 65)
    with pytest.raises(ConfigError, match="begins with token 64, but the vocabulary has 64"):
        check_clusters_fit((32, 64), 64)
    with pytest.raises(ConfigError, match="the vocabulary has 150"):
        Trainer(text_of(2000).encode(), config_of(softmax_clusters=(160,)))


# ---------------------------------------------------------------- training


def test_training_chooses_clusters_from_the_corpus() -> None:
    words = "".join(f" w{int(n)}" for n in np.random.default_rng(1).random(9000) ** 3 * 2000)
    config = TrainConfig(
        tokenizer=TokenizerConfig(TokenizerKind.WORDS),
        network=NetworkConfig(**SMALL, softmax="factored"),  # type: ignore[arg-type]
        data=DataConfig(batch_size=2, window=4),
        limits=LimitsConfig(max_steps=1),
    )
    trainer = Trainer(words.encode(), config)
    chosen = trainer.started.config.network.softmax_clusters
    assert chosen
    assert chosen[-1] < trainer.started.vocabulary_size
    assert trainer.model.network.softmax_clusters == chosen
    shape = trainer.model.parameters.shape
    assert shape.clusters == chosen
    assert trainer.started.parameter_count == shape.parameter_count


def test_learning_lowers_the_loss() -> None:
    text = ALPHABET + (ALPHABET[::5] + ALPHABET[3::7]) * 30
    config = replace(config_of(hidden_size=16), optimizer=OptimizerConfig(learning_rate=0.02))
    model = train(text, config, max_steps=150)
    assert model.training is not None
    assert model.training.valid_loss is not None
    assert model.training.valid_loss < 2.0


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_a_run_continues_from_its_checkpoint_to_the_same_bits(tmp_path: Path, drop: float) -> None:
    corpus = text_of(400).encode()
    config = config_of(output_dropout=drop)
    whole = Trainer(corpus, config, threads=2)
    list(whole.run())
    parts = Trainer(corpus, config)
    list(parts.run(between=lambda: parts.steps == 2))
    parts.save_state(tmp_path / "state")
    again = Trainer(corpus, config, threads=3)
    assert again.restore_state(tmp_path / "state")
    list(again.run())
    assert again.steps == 4
    assert again.model.parameters.flat.tobytes() == whole.model.parameters.flat.tobytes()


def test_accumulated_batches_train_as_well() -> None:
    config = replace(config_of(), optimizer=OptimizerConfig(accumulation_steps=2))
    model = train(text_of(400), config)
    assert np.isfinite(model.parameters.flat).all()


def test_a_run_from_a_model_keeps_its_clusters() -> None:
    base = model_of()
    config = replace(config_of(), network=NetworkConfig())
    trainer = Trainer(text_of(400).encode(), config, init_from=base)
    assert trainer.started.config.network == base.network
    list(trainer.run())
    assert trainer.model.parameters.shape.clusters == CLUSTERS
    given = replace(config, given=("network.softmax",))
    with pytest.raises(ConfigError, match=r"network\.softmax is full"):
        Trainer(text_of(400).encode(), given, init_from=base)


def test_a_learner_learns() -> None:
    model = model_of()
    learner = Learner(model, LearningConfig(window=8))
    text = text_of(60)[len(ALPHABET) :]
    totals = []
    for _ in range(9):
        *_, piece = learner.feed(text)
        assert piece is not None
        totals.append(piece.total_log_probability)
    assert totals[0] < totals[-1] < 0
    assert learner.publish().network == model.network


def test_memory_is_estimated_with_the_clusters() -> None:
    full = Shape(Cell.LSTM, V=10_000, E=16, H=16, L=1)
    factored = replace(full, clusters=(512, 4096))
    estimates = [
        training_bytes(shape, 32, 32, OptimizerConfig().kind) for shape in (full, factored)
    ]
    assert estimates[1] < estimates[0], "fewer logits are in memory at once"
    assert scorer_bytes(factored) > scorer_bytes(full), "the row of all tokens and its parts"


# ---------------------------------------------------------------- generation and scores


def test_what_was_generated_scores_the_same() -> None:
    model = model_of()
    sampling = SamplingConfig(seed=3, max_new_tokens=50, temperature=0.8, top_k=90, top_p=0.99)
    pieces = list(model.stream(ALPHABET[:9], sampling, output=OutputOptions(tokens=True)))
    tokens = [token for piece in pieces for token in piece.tokens]
    text = "".join(piece.text for piece in pieces)
    scores = model.score(text, context=ALPHABET[:9]).tokens
    assert [(t.id, t.log_probability) for t in scores] == [
        (t.id, t.log_probability) for t in tokens
    ]
    assert {sum(token.id >= first for first in CLUSTERS) for token in tokens} == {0, 1, 2, 3}


def test_what_was_generated_scores_the_same_in_int8() -> None:
    model = model_of().at(InferencePrecision.INT8)
    sampling = SamplingConfig(seed=3, max_new_tokens=20)
    pieces = list(model.stream(ALPHABET[:9], sampling, output=OutputOptions(tokens=True)))
    found = [token.log_probability for piece in pieces for token in piece.tokens]
    scores = model.score("".join(piece.text for piece in pieces), context=ALPHABET[:9]).tokens
    assert [token.log_probability for token in scores] == found


def test_penalties_expressions_and_beams_work() -> None:
    model = model_of()
    head = ALPHABET[:40]
    text = model.generate("", regex=f"[{head}]{{20}}", repetition_penalty=1.5, seed=1)
    assert len(text) == 20
    assert set(text) <= set(head)
    sampling = SamplingConfig(best_of=4, max_new_tokens=6, top_log_probabilities=3, ranks=True)
    pieces = list(model.stream(head, sampling, output=OutputOptions(tokens=True)))
    found = [token for piece in pieces for token in piece.tokens]
    scores = model.score("".join(piece.text for piece in pieces), context=head).tokens
    assert [t.log_probability for t in found] == [t.log_probability for t in scores]


# ---------------------------------------------------------------- files


def test_a_model_file_comes_back_byte_for_byte(tmp_path: Path) -> None:
    model = model_of()
    path = tmp_path / "model.safetensors"
    model.save(path)
    tensors = load_file(path)
    assert tensors["output.weight"].shape == (150, 6)
    assert tensors["clusters.weight"].shape == (3, 6)
    assert tensors["clusters.first"].tolist() == list(CLUSTERS)
    again = Model.load(path)
    assert again.network == model.network
    assert again.parameters.flat.tobytes() == model.parameters.flat.tobytes()
    assert again.content_hash == model.content_hash
    imported = import_state_dict(tensors, model.tokenizer)
    assert imported.network == model.network
    assert imported.parameters.flat.tobytes() == model.parameters.flat.tobytes()


def test_an_archive_of_arrays_has_the_clusters(tmp_path: Path) -> None:
    write_npz(model_of(), tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as arrays:
        assert arrays["clusters.first"].tolist() == list(CLUSTERS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters.first": None}, r"lacks clusters\.first"),
        ({"clusters.weight": None}, r"lacks clusters\.weight"),
        ({"clusters.first": np.array([32, 64])}, "give the first token of each row"),
        ({"clusters.first": np.array([0.5, 1, 2])}, "give the first token of each row"),
        ({"clusters.first": np.array([32, 64, 160])}, "begins with token 160"),
        ({"clusters.first": np.array([32, 64, 65])}, "65 follows 64"),
        ({"clusters.weight": np.zeros((3, 5), np.float32)}, r"clusters\.weight has shape \(3, 5\)"),
        ({"clusters.bias": np.zeros(2, np.float32)}, r"clusters\.bias has shape \(2,\)"),
    ],
)
def test_clusters_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model = model_of()
    model.save(tmp_path / "model.safetensors")
    tensors = {**load_file(tmp_path / "model.safetensors"), **change}
    tensors = {name: array for name, array in tensors.items() if array is not None}
    with pytest.raises(LoadError, match=message):
        import_state_dict(tensors, model.tokenizer)


def test_rtneural_cannot_compute_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="export it as onnx"):
        write_rtneural(model_of(), tmp_path / "model.json")
    assert not list(tmp_path.iterdir())


def test_models_of_a_full_softmax_keep_their_hash() -> None:
    """States that were stored before there were two kinds stay valid."""
    model = model_of(NetworkConfig(**SMALL))
    network = model.network.to_json()
    del network["softmax"], network["softmax_clusters"]
    settings = {
        "network": network,
        "tokenizer": model.tokenizer.to_json(),
        "default_context": model.default_context,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(model.parameters.flat.tobytes())
    assert model.content_hash == digest.digest()


def test_the_hash_depends_on_the_clusters() -> None:
    one = model_of()
    other = model_of(replace(FACTORED, softmax_clusters=(32, 96, 128)))
    assert one.parameters.flat.size == other.parameters.flat.size
    assert one.content_hash != other.content_hash
