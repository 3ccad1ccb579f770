"""Generate on a real server: texts that are exact whatever other calls run, and states."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Server, fields_of, tiny_spec, wait_for

LINES = b"anna\nbertha\ncarla\ndora\nemma\nfrieda\n" * 20


def lines_spec(model: str) -> pb.TrainSpec:
    spec = tiny_spec(model)
    spec.data.layout = pb.CORPUS_LAYOUT_LINES
    return spec


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a model of text, `m`, and one of lines, `names`."""
    folder = tmp_path_factory.mktemp("generating") / "data"
    server = Server(folder)
    server.caller.trained(tiny_spec("m"))
    server.caller.trained(lines_spec("names"), LINES)
    server.close()
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    server = Server(home, "--session-limit", "80")
    yield server
    wait_for(lambda: server.caller.info().inference_running == 0)
    wait_for(lambda: server.caller.info().sessions_running == 0)
    assert "Traceback" not in server.log
    server.close()


def by_index(replies: list[pb.GenerateResponse]) -> dict[int, list[pb.GenerateResponse]]:
    found: dict[int, list[pb.GenerateResponse]] = {}
    for reply in replies:
        found.setdefault(reply.index, []).append(reply)
    for each in found.values():
        assert [reply.HasField("result") for reply in each] == [False] * (len(each) - 1) + [True]
    return found


def bits(replies: list[pb.GenerateResponse]) -> tuple[str, bytes]:
    """Text, tokens and result of one text, however they came in pieces."""
    whole = pb.GenerateResponse(
        tokens=[token for reply in replies for token in reply.tokens], result=replies[-1].result
    )
    return "".join(reply.text for reply in replies), whole.SerializeToString(deterministic=True)


# ---------------------------------------------------------------- exact

REPORTED: dict[str, Any] = {"log_probabilities": True, "ranks": True, "return_state": True}


def random_request(draw: random.Random) -> dict[str, Any]:
    """A request of all kinds, from a short one to one of a second."""
    return {
        "prompt": draw.choice(["", "the ", "jumps over the lazy dog. " * draw.randint(1, 20)]),
        "seed": draw.randint(0, 2**64 - 1),
        "temperature": draw.choice([0.0, 0.7, 1.0, 1.3]),
        "top_k": draw.choice([0, 0, 5]),
        "typical_p": draw.choice([1.0, 0.9]),
        "repetition_penalty": draw.choice([1.0, 1.2]),
        "stop_sequences": draw.choice([[], ["dog"], ["q", "zy"]]),
        "max_new_tokens": draw.choice([1, 7, 64, 400]),
        "n": draw.choice([1, 1, 2]),
        **draw.choice([{}, REPORTED, {"top_log_probabilities": 3}]),
    }


PROBES = [
    {"model": "m", "prompt": "the ", "seed": 5, "max_new_tokens": 200, **REPORTED},
    {"model": "m", "seed": 6, "max_new_tokens": 333, "temperature": 1.4, "top_p": 0.9, **REPORTED},
    {"model": "names", "prompt": "a", "seed": 7, "n": 3, "top_log_probabilities": 4, **REPORTED},
    {
        "model": "m",
        "prompt": "qu",
        "seed": 8,
        "stop_sequences": ["o"],
        "frequency_penalty": 0.3,
        **REPORTED,
    },
]


def probe(server: Server) -> list[Any]:
    """The bits of every probe."""
    return [
        {index: bits(each) for index, each in by_index(server.caller.generate(**fields)).items()}
        for fields in PROBES
    ]


@pytest.mark.jit
def test_neither_mates_nor_threads_nor_the_process_change_a_bit(home: Path) -> None:
    expected = None
    for threads, mates in ((1, 1), (2, 17), (3, 64)):
        server = Server(home, "--threads", str(threads))
        try:
            alone = probe(server)
            expected = expected or alone
            assert alone == expected
            draw = random.Random(threads)
            with ThreadPoolExecutor(mates) as pool:
                others = [
                    pool.submit(server.caller.generate, "m", **random_request(draw))
                    for _ in range(2 * mates)
                ]
                for _ in range(2):
                    assert probe(server) == expected
                for other in others:
                    by_index(other.result())
        finally:
            server.close()


