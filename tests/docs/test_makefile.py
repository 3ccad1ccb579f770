"""What `make` does in an environment that is there already, and what it compares with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .pages import ROOT

INSTALLS = "pip install --quiet --disable-pip-version-check -e"


def planned(target: str, *variables: str) -> str:
    """Returns the commands that make would run."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", target, *variables],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment that `make venv` has made: its stamp, and the link to the checkout."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    packages = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "__editable__.treadle-0.1.0.pth").touch()
    (tmp_path / "venv" / ".installed").touch()
    return tmp_path / "venv"


@pytest.mark.parametrize("target", ["lint", "demo", "test-jit", "breaking", "image-test"])
def test_an_environment_that_is_up_to_date_stays(environment: Path, target: str) -> None:
    assert INSTALLS not in planned(target, f"VENV={environment}")


@pytest.mark.parametrize("target", ["lint", "demo", "test-jit", "breaking", "image-test"])
def test_a_copy_of_the_sources_is_replaced(environment: Path, target: str) -> None:
    """`pip install .` takes the link away and leaves the stamp."""
    for link in environment.rglob("__editable__*"):
        link.unlink()
    assert INSTALLS in planned(target, f"VENV={environment}")


def test_breaking_compares_with_a_branch(environment: Path) -> None:
    commands = planned("breaking", f"VENV={environment}")
    assert "--against '.git#branch=main'" in commands
    chosen = planned("breaking", f"VENV={environment}", "AGAINST=.git#tag=v0.1.0")
    assert "--against '.git#tag=v0.1.0'" in chosen


def test_the_files_that_are_named_exist() -> None:
    """Those of the uncompiled run, and those that come first."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    uncompiled = re.search(r"^UNCOMPILED := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert uncompiled is not None
    order = re.findall(r'"(tests/.*\.py)"', (ROOT / "tests" / "conftest.py").read_text("utf-8"))
    assert len(order) > 10
    named = [*uncompiled[1].replace("\\", "").split(), *order]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_processes_of_tests_need_not_compile_every_module(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    prints = '--eval=prints: ; @echo "<$$PYTHONDONTWRITEBYTECODE>"'
    command = ["make", "--silent", prints, "prints", f"VENV={environment}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "<>\n"
