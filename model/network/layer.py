"""`RecurrentLayer` is one recurrent layer over sequences of real-valued vectors.

It runs the same compiled loops as the networks, with NumPy arrays in and out. The caller adds the
rest: a head, a loss, an optimizer.

    layer = RecurrentLayer("lstm", input_size=3, hidden_size=32, seed=1)
    hs, cs = layer.forward(xs)                 # xs (T, B, 3); hs (T+1, B, 32), row 0 the initial
    dxs, gradients = layer.backward(dhs)       # dhs (T, B, 32), of hs[1:]
    layer.flat -= 0.1 * layer.gradient         # or treadle.model.Adam

See docs/layer.md for more; examples/python/forecast.py forecasts a noisy series.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import numpy.typing as npt

from treadle.kernels import layer as kernels
from treadle.kernels.gemm_packing import pack, pack_transposed, panel_count
from treadle.kernels.gemm_tile import PANEL
from treadle.kernels.gemm_transposed import allocate_row_block
from treadle.kernels.random import fill_uniform
from treadle.kernels.structs import ROW_BLOCK
from treadle.model.enums import Cell
from treadle.model.errors import LayerError
from treadle.model.field_checks import MAX_UINT64, member, whole
from treadle.model.network.parameters import FIRST_STREAM, flat_size, flat_views
from treadle.model.network.shape import CELL_CODES, GATES

Array = npt.NDArray[np.float32]

_LARGEST = 65_536
"""The most inputs or hidden units of a layer."""


class RecurrentLayer:
    """A vanilla RNN, GRU or LSTM layer: forward over a sequence, and backward through time.

    A layer is not for several threads at once: `backward` belongs to the last `forward`. Both
    release the interpreter lock, so that threads with a layer each run at the same time.
    """

    def __init__(self, cell: Cell | str, input_size: int, hidden_size: int, seed: int = 0) -> None:
        """Makes a layer with small random weights, uniform in +-1/sqrt(H) like PyTorch's.

        Args:
            cell: "rnn", "gru" or "lstm".
            input_size: Length of an input vector, D, 1 to 65,536.
            hidden_size: Hidden units, H, 1 to 65,536.
            seed: 64 bits; the same seed gives the same weights, bit for bit. Give stacked layers
                different seeds.

        Raises:
            ConfigError: An argument is out of its range.
        """
        self.cell = member(Cell, cell, "cell")
        self.input_size = _whole(input_size, "input_size", 1, _LARGEST)
        self.hidden_size = _whole(hidden_size, "hidden_size", 1, _LARGEST)
        seed = _whole(seed, "seed", 0, MAX_UINT64)
        shapes = self._shapes()
        self.flat: Array = np.zeros(flat_size(shapes), np.float32)
        """All parameters in one buffer, for optimizers; change it in place."""
        self.gradient: Array = np.zeros_like(self.flat)
        """The gradient that the last `backward` computed, laid out like `flat`."""
        self.parameters: dict[str, Array] = flat_views(self.flat, shapes)
        """Views of `flat`: Wx (D, G), Wh (H, G), b (G,), and of a GRU bh (H,). G is H, 3H or 4H,
        the gates in PyTorch's order (r z n; i f g o)."""
        self._gradients = flat_views(self.gradient, shapes)
        self._tapes: list[tuple[Array, kernels.LayerTape]] = []
        limit = np.float32(1 / math.sqrt(self.hidden_size))
        for number, array in enumerate(self.parameters.values()):
            stream = np.uint64(FIRST_STREAM + number)
            fill_uniform(np.uint64(seed), stream, limit, array.reshape(-1))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        D = self.input_size
        H = self.hidden_size
        G = GATES[self.cell] * H
        shapes: dict[str, tuple[int, ...]] = {"Wx": (D, G), "Wh": (H, G), "b": (G,)}
        return {**shapes, "bh": (H,)} if self.cell is Cell.GRU else shapes

    def forward(
        self,
        xs: npt.NDArray[np.float32],
        h0: npt.NDArray[np.float32] | None = None,
        c0: npt.NDArray[np.float32] | None = None,
    ) -> tuple[Array, Array | None]:
        """Runs the layer over a sequence.

        Args:
            xs: Inputs, (T, B, D), float32, T and B at least 1. Do not change them before
                `backward`, which reads them again.
            h0: Initial hidden state, (B, H), float32; None for zeros.
            c0: Initial cell state of an LSTM, (B, H), float32; None for zeros.

        Returns:
            hs, (T+1, B, H), row 0 the initial state; and of an LSTM cs, of the same shape, of other
            cells None. They are read-only, and stay as they are when the layer runs again.

        Raises:
            LayerError: An argument has another shape or type, or c0 is given and the cell has no
                cell states.
        """
        D = self.input_size
        H = self.hidden_size
        xs = _checked(xs, "xs", (None, None, D))
        T, B, _ = xs.shape
        if c0 is not None and self.cell is not Cell.LSTM:
            raise LayerError(
                f"c0 is given, but a layer of cell {self.cell} has no cell states: leave it out"
            )
        zeros = np.zeros((B, H), np.float32)
        h0 = zeros if h0 is None else _checked(h0, "h0", (B, H))
        c0 = zeros if c0 is None else _checked(c0, "c0", (B, H))
        Wx = _packed(self.parameters["Wx"])
        Wh = _packed(self.parameters["Wh"])
        b = self.parameters["b"]
        bh = _hidden_bias(self.parameters)
        self._tapes = []
        for rows in _parts(B):
            part = np.ascontiguousarray(xs[:, rows])
            tape = self._tape(T, h0[rows], c0[rows])
            kernels.layer_forward(CELL_CODES[self.cell], part, Wx, b, Wh, bh, tape, T)
            self._tapes.append((part, tape))
        hs = _joined([tape.hs for _, tape in self._tapes])
        cs = _joined([tape.cs for _, tape in self._tapes])
        return _read_only(hs), _read_only(cs) if self.cell is Cell.LSTM else None

    def _tape(self, T: int, h0: Array, c0: Array) -> kernels.LayerTape:
        """Allocates the arrays of a pass from the given states, (B, H) each."""
        B, H = h0.shape
        G = GATES[self.cell] * H
        is_gru = self.cell is Cell.GRU
        is_lstm = self.cell is Cell.LSTM
        tape = kernels.LayerTape(
            gates=np.empty((T, B, G), np.float32),
            ah=np.empty((T if is_gru else 0, B, 3 * H), np.float32),
            hs=np.empty((T + 1, B, H), np.float32),
            cs=np.empty((T + 1 if is_lstm else 0, B, H), np.float32),
        )
        tape.hs[0] = h0
        tape.cs[:1] = c0
        return tape

    def backward(
        self,
        dhs: npt.NDArray[np.float32],
        dcT: npt.NDArray[np.float32] | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Backpropagates through time, once for each `forward`.

        The weights must still be those of the forward pass: change them afterwards.

        Args:
            dhs: Gradient of hs[1:], (T, B, H), float32. Add the gradient of the final hidden
                state, if there is one, to dhs[-1].
            dcT: Gradient of the LSTM's final cell state, (B, H), float32; None for zero.

        Returns:
            dxs, (T, B, D), the gradient of xs; and the gradients by name: those of `parameters`
            (views of `gradient`, which the next `backward` overwrites), "h0" (B, H), and of an LSTM
            "c0" (B, H).

        Raises:
            LayerError: There is no forward pass to backpropagate through, or an argument has
                another shape or type.
        """
        if not self._tapes:
            raise LayerError("backward has no forward pass: call forward before each backward")
        T = self._tapes[0][0].shape[0]
        B = sum(xs.shape[1] for xs, _ in self._tapes)
        dhs = _checked(dhs, "dhs", (T, B, self.hidden_size))
        if dcT is not None and self.cell is not Cell.LSTM:
            raise LayerError(
                f"dcT is given, but a layer of cell {self.cell} has no cell states: leave it out"
            )
        dc = None if dcT is None else _checked(dcT, "dcT", (B, self.hidden_size))
        tapes = self._tapes
        self._tapes = []
        parts = self._backward(tapes, dhs, dc)
        states = {"h0": _joined([running.dh for _, running in parts], axis=0)}
        if self.cell is Cell.LSTM:
            states["c0"] = _joined([running.dc for _, running in parts], axis=0)
        return _joined([dxs for dxs, _ in parts]), self._gradients | states

    def _backward(
        self, tapes: list[tuple[Array, kernels.LayerTape]], dhs: Array, dc: Array | None
    ) -> list[tuple[Array, kernels.RunningGradient]]:
        """Runs every part of the batch backward, one after the other."""
        WxT = _packed_transposed(self.parameters["Wx"])
        WhT = _packed_transposed(self.parameters["Wh"])
        block = allocate_row_block(max(self.input_size, self.hidden_size), WhT.shape[1])
        named = self._gradients
        gradients = kernels.LayerGradients(
            named["Wx"], named["Wh"], named["b"], _hidden_bias(named)
        )
        self.gradient[:] = 0
        done = []
        for (xs, tape), rows in zip(tapes, _parts(dhs.shape[1]), strict=True):
            above = np.ascontiguousarray(dhs[:, rows])
            dxs = np.empty_like(xs)
            running = kernels.RunningGradient(np.zeros_like(tape.hs[0]), np.zeros_like(tape.hs[0]))
            if dc is not None:
                running.dc[:] = dc[rows]
            kernels.layer_backward(
                CELL_CODES[self.cell],
                xs,
                WxT,
                WhT,
                tape,
                above,
                running,
                gradients,
                dxs,
                block,
                xs.shape[0],
            )
            done.append((dxs, running))
        return done


def _parts(rows: int) -> list[slice]:
    """Returns the rows that a kernel takes at once: as many as it gathers in a block."""
    return [slice(i, min(rows, i + ROW_BLOCK)) for i in range(0, rows, ROW_BLOCK)]


def _joined(parts: list[Array], axis: int = 1) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def _hidden_bias(arrays: dict[str, Array]) -> Array:
    """Returns the GRU's bh; an empty array for other cells, whose kernels do not read it."""
    return arrays["bh"] if "bh" in arrays else np.zeros(0, np.float32)


def _whole(value: object, field: str, low: int, high: int) -> int:
    return cast(int, whole(low, high)["check"](value, field))


def _checked(array: object, name: str, shape: tuple[int | None, ...]) -> Array:
    """Returns an array as kernels require it, C-contiguous; None in `shape` means 1 or more."""
    expected = "(" + ", ".join("*" if size is None else str(size) for size in shape) + ")"
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise LayerError(f"{name} is {kind}: give a NumPy array of float32, shape {expected}")
    fits = len(array.shape) == len(shape) and all(
        size >= 1 if required is None else size == required
        for size, required in zip(array.shape, shape, strict=True)
    )
    if not fits:
        stars = ", * for 1 or more" if "*" in expected else ""
        raise LayerError(f"{name} has shape {array.shape}: give {expected}{stars}")
    # Kernels are compiled for one type: a slice, a subclass or what is read-only is copied.
    return np.require(array, np.float32, ["C", "A", "W", "E"])


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _packed(matrix: Array) -> Array:
    panels = np.empty((panel_count(matrix.shape[1]), matrix.shape[0], PANEL), np.float32)
    pack(matrix, panels)
    return panels


def _packed_transposed(matrix: Array) -> Array:
    panels = np.empty((panel_count(matrix.shape[0]), matrix.shape[1], PANEL), np.float32)
    pack_transposed(matrix, panels)
    return panels
