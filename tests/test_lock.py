"""Checks that the locks under requirements/ fit pyproject.toml, and that the image obeys them.

Nothing here asks a package index.
"""

from __future__ import annotations

import copy
import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements"
EXTRAS = ("server", "bpe", "cli", "http", "objectstore", "oidc", "otel", "postgresql")
"""What the image installs besides the client."""
MACHINES = ("x86_64", "aarch64")

_ENTRY = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
    r"(?P<why>(?:    # .*\n)*)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Locked:
    """One package of a lock."""

    name: str
    version: Version
    is_direct: bool
    """Whether Treadle requires it, and not only another package."""


def lock_text(name: str) -> str:
    """Returns a lock without the comment at its head."""
    lines = (REQUIREMENTS / name).read_text("utf-8").splitlines(keepends=True)
    while lines[0].startswith("#"):
        lines.pop(0)
    return "".join(lines)


def read_lock(name: str) -> dict[str, Locked]:
    """Returns the packages of a lock by their names."""
    found = {}
    for match in _ENTRY.finditer(lock_text(name)):
        is_direct = "treadle (pyproject.toml)" in match["why"]
        found[match["name"]] = Locked(match["name"], Version(match["version"]), is_direct)
    return found


def environment(machine: str) -> dict[str, str]:
    """Returns what markers are compared with in the image on one kind of processor."""
    return {
        "extra": "",
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": "3.11.2",
        "python_version": "3.11",
        "sys_platform": "linux",
    }


def applicable(requirements: list[str], extras: set[str], machine: str) -> Iterator[Requirement]:
    """Yields the requirements that apply in the image."""
    for text in requirements:
        requirement = Requirement(text)
        surroundings = environment(machine)
        chosen = [surroundings | {"extra": extra} for extra in ("", *sorted(extras))]
        if requirement.marker is None or any(map(requirement.marker.evaluate, chosen)):
            yield requirement


def of_the_image(pyproject: dict[str, Any]) -> list[str]:
    """Returns the requirements of the image as pyproject.toml has them.

    Those of Treadle itself, by which an extra includes another, are left out.
    """
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    items = (item for extra in EXTRAS for item in extras[extra])
    return [
        *project["dependencies"],
        *(item for item in items if Requirement(item).name != project["name"]),
    ]


def faults(pyproject: dict[str, Any], lock: dict[str, Locked]) -> list[str]:
    """Returns what image.lock has otherwise than pyproject.toml."""
    found = []
    names = set()
    for machine in MACHINES:
        for requirement in applicable(of_the_image(pyproject), set(), machine):
            name = canonicalize_name(requirement.name)
            names.add(name)
            if name not in lock:
                found.append(f"{requirement} is not locked")
            elif not requirement.specifier.contains(lock[name].version, prereleases=True):
                found.append(f"{requirement} is locked at {lock[name].version}")
    unasked = {locked.name for locked in lock.values() if locked.is_direct} - names
    return sorted({*found, *(f"{name} is locked but not required" for name in unasked)})


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def lock() -> dict[str, Locked]:
    return read_lock("image.lock")


def test_the_lock_fits_pyproject(pyproject: dict[str, Any], lock: dict[str, Locked]) -> None:
    assert faults(pyproject, lock) == [], "run `make lock`"


def test_a_changed_requirement_needs_a_new_lock(
    pyproject: dict[str, Any], lock: dict[str, Locked]
) -> None:
    changed = copy.deepcopy(pyproject)
    changed["project"]["dependencies"].append("left-pad>=1")
    changed["project"]["optional-dependencies"]["server"].remove("numpy>=2.0")
    changed["project"]["optional-dependencies"]["bpe"] = ["tokenizers>=9999"]
    assert faults(changed, lock) == [
        "left-pad>=1 is not locked",
        "numpy is locked but not required",
        f"tokenizers>=9999 is locked at {lock['tokenizers'].version}",
    ]


