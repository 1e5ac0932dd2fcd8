"""Caches the hidden states of several layers of a frozen sender for all passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentwire.bridge.halves import ManyLayers
from agentwire.model.transformers import TransformersBackend, trunk
from agentwire.training.reader.corpus import Ragged
from agentwire.training.states import HALF_MAX, gather

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 65_536}
STATISTICS_TOKENS = 200_000


@dataclass(frozen=True, slots=True)
class LayerStates:
    """States of passages without padding.

    Attributes:
        flat: fp16 [tokens, L, width], one passage after the other.
        offsets, lengths: [n] where each passage begins, and how many tokens it has.
    """

    flat: Tensor
    offsets: Tensor
    lengths: Tensor

    def gather(self, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """States [n, width, L, d] of ``rows`` and their mask [n, width]."""
        return gather(self.flat, self.offsets, self.lengths, rows, width)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [L, d] of each feature over evenly spaced tokens, in fp32."""
        chosen = self.flat[:: max(1, len(self.flat) // STATISTICS_TOKENS)].float()
        std = chosen.std(0)
        return chosen.mean(0), std.clamp(min=1e-3 * float(std.median()))


def sender_states(backend: TransformersBackend, layers: Sequence[int], ids: Tensor) -> Tensor:
    """States [n, T, L, width] of ids [n, T] after each of ``layers``; 0 is the embedding.

    The sender is causal, so padding on the right needs no mask.
    """
    short = ManyLayers(trunk(backend.model, max(layers)), layers)
    opening = torch.tensor(backend.start, device=ids.device, dtype=ids.dtype)
    whole = torch.cat([opening.expand(len(ids), -1), ids], dim=1)
    states = short(input_ids=whole, use_cache=False).last_hidden_state[:, len(backend.start) :]
    return states.unflatten(-1, (len(layers), -1))  # type: ignore[no-any-return]


@torch.no_grad()
def read_states(
    backend: TransformersBackend, layers: Sequence[int], passages: Ragged
) -> LayerStates:
    """The states of all passages."""
    device = passages.flat.device
    flat = torch.empty(
        int(passages.lengths.sum()), len(layers), backend.identity.width,
        dtype=torch.float16, device=device,
    )  # fmt: skip
    sizes = passages.lengths.tolist()
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    begin = 0
    while begin < len(order):
        width = max(1, sizes[order[begin]])
        count = max(1, TOKENS_AT_ONCE[device.type] // width)
        rows = torch.tensor(order[begin : begin + count], device=device)
        ids, mask = passages.gather(rows, width)
        states = sender_states(backend, layers, ids).clamp(-HALF_MAX, HALF_MAX).half()
        steps = torch.arange(width, device=device)
        flat[(passages.offsets[rows][:, None] + steps)[mask]] = states[mask]
        begin += count
    return LayerStates(flat, passages.offsets, passages.lengths)