def test_a_state_continues_after_a_restart_and_in_another_process(home: Path) -> None:
    asked: dict[str, Any] = {"model": "m", "prompt": "the ", **REPORTED}
    first_server = Server(home)
    whole = bits(first_server.caller.generate(**asked, seed=3, max_new_tokens=120))
    first = first_server.caller.generate(**asked, seed=3, max_new_tokens=50)
    first_server.close()
    state = first[-1].result.state
    assert len(state) < 8 * 8 + 80  # 8 units, hs and cs in float32, and a small header
    second_server = Server(home)
    try:
        for _ in range(2):  # it may be forked
            rest = second_server.caller.generate("m", state=state, max_new_tokens=70, **REPORTED)
            text, _ = bits(rest)
            tokens = [*first, *rest]
            assert "".join(reply.text for reply in first) + text == whole[0]
            ended = pb.GenerateResponse.FromString(whole[1])
            assert [t for reply in tokens for t in reply.tokens] == list(ended.tokens)
            assert rest[-1].result.state == ended.result.state
    finally:
        second_server.close()


# ---------------------------------------------------------------- many texts


def test_n_texts_are_those_of_their_own_seeds(server: Server) -> None:
    together = by_index(server.caller.generate("names", n=9, seed=11, log_probabilities=True))
    assert sorted(together) == list(range(9))
    fewer = by_index(server.caller.generate("names", n=2, seed=11, log_probabilities=True))
    for index, replies in together.items():
        alone = server.caller.generate(
            "names", seed=replies[-1].result.seed, log_probabilities=True
        )
        assert bits(alone) == bits(replies)
        if index in fewer:
            assert bits(fewer[index]) == bits(replies)
    assert len({bits(replies)[0] for replies in together.values()}) > 3


def test_more_texts_than_fit_are_refused(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.caller.generate("names", n=81)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(by_index(server.caller.generate("names", n=80))) == 80


def test_texts_of_no_tokens(server: Server) -> None:
    replies = server.caller.generate("m", prompt="the", max_new_tokens=0, n=2, return_state=True)
    assert sorted(by_index(replies)) == [0, 1]
    for reply in replies:
        assert (reply.text, reply.result.new_tokens) == ("", 0)
        assert reply.result.stop_reason == pb.STOP_REASON_MAX_NEW_TOKENS
    state = replies[0].result.state
    on = server.caller.text("m", state=state, seed=1, max_new_tokens=30)
    assert on == server.caller.text("m", prompt="the", seed=1, max_new_tokens=30)


# ---------------------------------------------------------------- settings on the wire


def test_a_prompt_is_echoed_with_its_scores(server: Server) -> None:
    replies = server.caller.generate(
        "m", prompt="the dog", echo=True, seed=2, max_new_tokens=20, log_probabilities=True
    )
    text, _ = bits(replies)
    assert text.startswith("the dog")
    tokens = [token for reply in replies for token in reply.tokens]
    scored = server.caller.score("m", [text], log_probabilities=True).scores[0].tokens
    assert tokens == list(scored)


def test_a_regular_expression_is_kept_to(server: Server) -> None:
    for seed in range(5):
        replies = server.caller.generate("m", regex="[a-e]{3} (fox|dog)[.]", seed=seed)
        text, _ = bits(replies)
        assert len(text) == 8
        assert text[3:] in (" fox.", " dog.")
        result = replies[-1].result
        assert result.stop_reason == pb.STOP_REASON_REGEX_COMPLETE
        assert result.regex_complete
    cut = server.caller.generate("m", regex="[a-e]{3} (fox|dog)[.]", max_new_tokens=4)
    assert not cut[-1].result.regex_complete
    assert cut[-1].result.HasField("regex_complete")
    line = server.caller.generate("names", regex="(ab|cd)+", max_new_tokens=40, seed=1)
    assert line[-1].result.regex_complete or line[-1].result.new_tokens == 40


def test_a_beam_search_finds_a_likelier_text_than_greed(server: Server) -> None:
    greedy = server.caller.generate("m", prompt="the", temperature=0, max_new_tokens=8)
    found = by_index(
        server.caller.generate(
            "m",
            prompt="the",
            best_of=8,
            n=3,
            max_new_tokens=8,
            log_probabilities=True,
            return_state=True,
        )
    )
    totals = [each[-1].result.total_log_probability for each in found.values()]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] >= greedy[-1].result.total_log_probability
    for each in found.values():
        text, _ = bits(each)
        scored = server.caller.score("m", [text], context="the", log_probabilities=True).scores[0]
        assert [t for reply in each for t in reply.tokens] == list(scored.tokens)
        assert each[-1].result.state


