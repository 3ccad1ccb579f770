"""A generation whose connection breaks continues, to the byte, as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from treadle.client import (
    Client,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    UnavailableError,
)
from treadle.client.errors import ServerError
from treadle.client.messages.fields import make_request
from treadle.client.replicas import resumable_generation
from treadle.client.replicas.resumable_generation import ResumableGeneration
from treadle.client.replicas.retry import Retry, ignore
from treadle.v1 import sequence_pb2 as v1
from treadle.v1.sequence_pb2_grpc import SequenceServiceStub

from .cut_proxy import CutProxy

TEXT = "".join(f"der Bär {i} hüpft über {i * 7 % 13} Hügel, süß wie Öl.\n" for i in range(120))
SIZES: dict[str, Any] = {"max_steps": 12, "hidden_size": 16, "batch_size": 8, "window": 32}


@pytest.fixture(scope="module")
def models(real_server: str) -> Iterator[Client]:
    """A server with one model of characters, one of bytes and one of lines."""
    with Client(real_server) as client:
        runs = [
            client.train(TEXT, model="resumed-c", seed=1, **SIZES),
            client.train(TEXT, model="resumed-b", seed=1, tokenizer="bytes", **SIZES),
            client.train(TEXT, model="resumed-l", layout="lines", novelty_index=True, **SIZES),
        ]
        for run in runs:
            run.result()
        yield client


@pytest.fixture
def many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets resume points come often."""
    monkeypatch.setattr(resumable_generation, "RESUME_INTERVAL", 64)


def outcome(generation: Any) -> tuple[str, list[bytes], bytes]:
    """All that a generation gives: text, tokens with their numbers, result with its state."""
    with generation:
        text = "".join(generation)
        assert text == generation.text
        tokens = [token.SerializeToString() for token in generation.tokens]
        return text, tokens, generation.result().SerializeToString(deterministic=True)


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("plain", "c", {}),
    ("tokens", "c", {"log_probabilities": True, "top_log_probabilities": 3, "ranks": True}),
    ("stop", "c", {"stop_sequences": ["ü", "l.", "ß w"], "min_new_tokens": 400}),
    ("state", "c", {"return_state": True, "top_k": 5, "top_p": 0.9, "temperature": 1.3}),
    ("penalties", "c", {"repetition_penalty": 1.2, "frequency_penalty": 0.1, "return_state": True}),
    ("regex", "c", {"regex": "[a-zäöü ,.\n]{350,400}"}),
    ("echo", "c", {"echo": True, "log_probabilities": True}),
    ("forced", "c", {"forced_tokens": ["ü"] * 300, "return_state": True}),
    ("int8", "c", {"inference_precision": "int8", "return_state": True}),
    ("greedy", "c", {"temperature": 0}),
    ("half characters", "b", {"return_state": True, "log_probabilities": True, "temperature": 2}),
    ("novelty", "l", {"novelty": True, "min_new_tokens": 300}),
]


