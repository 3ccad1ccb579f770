"""Many texts at once: in order, each once, only new ones, and the same by the same seed."""

from __future__ import annotations

from typing import Any

import pytest

from treadle.client import Client, InputError, InternalError
from treadle.client.generate_many import later_seed
from treadle.v1.sequence_pb2 import INFERENCE_PRECISION_INT8

from .fake import STUCK, FakeService

OLD = ("abe", "ada", "amy", "ann", "bea", "cay", "dee", "eva", "fay", "ida", "joy", "kim", "may")
NEW = ("nan", "ora", "pam", "roy", "sam", "tom", "una", "viv", "wes", "xia", "yan", "zoe")
NAMES = dict.fromkeys(OLD, False) | dict.fromkeys(NEW, True)


def names(client: Client, n: int = 8, **options: Any) -> list[str]:
    with client.generate_many("m", n=n, **options) as items:
        return [text.text for text in items]


def test_texts_come_in_the_order_of_their_numbers_however_they_end(
    client: Client, service: FakeService
) -> None:
    service.novel = NAMES
    with client.generate_many(
        "m", "x", 5, seed=3, temperature=0.5, log_probabilities=True
    ) as items:
        texts = list(items)
    assert [text.index for text in texts] == [0, 1, 2, 3, 4]  # the fake ends the last one first
    assert all(text.text in NAMES for text in texts)
    assert texts[0].result.total_log_probability == -3
    assert (items.missing, items.given, items.tries, items.seed) == (0, 5, 5, 3)
    (request,) = service.requests
    assert (request.n, request.seed, request.prompt) == (5, 3, "x")


def test_a_text_does_not_wait_for_those_behind_it(client: Client, service: FakeService) -> None:
    with client.generate_many(STUCK, n=3) as items:
        assert next(iter(items)).index == 0  # and the others never end


def test_texts_that_never_end_are_missed(client: Client, service: FakeService) -> None:
    service.lost = {1}
    with client.generate_many("m", n=4) as items:
        taken = iter(items)
        assert next(taken).index == 0
        with pytest.raises(InternalError, match="3 of the texts ended without a result"):
            next(taken)


def test_unique_texts_are_looked_for_until_there_are_enough(
    client: Client, service: FakeService
) -> None:
    service.novel = NAMES
    found = names(client, 20, unique=True, seed=1)
    assert len(set(found)) == len(found) == 20
    assert len(service.requests) > 1
    assert [request.version for request in service.requests[1:]] == [1] * (
        len(service.requests) - 1
    )


def test_later_calls_keep_to_the_precision_of_the_first_one(
    client: Client, service: FakeService
) -> None:
    service.novel = NAMES
    service.precision = INFERENCE_PRECISION_INT8
    names(client, 20, unique=True, seed=1)
    first, *later = [request.inference_precision for request in service.requests]
    assert first == 0
    assert set(later) == {INFERENCE_PRECISION_INT8}


def test_the_same_seed_gives_the_same_texts(client: Client, service: FakeService) -> None:
    service.novel = NAMES
    first = names(client, 20, unique=True, novel=True, seed=1, max_tries=100)
    seeds = [request.seed for request in service.requests]
    service.requests.clear()
    assert names(client, 20, unique=True, novel=True, seed=1, max_tries=100) == first
    assert [request.seed for request in service.requests] == seeds
    assert len(set(seeds)) == len(seeds) > 1
    assert names(client, 20, unique=True, novel=True, seed=2, max_tries=100) != first


def test_a_seed_that_the_server_picked_is_the_first_of_the_later_ones(
    client: Client, service: FakeService
) -> None:
    service.novel = dict.fromkeys("ab", True)
    with client.generate_many("m", n=2, unique=True) as items:
        assert {text.text for text in items} <= {"a", "b"}
    assert items.seed == 2**63
    later = [request.seed for request in service.requests[1:]]
    assert later == [later_seed(2**63, number) for number in range(1, len(later) + 1)]


def test_only_new_texts(client: Client, service: FakeService) -> None:
    service.novel = NAMES
    found = names(client, 10, novel=True, seed=4)
    assert len(found) == 10
    assert all(NAMES[name] for name in found)
    assert all(request.novelty for request in service.requests)


def test_no_more_texts_are_made_than_were_allowed(client: Client, service: FakeService) -> None:
    service.novel = NAMES
    with client.generate_many("m", n=9, unique=True, max_tries=2, seed=1) as items:
        assert len(list(items)) == 2
    assert (items.tries, [request.n for request in service.requests]) == (2, [2])


def test_fewer_texts_where_there_are_no_more(client: Client, service: FakeService) -> None:
    service.novel = {"ann": True, "bea": True, "cay": False}
    with client.generate_many("m", n=5, unique=True, novel=True, seed=1) as items:
        assert sorted(text.text for text in items) == ["ann", "bea"]
    assert (items.missing, items.tries) == (3, 50)
    service.requests.clear()
    assert len(names(client, 5, unique=True, max_tries=7, seed=1)) <= 3
    assert sum(request.n for request in service.requests) == 7


@pytest.mark.parametrize("options", [{"temperature": 0}, {"best_of": 8}])
def test_what_is_not_drawn_is_asked_for_once(
    client: Client, service: FakeService, options: dict[str, Any]
) -> None:
    service.novel = {"ann": True}
    assert names(client, 5, unique=True, **options) == ["ann"]
    assert len(service.requests) == 1


def test_more_than_one_call_holds(client: Client, service: FakeService) -> None:
    with client.generate_many("m@best", n=600, seed=1) as items:
        texts = list(items)
    assert [text.index for text in texts] == list(range(600))
    assert [request.n for request in service.requests] == [256, 256, 88]
    assert [request.model for request in service.requests] == ["m@best", "m", "m"]
    assert [request.seed for request in service.requests] == [1, later_seed(1, 1), later_seed(1, 2)]


def test_later_seeds_are_those_of_splitmix64() -> None:
    # The first outputs of the reference generator for the seed 1234567.
    assert [later_seed(1234567, number) for number in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_items_may_be_left(client: Client, service: FakeService) -> None:
    service.novel = NAMES
    with client.generate_many("m", n=20, unique=True) as items:
        next(iter(items))
    assert list(items) == []
    assert service.over.wait(120)


def test_wrong_use_is_reported_at_once(client: Client, service: FakeService) -> None:
    with pytest.raises(InputError, match="n cannot be 0"):
        client.generate_many("m", n=0)
    for tries in (0, -1):
        with pytest.raises(InputError, match="max_tries cannot be"):
            client.generate_many("m", n=2, unique=True, max_tries=tries)
    with pytest.raises(InputError, match="max_tries has no effect where every text counts"):
        client.generate_many("m", n=2, max_tries=3)
    with pytest.raises(InputError, match="at most 256"):
        client.generate_many("m", n=257, best_of=300)
    with pytest.raises(InputError, match="either a model or a job"):
        client.generate_many()
    with pytest.raises(InputError, match="seed cannot be -1"):
        client.generate_many(STUCK, seed=-1)
    options: Any = {"n": 3}
    with pytest.raises(InputError, match="generate_many"):
        client.generate("m", **options)
    assert service.requests == []
