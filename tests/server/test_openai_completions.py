"""Completions by the `openai` package: the text and the numbers are those of Generate."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import openai
import pytest

from treadle.server.http.http_server import _bind
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Server, tiny_spec, wait_for
from .openai_client import OPENER, connect

LINES = b"anna\nbertha\ncarla\ndora\nemma\nfrieda\n" * 20


@pytest.fixture(scope="module")
def client(http_server: Server) -> Iterator[openai.OpenAI]:
    with connect(http_server) as client:
        yield client


@pytest.fixture(scope="module")
def lines(http_server: Server) -> str:
    """The name of a model of items, which end by themselves."""
    spec = tiny_spec("openai-lines", max_steps=60)
    spec.data.layout = pb.CORPUS_LAYOUT_LINES
    return http_server.caller.trained(spec, LINES).name


def text_of(replies: list[pb.GenerateResponse], index: int = 0) -> str:
    return "".join(reply.text for reply in replies if reply.index == index)


def tokens_of(replies: list[pb.GenerateResponse], index: int = 0) -> list[pb.Token]:
    return [token for reply in replies if reply.index == index for token in reply.tokens]


def bits(numbers: Any) -> list[bytes]:
    return [struct.pack(">d", number) for number in numbers]


def test_a_text_is_that_of_grpc(
    client: openai.OpenAI, http_server: Server, http_model: str
) -> None:
    made = client.completions.create(model=http_model, prompt="the ", max_tokens=40, seed=7)
    expected = http_server.caller.generate(http_model, prompt="the ", max_new_tokens=40, seed=7)
    [choice] = made.choices
    assert choice.text == text_of(expected)
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert made.object == "text_completion"
    assert made.model == f"{http_model}@1"
    assert made.usage is not None
    usage = made.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 40, 44)
    model = http_server.caller.stub.GetModel(pb.GetModelRequest(model=http_model)).model
    assert model.sha256[:16] in str(made.system_fingerprint)


def test_sixteen_tokens_are_the_default_and_a_seed_is_returned(
    client: openai.OpenAI, http_model: str
) -> None:
    made = client.completions.create(model=http_model, prompt="the ")
    assert made.usage is not None
    assert made.usage.completion_tokens == 16
    seed = made.choices[0].model_extra["seed"]  # type: ignore[index]
    again = client.completions.create(model=http_model, prompt="the ", seed=seed)
    assert again.choices[0].text == made.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_the_bits_of_grpc(
    client: openai.OpenAI, http_server: Server, http_model: str, stream: bool
) -> None:
    asked: Any = {"prompt": "the ", "max_tokens": 30, "seed": 3, "n": 2, "echo": True}
    if stream:
        parts = [*client.completions.create(model=http_model, logprobs=2, stream=True, **asked)]
        choices = [choice for part in parts for choice in part.choices]
    else:
        choices = client.completions.create(model=http_model, logprobs=2, **asked).choices
    expected = http_server.caller.generate(
        http_model,
        prompt="the ",
        max_new_tokens=30,
        seed=3,
        n=2,
        echo=True,
        log_probabilities=True,
        top_log_probabilities=2,
    )
    for index in range(2):
        own = [choice for choice in choices if choice.index == index]
        text = "".join(choice.text for choice in own)
        assert text == text_of(expected, index)
        assert text.startswith("the ")
        logprobs = [choice.logprobs for choice in own if choice.logprobs]
        names = [name for each in logprobs for name in each.tokens or []]
        numbers = [number for each in logprobs for number in each.token_logprobs or []]
        offsets = [offset for each in logprobs for offset in each.text_offset or []]
        tops = [top for each in logprobs for top in each.top_logprobs or []]
        tokens = tokens_of(expected, index)
        assert names == [token.text for token in tokens]
        assert [
            text[place : place + len(name)] for place, name in zip(offsets, names, strict=True)
        ] == names
        assert numbers[0] is None  # nothing predicts the first token of a text
        assert bits(numbers[1:]) == bits(token.log_probability for token in tokens[1:])
        for top, token in zip(tops[1:], tokens[1:], strict=True):
            likeliest = {other.text: other.log_probability for other in token.alternatives}
            assert top == likeliest | {token.text: token.log_probability}


def test_a_stream_ends_with_its_reason_and_its_usage(
    client: openai.OpenAI, http_model: str
) -> None:
    asked: Any = {"model": http_model, "prompt": ["the ", "quick"], "seed": 1, "n": 2}
    options: Any = {"include_usage": True}
    whole = client.completions.create(**asked)
    *parts, last = client.completions.create(**asked, stream=True, stream_options=options)
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(part.usage is None for part in parts)
    for choice in whole.choices:
        own = [each for part in parts for each in part.choices if each.index == choice.index]
        assert "".join(each.text for each in own) == choice.text
        assert [each.finish_reason for each in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == choice.finish_reason
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    alone = client.completions.create(model=http_model, prompt="quick", seed=1, n=2)
    assert [choice.text for choice in whole.choices[2:]] == [each.text for each in alone.choices]


def test_the_bytes_of_a_stream(http_server: Server, http_model: str) -> None:
    body = json.dumps({"model": http_model, "prompt": "the ", "stream": True}).encode()
    request = urllib.request.Request(f"{http_server.http_url}/v1/completions", body)
    with OPENER.open(request, timeout=PATIENCE_S) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = response.read().split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    for event in events[:-2]:
        assert json.loads(event.removeprefix(b"data: "))["object"] == "text_completion"


def test_prompts_as_token_ids(client: openai.OpenAI, http_model: str) -> None:
    made = client.completions.create(
        model=http_model, prompt="the ", echo=True, logprobs=0, max_tokens=0
    )
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs is None
    ids = logprobs.model_extra["token_ids"]  # type: ignore[index]
    text = client.completions.create(model=http_model, prompt="the ", seed=5)
    same = client.completions.create(model=http_model, prompt=ids, seed=5)
    both = client.completions.create(model=http_model, prompt=[ids, ids[:1]], seed=5)
    assert same.choices[0].text == text.choices[0].text == both.choices[0].text
    assert same.usage == text.usage


def test_stop_sequences_end_tokens_and_expressions(
    client: openai.OpenAI, http_model: str, lines: str
) -> None:
    free = client.completions.create(model=http_model, prompt="the ", seed=1, max_tokens=60)
    text = free.choices[0].text
    stop = text[20:22]
    made = client.completions.create(
        model=http_model, prompt="the ", seed=1, max_tokens=60, stop=[stop, "\x00"]
    )
    assert made.choices[0].text == text[: text.index(stop)]
    assert made.choices[0].finish_reason == "stop"
    item = client.completions.create(model=lines, prompt="an", max_tokens=400)
    assert item.choices[0].finish_reason == "stop"
    regex = client.completions.create(
        model=http_model, prompt="the ", seed=1, extra_body={"regex": "[a-c]{5}"}
    )
    assert set(regex.choices[0].text) <= set("abc")
    assert regex.choices[0].finish_reason == "stop"


def test_the_best_texts_have_the_highest_mean_log_probability(
    client: openai.OpenAI, http_server: Server, lines: str
) -> None:
    made = client.completions.create(model=lines, prompt="", seed=4, n=2, best_of=6, max_tokens=30)
    all_six = http_server.caller.generate(lines, seed=4, n=6, max_new_tokens=30)
    means = {
        reply.index: reply.result.total_log_probability / reply.result.new_tokens
        for reply in all_six
        if reply.HasField("result")
    }
    order = sorted(means, key=lambda index: -means[index])
    assert [choice.text for choice in made.choices] == [
        text_of(all_six, index) for index in order[:2]
    ]
    assert [choice.index for choice in made.choices] == [0, 1]
    counts = [reply.result.new_tokens for reply in all_six if reply.HasField("result")]
    assert made.usage is not None
    assert made.usage.completion_tokens == sum(counts)
    beams = client.completions.create(
        model=lines, prompt="", n=2, max_tokens=30, extra_body={"beam_width": 6}
    )
    found = http_server.caller.generate(lines, n=2, best_of=6, max_new_tokens=30)
    assert [each.text for each in beams.choices] == [text_of(found), text_of(found, 1)]


def test_biases_and_penalties_are_those_of_grpc(
    client: openai.OpenAI, http_server: Server, http_model: str
) -> None:
    made = client.completions.create(
        model=http_model,
        prompt="the ",
        seed=2,
        max_tokens=50,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        logit_bias={"3": 2, "4": -100},
        extra_body={"top_k": 9, "min_p": 0.01, "repetition_penalty": 1.25},
    )
    request = pb.GenerateRequest(
        model=http_model,
        prompt="the ",
        seed=2,
        max_new_tokens=50,
        temperature=0.5,
        top_p=0.9,
        top_k=9,
        min_p=0.01,
        repetition_penalty=1.25,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
    )
    request.token_biases.add(token=pb.TokenReference(id=3), bias=2)
    request.token_biases.add(token=pb.TokenReference(id=4), bias=-100)
    expected = [*http_server.caller.stub.Generate(request, timeout=PATIENCE_S)]
    assert made.choices[0].text == text_of(expected)


def test_a_state_continues_a_text(client: openai.OpenAI, http_model: str) -> None:
    whole = client.completions.create(model=http_model, prompt="the ", seed=6, max_tokens=20)
    keep: Any = {"return_state": True}
    first = client.completions.create(
        model=http_model, prompt="the ", seed=6, max_tokens=8, extra_body=keep
    )
    state = first.choices[0].model_extra["state"]  # type: ignore[index]
    rest = client.completions.create(
        model=http_model, prompt=None, max_tokens=12, extra_body={"state": state}
    )
    assert first.choices[0].text + rest.choices[0].text == whole.choices[0].text


def test_a_precision_is_chosen_and_reported(
    client: openai.OpenAI, http_server: Server, http_model: str
) -> None:
    for word in ("fp32", "int8"):
        asked: Any = {"inference_precision": word}
        made = client.completions.create(
            model=http_model, prompt="the ", seed=6, max_tokens=20, extra_body=asked
        )
        assert made.choices[0].model_extra["inference_precision"] == word  # type: ignore[index]
        number = pb.InferencePrecision.Value(f"INFERENCE_PRECISION_{word.upper()}")
        request = pb.GenerateRequest(
            model=http_model, prompt="the ", seed=6, max_new_tokens=20, inference_precision=number
        )
        expected = [*http_server.caller.stub.Generate(request, timeout=PATIENCE_S)]
        assert made.choices[0].text == text_of(expected)
        vectors = client.embeddings.create(
            model=http_model, input="the ", encoding_format="float", extra_body=asked
        )
        assert vectors.model_extra["inference_precision"] == word  # type: ignore[index]


def test_an_async_client(http_server: Server, http_model: str) -> None:
    async def run() -> tuple[str, list[str]]:
        url = f"{http_server.http_url}/v1"
        http_client = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, http_client=http_client
        ) as client:
            asked: Any = {"model": http_model, "prompt": "the ", "seed": 1, "max_tokens": 40}
            made = await client.completions.create(**asked)
            streams = [client.completions.create(**asked, stream=True) for _ in range(4)]
            opened = await asyncio.gather(*streams)
            texts = ["".join([part.choices[0].text async for part in stream]) for stream in opened]
            return made.choices[0].text, texts

    text, texts = asyncio.run(run())
    assert texts == [text] * 4


def test_an_error_in_a_stream_is_its_last_event(start: Callable[..., Server]) -> None:
    server = start("--http-address", "127.0.0.1:0", "--grace-s", "0.1")
    server.caller.trained(tiny_spec("m"))
    asked = {"model": "m", "prompt": "the ", "max_tokens": 100_000, "stream": True, "logprobs": 5}
    url = f"{server.http_url}/v1/completions"
    with OPENER.open(
        urllib.request.Request(url, json.dumps(asked).encode()), timeout=PATIENCE_S
    ) as response:
        first = response.readline()
        server.process.send_signal(signal.SIGTERM)
        events = response.read().strip().split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: "))["choices"]
    error = json.loads(events[-1].removeprefix(b"data: "))["error"]
    assert error["type"] == "server_error"
    assert "shut down" in error["message"]
    server.wait()


def test_a_client_that_leaves_ends_its_texts(
    client: openai.OpenAI, http_server: Server, http_model: str
) -> None:
    stream = client.completions.create(
        model=http_model, prompt="the ", max_tokens=50_000, n=4, stream=True
    )
    next(iter(stream))
    assert http_server.caller.info().sessions_running >= 1
    stream.close()
    wait_for(lambda: http_server.caller.info().sessions_running == 0)


def test_a_large_request(client: openai.OpenAI, http_server: Server, http_model: str) -> None:
    text = "the quick brown fox. " * 5000
    made = client.completions.create(model=http_model, prompt=[text, "a"], seed=1, max_tokens=8)
    expected = http_server.caller.text(http_model, prompt=text, seed=1, max_new_tokens=8)
    assert made.choices[0].text == expected
    vector = client.embeddings.create(model=http_model, input=[text, "a"])
    assert vector.usage.prompt_tokens == len(text) + 1
    assert http_server.caller.info().memory_used_bytes < 100 << 20


def test_models(client: openai.OpenAI, http_server: Server, http_model: str) -> None:
    names = [model.id for model in client.models.list()]
    assert http_model in names
    stub = http_server.caller.stub
    stub.SetAlias(pb.SetAliasRequest(model=http_model, alias="live", version=1))
    for name in (http_model, f"{http_model}@1", f"{http_model}@live", f"{http_model}@latest"):
        assert client.models.retrieve(name).id == name
        assert client.completions.create(model=name, prompt="a", seed=1).model == f"{http_model}@1"
    spec = tiny_spec("openai-gone")
    for _ in range(2):
        http_server.caller.trained(spec)
    assert client.models.delete("openai-gone@2").deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("openai-gone@2")
    with pytest.raises(openai.BadRequestError, match="alias"):
        client.models.delete("openai-gone@latest")
    assert client.models.delete("openai-gone").deleted
    assert "openai-gone" not in [model.id for model in client.models.list()]


REFUSED: dict[str, tuple[dict[str, Any], str | None]] = {
    "no model": ({"model": None}, "model"),
    "a number as model": ({"model": 3}, "model"),
    "a bad name": ({"model": "a b"}, "model"),
    "suffix": ({"suffix": "end"}, "suffix"),
    "a text as max_tokens": ({"max_tokens": "3"}, "max_tokens"),
    "true as max_tokens": ({"max_tokens": True}, "max_tokens"),
    "too many tokens": ({"max_tokens": 10**9}, "max_tokens"),
    "a fraction as n": ({"n": 1.5}, "n"),
    "no texts": ({"n": 0}, "n"),
    "best_of below n": ({"n": 3, "best_of": 2}, "best_of"),
    "best_of in a stream": ({"best_of": 2, "stream": True}, "best_of"),
    "temperature": ({"temperature": -1}, "temperature"),
    "top_p": ({"top_p": 2}, "top_p"),
    "logprobs": ({"logprobs": 6}, "logprobs"),
    "true as logprobs": ({"logprobs": True}, "logprobs"),
    "an empty stop": ({"stop": [""]}, "stop"),
    "seventeen stops": ({"stop": [str(number) for number in range(17)]}, "stop"),
    "a number as stop": ({"stop": [1]}, "stop"),
    "a name as a bias": ({"logit_bias": {"the": 1}}, "logit_bias"),
    "a large bias": ({"logit_bias": {"1": 101}}, "logit_bias"),
    "a bias of no token": ({"logit_bias": {"100000": 1}}, "logit_bias"),
    "too many biases": ({"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, "logit_bias"),
    "too many ids": ({"prompt": [1] * 100_001}, "prompt"),
    "a list of biases": ({"logit_bias": []}, "logit_bias"),
    "a large penalty": ({"presence_penalty": 1000}, "presence_penalty"),
    "an unknown field": ({"functions": []}, "functions"),
    "a word as echo": ({"echo": "yes"}, "echo"),
    "no prompts": ({"prompt": []}, "prompt"),
    "a number as prompt": ({"prompt": 1}, "prompt"),
    "two kinds of prompts": ({"prompt": ["a", [1]]}, "prompt"),
    "an id that is not there": ({"prompt": [100000]}, "prompt"),
    "a negative id": ({"prompt": [-1]}, "prompt"),
    "a symbol that is not there": ({"prompt": "ä"}, "prompt"),
    "options without a stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "an unknown option": (
        {"stream": True, "stream_options": {"x": 1}},
        "stream_options.x",
    ),
    "a broken state": ({"state": "!"}, "state"),
    "a wrong state": ({"state": "AAAA"}, "state"),
    "a wrong expression": ({"regex": "("}, "regex"),
    "two searches": ({"best_of": 2, "beam_width": 2}, "best_of"),
    "a setting of no search": ({"beam_width": 2, "temperature": 2}, "temperature"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_served_names_the_field(
    client: openai.OpenAI, http_model: str, fault: str
) -> None:
    body, param = REFUSED[fault]
    asked = {"model": http_model, "prompt": "the "} | body
    with pytest.raises(openai.BadRequestError) as failure:
        client.post("/completions", body=asked, cast_to=object)
    error: Any = failure.value.body
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    for name in ("max_new_tokens", "stop_sequences", "token_biases", "prompt_tokens"):
        assert name not in error["message"]


BODIES: dict[str, bytes] = {
    "no JSON": b"{",
    "no object": b"[]",
    "nothing": b"",
    "not UTF-8": b'"\xff"',
    "not a number": b'{"temperature": NaN}',
    "half a character": b'{"model": "shared", "prompt": "\\ud83d"}',
    "many values": b"[" + b"1," * 300_000 + b"1]",
    "deep": b"[" * 100_000,
    "long number": b'{"n": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("fault", BODIES)
def test_a_body_that_is_no_request(http_server: Server, fault: str) -> None:
    url = f"{http_server.http_url}/v1/completions"
    with pytest.raises(urllib.error.HTTPError) as failure:
        OPENER.open(urllib.request.Request(url, BODIES[fault]), timeout=PATIENCE_S)
    assert failure.value.code == 400
    assert json.loads(failure.value.read())["error"]["type"] == "invalid_request_error"


def test_other_errors_have_openais_form(client: openai.OpenAI, http_model: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="missing", prompt="a")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("missing@7")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt="a")
    assert unknown.value.code == "unknown_url"
    with pytest.raises(openai.APIStatusError) as wrong:
        client.get("/completions", cast_to=object)
    assert wrong.value.status_code == 405
    assert wrong.value.response.headers["allow"] == "POST"
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model=http_model, prompt="a" * (5 << 20))
    assert large.value.status_code == 413
    assert isinstance(large.value.body, dict)
    with pytest.raises(openai.BadRequestError, match="/v1/completions"):
        client.chat.completions.create(model=http_model, messages=[])


def test_prompts_that_do_not_fit_at_once_wait_for_each_other(
    client: openai.OpenAI, http_model: str
) -> None:
    made = client.completions.create(
        model=http_model, prompt=["a", "b", "c"], n=100, max_tokens=2, seed=1
    )
    assert [choice.index for choice in made.choices] == [*range(300)]


def test_embeddings(client: openai.OpenAI, http_server: Server, http_model: str) -> None:
    texts = ["the quick", "fox"]
    request = pb.EmbedRequest(model=http_model, texts=texts)
    expected = http_server.caller.stub.Embed(request).embeddings
    for how in ("float", "base64"):
        made = client.embeddings.create(model=http_model, input=texts, encoding_format=how)
        if how == "float":
            found = [bits(each.embedding) for each in made.data]
            assert found == [bits(each.values) for each in expected]
        assert (made.usage.prompt_tokens, made.usage.total_tokens) == (12, 12)
        assert made.model == f"{http_model}@1"
    made = client.embeddings.create(model=http_model, input=texts)  # the client reads base64 itself
    assert [each.index for each in made.data] == [0, 1]
    assert [bits(each.embedding) for each in made.data] == [bits(each.values) for each in expected]
    echo = client.completions.create(
        model=http_model, prompt="fox", echo=True, logprobs=0, max_tokens=0
    )
    ids = echo.choices[0].logprobs.model_extra["token_ids"]  # type: ignore[union-attr,index]
    for tokens in (ids, [ids, ids]):
        made = client.embeddings.create(model=http_model, input=tokens)
        assert made.data[-1].embedding == [*expected[1].values]
    assert client.embeddings.create(model=http_model, input="fox", dimensions=8).data
    for fields, param in (
        ({"input": []}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": "ä"}, "input"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "other": 1}, "other"),
    ):
        with pytest.raises(openai.BadRequestError) as failure:
            client.post("/embeddings", body={"model": http_model} | fields, cast_to=object)
        assert failure.value.param == param


def test_an_event_does_not_wait_for_the_one_before() -> None:
    for listening in _bind("127.0.0.1:0"):
        with listening, socket.create_connection(listening.getsockname()):
            wait_for(partial(accepted, listening))


def accepted(listening: socket.socket) -> bool:
    """Returns whether a connection has come; checks that it sends small packets at once."""
    try:
        connection, _ = listening.accept()
    except BlockingIOError:
        return False
    with connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    return True
