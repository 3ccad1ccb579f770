"""Train a recurrent layer on a real-valued series, and forecast its next value.

python examples/python/forecast.py [STEPS]

The program makes the series itself: three sines and noise. Real numbers need no tokenizer and no
server, only `treadle.model.RecurrentLayer`. The linear head, its squared error and the windows are
plain NumPy. Install Treadle's extra `server` first.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from treadle.model import Adam, RecurrentLayer

Floats = NDArray[np.float32]

WINDOW = 40
BATCH = 16
HIDDEN = 24
RATE = 0.01
NOISE = 0.1


def make_series(length: int, seed: int) -> Floats:
    """Returns three sines of incommensurable periods, and noise."""
    t = np.arange(length)
    waves = np.sin(t / 3.1) + 0.7 * np.sin(t / 1.3 + 1) + 0.5 * np.sin(t / 8.9 + 2)
    noise = NOISE * np.random.default_rng(seed).standard_normal(length)
    return (waves + noise).astype(np.float32)


class Forecaster:
    """A GRU that reads values one by one, and a linear head that predicts the next."""

    def __init__(self) -> None:
        self.layer = RecurrentLayer("gru", input_size=1, hidden_size=HIDDEN, seed=1)
        self.head = np.zeros(HIDDEN + 1, np.float32)  # weights, and the bias last
        self.adam = Adam(self.layer.flat, self.head, rate=RATE)

    def predict(self, xs: Floats) -> tuple[Floats, Floats]:
        """Returns forecasts (T, B) of the values after xs (T, B), and the states (T, B, H)."""
        hs, _ = self.layer.forward(xs[:, :, np.newaxis])
        states = hs[1:]  # row 0 is the initial one
        return states @ self.head[:-1] + self.head[-1], states

    def learn(self, xs: Floats, targets: Floats) -> float:
        """Takes one step of Adam on the mean squared error, and returns the error."""
        forecasts, states = self.predict(xs)
        errors = forecasts - targets
        slopes = 2 * errors / np.float32(errors.size)
        head = np.append(np.einsum("tbh,tb->h", states, slopes), slopes.sum())
        self.layer.backward(slopes[:, :, np.newaxis] * self.head[:-1])
        self.adam.step(self.layer.gradient, head)
        return float(np.mean(np.square(errors)))


def main(steps: int) -> None:
    train, test = np.split(make_series(3000, seed=2), [2400])
    forecaster = Forecaster()
    rng = np.random.default_rng(3)
    for step in range(1, steps + 1):
        starts = rng.integers(train.size - WINDOW, size=BATCH)
        windows = train[starts + np.arange(WINDOW + 1)[:, np.newaxis]]  # (T+1, B)
        loss = forecaster.learn(windows[:-1], windows[1:])
        if step % max(1, steps // 5) == 0:
            print(f"step {step:4}  squared error {loss:.4f}")

    # The whole test series is one sequence; the first forecasts know few values and do not count.
    forecasts, _ = forecaster.predict(test[:-1, np.newaxis])
    ours = np.mean(np.square(forecasts[WINDOW:, 0] - test[WINDOW + 1 :]))
    naive = np.mean(np.square(test[WINDOW:-1] - test[WINDOW + 1 :]))
    print(f"\ntest error    {ours:.4f}")
    print(f"last value    {naive:.4f}  (the forecast that nothing changes)")
    print(f"noise alone   {NOISE**2:.4f}  (no forecast is better)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
