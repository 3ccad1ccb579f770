"""The plain NumPy reference against PyTorch."""

from typing import Any

import numpy as np
import pytest
from golden_files import GOLDEN_NAMES, Golden, load_golden
from numpy.typing import NDArray

from treadle.kernels import reference

TOLERANCE = {np.float64: 1e-9, np.float32: 1e-5}
"""Of each array's largest element."""


def assert_equal(
    name: str, ours: NDArray[Any], golden: NDArray[Any], dtype: type[np.floating[Any]]
) -> None:
    assert ours.shape == golden.shape, name
    assert ours.dtype == golden.dtype == dtype, name
    error = np.abs(ours - golden).max() / np.abs(golden).max()
    assert error <= TOLERANCE[dtype], f"{name} is off by {error:.1e} of its largest element"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_loss_gradients_and_states_equal_pytorch(name: str, dtype: type[np.floating[Any]]) -> None:
    golden = load_golden(name, dtype)
    loss_sum, count, gradients, (hs, cs) = reference.network_loss_and_gradients(
        golden.parameters, golden.cell, golden.tokens, golden.targets, (golden.h0, golden.c0)
    )
    assert 0 < (golden.targets < 0).sum() == golden.targets.size - count
    assert loss_sum / count == pytest.approx(golden.loss, rel=TOLERANCE[dtype])
    assert gradients.keys() == golden.gradients.keys() == golden.parameters.keys()
    for key, gradient in gradients.items():
        assert_equal(key, gradient, golden.gradients[key], dtype)
    assert_equal("final_h", hs, golden.final_h, dtype)
    if golden.final_c is None:
        assert cs is None
    else:
        assert cs is not None
        assert_equal("final_c", cs, golden.final_c, dtype)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_greedy_generation_equals_pytorch(name: str) -> None:
    golden = load_golden(name)
    made = reference.generate(
        golden.parameters,
        golden.cell,
        golden.greedy_prompt,
        len(golden.greedy_tokens),
        temperature=0,
    )
    assert len(made) == 60
    assert made == golden.greedy_tokens.tolist()


def test_golden_files_cover_the_cells() -> None:
    def kind(golden: Golden) -> tuple[str, int, bool]:
        return golden.cell, len(golden.h0), "embedding" in golden.parameters

    kinds = {kind(load_golden(name)) for name in GOLDEN_NAMES}
    assert kinds >= {(cell, L, True) for cell in ("rnn", "gru", "lstm") for L in (1, 2)}
    assert {cell for cell, _, embedded in kinds if not embedded} == {"rnn", "gru", "lstm"}


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden_parameters_are_shaped_as_the_reference_shapes_them(name: str) -> None:
    parameters = load_golden(name).parameters
    E = parameters["embedding"].shape[1] if "embedding" in parameters else 0
    H, V = parameters["Wy"].shape
    L = sum(key.startswith("Wx") for key in parameters)
    cell = name.partition("_")[0]
    expected = reference.initialize(cell, V, E, H, L, np.random.default_rng(0), np.float32)
    assert {key: (array.shape, array.dtype) for key, array in parameters.items()} == {
        key: (array.shape, array.dtype) for key, array in expected.items()
    }
    assert all(array.flags.c_contiguous for array in parameters.values())
