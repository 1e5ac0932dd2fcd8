"""The small operations between a decoder's matrix products, in plain torch.

The reference for ``triton_ops.FusedOps``, used where there is no Triton. Shapes: n rows of T
tokens; H query heads and G key-value heads of D values; S slots of keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

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


class PlainOps:
    """Reference implementation; runs on any device."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMS norm of x [..., d] with ``weight`` [d], in fp32."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (normed * weight.float()).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Adds x to ``residual`` in place, and returns the norm of the sum."""
        residual += x
        return self.rms_norm(residual, weight, eps)

    def gated(self, gate_up: Tensor, *, gelu: bool = False) -> Tensor:
        """[N, 2 * I] -> [N, I]: the activated first half times the second (SiLU, or tanh GELU)."""
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)) * up

    def rotary(
        self,
        qkv: Tensor,
        table: Rotary,
        cache: KeyValue,
        *,
        heads: int,
        prefix: KeyValue | None,
        start: Tensor | None,
    ) -> Tensor:
        """Rotates queries and keys, and stores keys and values in the cache.

        Args:
            qkv: [n, T, (H + 2 G) * D].
            cache: keys and values [n, S, G, D] to write to: ``prefix`` first, then the T tokens;
                with ``start``, the T tokens from slot ``start[row]`` on.
            prefix: keys and values [P, G, D] that precede every row.
            start: [n], position of each row's first token; None: P.

        Returns:
            Queries [n, T, H, D].
        """
        keys, values = cache
        n, t = qkv.shape[:2]
        groups, d = keys.shape[2:]
        length = 0 if prefix is None else prefix[0].shape[0]
        split = qkv.view(n, t, heads + 2 * groups, d)
        query, key, value = torch.split(split, [heads, groups, groups], dim=2)
        steps = torch.arange(t, device=qkv.device)
        slots = (steps + length).expand(n, -1) if start is None else start[:, None] + steps
        cos, sin = table.cos[slots][:, :, None], table.sin[slots][:, :, None]
        rows = torch.arange(n, device=qkv.device)[:, None]
        if prefix is not None:
            keys[:, :length], values[:, :length] = prefix
        keys[rows, slots] = _rotated(key, cos, sin)
        values[rows, slots] = value
        return _rotated(query, cos, sin)

    def attend(self, q: Tensor, cache: KeyValue, scale: float, window: int | None) -> Tensor:
        """Causal attention of queries [n, T, H, D], the last T of S slots; each sees ``window``."""
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
        """Attention of one query per row, [n, H, D], over its first ``lengths`` [n] slots."""
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
