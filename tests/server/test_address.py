"""Addresses of a server: the shared vectors, exposure, and sockets that were left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from treadle.server.address import address_fault, exposure, reachable
from treadle.server.app import announce
from treadle.server.exposure_warning import exposure_warning

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


@pytest.mark.parametrize(
    ("address", "callers"),
    [
        ("127.0.0.1:1", ""),
        ("127.8.9.10:1", ""),
        ("localhost:1", ""),
        ("[::1]:1", ""),
        ("[::ffff:127.0.0.1]:1", ""),
        ("unix:/run/socket", ""),
        ("unix-abstract:name", ""),
        ("0.0.0.0:1", "any network"),
        ("[::]:1", "any network"),
        ("[::ffff:10.0.0.1]:1", "who reaches [::ffff:10.0.0.1]"),
        ("192.0.2.1:1", "who reaches 192.0.2.1"),
        ("[fe80::1%lo]:1", "who reaches [fe80::1%lo]"),
    ],
)
def test_a_server_beyond_loopback_says_who_may_call_it(
    address: str,
    callers: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert callers in exposure(address)
    assert bool(callers) == bool(exposure(address))
    announce(address)
    assert capsys.readouterr().out.endswith(f"listening on {address}\n")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == bool(callers)
    for warning in warnings:
        assert exposure(address) in warning
        assert "no authentication" in warning
        assert "--address" in warning


BEYOND = "0.0.0.0:1"


@pytest.mark.parametrize(
    ("tls", "client_ca_file", "callers", "said", "remedies"),
    [
        (False, "", False, "no authentication and no encryption", ["--callers", "--tls-cert-f"]),
        (True, "", False, "no authentication", ["--callers-file", "--tls-client-ca-file"]),
        (True, "ca.pem", False, "everybody with a certificate of ca.pem may", ["--callers-file"]),
        (False, "", True, "may read tokens and texts on their way", ["--tls-cert-file"]),
        (True, "", True, "", []),
        (True, "ca.pem", True, "", []),
    ],
)
def test_the_warning_says_what_is_missing(
    tls: bool, client_ca_file: str, callers: bool, said: str, remedies: list[str]
) -> None:
    assert exposure_warning("127.0.0.1:1", tls, client_ca_file, callers) == ""
    assert exposure_warning("unix:/run/socket", tls, client_ca_file, callers) == ""
    warning = exposure_warning(BEYOND, tls, client_ca_file, callers)
    assert bool(warning) == bool(said)
    assert said in warning
    assert not [remedy for remedy in remedies if remedy not in warning]
    assert ("--callers-file" in warning) == (bool(said) and not callers)
    assert ("--tls-cert-file" in warning) == (bool(said) and not tls)
