"""Checks what gets installed: every package, and a bare install that is the client."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "treadle.kernels": "kernels",
    "treadle.model": "model",
    "treadle.server": "server",
    "treadle.client": "client",
    "treadle.v1": "proto/treadle/v1",
    "treadle.benchmarks": "benchmarks",
}
PACKAGED = (
    *("*.py", "*.pyi", "*.proto", "*.toml", "py.typed"),
    *("static/*", "topics/*.md", "migrations/*.sql", "scale_constants.json"),
)


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def packages_on_disk() -> set[str]:
    """Returns the dotted name of every folder with Python files in a package."""
    found = set()
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            below = path.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *below]))
    return found


def files_on_disk() -> set[str]:
    """Returns every file that belongs in the wheel, by its name there."""
    return {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for pattern in PACKAGED
        for path in (ROOT / folder).rglob(pattern)
    }


def test_every_package_on_disk_is_listed(pyproject: dict[str, Any]) -> None:
    """A sub-package must stand in tool.setuptools.packages, or it is not installed."""
    assert set(pyproject["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_package_has_an_init() -> None:
    bare = [
        package
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder).rglob("*.py")
        if not (path.parent / "__init__.py").is_file()
    ]
    assert bare == []
    assert not (ROOT / "proto" / "treadle" / "__init__.py").exists(), "treadle is a namespace"


def test_packages_are_where_the_types_are_looked_for(pyproject: dict[str, Any]) -> None:
    folders = pyproject["tool"]["setuptools"]["package-dir"]
    assert {name: folders[name] for name in PACKAGES} == PACKAGES
    for package, folder in PACKAGES.items():
        link = ROOT / ".typing" / package.replace(".", "/")
        assert link.is_symlink()
        assert link.resolve() == (ROOT / folder).resolve()
        assert (link / "py.typed").is_file()


def test_bare_install_is_the_client(pyproject: dict[str, Any]) -> None:
    names = {item.split(">")[0] for item in pyproject["project"]["dependencies"]}
    assert names == {"grpcio", "protobuf"}


DISTRIBUTIONS = {
    "cryptography": "cryptography",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "httptools": "httptools",
    "jwt": "pyjwt[crypto]",
    "llvmlite": "numba",  # which pins its version
    "mpi4py": "mpi4py",
    "obstore": "obstore",
    "psycopg": "psycopg[binary]",
    "numba": "numba",
    "numpy": "numpy",
    "opentelemetry": "opentelemetry-sdk",
    "optuna": "optuna",
    "outlines_core": "outlines-core",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "ray": "ray[client]",
    "rich": "rich",
    "safetensors": "safetensors",
    "shtab": "shtab",
    "starlette": "starlette",
    "tokenizers": "tokenizers",
    "tomlkit": "tomlkit",
    "uvicorn": "uvicorn",
}
"""The distribution that brings each module that is imported."""


def imported_modules(folder: str) -> set[str]:
    """Return the modules of other projects that a folder imports."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found |= {".".join(name.split(".")[: 1 + name.startswith("google.")]) for name in names}
    return {name for name in found if name not in {*sys.stdlib_module_names, "treadle"}}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("client", ["cli", "sweep"]),
        ("server", ["server", "http", "objectstore", "oidc", "otel", "postgresql", "ray"]),
        ("model", ["server", "bpe", "mpi"]),
        ("kernels", ["server"]),
    ],
)
def test_what_is_imported_is_declared(
    pyproject: dict[str, Any], folder: str, extras: list[str]
) -> None:
    project = pyproject["project"]
    declared = [*project["dependencies"]]
    for extra in extras:
        declared += project["optional-dependencies"][extra]
    names = {item.split(">")[0] for item in declared}
    assert {DISTRIBUTIONS[module] for module in imported_modules(folder)} <= names


def build(kind: str, source: Path, out: Path) -> Path:
    """Builds an sdist or a wheel with setuptools itself: no network, no isolation."""
    script = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    command = [sys.executable, "-c", script, str(out)]
    result = subprocess.run(
        command, cwd=source, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("packaging")
    checkout = folder / "checkout"
    for source in PACKAGES.values():
        shutil.copytree(
            ROOT / source, checkout / source, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in ("sdist", "wheel"):
        (folder / name).mkdir()
    sdist = build("sdist", checkout, folder / "sdist")
    with tarfile.open(sdist) as archive:
        # Python 3.11.4 and newer warn without a filter; Debian 12 has 3.11.2, which has none.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder / "wheel")


def test_wheel_made_from_the_sdist_holds_every_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files_on_disk()


def test_wheel_names_the_programs_and_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        programs = archive.read(names["entry_points.txt"]).decode()
        assert "MIT License" in archive.read(names["LICENSE"]).decode()
    assert "treadle = treadle.client.__main__:main" in programs
    assert "treadle-server = treadle.server.__main__:main" in programs
    assert "treadle-bench = treadle.benchmarks.__main__:main" in programs


def strings_of(path: Path) -> list[str]:
    """Returns the texts of a module as they are read, with `{}` for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = (each.value if isinstance(each, ast.Constant) else "{}" for each in node.values)
            found.append("".join(map(str, parts)))
    return found


def test_what_is_missing_is_installed_from_a_checkout(pyproject: dict[str, Any]) -> None:
    """Treadle is in no registry: there, its name may be that of somebody else's package."""
    extras = set(pyproject["project"]["optional-dependencies"])
    hint = re.compile(r"pip install '\.\[([^]]+)\]'`?\s+in\s+a\s+checkout\s+of\s+Treadle")
    hints = 0
    for path in (path for folder in PACKAGES.values() for path in (ROOT / folder).rglob("*.py")):
        for text in strings_of(path):
            assert "treadle[" not in text, path
            if "pip install '" in text and not text.endswith("pip install '.["):
                found = hint.findall(text)
                assert len(found) == text.count("pip install '"), (path, text)
                hints += len(found)
                assert {name for each in found for name in each.split(",")} - {"{}"} <= extras
    assert hints >= 10
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert "treadle[" not in page.read_text("utf-8"), page
