"""`fit` trains a network with one ingredient of the recipe changed: the basis of what AUTO uses.

    python benchmarks/recipes.py examples/data/tinyshakespeare.txt
        [--ingredients base,beta2-0.99,muon] [--tokens 1500000] [--characters 250000]
        [--units 256] [--seeds 1]

Trains on the first characters of the file, with each ingredient on the same tokens and seeds, and
prints the nats per character of the ninth tenth of the file: the last tenth, by which AUTO is
judged, is never read. A number of tokens gives the same bits on any machine, however busy. With as
many characters for each weight, and as many passes, as a run of AUTO over the whole file has, the
small network overfits about as much.

The loop of steps is its own, because most ingredients were never worth a setting of the product.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from treadle.benchmarks.machine import describe
from treadle.benchmarks.script import exit_code, input_file
from treadle.kernels.jit import BF16_MISSING
from treadle.kernels.optimizers import adam
from treadle.model.config import NetworkConfig, TokenizerConfig
from treadle.model.data.splits import TokenData
from treadle.model.data.validation_batches import ValidationBatches
from treadle.model.enums import Cell, Precision
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.network.workspace import pack_for_inference
from treadle.model.scoring.scorer import mean_loss
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.training.optimizer import AdamCorrections

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Recipe:
    """Everything about a run that an ingredient may change. The defaults are the recipe of AUTO."""

    cell: str = "lstm"
    units: int = 256
    layers: int = 1
    embedding: int = 64
    rows: int = 16
    window: int = 32
    early_rows: int = 0
    """Rows in the first quarter of the run; 0: `rows`."""
    late_window: int = 0
    """Window of the second half of the run; 0: `window`."""
    rate: float = 0.004
    warmup: int = 100
    shape: str = "cosine"
    """How the rate falls: cosine, linear, constant, or trapezoid, which falls in the last fifth."""
    floor: float = 0.2
    """The share of the rate at which it ends."""
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    output_dropout: float = 0.3
    weight_dropout: float = 0.0
    """Share of the recurrent weights that are dropped in a step (Merity et al. 2018)."""
    noise: float = 0.0
    """Share of the tokens read that are replaced by others of the text (Xie et al. 2017)."""
    shift: bool = False
    """Whether every pass begins at another place of the text."""
    forget_bias: float = 0.0
    """What is added to the bias of the forget gate at the start."""
    orthogonal: bool = False
    """Whether the recurrent weights of each gate begin orthogonal."""
    muon: int = 0
    """Newton-Schulz steps for each gate's recurrent weights (Jordan et al. 2024); 0: Adam."""
    inner_dropout: float = 0.0
    """Share of the units that are dropped between layers."""
    cautious: bool = False
    """Whether a weight moves only where its gradient has the sign of their mean (Liang et al.
    2024)."""
    average: float = 8.0
    """The power by which later weights count more in the mean that is evaluated; 0: no mean."""


INGREDIENTS: dict[str, dict[str, Any]] = {
    "base": {},
    "before": {"beta2": 0.99, "floor": 0.0, "average": 0.0, "weight_decay": 0.02},
    "beta2-0.9": {"beta2": 0.9},
    "beta2-0.99": {"beta2": 0.99},
    "beta1-0.8": {"beta1": 0.8},
    "rate-0.003": {"rate": 0.003},
    "rate-0.006": {"rate": 0.006},
    "cosine-to-0": {"floor": 0.0, "average": 0.0},
    "cosine-to-0.4": {"floor": 0.4},
    "constant-rate": {"shape": "constant", "rate": 0.003},
    "no-mean": {"average": 0.0},
    "mean-4": {"average": 4.0},
    "mean-16": {"average": 16.0},
    "linear": {"shape": "linear"},
    "trapezoid": {"shape": "trapezoid"},
    "warmup-500": {"warmup": 500},
    "window-64": {"window": 64},
    "late-window-64": {"late_window": 64},
    "early-rows-8": {"early_rows": 8},
    "output-dropout-0.2": {"output_dropout": 0.2},
    "output-dropout-0.5": {"output_dropout": 0.5},
    "weight-dropout-0.2": {"weight_dropout": 0.2},
    "weight-decay-0.02": {"weight_decay": 0.02},
    "weight-decay-0.3": {"weight_decay": 0.3},
    "clip-0.3": {"clip_norm": 0.3},
    "noise-0.05": {"noise": 0.05},
    "shift": {"shift": True},
    "forget-bias-1": {"forget_bias": 1.0},
    "orthogonal": {"orthogonal": True},
    "gru": {"cell": "gru"},
    "layers-2": {"layers": 2, "units": 192, "inner_dropout": 0.3},
    "cautious": {"cautious": True},
    "muon": {"muon": 3},
}
"""What each ingredient changes."""

_WH = "Wh"
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_MUON_RATE = 0.02
_MUON_MOMENTUM = 0.95
_LAST_FIFTH = 0.8


