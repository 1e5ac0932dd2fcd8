"""The reader bridge: soft tokens from which a frozen receiver answers any question about a text.

It has two halves with one identity. The sender's half turns hidden states of several layers into M
latents, one for each window of neighbouring tokens. The receiver's half turns latents into soft
tokens and into additions to the receiver's hidden states at the soft positions.

For window j of M over a text of T tokens (tokens at an edge count by their share):

    base_j   = mean of the sender's layer-0 states (its token embeddings) in window j
    latent_j = resampler(window mean of encoded states, position and width of the window)
    soft_j   = alpha * s * rms_norm(rms_norm(A base_j + b) + W_out latent_j)
    add_j[l] = rho_l * W_l gelu(W_down latent_j)           for each declared receiver layer l

``A, b`` start as the least-squares map between the two models' embedding tables over shared
vocabulary pieces; ``alpha`` is the RMS of the receiver's input embeddings, ``rho_l`` the RMS of its
hidden states before layer l. Sources: "LatentWire", sections on calibration and on the latent
encoder; ComprExIT for pooling over neighbouring positions. docs/reader.md says what each part is
worth.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentwire.bridge.module import BridgeModule
from agentwire.bridge.shape import ReaderShape

CLAMP_SIGMAS = 8.0  # a few features of large language models reach hundreds of sigmas
PLACE_FREQUENCIES = 16


def windows(lengths: Tensor, size: int, longest: int) -> Tensor:
    """Weights [n, M, T]: window j covers tokens jT/M to (j+1)T/M, and its weights sum to 1.

    Args:
        lengths: [n] tokens of each text.
        size: M.
        longest: T of the padded batch.
    """
    token = torch.arange(longest, device=lengths.device)[None, None, :]
    width = lengths.float()[:, None, None] / size
    begin = torch.arange(size, device=lengths.device)[None, :, None] * width
    overlap = torch.minimum(token + 1, begin + width) - torch.maximum(token.float(), begin)
    weights = overlap.clamp(min=0.0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)


def rms_norm(x: Tensor) -> Tensor:
    """``x`` with RMS 1 over its last axis, in fp32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-8)


class _Attention(nn.Module):
    """Multi-head attention [n, Q, h] over [n, K, h] with an additive bias [n or 1, heads, Q, K]."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key_value = nn.Linear(hidden, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, over: Tensor, bias: Tensor | None) -> Tensor:
        n, q, h = x.shape
        split = (n, -1, self.heads, h // self.heads)
        key, value = self.key_value(over).chunk(2, dim=-1)
        query = self.query(x)
        mixed = F.scaled_dot_product_attention(
            query.view(split).transpose(1, 2),
            key.reshape(split).transpose(1, 2),
            value.reshape(split).transpose(1, 2),
            attn_mask=None if bias is None else bias.to(query.dtype),
        )
        return self.out(mixed.transpose(1, 2).reshape(n, q, h))  # type: ignore[no-any-return]


class _FeedForward(nn.Module):
    def __init__(self, hidden: int, times: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, times * hidden)
        self.down = nn.Linear(times * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Pre-norm cross-attention to the text, self-attention among latents, feed-forward."""

    def __init__(self, shape: ReaderShape, dropout: float) -> None:
        super().__init__()
        h = shape.hidden
        self.norm_cross, self.norm_self, self.norm_ff = (nn.LayerNorm(h) for _ in range(3))
        self.norm_states = nn.LayerNorm(h)
        self.cross = _Attention(h, shape.heads)
        self.among = _Attention(h, shape.heads)
        self.feed_forward = _FeedForward(h, shape.feed_forward)
        slopes = torch.tensor([2.0 ** -(i % 8) for i in range(shape.heads)])
        self.slope = nn.Parameter(torch.log(torch.expm1(slopes)))  # softplus gives the slopes
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, states: Tensor, distance: Tensor, mask: Tensor) -> Tensor:
        # Tokens far from the window count less, with one slope for each head (as in ALiBi).
        bias = -F.softplus(self.slope)[None, :, None, None] * distance[:, None]
        bias = bias.masked_fill(~mask[:, None, None, :], -1e4)
        x = x + self.dropout(self.cross(self.norm_cross(x), self.norm_states(states), bias))
        y = self.norm_self(x)
        x = x + self.dropout(self.among(y, y, None))
        return x + self.dropout(self.feed_forward(self.norm_ff(x)))  # type: ignore[no-any-return]


