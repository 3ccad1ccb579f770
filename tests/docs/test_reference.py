"""Checks that the API reference has every public name, and that the site's menu has every page."""

from __future__ import annotations

import importlib
import re

import pytest

from .pages import ROOT, pages


@pytest.mark.parametrize("package", ["client", "model"])
def test_the_reference_has_every_public_name(package: str) -> None:
    page = (ROOT / f"docs/reference/{package}.md").read_text("utf-8")
    shown = re.findall(rf"^::: treadle\.{package}\.(\w+)$", page, re.MULTILINE)
    public = importlib.import_module(f"treadle.{package}").__all__
    assert sorted(shown) == sorted(public)


def test_the_menu_has_every_page() -> None:
    """`mkdocs build --strict` finds the same, in half a minute."""
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    found = set(re.findall(r"^ +- (?:[^:]+: )?(\S+\.md)$", menu, re.MULTILINE))
    kept = {page.removeprefix("docs/") for page in pages() if not page.startswith("examples/")}
    assert found == kept - {"README.md"} | {"index.md", "CHANGELOG.md"}
