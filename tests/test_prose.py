"""Holds docstrings, words and layout to the style of CONTRIBUTING.md, where ruff has no rule.

ruff checks the sections of docstrings (Args, Returns, Yields, Raises). These tests check that a
module's docstring begins with its main name, that functions are described in the third person,
that the words of prose.toml stay out, and that a line holds one statement.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels", "model", "server", "client", "benchmarks")
SETTINGS = tomllib.loads((ROOT / "tests/prose.toml").read_text("utf-8"))
INSTEAD: dict[str, str] = SETTINGS["instead"]
STAYS: dict[str, list[str]] = SETTINGS["stays"]
PHRASES = "|".join(INSTEAD).replace(" ", "\\s+")
WORDS = re.compile(rf"\b({PHRASES})\b", re.IGNORECASE)
QUESTION = re.compile(r"(What|How|Whether|Whose|Who|Where)\b")


def sources(folder: str) -> Iterator[tuple[str, ast.Module]]:
    """Yields the path and the syntax tree of every module in a folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def texts(name: str) -> Iterator[tuple[str, str]]:
    """Yields the path and the text of every page and source in a folder, or of one page."""
    paths = [ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*"))
    for path in paths:
        if path.suffix in {".md", ".proto", ".py", ".pyi"} and "node_modules" not in path.parts:
            yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8")


def folders_and_pages() -> list[str]:
    """Returns every folder with sources or pages, and the pages at the top."""
    folders = ["benchmarks", "client", "docs", "examples", "kernels", "model", "proto", "server"]
    return [*folders, "tests", ".github", *sorted(path.name for path in ROOT.glob("*.md"))]


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yields the public functions of a module and the public methods of its classes."""
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for body in bodies:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                yield node


def is_noun(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Returns whether a function is described like a thing: a property, or a benchmark's attack."""
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    return any(re.search(r"property$|^scenario\b", name) for name in decorators)


def names_defined(tree: ast.Module) -> set[str]:
    """Returns the names that a module defines at its top level, imports left out."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def first_sentence(docstring: str) -> str:
    """Returns the first sentence of a docstring on one line."""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", paragraph, maxsplit=1)[0]


@pytest.mark.parametrize("name", folders_and_pages())
def test_words_are_those_of_the_field(name: str) -> None:
    wrong = [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1} {match[0]!r}"
        for path, text in texts(name)
        for match in WORDS.finditer(text)
        if match[0].lower() not in STAYS.get(path, ())
    ]
    assert not wrong, "\n".join(["tests/prose.toml has what to write instead:", *wrong])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_module_begins_with_its_main_name(package: str) -> None:
    """Of a class, a function or a constant, or of the command that the module is."""
    wrong = []
    for path, tree in sources(package):
        sentence = first_sentence(ast.get_docstring(tree) or "")
        spans = set(re.findall(r"`([\w.]+)", sentence))
        named = {part for span in spans for part in span.split(".")} & names_defined(tree)
        is_folder = path.endswith(("__init__.py", "__main__.py"))
        is_command = path.startswith("client/cli/") and "`treadle " in sentence
        if QUESTION.match(sentence) or not (named or is_folder or is_command):
            wrong.append(f"{path}: {sentence}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_are_described_in_the_third_person(package: str) -> None:
    wrong = []
    for path, tree in sources(package):
        for function in functions(tree):
            docstring = ast.get_docstring(function)
            if docstring and not is_noun(function):
                word = docstring.split()[0].rstrip(",.:;")
                if not re.fullmatch(r"[A-Z]\w*[a-rt-z]s|[A-Z]\w*sses", word):
                    wrong.append(f"{path}:{function.lineno} {function.name}: {word}")
    assert not wrong, "\n".join(wrong)


def parallel_assignments(tree: ast.Module) -> list[int]:
    """Returns the lines of `a, b = x, y`, swaps left out."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)):
            continue
        for target in node.targets:
            if isinstance(target, ast.Tuple):
                left = {ast.unparse(element) for element in target.elts}
                right = {ast.unparse(element) for element in node.value.elts}
                if left != right:
                    found.append(node.lineno)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_line_holds_one_statement(package: str) -> None:
    """Fewer than two parallel assignments in a thousand lines."""
    packed = [
        f"{path}:{line}" for path, tree in sources(package) for line in parallel_assignments(tree)
    ]
    lines = sum(text.count("\n") for path, text in texts(package) if path.endswith(".py"))
    assert len(packed) < 2 * lines / 1000, "\n".join(packed)


def test_the_formatter_lays_out_nearly_everything() -> None:
    """Only the signatures of kernels are laid out by hand."""
    mark = "fmt: " + "skip"
    skips = [
        path
        for folder in (*PACKAGES, "examples", "tests")
        for path, text in texts(folder)
        for _ in range(text.count(mark))
    ]
    assert len(skips) < SETTINGS["fmt_skips"], "\n".join(skips)


def test_parallel_assignments_are_counted() -> None:
    tree = ast.parse("a, b = 1, 2\na, b = b, a\na, b = f()\na = b = 1, 2\n")
    assert parallel_assignments(tree) == [1]
