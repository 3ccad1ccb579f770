"""Keeps packages easy to find one's way in: short import chains, no cycles, small folders.

Chains are of the imports that run; cycles count imports under TYPE_CHECKING as well. The layers
are contracts in pyproject.toml, which `lint-imports` checks.
"""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels", "model", "server", "client", "benchmarks")
LONGEST_CHAIN = 10
MOST_FILES = 17
"""Python files of one folder, `__init__.py` included."""


def imports_of(package: str, run: bool) -> dict[str, set[str]]:
    """Returns what each module of a package imports from the same package.

    Args:
        package: The package.
        run: Whether to leave out imports under TYPE_CHECKING.

    Returns:
        The names of the imported modules, by module.
    """
    graph = grimp.build_graph(
        f"treadle.{package}", exclude_type_checking_imports=run, cache_dir=None
    )
    return {name: set(graph.find_modules_directly_imported_by(name)) for name in graph.modules}


def longest_chain(imports: dict[str, set[str]]) -> list[str]:
    """Returns the longest chain of imports."""
    chains: dict[str, list[str]] = {}
    for name in TopologicalSorter(imports).static_order():
        below = max((chains[other] for other in sorted(imports[name])), key=len, default=[])
        chains[name] = [name, *below]
    return max(chains.values(), key=len)


@pytest.mark.parametrize("package", PACKAGES)
def test_import_chains_are_short(package: str) -> None:
    chain = longest_chain(imports_of(package, run=True))
    assert len(chain) <= LONGEST_CHAIN, " -> ".join(chain)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(package: str) -> None:
    try:
        TopologicalSorter(imports_of(package, run=False)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


# kernels and benchmarks are flat on purpose: a file there is one kernel, or one measurement.
@pytest.mark.parametrize("package", ["model", "server", "client"])
def test_folders_are_small(package: str) -> None:
    files = (ROOT / package).rglob("*.py")
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in files)
    large = {folder: count for folder, count in counts.items() if count > MOST_FILES}
    assert large == {}
