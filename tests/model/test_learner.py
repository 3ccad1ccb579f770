from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from small_networks import Network, assert_close, same_bytes

from treadle.kernels import reference
from treadle.model.config import NetworkConfig, OptimizerConfig, TokenizerConfig, TrainConfig
from treadle.model.enums import (
    Cell,
    CorpusLayout,
    OptimizerKind,
    Schedule,
    TokenizerKind,
    UnknownPolicy,
)
from treadle.model.errors import ConfigError, TrainingError, UnknownSymbolError
from treadle.model.model import Model
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.online.config import LearningConfig
from treadle.model.online.learner import Learner
from treadle.model.scoring.scores import Details, PieceScore
from treadle.model.scoring.token_score import TokenScore
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.training_record import TrainingRecord

pytestmark = pytest.mark.jit  # it trains, which takes minutes uncompiled

TEXT = "abc cab bca, a cab abc! ab ca bc, bb aa ca é"
DETAILS = Details(ranks=True, alternatives=2)


def model_of(
    layout: CorpusLayout = CorpusLayout.TEXT,
    cell: Cell = Cell.LSTM,
    kind: TokenizerKind = TokenizerKind.CHARACTERS,
    **network: Any,
) -> Model:
    tokenizer = build_tokenizer(TokenizerConfig(kind), [TEXT], layout)
    sizes: dict[str, Any] = {"hidden_size": 6, "embedding_size": 3, "layers": 2, **network}
    config = NetworkConfig(cell=cell, **sizes)
    parameters = Parameters.initial(Shape.of(config, tokenizer.vocabulary_size), seed=1)
    parameters.flat *= 3
    return Model(config, tokenizer, parameters)


MODEL = model_of()
LINES = model_of(CorpusLayout.LINES)


def learner_of(model: Model = MODEL, threads: int = 1, **settings: Any) -> Learner:
    return Learner(model, LearningConfig(**settings), DETAILS, threads=threads)


def feed(learner: Learner, text: str, end: bool = False, learn: bool = True) -> PieceScore:
    *steps, piece = learner.feed(text, end, learn)
    assert piece is not None
    assert not any(steps)
    return piece


def weights(learner: Learner) -> bytes:
    return learner.publish().parameters.flat.tobytes()


def log_probabilities(piece: PieceScore) -> bytes:
    values = [t.log_probability for t in piece.tokens if t.log_probability is not None]
    return np.array(values, np.float32).tobytes()


@pytest.mark.parametrize("layout", CorpusLayout)
@pytest.mark.parametrize("network", [{}, {"embedding_size": 0}], ids=["embedding", "one-hot"])
@pytest.mark.parametrize("cell", Cell)
def test_a_window_scores_what_the_untrained_model_gives_it(
    cell: Cell, layout: CorpusLayout, network: dict[str, Any]
) -> None:
    model = model_of(layout, cell, **network)
    alone = model.score(TEXT, details=DETAILS)
    # In a window that holds all and in one of 5, where the table of inputs is made on demand.
    for window in (64, 5):
        learner = learner_of(model, window=window, learning_rate=0.0)
        piece = feed(learner, TEXT, end=True)
        assert piece.tokens == alone.tokens
        assert piece.total_log_probability == alone.total_log_probability
        assert learner.updates == 0
        assert weights(learner) == model.parameters.flat.tobytes()
    learner = learner_of(model, learning_rate=0.5)
    assert feed(learner, TEXT, end=True).tokens == alone.tokens
    assert learner.updates == 1
    assert weights(learner) != model.parameters.flat.tobytes()


def test_every_window_is_scored_by_what_has_learned_the_ones_before() -> None:
    learner = learner_of(LINES, window=8, learning_rate=0.5)
    piece = feed(learner, TEXT)
    stepwise = learner_of(LINES, window=8, learning_rate=0.5)
    tokens: list[TokenScore] = []
    for start in range(0, len(TEXT), 8):
        frozen = stepwise.publish()
        state = stepwise._sequence.state
        part = TEXT[start : start + 8]
        found = feed(stepwise, part)
        expected = frozen.score(part, details=DETAILS, state=state)
        assert found.tokens == expected.tokens[: len(part)]  # but for the item's end
        tokens += found.tokens
    assert piece.tokens == tuple(tokens)
    assert weights(learner) == weights(stepwise)
    assert learner.updates == stepwise.updates == -(-len(TEXT) // 8)
    assert piece.tokens[8:] != LINES.score(TEXT, details=DETAILS).tokens[8:-1]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads: int, optimizer: str) -> None:
    model = model_of(CorpusLayout.LINES, hidden_size=96)  # several parts of the flat buffer
    alone, together = (learner_of(model, n, optimizer=optimizer, window=16) for n in (1, threads))
    for _ in range(2):
        ours, theirs = (feed(learner, TEXT, end=True) for learner in (alone, together))
        assert log_probabilities(ours) == log_probabilities(theirs)
    assert weights(alone) == weights(together)


