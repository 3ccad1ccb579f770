"""The names that a client's certificate proves."""

from __future__ import annotations

from typing import Any

import pytest
from certificates import Authority

from treadle.server.access.client_certificate import names


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def names_of(authority: Authority, common_name: str, **fields: Any) -> tuple[str, ...]:
    pair = authority.issue("client", common_name, **fields)
    return names({"transport_security_type": [b"ssl"], "x509_pem_cert": [pair.cert]})


def test_every_name_of_a_certificate_has_its_kind(authority: Authority) -> None:
    found = names_of(
        authority,
        "robot",
        organization="Lab",
        dns=["Robot.Internal", "robot"],
        ips=["10.0.0.7", "::1"],
        uris=["spiffe://lab/robot"],
        emails=["robot@lab.example"],
    )
    assert found == (
        "CN=robot",
        "CN=robot,O=Lab",
        "DNS:robot.internal",
        "DNS:robot",
        "IP:10.0.0.7",
        "IP:::1",
        "URI:spiffe://lab/robot",
        "EMAIL:robot@lab.example",
    )


def test_a_subject_that_is_a_common_name_alone_is_one_name(authority: Authority) -> None:
    assert names_of(authority, "robot") == ("CN=robot",)


def test_a_certificate_may_have_no_subject(authority: Authority) -> None:
    assert names_of(authority, "", uris=["spiffe://lab/robot"]) == ("URI:spiffe://lab/robot",)


def test_no_common_name_passes_for_another_name(authority: Authority) -> None:
    """A caller that may choose its common name must not become another subject with it."""
    for common_name in ("robot,O=Lab", "robot+O=Lab", "a\\,O=Lab", "DNS:robot", " robot", "robot "):
        for found in names_of(authority, common_name):
            assert found.startswith("CN=")
            assert found not in ("CN=robot", "CN=robot,O=Lab", "CN=robot+O=Lab", "CN=a\\,O=Lab")
    assert names_of(authority, "robot,O=Lab") == ("CN=robot\\,O=Lab",)


def test_without_a_certificate_there_are_no_names(authority: Authority) -> None:
    assert names({}) == ()
    assert names({"transport_security_type": [b"insecure"]}) == ()
    assert names({"x509_common_name": [b"robot"]}) == ()


def test_a_certificate_that_cannot_be_read_has_no_names(caplog: pytest.LogCaptureFixture) -> None:
    assert names({"x509_pem_cert": [b"-----BEGIN CERTIFICATE-----\nAAAA\n"]}) == ()
    assert "cannot be read" in caplog.text
