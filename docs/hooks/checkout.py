"""`on_files` brings the rest of the checkout into the site, so that every link works in both.

On GitHub a page links to `../kernels/lstm.py` or `../CHANGELOG.md`. MkDocs knows only what lies
under docs/, so this hook adds each linked file to the site: a page of Markdown as it is, code as a
page with the code on it, a folder as a list of its files. README.md is the site's first page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
_LANGUAGES = {".py": "python", ".proto": "protobuf", ".yaml": "yaml", ".sh": "bash"}
_LEFT_OUT = {"__pycache__", "node_modules"}


def site_uri(path: str) -> str:
    """Returns where a file or folder of the checkout is in the site's sources."""
    if path in {"README.md", "docs"}:
        return "index.md"
    if (ROOT / path / "README.md").exists():
        return site_uri(f"{path}/README.md")
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".md"):
        return path
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}.md"


def checkout_path(uri: str) -> str:
    """Returns which file of the checkout a page of the site shows."""
    if uri == "index.md":
        return "README.md"
    if uri.startswith("source/"):
        return uri.removeprefix("source/").removesuffix("/index.md").removesuffix(".md")
    return f"docs/{uri}" if (ROOT / "docs" / uri).exists() else uri


def linked(path: str, target: str) -> str | None:
    """Returns the path that a link on a page leads to; None where it leaves the checkout."""
    if re.match(r"[a-z]+:", target):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return found if (ROOT / found).exists() else None


def links(path: str, text: str) -> set[str]:
    """Returns the paths that a page links to, blocks of code left out."""
    found = {linked(path, target) for target in _LINK.findall(_FENCE.sub("", text))}
    return {other for other in found if other is not None}


def text_of(path: str) -> str:
    """Returns the Markdown that shows a file or a folder of the checkout."""
    file = ROOT / path
    if path.endswith(".md"):
        return file.read_text("utf-8")
    if file.is_dir():
        inside = sorted(child for child in file.iterdir() if child.name not in _LEFT_OUT)
        names = [child.name for child in inside if child.name[0] != "."]
        rows = "".join(f"- [{name}]({posixpath.basename(path)}/{name})\n" for name in names)
        return f"# {path}\n\n{rows}"
    language = _LANGUAGES.get(file.suffix, "text")
    return f"# {path}\n\n`````{language}\n{file.read_text('utf-8')}\n`````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds every file that a page of docs/ leads to, directly or over other pages."""
    waiting = {path.name for path in ROOT.glob("*.md")}
    waiting |= {f"docs/{file.src_uri}" for file in files.documentation_pages()}
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        if (ROOT / path / "README.md").exists():
            waiting |= {f"{path}/README.md"} - seen
            continue
        text = text_of(path)
        if not f"{path}/".startswith("docs/"):
            files.append(File.generated(config, site_uri(path), content=text))
        if path.endswith(".md") or (ROOT / path).is_dir():
            waiting |= links(path, text) - seen
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns a page whose links to the checkout lead to the pages of the site."""
    uri = page.file.src_uri
    path = checkout_path(uri)

    def moved(match: re.Match[str]) -> str:
        other = linked(path, match[0])
        if other is None:
            return match[0]
        return posixpath.relpath(site_uri(other), posixpath.dirname(uri) or ".")

    blocks = [match.span() for match in _FENCE.finditer(markdown)]
    parts = []
    end = 0
    for start, stop in [*blocks, (len(markdown), len(markdown))]:
        parts += [_LINK.sub(moved, markdown[end:start]), markdown[start:stop]]
        end = stop
    return "".join(parts)
