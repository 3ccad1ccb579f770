"""What requests to score and to embed ask for."""

from __future__ import annotations

import pytest

from treadle.model.enums import UnknownPolicy
from treadle.model.scoring.scores import Details
from treadle.server.errors import StatusError
from treadle.server.messages.score_request import Scoring, embedding_policy, scoring, stream_scoring
from treadle.v1 import sequence_pb2 as pb


def fields(error: StatusError) -> list[str]:
    [request] = error.details
    return [violation.field for violation in request.field_violations]  # type: ignore[attr-defined]


def test_what_is_left_out_is_not_asked_for() -> None:
    plain = Scoring(None, Details(), tokens=False)
    assert scoring(pb.ScoreRequest(model="m", texts=["t"])) == plain
    assert stream_scoring(pb.ScoreStreamSpec(model="m")) == plain
    assert embedding_policy(pb.EmbedRequest(job="j", texts=["t"])) is None


def test_whatever_is_asked_for_of_tokens_sends_them() -> None:
    spec = pb.ScoreStreamSpec(model="m", unknown_policy=pb.UNKNOWN_POLICY_SKIP)
    spec.log_probabilities = True
    assert stream_scoring(spec) == Scoring(UnknownPolicy.SKIP, Details(), tokens=True)
    spec = pb.ScoreStreamSpec(model="m", ranks=True)
    assert stream_scoring(spec) == Scoring(None, Details(ranks=True), tokens=True)
    request = pb.ScoreRequest(model="m", texts=["t"], top_log_probabilities=20)
    assert scoring(request) == Scoring(None, Details(alternatives=20), tokens=True)


def test_every_field_at_fault_is_named() -> None:
    request = pb.ScoreRequest(unknown_policy=8, top_log_probabilities=21)  # type: ignore[arg-type]
    with pytest.raises(StatusError) as caught:
        scoring(request)
    faulty = {"model", "texts", "unknown_policy", "top_log_probabilities"}
    assert set(fields(caught.value)) == faulty
    spec = pb.ScoreStreamSpec(unknown_policy=8, top_log_probabilities=21)  # type: ignore[arg-type]
    with pytest.raises(StatusError) as caught:
        stream_scoring(spec)
    assert set(fields(caught.value)) == {f"spec.{name}" for name in faulty - {"texts"}}
    with pytest.raises(StatusError, match=r"^job is set") as caught:
        stream_scoring(pb.ScoreStreamSpec(model="m", job="j"))
    assert fields(caught.value) == ["spec.model"]
    embed = pb.EmbedRequest(model="-", texts=[])
    with pytest.raises(StatusError) as caught:
        embedding_policy(embed)
    assert set(fields(caught.value)) == {"model", "texts"}


def test_the_weights_of_a_job_need_a_job() -> None:
    best = pb.JOB_WEIGHTS_BEST
    sentence = "job_weights needs job, whose weights they are"
    with pytest.raises(StatusError, match=f"^{sentence}$") as caught:
        scoring(pb.ScoreRequest(model="m", texts=["t"], job_weights=best))
    assert fields(caught.value) == ["job_weights"]
    with pytest.raises(StatusError, match=rf"^spec\.{sentence}$") as caught:
        stream_scoring(pb.ScoreStreamSpec(model="m", job_weights=best))
    assert fields(caught.value) == ["spec.job_weights"]
    assert scoring(pb.ScoreRequest(job="j", texts=["t"], job_weights=best))