@pytest.mark.parametrize(
    ("model", "options"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_text_continues_to_the_byte(
    models: Client, many_points: None, model: str, options: dict[str, Any]
) -> None:
    asked = {"max_new_tokens": 700, "seed": 5, **options}
    whole = outcome(models.generate(f"resumed-{model}", "der Bär", **asked))
    broken = 0
    for cut in (5000, 12_000) if "log_probabilities" in options else (300, 1500):
        with CutProxy(models.address, [cut, cut + 300]) as proxy, Client(proxy.address) as client:
            breaks: list[ServerError] = []
            generation = client.generate(
                f"resumed-{model}", "der Bär", on_break=breaks.append, **asked
            )
            assert outcome(generation) == whole
            broken += len(breaks)
    assert broken


@pytest.mark.parametrize(
    ("model", "options"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_every_resume_point_is_exact(
    models: Client, real_server: str, model: str, options: dict[str, Any]
) -> None:
    asked = {"model": f"resumed-{model}", "prompt": "der Bär", "max_new_tokens": 400, "seed": 5}
    request = make_request(v1.GenerateRequest, resume_interval=64, **{**asked, **options})
    with grpc.insecure_channel(real_server, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = SequenceServiceStub(channel)
        whole = list(stub.Generate(request))
        # What needs all tokens of a text, or an automaton, begins again.
        begins_again = "regex" in options or "novelty" in options
        assert any(each.HasField("resume_point") for each in whole) is not begins_again
        for place, response in enumerate(whole, 1):
            if response.HasField("resume_point"):
                del request.resume[:]
                request.resume.append(response.resume_point)
                rest = list(stub.Generate(request))
                assert joined(rest) == joined(whole[place:])


def joined(responses: list[v1.GenerateResponse]) -> tuple[str, list[v1.Token], bytes]:
    """All that responses give, however they are cut."""
    tokens = [token for each in responses for token in each.tokens]
    result = responses[-1].result.SerializeToString(deterministic=True)
    return "".join(each.text for each in responses), tokens, result


def test_the_servers_own_seed_and_the_state_before_are_kept(models: Client) -> None:
    before = models.generate("resumed-c", "der", max_new_tokens=9, return_state=True).result().state
    scored = models.score_text("resumed-c", "der Bär", return_states=True).state
    for state in b"", before, scored:
        with CutProxy(models.address, [600]) as proxy, Client(proxy.address) as client:
            breaks: list[ServerError] = []
            asked: dict[str, Any] = {"max_new_tokens": 900, "state": state}
            begun = client.generate("resumed-c", "hüpft", on_break=breaks.append, **asked)
            text, _, _ = outcome(begun)
            assert breaks
            if state is not before:
                asked["seed"] = begun.result().seed
            assert text == models.generate_text("resumed-c", "hüpft", **asked)


def test_several_texts_continue(models: Client, many_points: None) -> None:
    def found(client: Client, **options: Any) -> list[Any]:
        return [
            (text.index, text.text, text.result)
            for text in client.generate_many(
                "resumed-c", "der", 5, seed=3, max_new_tokens=400, return_state=True, **options
            )
        ]

    whole = found(models)
    with CutProxy(models.address, [4000, 4000]) as proxy, Client(proxy.address) as client:
        breaks: list[ServerError] = []
        assert found(client, on_break=breaks.append) == whole
    assert breaks


def test_a_beam_search_is_repeated(models: Client) -> None:
    def found(client: Client) -> list[tuple[str, float]]:
        texts = client.generate_many("resumed-c", "der", 3, best_of=4, max_new_tokens=300)
        return [(text.text, text.result.total_log_probability) for text in texts]

    with CutProxy(models.address, [500]) as proxy, Client(proxy.address) as client:
        assert found(client) == found(models)
        assert proxy.connections == 2


def test_a_session_continues_within_a_reply(models: Client) -> None:
    def spoken(client: Client) -> tuple[str, bytes]:
        session = client.session("resumed-c", seed=4, max_new_tokens=600)
        session.read("der Bär")
        return session.send(" hüpft"), session.state

    with CutProxy(models.address, [1200]) as proxy, Client(proxy.address) as client:
        assert spoken(client) == spoken(models)
        assert proxy.connections == 2


def test_a_break_ends_the_text_where_nobody_may_reconnect(models: Client) -> None:
    with CutProxy(models.address, [600]) as proxy, Client(proxy.address) as client:
        generation = client.generate("resumed-c", "der", max_new_tokens=5000, reconnect_s=0)
        with pytest.raises(UnavailableError, match="the connection broke"):
            outcome(generation)


# ------------------------------------------------------- what cannot continue, without a server


class Played:
    """Calls of Generate that give what a test wants, and then break."""

    def __init__(self, *calls: list[v1.GenerateResponse | ServerError]) -> None:
        self._calls = iter(calls)
        self.requests: list[v1.GenerateRequest] = []
        self._responses: Iterator[Any] = iter(())

    def generate(self, request: v1.GenerateRequest, timeout_s: float | None) -> Played:
        self.requests.append(request)
        self._responses = iter(next(self._calls))
        return self

    def __next__(self) -> v1.GenerateResponse:
        found = next(self._responses)
        if isinstance(found, ServerError):
            raise found
        assert isinstance(found, v1.GenerateResponse)
        return found

    def cancel(self) -> None:
        pass


BREAK = UnavailableError("the connection broke", code="UNAVAILABLE", broken=True)


def said(text: str, model: bytes = b"m", stop: int = 0) -> v1.GenerateResponse:
    response = v1.GenerateResponse(text=text)
    response.start.version = 3
    response.start.model_hash = model
    response.start.seed = 8
    if stop:
        response.result.stop_reason = v1.StopReason.ValueType(stop)
    return response


def resumed(played: Played, **fields: Any) -> str:
    request = v1.GenerateRequest(**{"model": "m@best", **fields})
    call = ResumableGeneration(played.generate, request, Retry(5.0, ignore))
    text = ""
    while True:
        try:
            text += next(call).text
        except StopIteration:
            return text


def test_the_repeated_request_names_what_the_first_server_chose() -> None:
    played = Played([said("hel"), BREAK], [BREAK], [said("hello", stop=1)])
    assert resumed(played) == "hello"
    assert len(played.requests) == 3
    last = played.requests[-1]
    assert (last.model, last.version, last.seed) == ("m", 3, 8)


def test_what_follows_a_resume_point_is_all_that_is_asked_for() -> None:
    ended = said("one", stop=1)
    at_point = said("tw")
    at_point.index = 1
    at_point.resume_point.index = 1
    at_point.resume_point.state = b"state"
    more = v1.GenerateResponse(text="o", index=1)
    other = v1.GenerateResponse(text="th", index=2)
    # The new server sends a point where the old one had sent none, within what is known.
    again = said("", stop=0)
    again.index = 1
    again.text = "o an"
    again.resume_point.index = 1
    again.resume_point.state = b"later"
    last = v1.GenerateResponse(text="d", index=1)
    last.result.stop_reason = v1.STOP_REASON_MAX_NEW_TOKENS
    third = said("three", stop=1)
    third.index = 2
    played = Played([ended, at_point, more, other, BREAK], [again, BREAK], [last, third])
    request = v1.GenerateRequest(model="m", n=3, max_new_tokens=9999)
    call = ResumableGeneration(played.generate, request, Retry(5.0, ignore))
    texts = ["", "", ""]
    while response := next(call, None):
        texts[response.index] += response.text
        assert not response.HasField("start")
        assert not response.HasField("resume_point")
    assert texts == ["one", "two and", "three"]
    assert played.requests[0].resume_interval == resumable_generation.RESUME_INTERVAL
    asked = [[(p.index, p.state) for p in each.resume] for each in played.requests]
    assert asked == [[], [(1, b"state"), (2, b"")], [(1, b"later"), (2, b"")]]


def test_points_that_do_not_fit_into_a_request_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resumable_generation, "MOST_POINT_BYTES", 300)

    def pointed(index: int, text: str, size: int) -> v1.GenerateResponse:
        response = said(text)
        response.index = index
        response.resume_point.index = index
        response.resume_point.state = bytes(size)
        return response

    def ended(index: int, text: str) -> v1.GenerateResponse:
        response = said(text, stop=1)
        response.index = index
        return response

    # The point of the second text does not fit, until the first one has ended.
    first: list[Any] = [pointed(0, "on", 200), pointed(1, "tw", 200), BREAK]
    second: list[Any] = [ended(0, "e"), pointed(1, "two", 200), BREAK]
    played = Played(first, second, [ended(1, " more")])
    request = v1.GenerateRequest(model="m", n=2, max_new_tokens=9999)
    call = ResumableGeneration(played.generate, request, Retry(5.0, ignore))
    texts = ["", ""]
    while response := next(call, None):
        texts[response.index] += response.text
    assert texts == ["one", "two more"]
    asked = [[(p.index, len(p.state)) for p in each.resume] for each in played.requests]
    assert asked == [[], [(0, 200), (1, 0)], [(1, 200)]]
    assert all(each.ByteSize() < 300 for each in played.requests)


def test_a_server_that_ends_without_a_result_broke_off() -> None:
    assert resumed(Played([said("hel")], [said("hello", stop=1)])) == "hello"


def test_a_server_that_ends_before_the_first_response_broke_off() -> None:
    """It shuts down; an older one, which says nothing of its choices, does send a response."""
    assert resumed(Played([], [said("hello", stop=1)])) == "hello"
    played = Played([v1.GenerateResponse(text="hel")], [said("hello", stop=1)])
    assert resumed(played) == "hel"


def test_a_break_after_the_last_result_ends_the_call() -> None:
    played = Played([said("hello", stop=1), BREAK])
    assert resumed(played) == "hello"
    assert len(played.requests) == 1


def test_a_full_server_is_asked_again_when_it_says() -> None:
    full = ServerError("full", code="RESOURCE_EXHAUSTED", retry_delay_s=0.01)
    assert resumed(Played([said("a"), BREAK], [full], [said("ab", stop=1)])) == "ab"
    with pytest.raises(ServerError, match="full"):
        resumed(Played([full]))


def test_other_weights_are_named() -> None:
    with pytest.raises(FailedPreconditionError, match=r"of version 3 .* are others there"):
        resumed(Played([said("hel"), BREAK], [said("hello", b"other", 1)]))
    with pytest.raises(FailedPreconditionError, match="weights of the job have changed"):
        resumed(Played([said("hel"), BREAK], [said("hello", b"other", 1)]), model="", job="j")


def test_a_server_that_cannot_continue_says_why() -> None:
    foreign = ServerError("the state cannot be used", code="INVALID_ARGUMENT")
    with pytest.raises(ServerError, match="broke, and the text cannot continue: the state cannot"):
        resumed(Played([said("hel"), BREAK], [foreign]))


def test_another_text_is_named() -> None:
    for other in "help me", "he":
        with pytest.raises(InternalError, match="differs from what has arrived"):
            resumed(Played([said("hell"), BREAK], [said(other, stop=1)]))


def test_a_time_limit_that_ends_meanwhile_is_named() -> None:
    played = Played([said("hell"), BREAK], [said("he", stop=v1.STOP_REASON_TIME_LIMIT)])
    with pytest.raises(DeadlineExceededError, match="max_time_s ended"):
        resumed(played, max_time_s=60)
    assert 50 < played.requests[1].max_time_s < 60


def test_a_break_before_the_first_response_is_one() -> None:
    assert resumed(Played([BREAK], [said("hello", stop=1)])) == "hello"
    nowhere = UnavailableError("nothing listens", code="UNAVAILABLE", broken=True, unsent=True)
    leaving = UnavailableError("bye", code="UNAVAILABLE", broken=True, retry_delay_s=5.0)
    for refusal in nowhere, leaving:
        with pytest.raises(UnavailableError, match=str(refusal)):
            resumed(Played([refusal], [said("hello", stop=1)]))
    assert resumed(Played([BREAK], [nowhere], [nowhere], [said("hello", stop=1)])) == "hello"


def test_a_server_that_says_nothing_of_its_choices_is_not_asked_again() -> None:
    with pytest.raises(UnavailableError, match="broke"):
        resumed(Played([v1.GenerateResponse(text="hel"), BREAK]))


def test_a_cancelled_call_is_not_made_again() -> None:
    played = Played([said("hel"), BREAK], [said("hello", stop=1)])
    call = ResumableGeneration(played.generate, v1.GenerateRequest(), Retry(5.0, ignore))
    assert next(call).text == "hel"
    call.cancel()
    with pytest.raises((StopIteration, UnavailableError)):
        next(call)
    assert len(played.requests) == 1