@pytest.mark.parametrize("cuts", [[8, 24], [16, 16, 40], [0, 32]])
def test_pieces_cut_where_windows_end_give_the_same_bits(cuts: list[int]) -> None:
    whole, cut = (learner_of(LINES, window=8, learning_rate=0.3) for _ in range(2))
    one = feed(whole, TEXT, end=True)
    pieces = [feed(cut, TEXT[a:b], b == len(TEXT)) for a, b in pairwise([0, *cuts, len(TEXT)])]
    assert one.tokens == tuple(token for piece in pieces for token in piece.tokens)
    assert one.whole == pieces[-1].whole
    assert weights(whole) == weights(cut)


def test_an_item_and_its_end_are_one_update() -> None:
    learner = learner_of(LINES)
    for count, name in enumerate(("abc", "", "ca"), 1):
        assert feed(learner, name, end=True).token_count == len(name) + 1
        assert learner.updates == count
    assert learner.learned.tokens == 8


def test_a_first_token_that_nothing_predicts_makes_no_update() -> None:
    learner = learner_of()
    (token,) = feed(learner, "a").tokens
    assert (token.log_probability, learner.updates) == (None, 0)
    assert feed(learner, "b").token_count == 1
    assert learner.learned.tokens == learner.updates == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_surprisal_falls_over_a_stream_that_repeats(optimizer: str) -> None:
    learner = learner_of(LINES, optimizer=optimizer, learning_rate=None, window=16)
    means = []
    for _ in range(150):
        whole = feed(learner, TEXT, end=True).whole
        assert whole is not None
        assert whole.mean_nats is not None
        means.append(whole.mean_nats)
    assert np.mean(means[-10:]) < 0.75 * np.mean(means[:10])
    record = learner.publish().training
    assert record is not None
    assert record.train_loss == pytest.approx(np.mean(means), rel=1e-5)


def test_text_that_is_only_predicted_moves_the_state_and_nothing_else() -> None:
    learner = learner_of(LINES)
    expected = LINES.score(TEXT, details=DETAILS).tokens
    first = feed(learner, TEXT[:20], learn=False)
    second = feed(learner, TEXT[20:], True, False)
    assert first.tokens + second.tokens == expected
    assert learner.updates == 0
    assert weights(learner) == LINES.parameters.flat.tobytes()
    # What is learned next is learned from the state that the text has led to.
    behind = learner_of(LINES)
    fresh = learner_of(LINES)
    feed(behind, TEXT[:20], learn=False)
    assert log_probabilities(feed(behind, "abc")) != log_probabilities(feed(fresh, "abc"))
    assert weights(behind) != weights(fresh)


@pytest.mark.parametrize("cell", Cell)
def test_an_update_is_that_of_the_reference(cell: Cell) -> None:
    model = model_of(CorpusLayout.LINES, cell)
    begin = np.array([model.tokenizer.begin], np.int32)
    tokens = np.concatenate((begin, model.tokenizer.encode(TEXT)))
    window = 20
    learner = learner_of(model, window=window, learning_rate=0.25, clip_norm=0.0)
    feed(learner, TEXT[:window])
    inputs, targets = (part[:, None] for part in (tokens[:window], tokens[1 : window + 1]))
    old = Network(model.parameters.shape, model.parameters).reference
    states = reference.zero_states(old, cell.value, 1)
    _, count, gradient, _ = reference.network_loss_and_gradients(
        old, cell.value, inputs, targets, states
    )
    assert count == window
    expected = {name: array - 0.25 * gradient[name] for name, array in old.items()}
    assert_close(learner.publish().parameters.named(), expected, rtol=2e-6)


def test_a_snapshot_can_be_restored_any_number_of_times() -> None:
    learner = learner_of(kind_of_words(), optimizer="adam", window=3, learning_rate=0.01)
    feed(learner, "abc cab bca, a c")  # the last word is held back
    feed(learner, "ab abc!", learn=False)
    learner.snapshot()
    at = weights(learner)
    updates = learner.updates
    learned = learner.learned
    runs = []
    for text in ("abc! ab ca", "bb aa", "abc! ab ca"):
        runs.append((feed(learner, text, end=True), weights(learner)))
        learner.roll_back()
        assert (weights(learner), learner.updates, learner.learned) == (at, updates, learned)
    assert runs[0] == runs[2] != runs[1]
    assert runs[0][0].tokens


def test_without_a_snapshot_rolling_back_leads_to_the_beginning() -> None:
    learner = learner_of(optimizer="adam", window=7)
    first = [feed(learner, TEXT[:30]), feed(learner, TEXT[30:], end=True)]
    after = weights(learner)
    learner.roll_back()
    assert learner.updates == 0
    assert weights(learner) == MODEL.parameters.flat.tobytes()
    assert [feed(learner, TEXT[:30]), feed(learner, TEXT[30:], end=True)] == first
    assert weights(learner) == after