@pytest.mark.parametrize("name", ["image.lock", "ray.lock", "build.lock"])
def test_a_lock_names_packages_with_hashes_and_nothing_else(name: str) -> None:
    """Neither a package without a hash, nor an option, nor where this machine finds packages."""
    text = lock_text(name)
    assert len(read_lock(name)) > 10
    assert _ENTRY.sub("", text) == ""
    assert "://" not in (REQUIREMENTS / name).read_text("utf-8")


def test_the_image_for_ray_has_the_same_versions_and_ray(lock: dict[str, Locked]) -> None:
    """Other versions of NumPy or Numba could give other bits on the nodes than on the server."""
    with_ray = read_lock("ray.lock")
    assert {name: with_ray[name].version for name in lock} == {
        name: locked.version for name, locked in lock.items()
    }
    assert with_ray["ray"].is_direct
    cluster = (ROOT / "deploy" / "kubernetes" / "ray" / "cluster.yaml").read_text("utf-8")
    assert f'rayVersion: "{with_ray["ray"].version}"' in cluster


@pytest.mark.parametrize("machine", MACHINES)
def test_what_locked_packages_require_is_locked(lock: dict[str, Locked], machine: str) -> None:
    """The image installs without looking for requirements, so none may be missing."""
    overrides = (REQUIREMENTS / "overrides.txt").read_text("utf-8")
    left_out = set(re.findall(r"^([\w-]+);", overrides, re.MULTILINE))
    asked = {canonicalize_name(locked.name): set[str]() for locked in lock.values()}
    asked[canonicalize_name("pyjwt")].add("crypto")
    asked[canonicalize_name("psycopg")].add("binary")
    missing = []
    compared = 0
    for name, extras in asked.items():
        distribution = importlib.metadata.distribution(name)
        if Version(distribution.version) != lock[name].version:
            continue
        compared += 1
        for requirement in applicable(distribution.requires or [], extras, machine):
            needed = canonicalize_name(requirement.name)
            fits = needed in lock and requirement.specifier.contains(lock[needed].version)
            if needed not in left_out and not fits:
                missing.append(f"{name} requires {requirement}")
    assert missing == []
    assert compared > 0


def test_the_tools_of_the_build_fit_pyproject(pyproject: dict[str, Any]) -> None:
    lock = read_lock("build.lock")
    tools = pyproject["project"]["optional-dependencies"]["dev"]
    required = [*pyproject["build-system"]["requires"]]
    required += [tool for tool in tools if tool.startswith("cyclonedx-bom")]
    assert len(required) == 2
    for requirement in map(Requirement, required):
        assert requirement.specifier.contains(lock[requirement.name].version), "run `make lock`"


def test_the_image_installs_nothing_but_what_is_locked() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    installs = re.findall(r"pip (?:--python \S+ )?(?:install|wheel)\b([^&\n]*)", dockerfile)
    locked = [options for options in installs if "--requirement" in options]
    assert len(locked) == 2
    for options in locked:
        assert {"--require-hashes", "--no-deps", "--only-binary"} <= set(options.split())
    for options in set(installs) - set(locked):
        assert "--no-deps" in options
        assert "--no-build-isolation" in options or "--no-index" in options


def bounded(requirement: str) -> bool:
    """Returns whether a requirement excludes later versions."""
    operators = {specifier.operator for specifier in Requirement(requirement).specifier}
    return not operators <= {">=", ">", "!="}


def test_an_upper_bound_has_a_reason(pyproject: dict[str, Any]) -> None:
    """A comment right above it; in `dev` and `docs`, whose versions are exact, above the list."""
    lines = [line.strip() for line in (ROOT / "pyproject.toml").read_text("utf-8").splitlines()]
    project = pyproject["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    checked = 0
    for name, requirements in lists.items():
        for requirement in filter(bounded, requirements):
            exact = name in {"dev", "docs"} and "==" in requirement
            place = f"{name} = [" if exact else f'"{requirement}",'
            above = lines[lines.index(place) - 1]
            assert above.startswith("#"), f"{requirement}: why not a later version?"
            checked += 1
    assert checked > 2
