"""`Turns`: requests that come together begin, and are answered, in several rounds of the loop."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from treadle.server.http.turns import Turns


def test_few_requests_begin_and_few_parts_are_sent_in_a_round() -> None:
    began: list[int] = []
    sent: list[int] = []
    number = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        began.append(number)
        await gate.wait()
        await send({"type": "http.response.body"})

    async def receive() -> Message:
        raise AssertionError("no request has a body")

    async def send(message: Message) -> None:
        sent.append(number)

    async def answer() -> None:
        nonlocal number
        turns: Any = Turns(app)
        requests = [asyncio.create_task(turns({}, receive, send)) for _ in range(20)]
        while not all(request.done() for request in requests):
            number += 1
            if len(began) == len(requests):
                gate.set()
            await asyncio.sleep(0)

    gate = asyncio.Event()
    asyncio.run(asyncio.wait_for(answer(), 60.0))
    assert len(sent) == 20
    assert max(map(began.count, began)) == 2
    assert max(map(sent.count, sent)) == 8
