"""What a model name, an alias, NAME@ALIAS and a request id may be."""

from __future__ import annotations

import pytest

from treadle.server.errors import StatusError
from treadle.server.names import (
    LATEST,
    alias_violations,
    check_model_and_alias,
    check_name,
    is_name,
    name_violations,
    reference_violations,
    request_id_violations,
    split,
)

GOOD = ["a", "A.b_c-9", "9", "x" * 100]
BAD = ["", ".", "..", "../x", "a/b", "a\\b", "-a", "_a", ".a", "a b", "a\n", "ä", "x" * 101, "a\0"]


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name: str) -> None:
    check_name(name)
    assert is_name(name)
    assert not reference_violations(f"{name}@{LATEST}")


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(StatusError, match="model must be 1 to 100 letters"):
        check_name(name)
    assert [field for field, _ in name_violations(name, "spec.init_from")] == ["spec.init_from"]
    assert [field for field, _ in reference_violations(f"a@{name}")] == ["model"]
    assert [field for field, _ in alias_violations(name, "publish.alias")] == ["publish.alias"]


@pytest.mark.parametrize(
    ("alias", "fault"),
    [(LATEST, "always is the newest version"), ("17", "must not be a number"), ("é", "must be 1")],
)
def test_a_name_that_no_version_may_get(alias: str, fault: str) -> None:
    ((field, text),) = alias_violations(alias)
    assert field == "alias"
    assert fault in text
    with pytest.raises(StatusError, match=r"model must .*; alias must "):
        check_model_and_alias("-", alias)


@pytest.mark.parametrize("request_id", ["", "a", "~ !", "x" * 100])
def test_good_request_ids(request_id: str) -> None:
    assert request_id_violations(request_id, "spec.request_id") == []


@pytest.mark.parametrize("request_id", ["é", "a\n", "\x7f", "x" * 101])
def test_bad_request_ids(request_id: str) -> None:
    ((field, text),) = request_id_violations(request_id, "spec.request_id")
    assert field == "spec.request_id"
    assert text == "request_id must be up to 100 printable characters of ASCII"


def test_a_reference_is_split_into_name_and_alias() -> None:
    assert split("m", 3) == ("m", "")
    assert split("m@prod", 0) == ("m", "prod")
    with pytest.raises(StatusError, match="leave out version 3, or the alias"):
        split("m@prod", 3)
    with pytest.raises(StatusError, match="must be NAME or NAME@ALIAS"):
        split("m@", 0)
