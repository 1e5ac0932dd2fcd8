"""Diversity losses, which push the soft tokens of a bridge apart. Off by default.

The two source papers define different losses. "LatentWire: A Shared Soft-Token Interlingua for
Heterogeneous LLM Communication" disables its own for tasks with two classes, because the bridge
stayed at chance there.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Form = Literal["orthogonality", "entropy"]


def diversity_loss(soft: Tensor, form: Form) -> Tensor:
    """A scalar to add to the loss, times ``TrainSpec.diversity``.

    ``orthogonality`` (LatentWire): the mean squared cosine between different soft tokens of a row,

        1 / (n M (M - 1)) * sum_row sum_{i != j} cos(z_i, z_j)^2        in 0..1, 0: all orthogonal

    ``entropy`` (Telepathy, equation 4): with z the mean soft token of the batch and p = softmax(z),

        -H(p) / ln d = sum_k p_k ln p_k / ln d                          in -1..0, -1: p is flat

    divided by ln d so that a weight has the same effect at every width d. The paper does not say
    how a vector becomes a distribution; the softmax is our interpretation.

    Args:
        soft: soft tokens [n, M, d].
    """
    if form == "entropy":
        log_p = torch.log_softmax(soft.float().mean(dim=(0, 1)), dim=-1)
        return (log_p.exp() * log_p).sum() / math.log(soft.shape[-1])
    m = soft.shape[1]
    if m == 1:
        return soft.new_zeros(())
    unit = F.normalize(soft.float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    # The diagonal is all ones, so subtracting m needs no mask.
    return (cosine.pow(2).sum(dim=(1, 2)) - m).mean() / (m * (m - 1))
