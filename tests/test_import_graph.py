"""Keeps packages easy to find one's way in: short import chains, no cycles, small folders.

The graph is of the imports that run; those under TYPE_CHECKING are left out. The layers are
contracts in pyproject.toml, which `lint-imports` checks.
"""

from __future__ import annotations

from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels", "model", "server", "client", "benchmarks")
LONGEST_CHAIN = 10
MOST_FILES = 17
"""Python files of one folder, `__init__.py` included."""

# What is not there yet, by package.
CHAINS = {"kernels": 11}


def imports_of(package: str) -> dict[str, set[str]]:
    """Returns what each module of a package imports from the same package."""
    graph = grimp.build_graph(
        f"treadle.{package}", exclude_type_checking_imports=True, cache_dir=None
    )
    return {name: set(graph.find_modules_directly_imported_by(name)) for name in graph.modules}


def longest_chain(imports: dict[str, set[str]]) -> list[str]:
    """Returns the longest chain of imports; raises CycleError where there is a cycle."""
    chains: dict[str, list[str]] = {}
    for name in TopologicalSorter(imports).static_order():
        below = max((chains[other] for other in sorted(imports[name])), key=len, default=[])
        chains[name] = [name, *below]
    return max(chains.values(), key=len)


@pytest.mark.parametrize("package", PACKAGES)
def test_import_chains_are_short(package: str) -> None:
    chain = longest_chain(imports_of(package))
    assert len(chain) <= CHAINS.get(package, LONGEST_CHAIN), " -> ".join(chain)


# kernels and benchmarks are flat on purpose: a file there is one kernel, or one measurement.
@pytest.mark.parametrize("package", ["model", "server", "client"])
def test_folders_are_small(package: str) -> None:
    files = (ROOT / package).rglob("*.py")
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in files)
    large = {folder: count for folder, count in counts.items() if count > MOST_FILES}
    assert large == {}
