"""`make test-shared` installs azurite where the tests find it, and says why where it cannot."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from services.azure import azurite

INSTALL = Path(__file__).parent / "services" / "install_azurite.sh"
# Does what npm does with a package that brings a program, and keeps its arguments.
NPM = """#!/bin/sh
echo "$@" >>"$0.log"
while [ "$1" != --prefix ]; do shift; done
mkdir -p "$2/bin"
printf '#!/bin/sh\\n' >"$2/bin/azurite-blob"
chmod +x "$2/bin/azurite-blob"
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of Python that the tests run in."""
    folder = tmp_path / "environment"
    monkeypatch.setattr(sysconfig, "get_path", lambda name: {"scripts": f"{folder}/bin"}[name])
    return folder


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of programs, with those that the script itself needs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("bash", "sh", "mkdir", "chmod"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(environment: Path) -> str:
    """Returns what the installer says."""
    done = subprocess.run([INSTALL, environment], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_it_is_installed_once_and_found(programs: Path, environment: Path) -> None:
    assert azurite() is None
    (programs / "npm").write_text(NPM)
    (programs / "npm").chmod(0o755)
    assert install(environment) == ""
    assert azurite() == f"{environment}/bin/azurite-blob"
    assert install(environment) == ""
    calls = (programs / "npm.log").read_text().splitlines()
    assert len(calls) == 1
    assert "azurite@" in calls[0]


def test_one_of_the_machine_is_enough(programs: Path, environment: Path) -> None:
    found = programs / "azurite-blob"
    found.write_text("#!/bin/sh\n")
    found.chmod(0o755)
    assert install(environment) == ""
    assert azurite() == str(found)


@pytest.mark.usefixtures("programs")
def test_without_npm_it_says_what_is_missing(environment: Path) -> None:
    assert "install npm" in install(environment)
    assert not environment.exists()
