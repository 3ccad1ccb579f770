"""Every page is well formed: languages of blocks, links and anchors, figures with commands."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from .pages import ROOT, RUN, SHOWN, anchors, blocks, links, pages, prose

PAGES = pages()
COMMAND = re.compile(r"^(\$ |(treadle|treadle-server|treadle-bench|pip|make|docker|python|cd) )")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            name = target.relative_to(ROOT).as_posix()
            assert anchor in anchors(name), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_shown(page: str) -> None:
    for block in blocks(page):
        assert block.language in RUN + SHOWN, f"{block.place} needs one of {RUN + SHOWN}"
        if block.language == "text":
            commands = [line for line in block.text.splitlines() if COMMAND.match(line)]
            assert commands == [], f"{block.place} has commands, so it is a block of sh"


@pytest.mark.parametrize("page", PAGES)
def test_no_command_hides_in_an_indented_block(page: str) -> None:
    indented = [line.strip() for line in prose(page).splitlines() if line.startswith("    ")]
    assert [line for line in indented if COMMAND.match(line)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_is_named_exists(page: str) -> None:
    """A path in a code span, such as `kernels/loss.py` or `python benchmarks/names.py ...`."""
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    named = [word for span in spans for word in span.split()]
    folders = ["benchmarks", "client", "docs", "examples", "kernels", "model", "proto"]
    folders += ["server", "tests"]
    paths = [word for word in named if re.fullmatch(rf"({'|'.join(folders)})/[\w./-]+\w", word)]
    missing = [path for path in paths if not (ROOT / PurePosixPath(path)).exists()]
    assert missing == [], page


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    text = "\n".join([prose(page), *(block.text for block in blocks(page))])
    targets = re.findall(r"(?:^|`)make ([a-z][a-z-]+)", text, re.MULTILINE)
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.M)] == []


def test_the_readme_leads_to_every_page() -> None:
    linked = {link.partition("#")[0] for link in links("README.md")}
    assert {page for page in PAGES if re.fullmatch(r"docs/[\w-]+\.md", page)} <= linked


def test_a_published_port_is_for_this_machine() -> None:
    """Treadle has no passwords, so no example opens its port to everybody."""
    commands = [block.text for page in PAGES for block in blocks(page) if block.language in RUN]
    files = [ROOT / "Dockerfile", *sorted((ROOT / "deploy").glob("*.yaml"))]
    text = "\n".join([*commands, *(file.read_text("utf-8") for file in files)])
    ports = re.findall(r"[\w.:]*:50051(?=[\"' ])", text)
    published = [port for port in ports if port.count(":") > 1 or re.match(r"\d+:", port)]
    assert len(published) >= 4
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []
