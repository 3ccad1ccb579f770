"""Numba sees one type of packed weights and of memory, whatever numbers they hold."""

from __future__ import annotations

import pytest
from numba import typeof

from treadle.model.config import NetworkConfig
from treadle.model.enums import Cell, InferencePrecision
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.network.workspace import (
    allocate_weights,
    allocate_workspace,
    pack_for_inference,
)


@pytest.mark.parametrize("cell", list(Cell))
def test_every_kernel_of_a_network_is_compiled_for_one_type(cell: Cell) -> None:
    """Otherwise each would be compiled once more for bfloat16, and again for int8."""
    shape = Shape.of(NetworkConfig(cell=cell, hidden_size=3, layers=2), 5)
    plain, pairs = (
        allocate_weights(shape, 5, backward=True, pairs=pairs) for pairs in (False, True)
    )
    assert typeof(plain) == typeof(pairs)
    plain_work, work = (
        allocate_workspace(shape, 2, 2, True, pairs=pairs) for pairs in (False, True)
    )
    assert typeof(plain_work) == typeof(work)
    parameters = Parameters.initial(shape, seed=1)
    precisions = [pack_for_inference(parameters, each) for each in InferencePrecision]
    assert len({typeof(packed) for packed in precisions}) == 1
    assert typeof(precisions[0]) == typeof(plain)
