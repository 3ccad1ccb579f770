from __future__ import annotations

import os
import subprocess
import sys

import pytest

from treadle.model import warm

SCRIPT = """
import importlib, itertools, pkgutil
import treadle.kernels
from treadle.model import *
from treadle.model.generation.sampling import ResolvedSampling
from treadle.model.generation.slot_arrays import SlotArrays
from treadle.model.generation.sequence_slot import SequenceSlot
from treadle.model.online.learner import Learner
from treadle.model.online.config import ONLINE_RATES, LearningConfig
from treadle.model.scoring.scorer import Details
from treadle.model.network.session_state import SessionState

def compiled():
    modules = [importlib.import_module(f"treadle.kernels.{m.name}")
               for m in pkgutil.iter_modules(treadle.kernels.__path__)]
    functions = [f for m in modules for f in vars(m).values()
                 if hasattr(f, "nopython_signatures") and not isinstance(f, type)]
    assert len(functions) > 20
    return {(f.__module__, f.__name__, str(s)) for f in functions for s in f.nopython_signatures}

warm()
before = compiled()
corpus = b"some lines\\nof a text\\nthat is no more\\nthan a few words\\n" * 30
choices = itertools.product(Cell, (0, 3), (1, 2), TokenizerKind, CorpusLayout)
for number, (cell, embedding, layers, kind, layout) in enumerate(choices):
    config = TrainConfig(
        tokenizer=TokenizerConfig(kind=kind),
        network=NetworkConfig(cell, 3, layers, embedding, dropout=0.5 * (number % 2)),
        data=DataConfig(layout, batch_size=20, window=2),
        optimizer=OptimizerConfig(list(OptimizerKind)[number % 3], clip_norm=1e-3, clip_value=0.1),
        limits=LimitsConfig(max_steps=2),
    )
    model = train(corpus, config, threads=1 + number % 2)
    model.generate("of a", max_new_tokens=20, seed=1, top_k=3, top_p=0.5, min_p=0.1)
    model.generate(max_new_tokens=20, temperature=0)
    model.generate("a", typical_p=0.9, presence_penalty=1, banned_tokens=(1,), max_new_tokens=9)
    reported = {"ranks": number % 2 > 0, "top_log_probabilities": number % 3}
    model.generate("a", forced_tokens=(0, 1), min_new_tokens=4, max_new_tokens=9, **reported)
    model.generate("a", best_of=2, max_new_tokens=5, **reported)
    if kind is TokenizerKind.CHARACTERS:
        model.generate("a", regex="[a-z ]{3,9}", max_new_tokens=9)
        slots = SlotArrays(model.parameters.shape, model.weights)
        for seed in range(3):
            begun = SessionState.fresh(model.parameters.shape, 0)
            slots.replace((), [SequenceSlot(ResolvedSampling(SamplingConfig()), begun, end=-1)])
            slots.decode(2)
        slots.replace(slots.slots[1:2], ())
        slots.decode(2)
    model.score("a text", "of ")
    model.score("a text", "of ", details=Details(reported["ranks"], number % 3))
    learner = Learner(model, LearningConfig(list(ONLINE_RATES)[number % 2], clip_norm=1e-3))
    list(learner.feed("a text", end=True, learn=True))
for made in sorted(compiled() - before):
    print(*made)
"""


@pytest.mark.jit
def test_after_warming_nothing_is_compiled_any_more() -> None:
    """Every way through the kernels has the types that warming has shown them."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        check=False,
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=1200,
    )
    assert done.stderr == ""
    assert done.stdout == ""
    assert done.returncode == 0


def test_warming_twice_is_fine() -> None:
    warm()
    warm()
