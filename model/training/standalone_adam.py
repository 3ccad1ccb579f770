"""`Adam` optimizes arrays of the caller, for networks built around a `RecurrentLayer`.

Kingma and Ba, "Adam: a method for stochastic optimization" (2015), with the decoupled weight
decay of AdamW (Loshchilov and Hutter, 2019): the same kernel trains Treadle's networks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from treadle.kernels import optimizers
from treadle.model.errors import LayerError
from treadle.model.training.optimizer import AdamCorrections

Array = npt.NDArray[np.float32]


def _is_float32(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.float32


class Adam:
    """The Adam optimizer, with optional decoupled weight decay.

    Args:
        *buffers: The arrays to optimize, such as `layer.flat` and a head's weights: float32,
            C-contiguous, of any shapes; `step` changes them in place.
        rate: The learning rate; the attribute `rate` may be changed between steps.
        beta1: Decay of the running mean of gradients, 0 or more and below 1.
        beta2: Decay of the running mean of their squares, 0 or more and below 1.
        weight_decay: Decoupled weight decay; 0 for plain Adam.

    Raises:
        LayerError: A buffer is of another type, not contiguous or read-only, or a decay is out
            of its range.
    """

    def __init__(
        self,
        *buffers: Array,
        rate: float = 0.003,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
    ) -> None:
        for number, buffer in enumerate(buffers):
            if (
                not _is_float32(buffer)
                or not buffer.flags.c_contiguous
                or not buffer.flags.writeable
            ):
                raise LayerError(
                    f"buffer {number} is not a contiguous, writable float32 array: make it one"
                )
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
            raise LayerError(f"beta1 {beta1} and beta2 {beta2}: give 0 up to and without 1")
        self.rate = rate
        self._buffers = [buffer.reshape(-1) for buffer in buffers]
        self._shapes = [buffer.shape for buffer in buffers]
        self._moments = [(np.zeros_like(b), np.zeros_like(b)) for b in self._buffers]
        self._decay = weight_decay
        self._corrections = AdamCorrections(beta1, beta2)

    def step(self, *gradients: Array) -> None:
        """Takes one step.

        Args:
            *gradients: The gradient of every buffer, in its shape, float32; only read.

        Raises:
            LayerError: There are more or fewer gradients than buffers, or one has another shape or
                is not a float32 array.
        """
        if not all(_is_float32(gradient) for gradient in gradients):
            raise LayerError("a gradient is not a float32 array: make it one")
        given = [gradient.shape for gradient in gradients]
        if given != self._shapes:
            raise LayerError(f"the gradients have shapes {given}: give {self._shapes}")
        settings = (*np.array([1, self.rate, self._decay], np.float32), *self._corrections.next())
        for buffer, gradient, moments in zip(self._buffers, gradients, self._moments, strict=True):
            flat = np.require(gradient, np.float32, ["C", "A", "W", "E"]).reshape(-1)
            optimizers.adam(buffer, flat, *moments, *settings)
