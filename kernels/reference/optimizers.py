"""`clip_by_value` and its neighbours clip gradients, update weights and average them."""

import numpy as np

from treadle.kernels.reference.arrays import Array, Parameters


def clip_by_value(gradients: Parameters, limit: float) -> None:
    """Clips every element to [-limit, limit], in place.

    g = min(max(g, -limit), limit)

    Args:
        gradients: by name; changed.
        limit: above 0.
    """
    for gradient in gradients.values():
        np.clip(gradient, -limit, limit, out=gradient)


def clip_by_global_norm(gradients: Parameters, limit: float) -> float:
    """Scales all gradients to a joint norm of `limit`, in place, if it is larger.

    norm = sqrt(sum of g^2 over all elements),  g = g limit / norm if norm > limit

    Pascanu, Mikolov & Bengio (2013), algorithm 1. The direction of the gradient stays the same.

    Args:
        gradients: by name; changed if their norm exceeds the limit.
        limit: above 0.

    Returns:
        The norm before clipping.
    """
    squares = [np.sum(np.square(gradient, dtype=np.float64)) for gradient in gradients.values()]
    norm = float(np.sqrt(sum(squares)))
    if norm > limit:
        for gradient in gradients.values():
            gradient *= limit / norm
    return norm


def sgd_step(w: Array, g: Array, lr: float) -> None:
    """Takes a step of stochastic gradient descent, in place (Robbins & Monro 1951).

    w -= lr g

    Args:
        w: weights; changed.
        g: their gradient.
        lr: learning rate.
    """
    w -= lr * g


def adagrad_step(
    w: Array, g: Array, G: Array, lr: float, eps: float = 1e-10, weight_decay: float = 0.0
) -> None:
    """Takes a step of Adagrad, in place (Duchi et al. 2011).

    g' = g + weight_decay w
    G += g'^2
    w -= lr g' / (sqrt(G) + eps)

    A weight whose gradients have been large moves less. Weight decay is that of PyTorch's Adagrad.

    Args:
        w: weights; changed.
        g: their gradient.
        G: sum of the squares of all gradients so far, zeros at the start; changed.
        lr: learning rate.
        eps: keeps the division defined while G is zero.
        weight_decay: share of w that is added to its gradient.
    """
    g = g + weight_decay * w
    G += g**2
    w -= lr * g / (np.sqrt(G) + eps)


def move_towards(source: Array, share: float, target: Array) -> None:
    """Moves the target by a share of its distance to the source, in place.

    With shares (p + 1) / (n + p) for n = 1, 2, ... the target is a mean of the sources in which
    later ones count more (polynomial-decay averaging, Shamir & Zhang 2013).

    Args:
        source: any shape.
        share: from 0, which keeps the target, to 1.
        target: the source's shape; changed.
    """
    target += share * (source - target)


def adam_step(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Takes a step of Adam, in place (Kingma & Ba 2015).

    w *= 1 - lr weight_decay
    m  = beta1 m + (1 - beta1) g
    v  = beta2 v + (1 - beta2) g^2
    w -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

    The two powers correct for the start of m and v at zero. With weight decay this is AdamW
    (Loshchilov & Hutter 2019), in PyTorch's form.

    Args:
        w: weights; changed.
        g: their gradient.
        m: running mean of gradients, zeros at the start; changed.
        v: running mean of their squares, zeros at the start; changed.
        step: number of this step, from 1.
        lr: learning rate.
        beta1: share of m that is kept in a step.
        beta2: share of v that is kept in a step.
        eps: keeps the division defined while v is zero.
        weight_decay: share of w that a step of learning rate 1 removes.
    """
    w *= 1 - lr * weight_decay
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g**2
    denominator = np.sqrt(v) / (1 - beta2**step) ** 0.5 + eps
    w -= lr / (1 - beta1**step) * m / denominator