class Text:
    """A corpus in three parts: what is trained on, the ninth tenth, and a tenth never read.

    Args:
        path: The file.
        characters: The characters that are trained on, from the first; 0: eight tenths.
    """

    def __init__(self, path: Path, characters: int) -> None:
        text = path.read_text()
        cut = int(len(text) * 0.8)
        self.tokenizer: Tokenizer = build_tokenizer(TokenizerConfig(), [text])
        tokens = self.tokenizer.encode(text)
        self.train = np.asarray(tokens[: min(characters or cut, cut)], np.int32)
        self.valid = TokenData(np.asarray(tokens[cut : int(len(text) * 0.9)], np.int32))

    def loss(self, parameters: Parameters, pool: Pool) -> float:
        """Returns the nats per character of the ninth tenth."""
        batches = ValidationBatches(self.valid, self.tokenizer, 32, 64, 64)
        loss = mean_loss(parameters.shape, pack_for_inference(parameters), batches, pool)
        assert loss is not None
        return loss


class Streams:
    """The batches of a run: rows side by side, one window after the other, pass after pass."""

    def __init__(self, tokens: Ints, rows: int, shift: bool, random: np.random.Generator) -> None:
        self._tokens = tokens
        self._rows = rows
        self._shift = shift
        self._random = random
        self._position = 0
        self._steps = 0

    def next(self, window: int) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
        """Returns tokens and targets (T, B), and the rows that begin from zeros (B,)."""
        first = self._position >= self._steps
        if first:
            self._begin_pass()
        part = slice(self._position, min(self._position + window, self._steps))
        self._position = part.stop
        fresh = np.full(self._rows, first, np.bool_)
        return self._inputs[part].copy(), self._targets[part].copy(), fresh

    def _begin_pass(self) -> None:
        tokens = self._tokens
        if self._shift:
            tokens = np.roll(tokens, -int(self._random.integers(tokens.size)))
        self._steps = (tokens.size - 1) // self._rows
        whole = self._steps * self._rows
        self._inputs = np.ascontiguousarray(tokens[:whole].reshape(self._rows, -1).T)
        self._targets = np.ascontiguousarray(tokens[1 : whole + 1].reshape(self._rows, -1).T)
        self._position = 0


def rate(recipe: Recipe, progress: float, step: int) -> float:
    """Returns the learning rate of a step at a share of the run."""
    shapes = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
        "trapezoid": min(1.0, (1 - progress) / (1 - _LAST_FIFTH)),
    }
    share = recipe.floor + (1 - recipe.floor) * shapes[recipe.shape]
    return recipe.rate * share * min(1.0, (step + 1) / (recipe.warmup + 1))


def orthogonalized(matrix: Array, steps: int) -> Array:
    """Returns a matrix with singular values near 1, by the iteration of Newton and Schulz."""
    first, second, third = _NEWTON_SCHULZ
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = first * x + (second * gram + third * (gram @ gram)) @ x
    return x.astype(np.float32)


