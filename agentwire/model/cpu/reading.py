"""Reads texts after a common prompt, packed into one sequence (see ``packing``).

The attention mask is explicit: each token sees the prefix and its own text.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agentwire.model.cpu.packing import PACKED_TOKENS, groups_of

_PROBE_PREFIX = 4  # prefix tokens in the probe of ``can_pack_behind``
_PROBE = (3, 5)  # lengths of its two texts


class Prefix:
    """Keys and values of the first tokens (at least one) of many rows, computed once.

    A chat template and question are often longer than the text. All text methods share them, so a
    comparison with soft tokens is one of channels.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        self._cache = _empty_cache(model)
        device = model.get_input_embeddings().weight.device
        with torch.inference_mode():
            model.get_decoder()(
                input_ids=torch.tensor([self.ids], device=device),
                past_key_values=self._cache,
                use_cache=True,
            )

    def cache(self, n: int) -> Any:
        """A copy for n rows, to which a forward pass appends."""
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(n)
        return cache


def _empty_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


@dataclass(frozen=True, slots=True)
class PackedPass:
    """One forward pass over some texts of a batch: which, and their lengths in tokens."""

    rows: list[int]
    sizes: list[int]
    states: Tensor  # [T, d], the last layer's, one text after another
    cache: Any  # keys and values of the prefix and of these T tokens, for one row

    def last(self) -> Tensor:
        """States [n, d] of each text's last token."""
        return self.states[torch.tensor(self.sizes, device=self.states.device).cumsum(0) - 1]


def fits_window(model: Any, length: int) -> bool:
    """Whether every layer attends over this many tokens; sliding windows may be shorter."""
    window: int | None = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is None or length <= window


def read_packed(
    model: Any, prefix: Prefix | None, rows: Sequence[Sequence[int]], limit: int = PACKED_TOKENS
) -> Iterator[PackedPass]:
    """Reads each text (ids, not empty) after ``prefix``, in passes of about ``limit`` tokens.

    ``fits_window`` must hold for the longest text with its prefix.
    """
    before = len(prefix.ids) if prefix else 0
    for group in groups_of([len(row) for row in rows], limit):
        sizes = [len(rows[i]) for i in group]
        device = model.device
        ids = torch.tensor([[token for i in group for token in rows[i]]], device=device)
        positions = torch.cat([torch.arange(before, before + size) for size in sizes])
        cache = prefix.cache(1) if prefix else _empty_cache(model)
        output = model.get_decoder()(
            input_ids=ids,
            position_ids=positions[None].to(device),
            attention_mask=_mask(before, sizes, model.dtype).to(device),
            past_key_values=cache,
            use_cache=True,
        )
        yield PackedPass(group, sizes, output.last_hidden_state[0], cache)


def last_packed_states(model: Any, prefix: Prefix | None, rows: Sequence[Sequence[int]]) -> Tensor:
    """States [n, d] of each text's last token; arguments as for ``read_packed``."""
    # Groups are consecutive rows, so their results are in the order of the batch.
    return torch.cat([packed.last() for packed in read_packed(model, prefix, rows)])


def _mask(before: int, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Additive attention mask [1, 1, T, before + T]: 0 where a token is visible."""
    total = sum(sizes)
    mask = torch.full((total, before + total), torch.finfo(dtype).min, dtype=dtype)
    mask[:, :before] = 0
    start = 0
    for size in sizes:
        own = mask[start : start + size, before + start : before + start + size]
        own.masked_fill_(torch.ones(size, size, dtype=torch.bool).tril(), 0)
        start += size
    return mask[None, None]


@torch.inference_mode()
def can_pack_behind(model: Any) -> bool:
    """Whether this model reads packed texts separately, each after the prefix. Found by a probe:
    some models ignore a mask or positions, or cache in another form."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if not fits_window(model, _PROBE_PREFIX + max(_PROBE)):
        return False
    ids = [i % vocabulary for i in range(1, 1 + _PROBE_PREFIX + sum(_PROBE))]
    head, texts = ids[:_PROBE_PREFIX], ids[_PROBE_PREFIX:]
    rows = [texts[: _PROBE[0]], texts[_PROBE[0] :]]
    decoder = model.get_decoder()

    def alone(*parts: Sequence[int]) -> Tensor:
        joined = torch.tensor([[token for part in parts for token in part]], device=model.device)
        states: Tensor = decoder(input_ids=joined, use_cache=False).last_hidden_state
        return states[0, -len(parts[-1]) :]

    try:
        packed = next(read_packed(model, Prefix(model, head), rows, sum(_PROBE)))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False  # it does not take such a mask
    error = packed.states - torch.cat([alone(head, row) for row in rows])
    mixed = packed.states[-_PROBE[1] :] - alone(head, rows[0], rows[1])
    # Compared with the error of mixed texts: some features are 1,000 times as large as others.
    return bool(error.float().norm() < 0.1 * mixed.float().norm())
