"""The command line and the client against the real server."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle.client import Client, FailedPreconditionError, InvalidArgumentError, NotFoundError

from .shell import PATIENCE_S, command, complaint, environment, objects, out, run

DATA = Path(__file__).parents[2] / "examples" / "data"


def until(condition: Callable[[], bool]) -> None:
    """Waits for something that must come."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def started(events: list[Any]) -> Any:
    """What the server made of the spec and the corpus."""
    return next(event["started"] for event in events if "started" in event)


@pytest.fixture(scope="module")
def hello(real_server: str) -> str:
    """A server that knows "hello"; its address."""
    events = objects(out(real_server, "train", "-", "--model", "hello", data=b"hello"))
    kinds = [list(event)[2] for event in events]
    assert kinds[0] == "state"
    assert [kind for kind in kinds if kind != "state"][:2] == ["started", "progress"]
    assert kinds[-1] == "completed"
    notices = " ".join(started(events)["notices"])
    assert "batch" in notices
    assert "window" in notices
    return real_server


def test_hello(hello: str) -> None:
    words = ["generate", "hello", "--prompt", "h", "--greedy", "--max-new-tokens", "4"]
    assert out(hello, *words) == "ello\n"
    last = objects(out(hello, *words, "--json", "--log-probabilities"))[-1]
    assert last["result"]["stop_reason"] == "max_new_tokens"
    assert last["result"]["new_tokens"] == 4


def test_the_same_seed_gives_the_same_text(hello: str) -> None:
    words = ["generate", "hello", "--seed", "7", "--temperature", "2", "--max-new-tokens", "50"]
    assert out(hello, *words) == out(hello, *words)


def test_texts_score_the_same_bits_in_one_call_and_in_many(hello: str) -> None:
    context = "hello" * 1000
    texts = ["hello", "", "olleh", "l"] * 251
    with Client(hello) as client:
        options: Any = {"context": context, "ranks": True, "return_states": True}
        many = [score.SerializeToString() for score in client.score("hello", texts, **options)]
        few = [score.SerializeToString() for score in client.score("hello", texts[:4], **options)]
    assert many == few * 251


def test_scores_tell_hello_from_olleh(hello: str) -> None:
    rows = objects(out(hello, "score", "hello", "--text", "hello", "olleh", "--json", "--tokens"))
    assert rows[0]["bits_per_character"] < 0.5 < rows[1]["bits_per_character"]
    assert [token["text"] for token in rows[0]["tokens"]] == list("hello")
    assert "log_probability" not in rows[0]["tokens"][0]


@pytest.mark.parametrize(
    ("words", "data", "expected"),
    [
        (["train", "-", "--model", "m"], b"", "empty"),
        (["train", "-", "--model", "m"], b"ab\xffcd", "UTF-8"),
        (["train", "-", "--model", "m", "--layers", "99"], b"abc", "layers"),
        (["train", "-", "--model", "no/name"], b"abc", "model"),
        (["generate", "hello", "--prompt", "hex"], b"", "'x'"),
        (["generate", "hello", "--temperature", "-1"], b"", "temperature"),
        (["generate", "nobody"], b"", "nobody"),
        (["score", "hello", "--text", "xyz"], b"", "'x'"),
        (["models", "show", "hello", "--version", "9"], b"", "9"),
        (["models", "delete", "nobody", "--all"], b"", "nobody"),
    ],
)
def test_refusals_are_one_sentence(
    hello: str, words: list[str], data: bytes, expected: str
) -> None:
    assert expected in complaint(run(hello, *words, data=data), 1)


def test_unknown_symbols_may_be_skipped(hello: str) -> None:
    words = ["generate", "hello", "--greedy", "--max-new-tokens", "4", "--unknown", "skip"]
    assert out(hello, *words, "--prompt", "xhx") == "ello\n"
    kept = objects(
        out(hello, "train", "-", "--model", "skipped", "--unknown", "skip", data=b"h\xffello")
    )
    assert started(kept)["vocabulary_size"] == 4


def test_names_end_by_themselves(real_server: str) -> None:
    with Client(real_server) as client:
        names = "\n".join((DATA / "names.txt").read_text().split()[:500])
        model = client.train(
            names, model="names", layout="lines", hidden_size=32, max_steps=100
        ).result()
        assert model.training.steps == 100
        generation = client.generate("names", seed=1, log_probabilities=True)
        text = "".join(generation)
        assert "\n" not in text
        assert generation.result().new_tokens == len(generation.tokens)
        scores = list(client.score("names", ["emma", "xqzzqx"]))
        assert scores[0].mean_nats < scores[1].mean_nats
        assert scores[0].token_count == 5
        with pytest.raises(InvalidArgumentError) as caught:
            client.generate("names", "É").result()
        assert [violation.field for violation in caught.value.violations] == ["prompt"]


