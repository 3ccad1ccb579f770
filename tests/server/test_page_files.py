"""The files of the page: what is served, under which headers, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from treadle.server.http.page.routes import routes
from treadle.server.http.page.static_files import static_files

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "server/http/page/static"
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=routes()))


def test_all_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < MOST_BYTES


def test_every_file_is_served_as_it_is(client: TestClient) -> None:
    assert set(static_files()) == {path.name for path in STATIC.iterdir()}
    for name, file in static_files().items():
        answer = client.get(f"/page/{name}")
        assert answer.content == (STATIC / name).read_bytes()
        assert answer.headers["content-type"] == file.media_type
    assert client.get("/").content == (STATIC / "index.html").read_bytes()


def test_headers_let_the_page_do_no_more_than_it_must(client: TestClient) -> None:
    for path in ("/", "/page/main.js", "/page/base.css", "/page/icon.svg"):
        headers = client.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        nothing = ("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types")
        assert {policy[name] for name in nothing} == {"'none'"}
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"


def test_a_file_that_the_browser_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = client.get("/page/main.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert client.get("/page/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/none.js",
        "/page/..%2froutes.py",
        "/page/%2e%2e/routes.py",
        "/page/__init__.py",
    ],
)
def test_no_other_file_can_be_named(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_files_can_be_read_and_not_written(client: TestClient) -> None:
    assert client.head("/").status_code == 200
    assert client.post("/").status_code == 405


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_no_file_names_another_host_or_makes_markup(path: Path) -> None:
    """Names of XML and links in comments are no requests."""
    text = re.sub(
        r"^ *//.*$|http://www\.w3\.org/2000/svg", "", path.read_text(), flags=re.MULTILINE
    )
    assert not re.search(r"https?:|[\"'(]//", text)
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|style="
    assert not re.search(markup, text)
    assert not re.search(r"<script>|<style| on\w+=", text)


def test_every_file_that_a_module_imports_exists() -> None:
    for path in STATIC.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', path.read_text()):
            assert (STATIC / name).is_file(), f"{path.name} imports {name}"


def test_pictures_of_the_documentation_are_small() -> None:
    images = [*(ROOT / "docs/images").glob("*.png")]
    assert len(images) > 8
    assert sum(path.stat().st_size for path in images) < MOST_BYTES
