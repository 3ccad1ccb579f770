"""The table of calls and roles in docs/security.md is that of the server."""

from __future__ import annotations

from treadle.server.access.permissions import PERMISSIONS

from .role_table import PAGE, SCOPES, role_table, written_table


def test_the_page_has_the_roles_that_the_server_reads() -> None:
    written = written_table(PAGE.read_text("utf-8"))
    assert written == role_table(), "run `PYTHONPATH=tests python -m docs.role_table`"


def test_every_call_is_described() -> None:
    assert sorted(SCOPES) == sorted(PERMISSIONS)
