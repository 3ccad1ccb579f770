"""Holds what import-linter cannot say: which outside packages each package may import, and how.

Which Treadle packages and layers may import which are contracts in pyproject.toml, checked by
`lint-imports`. Here imports are read from the sources with `ast`, so that an import inside a
function, under TYPE_CHECKING or through importlib counts as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "kernels": ROOT / "kernels",
    "model": ROOT / "model",
    "server": ROOT / "server",
    "client": ROOT / "client",
    "v1": ROOT / "proto" / "treadle" / "v1",
    "benchmarks": ROOT / "benchmarks",
}

# Rivals that the benchmarks compare with. Nobody declares them: they are measured where installed.
PEERS = {"torch", "jax", "onnx", "onnxruntime"}
PEER_WORKERS = {"pytorch.py", "pytorch_int8.py", "jax_scan.py", "onnx_runtime.py"}

# What may be imported from outside, in addition to the standard library. The server is free in
# that: it is the package where the parts meet.
ALLOWED = {
    "kernels": {"numpy", "numba", "llvmlite"},
    "model": {"mpi4py", "numpy", "outlines_core", "safetensors", "tokenizers"},
    "client": {"grpc", "google.protobuf", "optuna", "rich", "shtab", "tomlkit"},
    "v1": {"grpc", "google.protobuf"},
    "benchmarks": {
        *("numpy", "numba", "llvmlite", "google.rpc", "grpc", "grpc_health", "simpy"),
        *("mpi4py", "obstore", "psycopg"),  # what several servers use, measured where installed
        *PEERS,
    },
}

# A kernel sees arrays and numbers: of the standard library it needs types and arithmetic.
KERNELS_STANDARD_LIBRARY = {
    "__future__",
    "collections.abc",
    "dataclasses",
    "enum",
    "functools",
    "math",
    "operator",
    "types",
    "typing",
}
# These choose the compiler's target and its disk cache, so they alone see the machine.
KERNELS_COMPILER = {
    "jit.py",
    "cache_folder.py",
    "disk_cache.py",
    "dispatcher.py",
    "source_digests.py",
}

BARE_NAMES = {"kernels", "model", "server", "client", "proto", "benchmarks"}


def sources(package: str) -> list[Path]:
    """Returns a package's Python files, type stubs included."""
    folder = FOLDERS[package]
    return sorted([*folder.rglob("*.py"), *folder.rglob("*.pyi")])


def package_of(package: str, path: Path) -> list[str]:
    """Returns the parts of the package that a file's relative imports start from."""
    return ["treadle", package, *path.relative_to(FOLDERS[package]).parent.parts]


def absolute_module(node: ast.ImportFrom, package: list[str]) -> str:
    """Returns the module a `from` import names, relative dots resolved."""
    if node.level == 0:
        return node.module or ""
    above = package[: len(package) - (node.level - 1)]
    return ".".join([*above, *((node.module or "").split(".") if node.module else [])])


