"""`PackedWeights` holds a network's parameters as kernels read them, in each precision in use."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from treadle.model.enums import InferencePrecision
from treadle.model.network.workspace import pack_for_inference

if TYPE_CHECKING:
    from treadle.kernels import structs
    from treadle.model.network.parameters import Parameters


class PackedWeights:
    """Weights packed at first use, once for each precision; safe to use from many threads at once.

    What does not depend on the precision is in memory once.
    """

    def __init__(self, parameters: Parameters, packed: structs.Weights | None = None) -> None:
        """Packs nothing yet.

        Args:
            parameters: The network's numbers; they must not change after the first use.
            packed: The same parameters packed in FP32 by the caller, who may pack them again when
                they have changed; there is no other precision then. None: they are packed here.
        """
        self._parameters = parameters
        self._packing = threading.Lock()
        self._packed: dict[InferencePrecision, structs.Weights] = {}
        if packed is not None:
            self._packed[InferencePrecision.FP32] = packed
        self.fixed = packed is None
        """Whether the parameters stay as they are, so that they can be packed in any precision."""

    def get(self, precision: InferencePrecision) -> structs.Weights:
        """Returns the weights of a precision, FP32 where they are not fixed; never written to."""
        weights = self._packed.get(precision)
        if weights is not None:  # nor does it wait while another precision is packed
            return weights
        with self._packing:
            weights = self._packed.get(precision)
            if weights is None:
                shared = next(iter(self._packed.values()), None)
                weights = pack_for_inference(self._parameters, precision, shared)
                self._packed[precision] = weights
            return weights
