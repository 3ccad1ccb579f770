"""A call that is silent because its quota of tokens is used up says so."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from treadle.client.cli.display import quota_notice
from treadle.client.cli.display.quota_notice import QuotaNotice
from treadle.client.errors import UnavailableError
from treadle.v1 import sequence_pb2 as v1

PATIENCE_S = 20.0


def info(left: int | None) -> v1.GetServerInfoResponse:
    if left is None:
        return v1.GetServerInfoResponse()
    caller = v1.CallerInfo(quotas=v1.CallerQuotas(tokens_per_minute=1000))
    caller.use.tokens_left = left
    return v1.GetServerInfoResponse(caller=caller)


class Server:
    """Replies to what the notice asks, and counts it."""

    def __init__(self, *replies: v1.GetServerInfoResponse | Exception) -> None:
        self._replies = list(replies)
        self.asked = 0

    def __call__(self) -> v1.GetServerInfoResponse:
        self.asked += 1
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply


def messages(server: Server, questions: int) -> Iterator[str]:
    """A message, then silence until the server was asked so often."""
    yield "a"
    end = time.monotonic() + PATIENCE_S
    while server.asked < questions and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.02)
    yield "b"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_notice, "SILENCE_S", 0.01)


def heard(server: Server, questions: int, capsys: pytest.CaptureFixture[str]) -> str:
    notice = QuotaNotice(server)
    with notice:
        assert list(notice.over(messages(server, questions))) == ["a", "b"]
    notice._thread.join(PATIENCE_S)
    return capsys.readouterr().err


def test_a_used_up_quota_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(info(5), info(-20))
    assert heard(server, 2, capsys) == (
        "treadle: the quota of 1,000 tokens per minute is used up: the text continues as the "
        "quota is filled again (`treadle info` shows it)\n"
    )
    assert server.asked == 2


@pytest.mark.parametrize("reply", [info(None), info(1), UnavailableError("gone"), ValueError()])
def test_another_silence_is_not_explained(
    reply: v1.GetServerInfoResponse | Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heard(Server(reply), 2, capsys) == ""


def test_a_call_with_messages_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_notice, "SILENCE_S", PATIENCE_S)
    server = Server(info(-1))
    notice = QuotaNotice(server)
    with notice:
        assert list(notice.over("abc")) == ["a", "b", "c"]
    notice._thread.join(PATIENCE_S)
    assert not notice._thread.is_alive()
    assert server.asked == 0