def imports_of_tree(tree: ast.AST, package: list[str]) -> Iterator[tuple[str, int]]:
    """Yields every dotted name that a module imports, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute_module(node, package)
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            first = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield str(first.value), node.lineno


def imports(package: str) -> Iterator[tuple[Path, int, str]]:
    """Yields file, line and dotted name of every import in a package."""
    for path in sources(package):
        tree = ast.parse(path.read_text("utf-8"), str(path))
        for name, line in imports_of_tree(tree, package_of(package, path)):
            yield path, line, name


def is_within(name: str, allowed: set[str]) -> bool:
    """Returns whether a dotted name is one of the allowed packages or inside one."""
    return any(name == package or name.startswith(package + ".") for package in allowed)


def top(name: str) -> str:
    """Returns the first part of a dotted name."""
    return name.partition(".")[0]


def place(path: Path, line: int, name: str) -> str:
    """Returns `file:line imports name` for a failed assertion."""
    return f"{path.relative_to(ROOT)}:{line} imports {name}"


@pytest.mark.parametrize("package", ALLOWED)
def test_package_imports_only_what_is_allowed(package: str) -> None:
    wrong = [
        place(path, line, name)
        for path, line, name in imports(package)
        if top(name) not in sys.stdlib_module_names | {"treadle", "_typeshed", "typing_extensions"}
        and not is_within(name, ALLOWED[package])
    ]
    assert wrong == []


def test_the_editor_of_profiles_alone_imports_tomlkit() -> None:
    """The bare client has none: profiles are read with the standard library."""
    wrong = [
        place(path, line, name)
        for path, line, name in imports("client")
        if top(name) == "tomlkit" and path.name != "config_editor.py"
    ]
    assert wrong == []


def test_displays_of_a_terminal_alone_import_rich() -> None:
    """The bare client has none, and what goes to a pipe must not wait for it."""
    wrong = [
        place(path, line, name)
        for path, line, name in imports("client")
        if top(name) == "rich" and path.parent.name != "terminal" and path.name != "console.py"
    ]
    assert wrong == []


def test_the_sampler_of_sweeps_alone_imports_optuna() -> None:
    """The bare client has none."""
    wrong = [
        place(path, line, name)
        for path, line, name in imports("client")
        if top(name) == "optuna" and path.name != "tpe_sampler.py"
    ]
    assert wrong == []


def test_completion_alone_imports_shtab() -> None:
    """The bare client has none."""
    wrong = [
        place(path, line, name)
        for path, line, name in imports("client")
        if top(name) == "shtab" and path.name != "completion.py"
    ]
    assert wrong == []


def test_peers_are_imported_by_their_workers_alone() -> None:
    """A peer that is missing must cost nothing but its own row."""
    wrong = [
        place(path, line, name)
        for package in FOLDERS
        for path, line, name in imports(package)
        if top(name) in PEERS and path.name not in PEER_WORKERS
    ]
    assert wrong == []


def test_scripts_hide_no_standard_module() -> None:
    """`python benchmarks/X.py` puts that folder first: a `statistics.py` there would be found."""
    names = {path.stem for path in FOLDERS["benchmarks"].glob("*.py")}
    assert names.isdisjoint(sys.stdlib_module_names)


def test_kernels_do_no_input_or_output() -> None:
    wrong = [
        place(path, line, name)
        for path, line, name in imports("kernels")
        if path.name not in KERNELS_COMPILER
        and top(name) in sys.stdlib_module_names
        and not is_within(name, KERNELS_STANDARD_LIBRARY)
    ]
    wrong += [
        f"{path.name}:{node.lineno} calls {node.func.id}"
        for path in sources("kernels")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"open", "print", "input"}
    ]
    assert wrong == []


def test_nothing_imports_a_package_by_its_bare_name() -> None:
    """`import kernels` may find somebody else's package of that name."""
    folders = [*FOLDERS.values(), ROOT / "tests", ROOT / "examples"]
    wrong = [
        place(path, line, name)
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        for name, line in imports_of_tree(ast.parse(path.read_text("utf-8")), [])
        if top(name) in BARE_NAMES
    ]
    assert wrong == []


def packages_loaded_by(modules: list[str]) -> set[str]:
    """Returns the top-level packages that a fresh interpreter has after importing modules."""
    script = (
        f"import importlib, sys\n"
        f"for module in {modules!r}: importlib.import_module(module)\n"
        f"print(*{{name.partition('.')[0] for name in sys.modules}})"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def modules_of(package: str) -> list[str]:
    """Returns the dotted names of a package's modules, `__main__` left out."""
    return [
        ".".join([*package_of(package, path), *([path.stem] if path.stem != "__init__" else [])])
        for path in FOLDERS[package].rglob("*.py")
        if path.stem != "__main__"
    ]


@pytest.mark.parametrize(
    "modules",
    [modules_of("client"), ["treadle.server.cli", "treadle.server.healthcheck"]],
    ids=["client", "health check"],
)
def test_numerics_stay_unloaded(modules: list[str]) -> None:
    """The client has neither NumPy nor Numba; the image's health check has no time for them."""
    loaded = packages_loaded_by(modules)
    assert {"treadle", "grpc"} <= loaded
    assert loaded.isdisjoint({"numpy", "numba", "llvmlite", "safetensors"})


def test_reader_of_imports_sees_every_form() -> None:
    source = (
        "import a.b\n"
        "from c import d\n"
        "from . import e\n"
        "from ..f import g\n"
        "def h():\n    import i\n"
        "import importlib\n"
        "importlib.import_module('j.k')\n"
        "__import__('l')\n"
    )
    names = {name for name, _ in imports_of_tree(ast.parse(source), ["treadle", "model", "x"])}
    assert names == {
        "a.b",
        "c.d",
        "treadle.model.x.e",
        "treadle.model.f.g",
        "i",
        "importlib",
        "j.k",
        "l",
    }


def test_every_channel_says_what_proxies_are_for() -> None:
    """Without options, a proxy in the environment stands before a server on this machine."""
    folders = [*FOLDERS.values(), ROOT / "tests", ROOT / "examples"]
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"insecure_channel", "secure_channel"}
        and len(node.args) + len(node.keywords) < 2
    ]
    assert wrong == []


THREAD_POOLS = {"thread_pools.py", "priority_executor.py", "warmup.py"}
"""Files of the server that have executors of their own."""


def test_the_server_blocks_in_no_thread_of_a_shared_pool() -> None:
    """The default executor is one queue for everything; `thread_pools` has one for each kind."""
    wrong = [
        f"{path.name}:{node.lineno} uses {node.attr}"
        for path in sources("server")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and (
            node.attr in {"to_thread", "set_default_executor"}
            or (
                node.attr in {"run_in_executor", "ThreadPoolExecutor", "ProcessPoolExecutor"}
                and path.name not in THREAD_POOLS
            )
        )
    ]
    assert wrong == []
