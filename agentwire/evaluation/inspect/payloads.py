"""Statistics of soft tokens: pure functions of tensors, which run no model."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from agentwire.bridge.resampler import Block, Resampler

CHUNK = 16_384
"""Rows of the embedding table that are compared at once. A normalised copy needs 0.7 GB."""


def effective_rank(rows: Tensor) -> float:
    """The number of directions that the rows [n, d] span, between 1 and min(n, d).

    exp(H(p)) with p_i = s_i / sum_j s_j the normalised singular values and H the Shannon entropy
    in nats (O. Roy and M. Vetterli, "The effective rank: a measure of effective dimensionality",
    EUSIPCO 2007). 0 if all rows are zero. Rows are not centred here; centre them to measure how
    they differ.
    """
    singular = torch.linalg.svdvals(rows.double())
    total = singular.sum()
    if not total > 0:
        return 0.0
    p = singular / total
    return float(torch.exp(-(p * p.clamp_min(1e-300).log()).sum()))


def pairwise_cosine(soft: Tensor) -> Tensor:
    """Cosines [M, M] between the soft tokens [n, M, d] of one text, averaged over the n texts."""
    unit = F.normalize(soft.float(), dim=-1)
    return (unit @ unit.transpose(1, 2)).mean(dim=0)


def off_diagonal_mean(square: Tensor) -> float | None:
    """Mean of the off-diagonal elements of [M, M]; None for M = 1."""
    m = square.shape[0]
    return float((square.sum() - square.diagonal().sum()) / (m * (m - 1))) if m > 1 else None


def nearest(vectors: Tensor, table: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of ``table`` [V, d] with the largest cosine to each of ``vectors`` [n, d]:
    cosines [n, k] in descending order, and row numbers [n, k]."""
    unit = F.normalize(vectors.float(), dim=-1)
    values = torch.empty(len(unit), 0, device=unit.device)
    indices = torch.empty(len(unit), 0, dtype=torch.long, device=unit.device)
    for start in range(0, table.shape[0], CHUNK):
        part = F.normalize(table[start : start + CHUNK].float(), dim=-1)
        cosines = unit @ part.T
        numbers = torch.arange(start, start + part.shape[0], device=unit.device)
        values = torch.cat([values, cosines], dim=1)
        indices = torch.cat([indices, numbers.expand(len(unit), -1)], dim=1)
        values, kept = values.topk(min(k, values.shape[1]), dim=1)
        indices = indices.gather(1, kept)
    return values, indices


def random_cosine(table: Tensor) -> float:
    """Mean cosine of a random direction to its nearest row of ``table`` [V, d].

    A large vocabulary has a row near any direction, so lower cosines of soft tokens mean nothing.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(64, table.shape[1], generator=generator).to(table.device)
    return float(nearest(vectors, table, 1)[0].mean())


@torch.inference_mode()
def attention(module: Resampler, states: Tensor, mask: Tensor) -> Tensor:
    """Attention weights [n, M, T] of the last block over the states [n, T, sender width], mean over
    heads. Their sum over T is 1; tokens outside ``mask`` [n, T] get 0."""
    inner = module.project_in(module.norm_in(module.standardise(states)))
    latents = module.latents.expand(states.shape[0], -1, -1)
    *before, last = module.blocks
    for block in before:
        latents = block(latents, inner, mask)
    last = cast(Block, last)  # nn.ModuleList is not generic
    n, width = latents.shape[0], latents.shape[-1] // last.heads
    split = (n, -1, last.heads, width)
    query = last.query(last.norm_latents(latents)).view(split).transpose(1, 2)
    key = last.key_value(last.norm_states(inner)).chunk(2, dim=-1)[0].reshape(split).transpose(1, 2)
    scores = query @ key.transpose(2, 3) / width**0.5
    scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    weights: Tensor = scores.softmax(dim=-1).mean(dim=1)
    return weights