def test_a_learning_rate_beyond_bounds_is_reported_and_can_be_rolled_back() -> None:
    wild = learner_of(learning_rate=1e38, clip_norm=1e38, window=4)
    with pytest.raises(TrainingError, match="lower learning_rate, which is 1e\\+38"):
        feed(wild, TEXT * 3)
    for refused in (wild.publish, wild.snapshot, lambda: feed(wild, "a")):
        with pytest.raises(TrainingError, match="roll it back before you continue"):
            refused()
    wild.roll_back()
    assert weights(wild) == MODEL.parameters.flat.tobytes()
    assert feed(wild, "ab").tokens == MODEL.score("ab", details=DETAILS).tokens


def test_an_unknown_symbol_leaves_a_session_that_can_be_rolled_back() -> None:
    learner = learner_of(unknown_policy="error")
    feed(learner, "abc")
    learner.snapshot()
    kept = weights(learner)
    with pytest.raises(UnknownSymbolError):
        feed(learner, "ab?")
    learner.roll_back()
    assert weights(learner) == kept
    assert feed(learner, "ab").token_count == 2


def test_a_published_model_shares_nothing_and_records_its_history() -> None:
    run = TrainConfig(seed=9)
    base = model_of(CorpusLayout.LINES)
    base.training = TrainingRecord(
        config=run,
        steps=50,
        tokens_seen=1000,
        train_loss=1.0,
        valid_loss=2.0,
        elapsed_s=3.0,
        ended_by="max_steps reached",
        weights_step=40,
        test_loss=2.5,
        baseline_loss=3.0,
    )
    learner = learner_of(base, window=4, learning_rate=0.25)
    feed(learner, "abc ca", end=True)
    model = learner.publish()
    assert same_bytes(model.parameters.flat, learner._weights.parameters.flat)
    frozen = model.parameters.flat.tobytes()
    feed(learner, TEXT, end=True)
    assert model.parameters.flat.tobytes() == frozen
    record = model.training
    assert record is not None
    assert (record.config, record.weights_step, record.steps) == (run, 42, 42)
    assert record.tokens_seen == 1007
    assert record.valid_loss is record.test_loss is record.baseline_loss is None
    assert record.elapsed_s > 3
    assert record.ended_by == (
        "learned online from 7 tokens in 2 updates "
        "(sgd, learning_rate 0.25, clip_norm 1, window 4); before that: max_steps reached"
    )
    assert TrainingRecord.from_json(record.to_json()) == record


def test_what_made_a_model_that_is_published_often_stays_short() -> None:
    model = model_of(CorpusLayout.LINES)
    model.training = TrainingRecord(
        config=TrainConfig(),
        steps=1,
        tokens_seen=1,
        train_loss=1.0,
        valid_loss=None,
        elapsed_s=1.0,
        ended_by="max_steps reached",
    )
    lengths = []
    for _ in range(20):
        learner = learner_of(model, window=4)
        feed(learner, "abc ca", end=True)
        model = learner.publish()
        assert model.training is not None
        lengths.append(len(model.training.ended_by))
    assert len(set(lengths[6:])) == 1
    record = model.training
    assert record is not None
    steps = record.ended_by.split("; before that: ")
    assert [step.startswith("learned online") for step in steps] == [True] * 4 + [False] * 2
    assert steps[-2:] == ["sessions that are not listed here", "max_steps reached"]


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_an_imported_model_gets_the_session_s_settings_on_record(rate: float) -> None:
    learner = learner_of(LINES, learning_rate=rate, clip_norm=2.0)
    feed(learner, "ab", end=True)
    record = learner.publish().training
    assert record is not None
    optimizer = OptimizerConfig(
        kind=OptimizerKind.SGD,
        learning_rate=rate or None,
        schedule=Schedule.CONSTANT,
        clip_norm=2.0,
    )
    assert record.config.optimizer == optimizer
    assert record.config.data.layout is CorpusLayout.LINES
    again = TrainingRecord.from_json(record.to_json())
    assert dataclasses.replace(again, train_loss=0.0) == dataclasses.replace(record, train_loss=0.0)


def test_the_model_begun_with_is_only_read() -> None:
    before = MODEL.parameters.flat.tobytes()
    expected = MODEL.score(TEXT).log_probabilities.tobytes()
    feed(learner_of(learning_rate=1.0, window=3), TEXT * 3)
    assert MODEL.parameters.flat.tobytes() == before
    assert MODEL.score(TEXT).log_probabilities.tobytes() == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "adagrad"),
        ("optimizer", 7),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("clip_norm", -1.0),
        ("window", 0),
        ("window", 4097),
        ("top_log_probabilities", 21),
        ("unknown_policy", "guess"),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        LearningConfig(**{field: value})  # type: ignore[arg-type]
    assert [fault.field for fault in caught.value.faults] == [field]


def test_the_default_learning_rate_is_that_of_the_rule() -> None:
    assert LearningConfig().rate == 0.05
    assert LearningConfig(optimizer=OptimizerKind.ADAM).rate == 0.0005
    assert LearningConfig(learning_rate=0).rate == 0


def test_a_policy_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ConfigError):
        learner_of(unknown_policy=UnknownPolicy.UNKNOWN)


def kind_of_words() -> Model:
    return model_of(kind=TokenizerKind.WORDS)
