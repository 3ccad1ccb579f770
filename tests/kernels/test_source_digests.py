"""A change of the sources changes the digest of what is compiled from them, and of nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from treadle.kernels import source_digests

MODULES = {
    "low": '"""Low."""\n\nLIMIT = 3.0\n',
    "middle": "from treadle.kernels.low import LIMIT\n\n\n"
    'def double():\n    """Doubles."""\n    return 2 * LIMIT\n',
    "top": "from treadle.kernels import middle\n\n\ndef use():\n    return middle.double()\n",
    "aside": "def other():\n    return 1\n",
    "reference": "import treadle.kernels.low\n",
}

Edit = Callable[..., set[str]]


def digests(folder: Path) -> dict[str, str]:
    """Returns the digests as a fresh process sees them."""
    names = [
        name
        for name in dir(source_digests)
        if hasattr(getattr(source_digests, name), "cache_clear")
    ]
    for name in names:
        getattr(source_digests, name).cache_clear()
    return {path.stem: source_digests.source_digest(path) for path in folder.glob("*.py")}


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Changes a module; returns the modules whose digest changed."""
    monkeypatch.setattr(source_digests, "_FOLDER", tmp_path)
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)

    def change(name: str, old: str, new: str) -> set[str]:
        before = digests(tmp_path)
        path = tmp_path / f"{name}.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        after = digests(tmp_path)
        return {each for each in after if after[each] != before.get(each)}

    yield change
    monkeypatch.undo()
    digests(Path(source_digests.__file__).parent)


def test_an_edit_reaches_what_imports_the_module(edit: Edit) -> None:
    assert edit("low", "3.0", "4.0") == {"low", "middle", "top", "reference"}
    assert edit("middle", "2 *", "3 *") == {"middle", "top"}
    assert edit("top", "middle.double()", "-middle.double()") == {"top"}
    assert edit("aside", "1", "2") == {"aside"}
    assert edit("reference", "low", "low, math") == {"reference"}


@pytest.mark.parametrize(
    "line", ["from . import low", "from .low import LIMIT", "import treadle.kernels.low as l"]
)
def test_every_form_of_an_import_counts(line: str, edit: Edit) -> None:
    assert edit("aside", "def", f"{line}\n\n\ndef") == {"aside"}
    assert "aside" in edit("low", "3.0", "4.0")


def test_an_import_within_a_function_counts(edit: Edit) -> None:
    edit("aside", "return 1", "from treadle.kernels.low import LIMIT\n    return LIMIT")
    assert "aside" in edit("low", "3.0", "4.0")


def test_comments_docstrings_and_blank_lines_do_not_count(edit: Edit) -> None:
    assert edit("low", '"""Low."""', '"""Another."""\n# A comment.\n\n') == set()
    assert edit("middle", '"""Doubles."""', '"""Returns twice it."""\n') == set()


def test_every_part_of_a_function_counts(edit: Edit) -> None:
    edits = [("other()", "other(a=1)"), ("return 1", "return 1 in {'b', 'c'}"), ("'b'", "'d'")]
    for old, new in edits:
        assert edit("aside", old, new) == {"aside"}


def test_the_digest_does_not_depend_on_the_process() -> None:
    """Sets of texts are in another order with another hash seed."""
    script = (
        "from pathlib import Path\nfrom treadle.kernels import source_digests as s\n"
        "print([s.source_digest(p) for p in sorted(Path(s.__file__).parent.glob('*.py'))])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_no_kernel_imports_what_is_left_out() -> None:
    """But for the compile policy, whose outcome is a part of the kernels' names."""
    folder = Path(source_digests.__file__).parent
    for path in folder.glob("*.py"):
        code = source_digests._code(path, path.read_bytes())
        assert source_digests._source(path).imports <= source_digests._modules()
        left_out = {f"treadle.kernels.{name}" for name in source_digests._NEVER_COMPILED}
        imported = source_digests._names(code) & left_out
        assert not imported or path.stem in {"jit", *source_digests._NEVER_COMPILED}


READS = """
from pathlib import Path
from treadle.kernels import source_digests
compiled = []
code = source_digests._code
source_digests._code = lambda path, text: (compiled.append(path.stem), code(path, text))[1]
from treadle.kernels import jit
digest = source_digests.source_digest(Path(jit.__file__))
print(digest, source_digests.config.CACHE_DIR, *compiled)
"""


@pytest.mark.jit
def test_what_the_sources_say_is_kept(tmp_path: Path) -> None:
    def read() -> tuple[str, Path, list[str]]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", READS],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        digest, folder, *compiled = done.stdout.split()
        return digest, Path(folder), compiled

    first, folder, compiled = read()
    assert {"jit", "lstm", "disk_cache"} <= set(compiled)
    assert read() == (first, folder, [])
    (kept,) = folder.glob("sources-*")
    for damaged in (b"", kept.read_bytes()[:-2]):
        kept.write_bytes(damaged)
        digest, _, compiled = read()
        assert digest == first
        assert "lstm" in compiled
        assert read() == (first, folder, [])
    assert [path.name for path in folder.iterdir()] == [kept.name]
