"""The number of threads does not change a bit of training."""

from typing import Any

import pytest
from exactness import small_run

pytestmark = pytest.mark.jit


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The results with one thread, by cell."""
    return {name: small_run.run(name, threads=1) for name in small_run.CONFIGS}


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", list(small_run.CONFIGS))
def test_threads_do_not_matter(name: str, threads: int, alone: dict[str, Any]) -> None:
    assert small_run.run(name, threads) == alone[name]
