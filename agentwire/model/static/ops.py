"""The small operations between a decoder's matrix products, and their plain torch version.

Shapes: n rows of T tokens; H query heads and G key-value heads of D values; S slots of keys and
values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary embedding tables, fp32 [positions, D / 2]; both halves of a head share them."""

    cos: Tensor
    sin: Tensor


KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


class Ops(Protocol):
    """What a decoder computes between its products."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMS norm of x [..., d] with ``weight`` [d], in fp32."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Adds x to ``residual`` in place, and returns the norm of the sum."""

    def gated(self, gate_up: Tensor, *, gelu: bool) -> Tensor:
        """[N, 2 * I] -> [N, I]: the activated first half times the second (SiLU, or tanh GELU)."""

    def rotary(
        self, qkv: Tensor, table: Rotary, cache: KeyValue, prefix: KeyValue, start: Tensor | None
    ) -> Tensor:
        """Rotates queries and keys, and stores keys and values in the cache.

        Args:
            qkv: [n, T, (H + 2 G) * D].
            cache: keys and values [n, S, G, D] to write to: ``prefix`` first, then the T tokens;
                with ``start``, the T tokens from slot ``start[row]`` on.
            prefix: keys and values [P, G, D] that precede every row; P may be 0.
            start: [n], position of each row's first token; None: P.

        Returns:
            Queries [n, T, H, D].
        """

    def attend(self, q: Tensor, cache: KeyValue, scale: float, window: int | None) -> Tensor:
        """Causal attention of queries [n, T, H, D], the last T of S slots; each sees ``window``."""

    def attend_one(
        self, q: Tensor, cache: KeyValue, lengths: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Attention of one query per row, [n, H, D], over its first ``lengths`` [n] slots."""


class PlainOps:
    """Reference implementation of ``Ops``, used where there is no Triton; runs on any device."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (normed * weight.float()).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        residual += x
        return self.rms_norm(residual, weight, eps)

    def gated(self, gate_up: Tensor, *, gelu: bool) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)) * up

    def rotary(
        self, qkv: Tensor, table: Rotary, cache: KeyValue, prefix: KeyValue, start: Tensor | None
    ) -> Tensor:
        keys, values = cache
        n, t = qkv.shape[:2]
        groups, d = keys.shape[2:]
        length = prefix[0].shape[0]
        split = qkv.view(n, t, -1, d)
        heads = split.shape[2] - 2 * groups
        query, key, value = torch.split(split, [heads, groups, groups], dim=2)
        steps = torch.arange(t, device=qkv.device)
        slots = (steps + length).expand(n, -1) if start is None else start[:, None] + steps
        cos, sin = table.cos[slots][:, :, None], table.sin[slots][:, :, None]
        rows = torch.arange(n, device=qkv.device)[:, None]
        keys[:, :length], values[:, :length] = prefix
        keys[rows, slots] = _rotated(key, cos, sin)
        values[rows, slots] = value
        return _rotated(query, cos, sin)

    def attend(self, q: Tensor, cache: KeyValue, scale: float, window: int | None) -> Tensor:
        keys, values = cache
        t, s = q.shape[1], keys.shape[1]
        at = torch.arange(s - t, s, device=q.device)[:, None]
        slots = torch.arange(s, device=q.device)[None, :]
        mask = slots <= at
        if window is not None:
            mask &= slots > at - window
        return _attend(q, keys, values, mask[None, None], scale)

    def attend_one(
        self, q: Tensor, cache: KeyValue, lengths: Tensor, scale: float, window: int | None
    ) -> Tensor:
        keys, values = cache
        slots = torch.arange(keys.shape[1], device=q.device)[None, :]
        mask = slots < lengths[:, None]
        if window is not None:
            mask &= slots >= lengths[:, None] - window
        return _attend(q[:, None], keys, values, mask[:, None, None], scale)[:, 0]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
        enable_gqa=True,
    )
    return mixed.transpose(1, 2)
