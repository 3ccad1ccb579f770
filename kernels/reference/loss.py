"""`softmax_cross_entropy` and `factored_cross_entropy` are the losses."""

from collections.abc import Sequence

import numpy as np

from treadle.kernels.reference.arrays import Array, Tokens
from treadle.kernels.reference.inputs import one_hot


def softmax_cross_entropy(logits: Array, targets: Tokens) -> tuple[float, int, Array]:
    """Computes the cross-entropy of the targets, and its gradient (Bridle 1990).

    p        = softmax(logits) = exp(logits) / sum(exp(logits))
    loss_sum = sum of -log p[target] over the counted tokens
    dlogits  = (p - one_hot(target)) / count, the gradient of the mean loss_sum / count

    Args:
        logits: scores, (T, B, V).
        targets: the tokens that follow, (T, B). A negative one is not counted: it adds nothing to
            the loss and its gradient is zero.

    Returns:
        loss_sum, in nats, a sum that can be added up over batches; count, the number of counted
        tokens; dlogits, (T, B, V), the gradient of the MEAN over these tokens (all zero if there
        are none).
    """
    counted = targets >= 0
    count = int(counted.sum())
    shifted = logits - logits.max(axis=-1, keepdims=True)  # changes no p and keeps exp in range
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    ids = np.where(counted, targets, 0)
    chosen = np.take_along_axis(log_p, ids[..., np.newaxis], axis=-1)[..., 0]
    loss_sum = -float(chosen[counted].sum(dtype=np.float64))
    dlogits: Array = np.exp(log_p) - one_hot(ids, logits.shape[-1], logits.dtype)
    dlogits[~counted] = 0
    dlogits /= max(count, 1)
    return loss_sum, count, dlogits


def log_softmax(logits: Array) -> Array:
    """Returns log softmax over the last axis."""
    shifted: Array = logits - logits.max(axis=-1, keepdims=True)
    log_p: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_p


def factored_log_probabilities(
    logits: Array, cluster_logits: Array, clusters: Sequence[int]
) -> Array:
    """Computes the log-probabilities of a softmax in two levels (Goodman 2001).

    The tokens before the first cluster are the head. With p1 = softmax(head and clusters):

    log p[v] = log p1[v]                                     for v in the head
    log p[v] = log p1[c] + log softmax(logits of cluster c)  for v in cluster c

    Args:
        logits: scores of the tokens, (..., V).
        cluster_logits: scores of the clusters, (..., C).
        clusters: the first token of each cluster, ascending.

    Returns:
        log p, (..., V), in nats; the probabilities have the sum 1.
    """
    h = clusters[0]
    first_level = log_softmax(np.concatenate([logits[..., :h], cluster_logits], axis=-1))
    log_p = np.empty_like(logits)
    log_p[..., :h] = first_level[..., :h]
    for c, start in enumerate(clusters):
        end = (*clusters[1:], logits.shape[-1])[c]
        within = log_softmax(logits[..., start:end])
        log_p[..., start:end] = first_level[..., h + c, np.newaxis] + within
    return log_p


def factored_cross_entropy(
    logits: Array, cluster_logits: Array, clusters: Sequence[int], targets: Tokens
) -> tuple[float, int, Array, Array]:
    """Computes the cross-entropy of a softmax in two levels, and its gradient.

    In the head and in the target's cluster dlogits = (p - one_hot) / count, with p the softmax
    over that set; the logits of the other clusters have no part in it, and no gradient.

    Args:
        logits: scores of the tokens, (T, B, V).
        cluster_logits: scores of the clusters, (T, B, C).
        clusters: the first token of each cluster, ascending.
        targets: the tokens that follow, (T, B); a negative one is not counted.

    Returns:
        loss_sum, in nats; count; dlogits, (T, B, V), and the gradient of the clusters' logits, (T,
        B, C), both of the MEAN over the counted tokens.
    """
    V = logits.shape[-1]
    h = clusters[0]
    counted = targets >= 0
    count = int(counted.sum())
    log_p = factored_log_probabilities(logits, cluster_logits, clusters)
    ids = np.where(counted, targets, 0)
    chosen = np.take_along_axis(log_p, ids[..., np.newaxis], axis=-1)[..., 0]
    loss_sum = -float(chosen[counted].sum(dtype=np.float64))
    own = np.searchsorted(clusters, ids, side="right") - 1  # the cluster; -1 for the head
    place = np.where(own < 0, ids, h + own)
    joined = np.concatenate([logits[..., :h], cluster_logits], axis=-1)
    first = np.exp(log_softmax(joined)) - one_hot(place, joined.shape[-1], logits.dtype)
    dlogits = np.zeros_like(logits)
    dlogits[..., :h] = first[..., :h]
    for c, start in enumerate(clusters):
        end = (*clusters[1:], V)[c]
        inside = own == c
        p = np.exp(log_softmax(logits[inside][:, start:end]))
        dlogits[inside, start:end] = p - one_hot(ids[inside] - start, end - start, logits.dtype)
    dclusters = first[..., h:]
    for gradient in (dlogits, dclusters):
        gradient[~counted] = 0
        gradient /= max(count, 1)
    return loss_sum, count, dlogits, dclusters
