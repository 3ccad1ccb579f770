"""What a piece that cannot be read leaves of a stream: nothing, bit for bit."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from small_models import model_of

from treadle.model.enums import CorpusLayout, TokenizerKind, UnknownPolicy
from treadle.model.model import Model
from treadle.model.online.learner import Learner
from treadle.server.access.state_sealer import StateSealer, state_keys
from treadle.server.errors import StatusError
from treadle.server.inference.learn_stream import LearnStream
from treadle.server.inference.model_cache import ResolvedModel
from treadle.server.inference.score_stream import ScoreStream
from treadle.server.inference.stream_units import StreamPiece
from treadle.server.messages import learn_request
from treadle.server.messages.score_request import stream_scoring
from treadle.server.messages.session_states import SessionStates
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.v1 import sequence_pb2 as pb

from .samples import nothing_held, tiny_model

pytestmark = pytest.mark.jit

Pieces = list[pb.TextPiece]

STATES = SessionStates(StateSealer(state_keys(b"a key of sixteen or more")), "")
MAX_BYTES = 1 << 20
INVALID = 3
NOT_READ = 9
BAD = "abc # cab" * 40
"""Read for more than a window of tokens before its unknown symbol is met, and again after it."""

MODELS = {
    (kind, layout): model_of(kind, layout, UnknownPolicy.ERROR)
    for kind in (TokenizerKind.CHARACTERS, TokenizerKind.WORDS, TokenizerKind.EVENTS)
    for layout in CorpusLayout
}


def piece(text: str, end: bool = False, more: bool = False) -> pb.TextPiece:
    return pb.TextPiece(text=text, end=end, more=more)


def scored(model: Model, pieces: Pieces, on_error: Any = pb.ON_ERROR_SKIP) -> list[Any]:
    """What a ScoreStream call answers, its result and state last."""
    spec = pb.ScoreStreamSpec(model="m", return_state=True, ranks=True, on_error=on_error)
    stream = ScoreStream(
        ResolvedModel(model), spec, stream_scoring(spec), MAX_BYTES, STATES, nothing_held()
    )
    list(stream.begin())
    found: list[Any] = []
    for each in pieces:
        list(stream.feed(StreamPiece.of(each)))
        found.append(stream.reply.piece)
    list(stream.finish())
    return [*found, stream.reply.result]


class Learning:
    """A LearnStream call without a server around it."""

    def __init__(
        self,
        model: Model,
        on_error: Any = pb.ON_ERROR_SKIP,
        max_bytes: int = MAX_BYTES,
        **spec: Any,
    ) -> None:
        settings = {"learning_rate": 0.5, "window": 8, "optimizer": pb.OPTIMIZER_ADAM, **spec}
        made = pb.LearnStreamSpec(model="m", on_error=on_error, **settings)
        asked = learn_request.learning(made)
        self.stream = LearnStream(model, asked, max_bytes, nothing_held(), nothing_held())
        list(self.stream.begin())

    def ask(self, **message: Any) -> pb.LearnStreamResponse:
        list(self.stream.answer(pb.LearnStreamRequest(**message)))
        return self.stream.reply

    def learn(self, pieces: Pieces) -> list[pb.LearnStreamResponse]:
        return [self.ask(learn=each) for each in pieces]

    def bits(self) -> tuple[Any, ...]:
        """Everything that the next pieces depend on."""
        learner = self.stream.learner
        return bits_of(learner)


def bits_of(learner: Learner) -> tuple[Any, ...]:
    weights = learner._weights
    mark = learner._stream.mark()
    buffers = tuple(flat.tobytes() for flat in weights._buffers())
    state = mark.state
    packed = tuple(array.tobytes() for array in weights.packed if hasattr(array, "tobytes"))
    return (
        buffers,
        packed,
        weights.updates,
        weights._optimizer.corrections.powers,
        state.hs.tobytes(),
        state.cs.tobytes(),
        state.token,
        state.held,
        mark.reader._held,
        mark.item,
        mark.stream,
        mark.last_visible,
        mark.item_count,
        mark.is_open,
        learner.learned.tokens,
        learner.learned.nats,
    )


@pytest.mark.parametrize(("kind", "layout"), MODELS)
def test_a_stream_that_skips_scores_as_if_the_unit_had_never_been_sent(
    kind: TokenizerKind, layout: CorpusLayout
) -> None:
    model = MODELS[kind, layout]
    end = layout is CorpusLayout.LINES
    gap = "" if end else " "  # what waits for a blank would be read with the next unit
    good = [piece(text + gap, end) for text in ("abc cab", "abc a cab bca,", "abc bb aa")]
    bad = [piece(BAD + gap, end)]
    long = [piece("abc " * 30, more=True), piece("ab # ", more=True), piece("ab ca" + gap, end)]
    plain = scored(model, good)
    mixed = scored(model, [*bad, *good[:1], *bad, *bad, *good[1:2], *long, *good[2:], *bad])
    assert [answer.HasField("error") for answer in mixed[:-1]] == [
        True,
        False,
        True,
        True,
        False,
        False,
        True,
        True,
        False,
        True,
    ]
    assert {answer.error.code for answer in mixed[:-1] if answer.HasField("error")} == {INVALID}
    assert all(answer.token_count == 0 for answer in mixed[:-1] if answer.HasField("error"))
    kept = [mixed[1], mixed[4], mixed[8], mixed[-1]]
    assert [each.SerializeToString() for each in kept] == [
        each.SerializeToString() for each in plain
    ]


@pytest.mark.parametrize(("kind", "layout"), MODELS)
@pytest.mark.parametrize("optimizer", [pb.OPTIMIZER_SGD, pb.OPTIMIZER_ADAM])
def test_a_learner_that_skips_is_as_if_the_unit_had_never_been_sent(
    kind: TokenizerKind, layout: CorpusLayout, optimizer: Any
) -> None:
    model = MODELS[kind, layout]
    end = layout is CorpusLayout.LINES
    gap = "" if end else " "
    good = [piece("abc cab " * 9 + "cab" + gap, end), piece("a cab bca," + gap, end)]
    bad = piece("abc " * 20 + BAD + gap, end)
    long = [piece("abc " * 30, more=True), piece("ab # " + gap, end)]
    plain = Learning(model, optimizer=optimizer)
    replies = plain.learn(good)
    mixed = Learning(model, optimizer=optimizer)
    assert mixed.learn([bad])[0].piece.error.code == INVALID
    assert mixed.learn(good[:1]) == replies[:1]
    (first, second) = mixed.learn(long)
    # The first piece of the unit was learned from before the second one took it back.
    assert (first.updates > replies[0].updates, second.updates) == (True, replies[0].updates)
    assert mixed.ask(predict=bad).piece.HasField("error")
    assert mixed.learn(good[1:]) == replies[1:]
    assert mixed.learn([bad])[0].updates == replies[1].updates
    assert mixed.bits() == plain.bits()


def test_an_item_that_began_before_the_unit_still_ends_with_it() -> None:
    model = MODELS[TokenizerKind.EVENTS, CorpusLayout.LINES]
    pieces = [piece("abc "), piece("# ", end=True), piece("cab bca,", end=True)]
    plain = scored(model, [piece("abc "), piece("", end=True), piece("cab bca,", end=True)])
    mixed = scored(model, pieces)
    assert mixed[1].HasField("error")
    mixed[1].ClearField("error")
    assert mixed == plain
    learners = [Learning(model), Learning(model)]
    learners[0].learn([piece("abc "), piece("", end=True), piece("cab bca,", end=True)])
    learners[1].learn(pieces)
    assert learners[0].bits() == learners[1].bits()


def test_text_that_waited_is_dropped_where_it_is_at_fault() -> None:
    model = MODELS[TokenizerKind.WORDS, CorpusLayout.TEXT]
    pieces = [piece("abc cab"), piece(" nonsen"), piece("se a"), piece(" cab"), piece(" bca")]
    mixed = scored(model, pieces)
    # " nonsen" waits; "se" makes it a word, which is unknown; what comes later is read.
    assert [each.HasField("error") for each in mixed] == [False, False, True, False, False, False]
    assert mixed[-1].total == scored(model, [piece("abc cab"), piece(" cab bca")])[-1].total
    at_end = scored(model, [piece("abc cab"), piece(" nonsense")])
    assert at_end[-1].error.code == INVALID
    assert "nonsense" in at_end[-1].error.message
    assert at_end[-1].state == scored(model, [piece("abc cab"), piece(" ")])[-1].state


@pytest.mark.parametrize("learns", [False, True])
def test_a_stream_that_stops_reads_nothing_more_and_still_ends_well(learns: bool) -> None:
    model = MODELS[TokenizerKind.CHARACTERS, CorpusLayout.LINES]
    good = piece("abc", end=True)
    bad = piece("#", end=True)
    if learns:
        plain = Learning(model)
        mixed = Learning(model, pb.ON_ERROR_STOP)
        plain.learn([good])
        answers = [reply.piece for reply in mixed.learn([good, bad, good])]
        assert mixed.bits() == plain.bits()
        assert mixed.ask(snapshot=pb.Snapshot()).HasField("snapshot")
    else:
        *answers, result = scored(model, [good, bad, good], pb.ON_ERROR_STOP)
        assert result == scored(model, [good])[-1]
    assert [answer.error.code for answer in answers] == [0, INVALID, NOT_READ]


def test_without_a_word_about_errors_the_first_one_ends_the_call() -> None:
    model = MODELS[TokenizerKind.CHARACTERS, CorpusLayout.LINES]
    with pytest.raises(StatusError):
        scored(model, [piece("#")], pb.ON_ERROR_UNSPECIFIED)
    with pytest.raises(StatusError):
        Learning(model, pb.ON_ERROR_UNSPECIFIED).learn([piece("#")])


def test_a_reply_that_is_too_large_and_a_loss_out_of_bounds_are_taken_back() -> None:
    model = MODELS[TokenizerKind.CHARACTERS, CorpusLayout.TEXT]
    plain = Learning(model)
    mixed = Learning(model, max_bytes=2000, top_log_probabilities=5)
    plain.learn([piece("abc")])
    mixed.learn([piece("abc")])
    assert "smaller pieces" in mixed.learn([piece("abc " * 200)])[0].piece.error.message
    assert mixed.bits() == plain.bits()
    wild = Learning(model, optimizer=pb.OPTIMIZER_SGD, learning_rate=1e300, clip_norm=0)
    before = wild.bits()
    assert "lower learning_rate" in wild.learn([piece("abc cab " * 9)])[0].piece.error.message
    assert wild.bits() == before


def test_going_back_to_a_snapshot_begins_a_unit() -> None:
    model = MODELS[TokenizerKind.CHARACTERS, CorpusLayout.TEXT]
    plain = Learning(model)
    mixed = Learning(model)
    plain.learn([piece("abc"), piece("cab")])
    mixed.learn([piece("abc")])
    mixed.ask(snapshot=pb.Snapshot())
    mixed.learn([piece("bca" * 9, more=True)])
    mixed.ask(roll_back=pb.RollBack())
    mixed.learn([piece("#"), piece("cab")])
    assert mixed.bits() == plain.bits()


def test_a_policy_that_the_contract_lacks_is_refused() -> None:
    beyond: Any = 77
    with pytest.raises(StatusError, match="on_error must be"):
        stream_scoring(pb.ScoreStreamSpec(model="m", on_error=beyond))
    with pytest.raises(StatusError, match="on_error must be"):
        learn_request.learning(pb.LearnStreamSpec(model="m", on_error=beyond))


@pytest.mark.parametrize("kind", ["score", "learn"])
def test_a_shortage_of_memory_ends_the_call_whatever_on_error_says(kind: str) -> None:
    """What is skipped must not depend on the load."""
    full = MemoryBudget(1000).reserve(0, "replies to streams")
    text = pb.TextPiece(text="abc" * 5000)
    if kind == "score":
        spec = pb.ScoreStreamSpec(model="m", ranks=True, on_error=pb.ON_ERROR_SKIP)
        stream = ScoreStream(
            ResolvedModel(tiny_model()), spec, stream_scoring(spec), 1 << 30, STATES, full
        )
        list(stream.begin())
        steps = stream.feed(StreamPiece.of(text))
    else:
        made = pb.LearnStreamSpec(model="m", ranks=True, on_error=pb.ON_ERROR_SKIP)
        asked = learn_request.learning(made)
        learning = LearnStream(tiny_model(), asked, 1 << 30, nothing_held(), full)
        list(learning.begin())
        steps = learning.answer(pb.LearnStreamRequest(learn=text))
    with pytest.raises(StatusError) as caught:
        list(steps)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