@pytest.mark.parametrize(
    ("fields", "faults"),
    [
        ({"regex": "("}, ["regex"]),
        ({"regex": "é"}, ["regex"]),
        ({"banned_tokens": [pb.TokenReference(text="é")]}, ["banned_tokens[0]"]),
        ({"banned_tokens": [pb.TokenReference(id=9999)]}, ["banned_tokens[0]"]),
        ({"state": b"abc"}, ["state"]),
        ({"prompt": "é"}, ["prompt"]),
        ({"best_of": 4, "temperature": 1.0}, ["temperature"]),
    ],
)
def test_bad_requests_name_the_field(
    server: Server, fields: dict[str, Any], faults: list[str]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.caller.generate("m", **fields)
    assert fields_of(caught.value) == faults


def test_a_state_of_another_model_and_a_missing_index_are_preconditions(server: Server) -> None:
    state = server.caller.generate("m", return_state=True, max_new_tokens=3)[-1].result.state
    attempts: list[dict[str, Any]] = [
        {"model": "names", "state": state},
        {"model": "names", "novelty": True},
    ]
    for attempt in attempts:
        with pytest.raises(grpc.RpcError) as caught:
            server.caller.generate(**attempt)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_key_keeps_foreign_states_out(home: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef\n")
    own_home = tmp_path / "data"
    shutil.copytree(home, own_home)  # the other server is using its own
    plain = Server(own_home)
    loose = plain.caller.generate("m", return_state=True, max_new_tokens=3)[-1].result.state
    plain.close()
    keyed = Server(own_home, "--state-key-file", str(key))
    try:
        own = keyed.caller.generate("m", return_state=True, max_new_tokens=3)[-1].result.state
        assert keyed.caller.generate("m", state=own, max_new_tokens=3)[-1].result.new_tokens == 3
        with pytest.raises(grpc.RpcError) as caught:
            keyed.caller.generate("m", state=loose)
        assert fields_of(caught.value) == ["state"]
    finally:
        keyed.close()


# ---------------------------------------------------------------- slow readers


def test_a_text_that_no_client_reads_pauses_and_continues(server: Server) -> None:
    request = pb.GenerateRequest(
        model="m", max_new_tokens=100_000, seed=4, log_probabilities=True, top_log_probabilities=20
    )
    call = server.caller.stub.Generate(request, timeout=PATIENCE_S)
    first = next(call)
    for _ in range(20):  # others are served meanwhile
        assert server.caller.generate("m", max_new_tokens=50)[-1].result.new_tokens == 50
    made = len(first.tokens) + sum(len(reply.tokens) for reply in call)
    assert made == 100_000


def test_a_prompt_may_be_given_as_tokens(server: Server) -> None:
    text = "the quick brown"
    settings = {"max_new_tokens": 8, "seed": 3, "log_probabilities": True, "echo": True}
    for model, prompt in {"m": text, "names": "anna"}.items():
        replies = server.caller.generate(model, prompt=prompt, **settings)
        ids = [token.id for reply in replies for token in reply.tokens][: len(prompt)]
        again = server.caller.generate(model, prompt_tokens=ids, **settings)
        assert bits(again) == bits(replies)
    wrong: dict[str, Any] = {"prompt_tokens[1]": {"prompt_tokens": [0, 10**6]}}
    wrong["prompt_tokens"] = {"prompt_tokens": [0], "prompt": text}
    for field, fields in wrong.items():
        with pytest.raises(grpc.RpcError) as failure:
            server.caller.generate("m", **fields)
        assert fields_of(failure.value) == [field]