def test_versions_come_and_go(real_server: str) -> None:
    with Client(real_server) as client:
        for version in (1, 2):
            training = client.train(b"abcabc", model="twice", max_steps=2)
            assert training.result().version == version
        assert list(client.get_model("twice").versions) == [1, 2]
        assert [m.version for m in client.models(page_size=1) if m.name == "twice"] == [2]
        assert list(client.delete_model("twice", version=2).versions) == [2]
        assert client.get_model("twice").model.version == 1
        client.set_alias("twice", "prod")
        with pytest.raises(FailedPreconditionError, match="alias prod points to version 1"):
            client.delete_model("twice", version=1)
    words = ["models", "delete", "twice", "--all"]
    assert "remove the alias first, or add --force" in complaint(run(real_server, *words), 1)
    assert out(real_server, *words, "--force") == "deleted twice version 1\n"
    with Client(real_server) as client, pytest.raises(NotFoundError):
        client.get_model("twice")


def test_an_interrupted_run_goes_on(real_server: str) -> None:
    words = ["train", str(DATA / "names.txt"), "--model", "later", "--train-for", "2s"]
    with subprocess.Popen(
        command(real_server, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while b'"progress"' not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().decode()
        assert said.startswith("treadle: interrupted; the job continues at the server: ")
        job = said.split("`")[1].split()[-1]
        assert process.wait(PATIENCE_S) == 130
    # A client that comes back sees every event, and the end.
    events = objects(out(real_server, "watch", job))
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["completed"]["name"] == "later"
    # The next run gets its place after it, or next to it.
    out(real_server, "train", "-", "--model", "next", "--max-steps", "1", data=b"abc")
    with Client(real_server) as client:
        until(lambda: "later" in {model.name for model in client.models()})


def test_an_interrupted_upload_leaves_nothing(real_server: str) -> None:
    with subprocess.Popen(
        command(real_server, "train", "-", "--model", "never"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"half of it")
        process.stdin.flush()
        with Client(real_server) as client:
            until(lambda: client.server_info().training_queued == 1)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"treadle: interrupted\n"
        assert process.wait(PATIENCE_S) == 130
    with Client(real_server) as client:
        until(lambda: client.server_info().training_queued == 0)
        assert list(client.jobs(model="never")) == []
        assert "never" not in {model.name for model in client.models()}


def test_a_detached_job_is_watched_listed_used_and_drawn(real_server: str, tmp_path: Path) -> None:
    words = ["train", str(DATA / "names.txt"), "--model", "detached", "--layout", "lines"]
    limits = ["--hidden-size", "16", "--max-steps", "60", "--progress-interval", "50ms"]
    job = out(real_server, *words, *limits, "--validation-interval", "20", "--detach").strip()
    events = objects(out(real_server, "watch", job))
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert {event["job"] for event in events} == {job}
    assert events[-1]["completed"]["name"] == "detached"
    assert objects(out(real_server, "watch", job, "--after", "2")) == events[2:]
    listed = objects(out(real_server, "jobs", "--model", "detached", "--json"))
    assert [(each["id"], each["state"]) for each in listed] == [(job, "succeeded")]
    assert out(real_server, "jobs", "show", "latest").split()[1] == job
    greedy = ["--greedy", "--max-new-tokens", "5"]
    assert out(real_server, "generate", "--job", job, "--best", *greedy) == out(
        real_server, "generate", "detached", *greedy
    )
    assert "train" in out(real_server, "curve", job)
    out(real_server, "curve", job, "--out", str(tmp_path / "loss.svg"))
    assert (tmp_path / "loss.svg").read_bytes().startswith(b"<svg ")
    assert out(real_server, "jobs", "delete", job) == f"deleted job {job}\n"
    assert job in complaint(run(real_server, "watch", job), 1)


def test_an_alias_leads_to_its_version(real_server: str) -> None:
    with Client(real_server) as client:
        for version in (1, 2):
            assert client.train(b"abcabc", model="named", max_steps=2).result().version == version
        assert list(client.set_alias("named", "first", version=1).aliases) == ["first"]
        assert client.get_model("named@first").model.version == 1
        client.delete_alias("named", "first")
        with pytest.raises(NotFoundError):
            client.get_model("named@first")


def test_bytes_of_any_kind_are_a_corpus(real_server: str) -> None:
    data = bytes(range(256)) * 4
    words = ["train", "-", "--model", "bytes", "--tokenizer", "bytes", "--max-steps", "2"]
    assert started(objects(out(real_server, *words, data=data)))["vocabulary_size"] == 256


def test_the_server_describes_itself(real_server: str) -> None:
    assert out(real_server, "health", "--wait", "30s") == "serving\n"
    info = objects(out(real_server, "info", "--json"))[0]
    assert info["threads"] >= 1
    assert info["training_slots"] >= 1
