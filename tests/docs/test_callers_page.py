"""docs/callers.md shows files that the server reads, and names everything that may be in one."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from treadle.server.access.callers.callers_file import parse_callers
from treadle.server.access.oidc.settings import ALGORITHMS, KeySettings, OidcSettings
from treadle.server.access.rights import QUOTAS, ROLES
from treadle.server.token_command import build_parser

from .pages import Block, blocks, prose

PAGE = "docs/callers.md"
FILES = [block for block in blocks(PAGE) if block.language == "toml"]


@pytest.mark.parametrize("block", FILES, ids=lambda block: block.place)
def test_every_file_can_be_used(block: Block) -> None:
    file = parse_callers(block.text.encode(), Path("callers.toml"))
    assert file.callers or file.oidc


def test_everything_is_named() -> None:
    text = prose(PAGE)
    words = {*QUOTAS, *ROLES, *(field.name for field in fields(KeySettings))}
    words |= {field.name for field in fields(OidcSettings) if field.name != "keys"}
    assert {word for word in words if f"`{word}`" not in text} == set()
    assert {name for name in ALGORITHMS if not re.search(rf"\b{name}\b", text)} == set()
    commands = build_parser()._subparsers
    assert commands is not None
    (action,) = commands._group_actions
    assert action.choices is not None
    assert {name for name in action.choices if f"`treadle-server token {name}" not in text} == set()
