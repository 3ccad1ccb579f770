"""`PERMISSIONS` names a role for every method of the service, and `Caller` what it may touch."""

from __future__ import annotations

import grpc
import pytest

from treadle.server.access.caller import ANONYMOUS, Caller, Role
from treadle.server.access.permissions import PERMISSIONS, check_permission
from treadle.server.errors import StatusError
from treadle.v1 import sequence_pb2 as pb

METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["SequenceService"].methods]


def test_every_method_has_a_role_and_no_other_has_one() -> None:
    assert sorted(PERMISSIONS) == sorted(METHODS)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("method", METHODS)
def test_a_role_includes_those_before_it(method: str, role: Role) -> None:
    caller = Caller("ann", role)
    if role >= PERMISSIONS[method]:
        check_permission(caller, method)
        return
    with pytest.raises(StatusError) as caught:
        check_permission(caller, method)
    assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert f"{method} requires the role" in caught.value.message


def test_patterns_decide_which_models_a_caller_reads_and_writes() -> None:
    ann = Caller("ann", Role.TRAINER, ("shared", "team-a-*"), ("team-a-*",))
    assert ann.may_read("shared")
    assert not ann.may_write("shared")
    assert ann.may_write("team-a-names")
    assert not ann.may_read("team-b-names")
    assert not ann.may_read("TEAM-A-names")


def test_what_it_may_write_it_may_read() -> None:
    assert Caller("ann", Role.TRAINER, (), ("mine",)).may_read("mine")
    assert not Caller("ann", Role.USER, (), ("mine",)).may_read("mine")


def test_only_admins_own_what_has_no_owner() -> None:
    assert not Caller("ann", Role.TRAINER).owns("")
    assert Caller("ann", Role.TRAINER).owns("ann")
    assert not Caller("ann", Role.TRAINER).owns("bob")
    assert Caller("root", Role.ADMIN).owns("")
    assert Caller("root", Role.ADMIN).owns("bob")
    assert ANONYMOUS.owns("")
