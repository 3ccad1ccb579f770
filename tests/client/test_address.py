from __future__ import annotations

import json
from pathlib import Path

import pytest

from treadle.client import Client, InputError
from treadle.client.address import check_address, is_local
from treadle.client.connection import channel_options

from .shell import complaint, run

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "addresses.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["address"][:30])
def test_addresses_are_read_as_the_server_reads_them(vector: dict[str, str]) -> None:
    expected = vector.get("client", vector.get("both", ""))
    if expected:
        with pytest.raises(InputError, match=expected):
            check_address(vector["address"])
    else:
        check_address(vector["address"])


def test_what_is_no_address_reaches_no_server() -> None:
    with pytest.raises(InputError, match="lacks a port"):
        Client("localhost")
    assert "lacks a port" in complaint(run("localhost", "info"), 2)
    assert "is empty" in complaint(run("", "info"), 2)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.1.2.3:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("unix:/socket", True),
        ("unix-abstract:name", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("10.0.0.1:1", False),
        ("dns:///example.org:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_no_proxy_stands_before_this_machine(address: str, local: bool) -> None:
    assert is_local(address) is local
    assert (("grpc.enable_http_proxy", 0) in channel_options(address)) is local
