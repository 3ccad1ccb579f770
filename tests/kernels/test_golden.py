"""Compiled kernels in float32 against PyTorch in float64 (tests/golden)."""

import numpy as np
import pytest
from golden_files import GOLDEN_NAMES, load_golden
from small_networks import as_network, assert_close, make_engine

from treadle.model.config import SamplingConfig
from treadle.model.generation.sampling import ResolvedSampling
from treadle.model.generation.sequence_slot import SequenceSlot
from treadle.model.generation.slot_arrays import SlotArrays
from treadle.model.network.prefill import read_tokens
from treadle.model.network.session_state import SessionState
from treadle.model.network.workspace import pack_for_inference


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_loss_gradients_and_states_equal_pytorch(name: str) -> None:
    golden = load_golden(name, np.float64)
    network = as_network(golden.cell, golden.parameters)
    T, B = golden.tokens.shape
    engine = make_engine(network, B, T)
    (shard,) = engine._shards
    shard.state.h[...] = golden.h0
    shard.state.c[...] = 0 if golden.c0 is None else golden.c0

    loss, count = engine.loss_and_gradient(golden.tokens, golden.targets, np.zeros(B, np.bool_))
    assert count == (golden.targets >= 0).sum() < golden.targets.size
    assert loss / count == pytest.approx(golden.loss, rel=1e-5)
    assert_close(engine.gradient.named(), golden.gradients)
    assert_close({"h": shard.state.h}, {"h": golden.final_h})
    if golden.final_c is not None:
        assert_close({"c": shard.state.c}, {"c": golden.final_c})


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_greedy_generation_equals_pytorch(name: str) -> None:
    golden = load_golden(name)
    network = as_network(golden.cell, golden.parameters)
    weights = pack_for_inference(network.parameters)
    begun = SessionState.fresh(network.shape)
    *_, state = read_tokens(network.shape, weights, begun, golden.greedy_prompt)
    slots = SlotArrays(network.shape, weights)
    slots.replace(
        (), [SequenceSlot(ResolvedSampling(SamplingConfig(temperature=0)), state, end=-1)]
    )
    tokens = slots.decode(len(golden.greedy_tokens)).tokens[0]
    assert len(tokens) == 60
    assert tokens == golden.greedy_tokens.tolist()
