"""Hidden states of a frozen sender, computed once so that training never runs the sender."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from agentwire.model.transformers import TransformersBackend, trunk

HALF_MAX = torch.finfo(torch.float16).max


def gather(
    flat: Tensor, offsets: Tensor, lengths: Tensor, rows: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Entries [n, width, ...] of ``rows`` of ``flat`` and their mask [n, width]; where the mask is
    False, they mean nothing.

    Args:
        flat: [tokens, ...] of all rows, one row after the other.
        offsets, lengths: where each row begins, and how many tokens it has.
    """
    steps = torch.arange(width, device=flat.device)
    mask = steps[None, :] < lengths[rows][:, None]
    index = (offsets[rows][:, None] + steps[None, :]).clamp_(max=flat.shape[0] - 1)
    return flat[index], mask


@dataclass(frozen=True, slots=True)
class StateCache:
    """Hidden states of many texts, without padding: fp16 [total tokens, width].

    The texts are one after the other in any order, perhaps with texts that are not in this cache.
    """

    flat: Tensor
    offsets: Tensor  # [n] index of each text's first token in ``flat``
    lengths: Tensor  # [n] tokens of each text
    labels: Tensor  # [n] class ids

    def __len__(self) -> int:
        return int(self.lengths.shape[0])

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths.max())

    def to(self, device: torch.device) -> StateCache:
        tensors = (self.flat, self.offsets, self.lengths, self.labels)
        return StateCache(*(tensor.to(device) for tensor in tensors))

    def gather(self, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """States [n, width, d] of ``rows`` and their mask [n, width], without a device sync."""
        return gather(self.flat, self.offsets, self.lengths, rows, width)

    def part(self, rows: Tensor, labels: Tensor) -> StateCache:
        """The texts at ``rows`` with other labels. The states are shared, not copied."""
        return StateCache(self.flat, self.offsets[rows], self.lengths[rows], labels)

    def _uses(self) -> Tensor:
        """How many texts of this cache each token of ``flat`` belongs to."""
        ends = torch.zeros(self.flat.shape[0] + 1, dtype=torch.float64, device=self.flat.device)
        one = torch.ones(len(self), dtype=torch.float64, device=self.flat.device)
        ends.index_add_(0, self.offsets, one)
        ends.index_add_(0, self.offsets + self.lengths, -one)
        return ends.cumsum(0)[:-1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Per-feature mean and standard deviation [d] over all tokens of the texts, in fp32.

        The deviation is at least 1e-3 of its median, so that a constant feature is not amplified.
        """
        total = torch.zeros(self.flat.shape[1], dtype=torch.float64, device=self.flat.device)
        square = torch.zeros_like(total)
        for part, times in zip(
            torch.split(self.flat, 65536), torch.split(self._uses(), 65536), strict=True
        ):
            wide = part.double()
            total += times @ wide
            square += times @ wide.pow(2)
        tokens = int(self.lengths.sum())
        mean = total / tokens
        std = (square / tokens - mean.pow(2)).clamp_(min=0).sqrt()
        std = std.clamp(min=1e-3 * float(std.median()))
        return mean.float(), std.float()


def evenly(caches: Sequence[StateCache]) -> StateCache:
    """As many tokens of each cache, as one text, for statistics that weigh all caches alike."""
    if len(caches) == 1:
        return caches[0]
    size = min(cache.flat.shape[0] for cache in caches)
    flat = torch.cat([cache.flat[:: cache.flat.shape[0] // size][:size] for cache in caches])
    zero = torch.zeros(1, dtype=torch.long, device=flat.device)
    return StateCache(flat, zero, zero + flat.shape[0], zero)


@torch.no_grad()
def cache_layers(
    sender: TransformersBackend,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    layers: Sequence[int],
    max_tokens: int,
    batch_size: int = 64,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[int, StateCache]:
    """The sender's states after each of ``layers``, in one pass over all texts, longest first.

    Padding is cut off afterwards: in a causal model no state depends on later tokens. Texts longer
    than ``max_tokens`` are cut. ``progress`` gets the fraction done.
    """
    short = trunk(sender.model, max(layers))
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    sizes: list[Tensor] = []
    with _recorded(short, [layer for layer in layers if layer < max(layers)]) as recorded:
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            ids, mask = sender.tokens([texts[i] for i in chosen])
            ids, mask = ids[:, : max_tokens + 1], mask[:, :max_tokens]
            last = sender.states(short, ids)
            for layer, mine in parts.items():
                states = recorded[layer][:, 1:] if layer in recorded else last
                # Gemma's largest features can exceed the range of fp16, and an infinity would spoil
                # the statistics.
                mine.append(states.clamp(-HALF_MAX, HALF_MAX).half()[mask])
            sizes.append(mask.sum(dim=1))
            progress(min(1.0, (begin + batch_size) / len(order)))
    # ``flat`` has the order of computation; offsets and lengths have the order of ``texts``.
    place = torch.tensor(order, device=sender.device).argsort()
    ends = torch.cat(sizes).cumsum(0)
    lengths = torch.cat(sizes)[place]
    known = torch.tensor(list(labels), device=sender.device)
    return {
        layer: StateCache(torch.cat(mine), ends[place] - lengths, lengths, known)
        for layer, mine in parts.items()
    }


@contextmanager
def _recorded(short: Any, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """The outputs of these layers [n, 1 + T, width] in the last pass through ``short``."""
    found: dict[int, Tensor] = {}

    def keep(layer: int, module: Any, given: Any, output: Any) -> None:
        found[layer] = output[0] if isinstance(output, tuple) else output

    hooks = [short.layers[n - 1].register_forward_hook(partial(keep, n)) for n in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
