"""Caches the hidden states of several layers of a frozen sender for all passages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agentwire.model.transformers import TransformersBackend, trunk
from agentwire.training.reader.corpus import Ragged
from agentwire.training.states import HALF_MAX

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
        steps = torch.arange(width, device=self.flat.device)
        mask = steps[None, :] < self.lengths[rows][:, None]
        index = (self.offsets[rows][:, None] + steps).clamp(max=len(self.flat) - 1)
        return self.flat[index], mask

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [L, d] of each feature over evenly spaced tokens, in fp32."""
        chosen = self.flat[:: max(1, len(self.flat) // STATISTICS_TOKENS)].float()
        std = chosen.std(0)
        return chosen.mean(0), std.clamp(min=1e-3 * float(std.median()))


def sender_states(backend: TransformersBackend, layers: Sequence[int], ids: Tensor) -> Tensor:
    """States [n, T, L, width] of ids [n, T] after each of ``layers``; 0 is the embedding.

    The sender is causal, so padding on the right needs no mask.
    """
    short = trunk(backend.model, max(layers))
    opening = torch.tensor(backend.start, device=ids.device, dtype=ids.dtype)
    embedded = backend.model.get_input_embeddings()(
        torch.cat([opening.expand(len(ids), -1), ids], dim=1)
    )
    found = {0: embedded}
    with _outputs(short, [n for n in layers if 0 < n < max(layers)], found):
        output = short(inputs_embeds=embedded, use_cache=False)
    found[max(layers)] = output.last_hidden_state
    return torch.stack([found[n][:, len(backend.start) :] for n in layers], dim=2)


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


@contextmanager
def _outputs(short: Any, layers: Sequence[int], found: dict[int, Tensor]) -> Iterator[None]:
    def keep(layer: int) -> Any:
        def hook(module: Any, given: Any, output: Any) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [short.layers[n - 1].register_forward_hook(keep(n)) for n in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
