"""The page that is made from the contract alone, used in Chromium where it can be built and run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "browser"
MISSING = 77
"""The exit code of a script that lacks a tool."""


def test_the_lock_file_names_exact_versions_and_no_registry() -> None:
    package = json.loads((EXAMPLE / "package.json").read_text("utf-8"))
    lock = json.loads((EXAMPLE / "package-lock.json").read_text("utf-8"))
    for kind in ("dependencies", "devDependencies"):
        assert lock["packages"][""][kind] == package[kind]
        assert all(re.fullmatch(r"[\d.]+", version) for version in package[kind].values())
    modules = [module for name, module in lock["packages"].items() if name]
    assert all("resolved" not in module for module in modules)
    assert all(module["integrity"].startswith("sha512-") for module in modules)


def run(*words: str | Path) -> str:
    """Runs a script and returns what it says; skips the test where it lacks a tool."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == MISSING:
        pytest.skip(done.stdout.strip())
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_reader_generates_scores_and_is_refused(tmp_path: Path) -> None:
    assert run(EXAMPLE / "build.sh", tmp_path) == ""
    page = tmp_path / "page"
    assert {path.name for path in page.iterdir()} == {"index.html", "main.js"}
    first, _, second, _, maria, refused = run(
        sys.executable, EXAMPLE / "run.py", tmp_path
    ).splitlines()
    assert re.fullmatch(r"an[a-z]*", first)
    assert re.fullmatch(r"jo[a-z]*", second)
    assert re.fullmatch(r"-\d+\.\d\d nats  maria", maria)
    assert re.match(r"refused: InvalidArgument: '4' .* is not among", refused)
    assert refused.endswith("(texts[0])")
