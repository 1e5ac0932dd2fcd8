"""The default bridge: a Perceiver Resampler from a sender's hidden states to M soft tokens.

Source: "Telepathy: Cross-Model Communication via Soft Tokens", section on the bridge; the block is
that of Flamingo (Alayrac et al., 2022, arXiv:2204.14198, section 3.1.1) with keys and values taken
from the states alone. What differs, and why, is in docs/design/bridge.md.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentwire.bridge.architectures import DEFAULT
from agentwire.bridge.module import BridgeModule
from agentwire.bridge.shape import BridgeShape

CLAMP_SIGMAS = 8.0  # a few features of large language models reach hundreds of sigmas


class Block(nn.Module):
    """Pre-norm masked cross-attention, then a feed-forward layer, each with a residual."""

    def __init__(self, shape: BridgeShape, dropout: float) -> None:
        super().__init__()
        h = shape.hidden
        self.heads = shape.heads
        self.norm_latents = nn.LayerNorm(h)
        self.norm_states = nn.LayerNorm(h)
        self.query = nn.Linear(h, h, bias=False)
        self.key_value = nn.Linear(h, 2 * h, bias=False)
        self.out = nn.Linear(h, h, bias=False)
        self.norm_ff = nn.LayerNorm(h)
        self.up = nn.Linear(h, shape.feed_forward * h)
        self.down = nn.Linear(shape.feed_forward * h, h)
        self.dropout = nn.Dropout(dropout)

    def attend(self, latents: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Latents [n, M, h] attend over states [n, T, h]; ``mask`` [n, T] is True for tokens."""
        n, m, h = latents.shape
        query = self.query(self.norm_latents(latents))
        key, value = self.key_value(self.norm_states(states)).chunk(2, dim=-1)
        split = (n, -1, self.heads, h // self.heads)
        mixed = F.scaled_dot_product_attention(
            query.view(split).transpose(1, 2),
            key.reshape(split).transpose(1, 2),
            value.reshape(split).transpose(1, 2),
            attn_mask=mask[:, None, None, :],
        )
        return self.out(mixed.transpose(1, 2).reshape(n, m, h))  # type: ignore[no-any-return]

    def forward(self, latents: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        latents = latents + self.dropout(self.attend(latents, states, mask))
        inner = F.gelu(self.up(self.norm_ff(latents)))
        return latents + self.dropout(self.down(inner))  # type: ignore[no-any-return]


class Resampler(BridgeModule):
    """Hidden states [n, T, sender_width] and a mask [n, T] -> soft tokens [n, M, width].

    Each soft token has RMS ``alpha``, like the receiver's own input embeddings.
    """

    architecture: ClassVar[str] = DEFAULT
    positive: ClassVar[frozenset[str]] = frozenset({"std", "alpha"})
    mean: Tensor
    std: Tensor
    alpha: Tensor

    def __init__(self, shape: BridgeShape, *, dropout: float = 0.0) -> None:
        super().__init__(shape, dropout=dropout)
        self.register_buffer("mean", torch.zeros(shape.sender_width))
        self.register_buffer("std", torch.ones(shape.sender_width))
        self.register_buffer("alpha", torch.ones(()))
        self.norm_in = nn.LayerNorm(shape.sender_width)
        self.project_in = nn.Linear(shape.sender_width, shape.hidden)
        self.latents = nn.Parameter(torch.randn(shape.soft_tokens, shape.hidden) * 0.02)
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.blocks))
        self.norm_out = nn.LayerNorm(shape.hidden)
        self.project_out = nn.Linear(shape.hidden, shape.width)
        self.dropout = nn.Dropout(dropout)

    def calibrate(self, mean: Tensor, std: Tensor, alpha: float) -> None:
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.alpha.fill_(alpha)

    def standardise(self, states: Tensor) -> Tensor:
        """Per-feature z-scores by the training set's statistics, clamped."""
        z = (states.to(self.mean.dtype) - self.mean) / self.std
        return z.clamp(-CLAMP_SIGMAS, CLAMP_SIGMAS)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        inner = self.dropout(self.project_in(self.norm_in(self.standardise(states))))
        latents = self.latents.expand(states.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(latents, inner, mask)
        z = self.project_out(self.norm_out(latents))
        rms = z.float().pow(2).mean(dim=-1, keepdim=True).add(1e-12).sqrt()
        return self.alpha * z / rms.to(z.dtype)  # type: ignore[no-any-return]