class SenderHalf(nn.Module):
    """States [n, T, L, sender_width], mask [n, T] and M -> latents [n, M, latent_width]."""

    mean: Tensor
    std: Tensor

    def __init__(self, shape: ReaderShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        h, read = shape.hidden, len(shape.sender_layers)
        self.register_buffer("mean", torch.zeros(read, shape.sender_width))
        self.register_buffer("std", torch.ones(read, shape.sender_width))
        self.norm_in = nn.LayerNorm(read * shape.sender_width)
        self.project_in = nn.Linear(read * shape.sender_width, h)
        self.norm_local, self.norm_local_ff = nn.LayerNorm(h), nn.LayerNorm(h)
        self.local = _Attention(h, shape.heads)
        self.local_ff = _FeedForward(h, 2)
        self.place = nn.Linear(2 * PLACE_FREQUENCIES + 1, h)
        self.blocks = nn.ModuleList(_Block(shape, dropout) for _ in range(shape.blocks))
        self.norm_out = nn.LayerNorm(h)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor, size: int) -> Tensor:
        longest = mask.shape[1]
        lengths = mask.sum(-1)
        weights = windows(lengths, size, longest)
        base = torch.einsum("nmt,ntd->nmd", weights, states[:, :, 0].float())
        z = ((states.float() - self.mean) / self.std).clamp(-CLAMP_SIGMAS, CLAMP_SIGMAS)
        x = self.dropout(self.project_in(self.norm_in(z.flatten(2))))
        x = self._encode(x, mask)
        latents = torch.einsum("nmt,nth->nmh", weights.to(x.dtype), x)
        latents = latents + self.place(self._places(lengths, size).to(x.dtype))
        distance = self._distance(lengths, size, longest)
        for block in self.blocks:
            latents = block(latents, x, distance, mask)
        return torch.cat([self.norm_out(latents).float(), base], dim=-1)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """One transformer layer over the tokens near each token."""
        place = torch.arange(x.shape[1], device=x.device)
        near = (place[:, None] - place[None, :]).abs() <= self.shape.local
        seen = near[None] & mask[:, None, :] | torch.eye(
            len(place), dtype=torch.bool, device=x.device
        )
        bias = torch.zeros(seen.shape, device=x.device).masked_fill(~seen, -1e4)[:, None]
        y = self.norm_local(x)
        x = x + self.dropout(self.local(y, y, bias))
        return x + self.dropout(self.local_ff(self.norm_local_ff(x)))  # type: ignore[no-any-return]

    @staticmethod
    def _places(lengths: Tensor, size: int) -> Tensor:
        """[n, M, features]: sines and cosines of a window's place, and the log of its width."""
        place = (torch.arange(size, device=lengths.device) + 0.5) / size
        angles = (
            place[:, None] * math.pi * torch.arange(1, PLACE_FREQUENCIES + 1, device=lengths.device)
        )
        waves = torch.cat([angles.sin(), angles.cos()], -1).expand(len(lengths), -1, -1)
        width = (lengths.float() / size).log2()[:, None, None].expand(-1, size, 1)
        return torch.cat([waves, width], dim=-1)

    @staticmethod
    def _distance(lengths: Tensor, size: int, longest: int) -> Tensor:
        """[n, M, T]: how far a token's middle lies outside a window, in tokens."""
        width = lengths.float()[:, None, None] / size
        middle = (torch.arange(size, device=lengths.device)[None, :, None] + 0.5) * width
        token = torch.arange(longest, device=lengths.device)[None, None, :] + 0.5
        return ((token - middle).abs() - width / 2).clamp(min=0.0)


class ReceiverHalf(nn.Module):
    """Latents [n, M, latent_width] -> soft tokens [n, M, d] and additions [n, M, layers, d]."""

    alpha: Tensor
    rho: Tensor

    def __init__(self, shape: ReaderShape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("alpha", torch.ones(()))
        self.register_buffer("rho", torch.ones(len(shape.additions)))
        self.align = nn.Linear(shape.sender_width, shape.width)
        self.project_out = nn.Linear(shape.hidden, shape.width)
        self.scale = nn.Parameter(torch.ones(()))
        self.before = nn.Parameter(torch.zeros(shape.prompt, shape.width))
        self.after = nn.Parameter(torch.zeros(shape.prompt, shape.width))
        if shape.additions:
            self.down = nn.Linear(shape.hidden, shape.down)
            self.up = nn.Parameter(torch.zeros(len(shape.additions), shape.down, shape.width))
        with torch.no_grad():
            self.project_out.weight.mul_(0.3)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        latent, base = latents[..., : self.shape.hidden], latents[..., self.shape.hidden :]
        mixed = rms_norm(self.align(base)) + self.project_out(latent).float()
        soft = self.alpha * self.scale * rms_norm(mixed)
        if not self.shape.additions:
            return soft, None
        inner = F.gelu(self.down(latent))
        added = torch.einsum("nmk,lkd->nmld", inner, self.up.to(inner.dtype)).float()
        return soft, added * self.rho[None, None, :, None]

    def read(self, payload: Tensor) -> tuple[Tensor, Tensor | None]:
        """What travelled -> the vectors to read [n, prompt + M + prompt, d], and the additions."""
        soft, additions = (payload, None) if self.shape.where == "sender" else self(payload)
        before, after = (v.expand(len(payload), -1, -1) for v in (self.before, self.after))
        return torch.cat([before, soft, after], dim=1), additions


class Reader(BridgeModule):
    """Both halves, as they are trained: states [n, T, L, sender_width], mask [n, T] and M -> soft
    tokens [n, M, d] and additions [n, M, layers, d] or None."""

    architecture: ClassVar[str] = "reader"
    positive: ClassVar[frozenset[str]] = frozenset({"sender.std", "receiver.alpha", "receiver.rho"})
    shape: ReaderShape

    def __init__(self, shape: ReaderShape, *, dropout: float = 0.0) -> None:
        super().__init__(shape, dropout=dropout)
        self.sender = SenderHalf(shape, dropout)
        self.receiver = ReceiverHalf(shape)

    def calibrate(self, mean: Tensor, std: Tensor, alpha: float) -> None:
        """``mean`` and ``std`` are [L, sender_width]."""
        self.sender.mean.copy_(mean)
        self.sender.std.copy_(std)
        self.receiver.alpha.fill_(alpha)

    def forward(self, states: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
        # What travels is fp16: training sees the same rounding.
        latents = self.sender(states, mask, size)
        return self.receiver(latents + (latents.half().float() - latents).detach())  # type: ignore[no-any-return]

    def sent(self, states: Tensor, mask: Tensor, size: int) -> Tensor:
        """What travels: [n, M, sent_width]."""
        latents: Tensor = self.sender(states, mask, size)
        return latents if self.shape.where == "receiver" else self.receiver(latents)[0]
