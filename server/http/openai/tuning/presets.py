"""`NETWORKS` are the new networks that a job can train, by the names after `new:`."""

from __future__ import annotations

from treadle.v1 import sequence_pb2 as pb

NEW = "new:"
"""What begins the name of a new network, such as `new:lstm`; no model has such a name."""

ADAM_RATE = 0.003
"""The learning rate of Adam, which learning_rate_multiplier multiplies."""

NETWORKS = {
    "lstm": pb.TrainSpec(network=pb.NetworkSpec(cell=pb.CELL_LSTM)),
    "gru": pb.TrainSpec(network=pb.NetworkSpec(cell=pb.CELL_GRU)),
    "rnn": pb.TrainSpec(network=pb.NetworkSpec(cell=pb.CELL_RNN)),
    "auto": pb.TrainSpec(preset=pb.PRESET_AUTO),
}
"""What the spec of a job says of each."""


def network_of(spec: pb.TrainSpec) -> str:
    """Returns the name of the new network that a spec defines."""
    for name, network in NETWORKS.items():
        if (network.preset, network.network.cell) == (spec.preset, spec.network.cell):
            return name
    return "auto" if spec.preset else "lstm"