class Run:
    """One network in training.

    Args:
        recipe: The recipe.
        text: The corpus.
        seed: Decides the first weights and all draws.
        threads: Threads that train.
    """

    def __init__(self, recipe: Recipe, text: Text, seed: int, threads: int) -> None:
        network = NetworkConfig(Cell(recipe.cell), recipe.units, recipe.layers, recipe.embedding)
        shape = Shape.of(network, text.tokenizer.vocabulary_size)
        self.parameters = Parameters.initial(shape, seed)
        self.pool = Pool(threads)
        self._recipe = recipe
        self._text = text
        self._seed = seed
        self._random = np.random.default_rng(seed + 1000)
        self._means = Parameters(shape)
        self._squares = Parameters(shape)
        self._momentum = np.zeros_like(self.parameters.stacks.Wh)
        self._corrections = AdamCorrections(recipe.beta1, recipe.beta2)
        self._begin()

    def _begin(self) -> None:
        recipe = self._recipe
        H = recipe.units
        stacks = self.parameters.stacks
        if recipe.forget_bias:
            stacks.b[:, H : 2 * H] += recipe.forget_bias
        for block in self._gates(stacks.Wh) if recipe.orthogonal else ():
            block[:] = np.linalg.qr(self._random.standard_normal((H, H)))[0]

    def _gates(self, weights: Array) -> list[Array]:
        """Returns views of the recurrent weights of every layer and gate, (H, H) each."""
        H = self._recipe.units
        layers, _, columns = weights.shape
        starts = range(0, columns, H)
        return [weights[layer][:, g : g + H] for layer in range(layers) for g in starts]

    def train(self, tokens: int) -> Parameters:
        """Trains on so many tokens; returns the weights, or their mean if the recipe has one."""
        recipe = self._recipe
        mean = Parameters(self.parameters.shape)
        seen = 0
        step = 0
        rows = 0
        while seen < tokens:
            progress = seen / tokens
            early = recipe.early_rows and progress < 0.25
            asked = recipe.early_rows if early else recipe.rows
            if asked != rows:
                rows = asked
                engine = self._engine(rows)
                streams = Streams(self._text.train, rows, recipe.shift, self._random)
            late = recipe.late_window and progress >= 0.5
            window = recipe.late_window if late else recipe.window
            inputs, targets, fresh = streams.next(window)
            self._step(engine, inputs, targets, fresh, step, rate(recipe, progress, step))
            seen += targets.size
            step += 1
            share = (recipe.average + 1) / (step + recipe.average) if recipe.average else 1.0
            mean.flat += (self.parameters.flat - mean.flat) * np.float32(share)
        return mean

    def _engine(self, rows: int) -> Engine:
        recipe = self._recipe
        precision = Precision.FP32 if BF16_MISSING else Precision.BF16
        longest = max(recipe.window, recipe.late_window)
        return Engine(
            self.parameters,
            rows,
            longest,
            self.pool,
            seed=self._seed,
            precision=precision,
            dropout=recipe.inner_dropout,
            output_dropout=recipe.output_dropout,
        )

    def _step(
        self,
        engine: Engine,
        inputs: Ints,
        targets: Ints,
        fresh: npt.NDArray[np.bool_],
        step: int,
        rate: float,
    ) -> None:
        recipe = self._recipe
        if recipe.noise:
            others = self._text.train[
                self._random.integers(self._text.train.size, size=inputs.shape)
            ]
            inputs = np.where(self._random.random(inputs.shape) < recipe.noise, others, inputs)
        weights = self.parameters.stacks.Wh
        if recipe.weight_dropout:
            whole = weights.copy()
            kept = self._random.random(weights.shape, np.float32) >= recipe.weight_dropout
            mask = kept / np.float32(1 - recipe.weight_dropout)
            weights *= mask
        engine.loss_and_gradient(inputs, targets, fresh, step)
        if recipe.weight_dropout:
            weights[:] = whole
            engine.gradient.stacks.Wh[:] *= mask
        self._update(engine.gradient, rate)

    def _update(self, gradient: Parameters, rate: float) -> None:
        recipe = self._recipe
        norm = float(np.linalg.norm(gradient.flat))
        scale = np.float32(min(1.0, recipe.clip_norm / norm))
        stacks = self.parameters.stacks
        before = stacks.Wh.copy() if recipe.muon else None
        decayed = self.parameters.flat * np.float32(1 - rate * recipe.weight_decay)
        adam(
            self.parameters.flat,
            gradient.flat,
            self._means.flat,
            self._squares.flat,
            scale,
            np.float32(rate),
            np.float32(recipe.weight_decay),
            *self._corrections.next(),
        )
        if recipe.cautious:
            moves = self._means.flat * gradient.flat > 0
            self.parameters.flat[:] = np.where(moves, self.parameters.flat, decayed)
        if before is None:
            return
        stacks.Wh[:] = before * np.float32(1 - rate * recipe.weight_decay)
        self._momentum *= _MUON_MOMENTUM
        self._momentum += gradient.stacks.Wh
        ahead = gradient.stacks.Wh + _MUON_MOMENTUM * self._momentum
        length = np.float32(_MUON_RATE * rate / recipe.rate)
        for block, direction in zip(self._gates(stacks.Wh), self._gates(ahead), strict=True):
            block -= length * orthogonalized(direction, recipe.muon)


def fit(recipe: Recipe, text: Text, tokens: int, seed: int, threads: int) -> float:
    """Trains a network and returns its loss, in nats per character."""
    run = Run(recipe, text, seed, threads)
    try:
        return text.loss(run.train(tokens), run.pool)
    finally:
        run.pool.close()


def _given(text: str) -> dict[str, Any]:
    """Returns what `name=value,...` changes in a recipe."""
    kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(Recipe)}
    pairs = (pair.split("=") for pair in text.split(",") if pair)
    return {name: kinds[name](value) for name, value in pairs}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for every ingredient."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", type=input_file)
    parser.add_argument("--ingredients", default=",".join(INGREDIENTS))
    parser.add_argument("--base", type=_given, default={}, metavar="NAME=VALUE,...")
    parser.add_argument("--tokens", type=int, default=1_500_000)
    parser.add_argument("--characters", type=int, default=250_000, help="trained on; 0: 80 %%")
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    text = Text(options.corpus, options.characters)
    base = replace(Recipe(units=options.units), **options.base)
    print("| ingredient | nats per character | spread | change |\n|---|---|---|---|", flush=True)
    reference = math.nan
    for name in options.ingredients.split(","):
        recipe = replace(base, **INGREDIENTS[name])
        losses = [
            fit(recipe, text, options.tokens, seed, options.threads)
            for seed in range(options.seeds)
        ]
        mean = statistics.mean(losses)
        reference = mean if name == "base" else reference
        spread = max(losses) - min(losses)
        print(f"| {name} | {mean:.4f} | {spread:.4f} | {mean - reference:+.4f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
