"""A client of two replicas notices nothing of it when one of them is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from services.postgresql import PostgresqlServer

from treadle.client import Client
from treadle.client.errors import ServerError

from .harness import TEXT, tiny_spec
from .replicas import Replicas

pytestmark = pytest.mark.shared


@pytest.mark.parametrize("killed", [0, 1])
def test_training_and_texts_go_on(
    tmp_path: Path, postgresql_server: PostgresqlServer, killed: int
) -> None:
    name = postgresql_server.new_database()
    blobs = (tmp_path / "blobs").as_uri()
    flags = ("--lease-s", "2", "--checkpoint-interval-s", "0.3")
    replicas = Replicas(tmp_path, postgresql_server.url(name), blobs, 2, *flags)
    servers = [server for server in replicas.servers if server is not None]
    addresses = ",".join(server.address for server in servers)
    spec = tiny_spec("long", max_steps=20_000)
    spec.report.progress_interval_s = 0.1
    spec.request_id = "once"
    # More than the client buffers, so that the killed server has not sent it all.
    asked: dict[str, Any] = {"seed": 4, "max_new_tokens": 8000, "return_state": True}
    asked["log_probabilities"] = True
    try:
        with Client(addresses) as client, Client(servers[1 - killed].address) as survivor:
            client.wait_ready(60)
            client.train(TEXT, spec=tiny_spec("used", max_steps=20)).result()
            with survivor.generate("used", "a", **asked) as undisturbed:
                whole = "".join(undisturbed), undisturbed.result()
            breaks: list[ServerError] = []
            run = client.train(TEXT, spec=spec)
            run.on_break = breaks.append
            events = [next(run)]
            while not events[-1].HasField("progress"):
                events.append(next(run))
            texts = [client.generate("used", "a", on_break=breaks.append, **asked) for _ in "1234"]
            pieces = [iter(text) for text in texts]
            begun = [next(each) for each in pieces]
            assert replicas.kill(killed)
            for first, rest, text in zip(begun, pieces, texts, strict=True):
                assert (first + "".join(rest), text.result()) == whole
            events += run
            assert breaks
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert events[-1].HasField("completed")
            again = list(survivor.watch(run.job))
            assert again == events
            assert [job.id for job in survivor.jobs(model="long")] == [run.job]
    finally:
        replicas.close()
        postgresql_server.drop_database(name)
