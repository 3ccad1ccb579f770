"""Checks that the hooks for commits and the templates of the repository can be read."""

from __future__ import annotations

import re

import pytest
import yaml  # type: ignore[import-untyped]

from .pages import ROOT

FORMS = sorted((ROOT / ".github").rglob("*.yml"))


def test_every_hook_calls_a_tool_of_the_project() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert len(hooks) >= 7
    for hook in hooks:
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/") or (ROOT / program).exists(), hook["id"]
        if "files" in hook:
            re.compile(hook["files"])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_of_the_repository_is_yaml(form: object) -> None:
    assert isinstance(yaml.safe_load((ROOT / str(form)).read_text("utf-8")), dict)
