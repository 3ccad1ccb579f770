"""What the client does where a connection breaks in the middle of a call."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.client import Client, CorpusFile, StreamPiece, UnavailableError
from treadle.client.files.corpus import is_repeatable

from .cut_proxy import CutProxy
from .shell import run

CORPUS = b"hello world\n" * 30_000
"""More than one chunk of an upload."""


@pytest.fixture(scope="module")
def broken_model(real_server: str) -> Iterator[Client]:
    with Client(real_server) as client:
        client.train("hello world\n" * 100, model="broken", max_steps=5, hidden_size=16).result()
        yield client


def cut_upload(server: str, sent: int) -> CutProxy:
    """A proxy that cuts its first connection within the upload, and no other."""
    return CutProxy(server, uploads=[sent])


class TestTrain:
    @pytest.mark.parametrize("sent", [2000, 300_000])
    def test_a_corpus_with_a_request_id_is_sent_again(self, real_server: str, sent: int) -> None:
        options: dict[str, Any] = {"max_steps": 2, "hidden_size": 8, "max_wall_time_s": 60}
        request_id = f"broken upload {sent}"
        with cut_upload(real_server, sent) as proxy, Client(proxy.address) as client:
            run = client.train(CORPUS, model="resent", request_id=request_id, **options)
            run.result()
            assert proxy.connections == 2
            jobs = [job for job in client.jobs(model="resent") if job.spec.request_id == request_id]
            assert [job.id for job in jobs] == [run.job]
            assert jobs[0].corpus_bytes == len(CORPUS)

    def test_without_one_the_error_is_raised(self, real_server: str) -> None:
        with cut_upload(real_server, 300_000) as proxy, Client(proxy.address) as client:
            with pytest.raises(UnavailableError, match="the connection broke"):
                client.train(CORPUS, model="unsent", max_steps=2).result()
            assert not list(client.jobs(model="unsent"))

    def test_what_is_read_once_is_not_sent_again(self, real_server: str) -> None:
        assert is_repeatable(b"text")
        assert is_repeatable(Path("name"))
        assert is_repeatable([CorpusFile("text"), CorpusFile(Path("name"))])
        assert not is_repeatable(iter(["text"]))
        assert not is_repeatable([CorpusFile("text"), CorpusFile(io.BytesIO(b"text"))])
        with cut_upload(real_server, 300_000) as proxy, Client(proxy.address) as client:
            run = client.train(io.BytesIO(CORPUS), model="unsent", request_id="once", max_steps=2)
            with pytest.raises(UnavailableError, match="the connection broke"):
                run.result()


class TestStreams:
    def test_a_stream_of_scores_says_how_far_it_came(self, broken_model: Client) -> None:
        with (
            CutProxy(broken_model.address) as proxy,
            Client(proxy.address) as client,
            client.open_score_stream("broken") as stream,
        ):
            stream.send("hello ")
            stream.send("world ")
            proxy.cut()
            with pytest.raises(UnavailableError) as caught:
                stream.send("hello ")
        assert "cannot continue on another connection (pieces that were scored: 2)" in str(
            caught.value
        )

    def test_a_background_stream_says_it_as_well(self, broken_model: Client) -> None:
        with CutProxy(broken_model.address) as proxy, Client(proxy.address) as client:

            def pieces() -> Iterator[StreamPiece]:
                yield StreamPiece("hello ")
                proxy.cut()
                yield StreamPiece("world ")

            with pytest.raises(UnavailableError, match=r"pieces that were scored: [01]"):
                client.score_stream("broken", pieces()).result()

    def test_a_stream_that_learns_says_what_is_lost(self, broken_model: Client) -> None:
        with (
            CutProxy(broken_model.address) as proxy,
            Client(proxy.address) as client,
            client.open_learn_stream("broken") as stream,
        ):
            stream.learn("hello ")
            proxy.cut()
            with pytest.raises(UnavailableError, match=r"since it last published .* is lost"):
                stream.learn("world ")


class TestCommandLine:
    def test_a_text_continues(self, broken_model: Client) -> None:
        words = ["generate", "broken", "--prompt", "h", "--max-new-tokens", "900", "--seed", "3"]
        whole = run(broken_model.address, *words)
        with CutProxy(broken_model.address, [600]) as proxy:
            done = run(proxy.address, *words)
        assert (done.returncode, done.stdout) == (0, whole.stdout)
        assert b"the connection broke; trying again\n" in done.stderr
        with CutProxy(broken_model.address, [600]) as proxy:
            done = run(proxy.address, *words, "--reconnect", "0")
        assert done.returncode == 3

    def test_several_texts_continue(self, broken_model: Client) -> None:
        words = ["generate", "broken", "-n", "5", "--max-new-tokens", "300", "--seed", "3"]
        whole = run(broken_model.address, *words)
        with CutProxy(broken_model.address, [1200]) as proxy:
            done = run(proxy.address, *words)
        assert (done.returncode, done.stdout) == (0, whole.stdout)
        assert b"trying again" in done.stderr

    def test_a_chat_continues(self, broken_model: Client) -> None:
        words = ["chat", "broken", "--max-new-tokens", "4000", "--stop", "#", "--seed", "3"]
        whole = run(broken_model.address, *words, data=b"hello\n")
        with CutProxy(broken_model.address, [3500]) as proxy:
            done = run(proxy.address, *words, data=b"hello\n")
        assert (done.returncode, done.stdout) == (0, whole.stdout)
        assert b"trying again" in done.stderr
