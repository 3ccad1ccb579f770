"""`together` makes all attacks on memory at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from treadle.benchmarks.scenarios import template
from treadle.benchmarks.scenarios.memory_attacks import (
    echo_all,
    ignore_replies,
    learn_all,
    send_pieces,
)
from treadle.benchmarks.scenarios.report import Figure
from treadle.benchmarks.scenarios.target import MESSAGE, Target, counted, scenario

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as AsyncStub


@scenario("together")
def together(target: Target) -> list[Figure]:
    """Echoes, large pieces, unread replies and large learners at the same time."""
    seconds = 5.0 if target.is_quick else 20.0
    piece = template.words(MESSAGE)
    prompt = template.words(target.few(500_000))

    async def attack(stub: AsyncStub) -> tuple[list[str], ...]:
        return await asyncio.gather(
            echo_all(stub, 4, prompt),
            send_pieces(stub, target.few(80), seconds, piece),
            ignore_replies(stub, target.few(250), seconds),
            learn_all(stub, 16, "large", seconds),
        )

    statuses = target.run(attack)
    note = "; ".join(counted(group) for group in statuses)
    return [
        Figure("server grew", target.grew_mib(), "MiB", 3072.0, note[:160]),
        target.kept(),
    ]
