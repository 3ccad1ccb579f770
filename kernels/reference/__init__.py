"""`network_loss_and_gradients` and its parts: recurrent networks in plain NumPy, made to be read.

This package is the naive twin of the compiled kernels. Every kernel is tested against its function
here; the backward passes here are tested against finite differences and against PyTorch. No
function is optimized or checks its input. Every array keeps its dtype: float64 for a gradient
check, float32 for a comparison of speed.

In the order of a training step:

    tokens to vectors                inputs.py: one_hot, embedding_forward
    small random weights             initialization.py: initialize
    the cells, forward and backward  rnn.py, lstm.py, gru.py: rnn_forward, rnn_backward, ...
    the output layer                 output.py: output_forward, output_backward
    the loss                         loss.py: softmax_cross_entropy, factored_cross_entropy
    dropout above layers             dropout.py: dropout_masks
    all layers together              network.py: network_forward, network_loss_and_gradients
    the same with int8 weights       int8.py: Int8Matrix, with_int8_weights
    clipping, gradient descent       optimizers.py: clip_by_value, sgd_step, adam_step, ...
    mean of the weights              optimizers.py: move_towards
    sampling, generation             sampling.py: sample, generate

This trains a network of eight hidden units to spell "hello":

>>> import numpy as np
>>> alphabet = sorted(set("hello"))
>>> tokens = np.array([[alphabet.index(character)] for character in "hello"])  # (T, B) = (5, 1)
>>> rng = np.random.default_rng(seed=0)
>>> parameters = initialize("rnn", V=len(alphabet), E=0, H=8, L=1, rng=rng)
>>> states = zero_states(parameters, "rnn", B=1)
>>> for step in range(100):
...     loss_sum, count, gradients, _ = network_loss_and_gradients(
...         parameters, "rnn", tokens[:-1], tokens[1:], states
...     )
...     clip_by_value(gradients, limit=5.0)
...     for name, gradient in gradients.items():
...         sgd_step(parameters[name], gradient, lr=0.5)
>>> spelled = generate(parameters, "rnn", tokens[0], n=4, temperature=0.0)
>>> "".join(alphabet[token] for token in spelled)
'ello'

The names are those of the whole project:

    T B D H      steps, rows of the batch, inputs, hidden units
    V E L        tokens of the vocabulary, size of the embedding, layers
    x, xs        inputs of one step (B, D), of a sequence (T, B, D)
    h, hs        hidden states (B, H), (T+1, B, H); row 0 is the initial state
    c, cs        cell states of the LSTM, like h and hs
    a            pre-activations, x Wx + h Wh + b
    gates        i f g o of the LSTM (T, B, 4H), r z n of the GRU (T, B, 3H)
    logits       scores of the tokens (T, B, V)
    dX           the gradient of the loss with respect to X, in the shape of X

In an equation, x, h and c are those before a step, h' and c' those after it; the product of two
gates is elementwise.

Parameters are a dict: "embedding" (V, E), unless the input is one-hot; for each layer l from 0 on
"Wx{l}" (D, G*H), "Wh{l}" (H, G*H), "b{l}" (G*H,) and for the GRU "bh{l}" (H,), with G gates: one
for the RNN, three for the GRU, four for the LSTM; "Wy" (H, V), unless the weights are tied; and
"by" (V,). Tied weights (Press & Wolf 2017) use the embedding twice: Wy = embedding.T, E = H. A
factored softmax has also "Wc" (H, C) and "bc" (C,), one column for each cluster of tokens.

The paper behind each function is named in its docstring. `docs/rnn.md`, `docs/lstm.md` and
`docs/gru.md` derive the backward passes.
"""

from treadle.kernels.reference.arrays import GATES, Array, Parameters, States, Tokens
from treadle.kernels.reference.dropout import dropout_masks
from treadle.kernels.reference.gru import GruGradients, gru_backward, gru_forward
from treadle.kernels.reference.initialization import initialize
from treadle.kernels.reference.inputs import embedding_backward, embedding_forward, one_hot
from treadle.kernels.reference.int8 import Int8Matrix, int8_activations, with_int8_weights
from treadle.kernels.reference.loss import (
    factored_cross_entropy,
    factored_log_probabilities,
    softmax_cross_entropy,
)
from treadle.kernels.reference.lstm import LstmGradients, lstm_backward, lstm_forward
from treadle.kernels.reference.network import (
    LayerTape,
    network_forward,
    network_loss_and_gradients,
    zero_states,
)
from treadle.kernels.reference.optimizers import (
    adagrad_step,
    adam_step,
    clip_by_global_norm,
    clip_by_value,
    move_towards,
    sgd_step,
)
from treadle.kernels.reference.output import OutputGradients, output_backward, output_forward
from treadle.kernels.reference.rnn import RnnGradients, rnn_backward, rnn_forward
from treadle.kernels.reference.sampling import draw, generate, lane_sum, sample
from treadle.kernels.reference.steps import sigmoid

__all__ = [
    "GATES",
    "Array",
    "GruGradients",
    "Int8Matrix",
    "LayerTape",
    "LstmGradients",
    "OutputGradients",
    "Parameters",
    "RnnGradients",
    "States",
    "Tokens",
    "adagrad_step",
    "adam_step",
    "clip_by_global_norm",
    "clip_by_value",
    "draw",
    "dropout_masks",
    "embedding_backward",
    "embedding_forward",
    "factored_cross_entropy",
    "factored_log_probabilities",
    "generate",
    "gru_backward",
    "gru_forward",
    "initialize",
    "int8_activations",
    "lane_sum",
    "lstm_backward",
    "lstm_forward",
    "move_towards",
    "network_forward",
    "network_loss_and_gradients",
    "one_hot",
    "output_backward",
    "output_forward",
    "rnn_backward",
    "rnn_forward",
    "sample",
    "sgd_step",
    "sigmoid",
    "softmax_cross_entropy",
    "with_int8_weights",
    "zero_states",
]
