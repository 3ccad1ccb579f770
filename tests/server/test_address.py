from __future__ import annotations

import json
from pathlib import Path

import pytest

from treadle.server.address import address_fault, reachable

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "addresses.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["address"][:30])
def test_addresses_are_read_as_the_client_reads_them(vector: dict[str, str]) -> None:
    fault = address_fault(vector["address"])
    expected = vector.get("server", vector.get("both", ""))
    assert bool(fault) == bool(expected)
    assert expected in fault


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("10.0.0.1:1", "10.0.0.1:1"),
        ("unix:/run/socket", "unix:/run/socket"),
        ("unix-abstract:name", "unix-abstract:name"),
    ],
)
def test_health_is_asked_where_the_server_can_be_reached(address: str, target: str) -> None:
    assert reachable(address) == target
