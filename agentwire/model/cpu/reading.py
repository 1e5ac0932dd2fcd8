"""Texts behind a common prompt, read one after another in one sequence instead of padded.

As in ``packing``, padding would cost as much as text does on a CPU. Here the sequence comes after a
``Prefix`` that all texts see, so the mask is made by hand: each token sees the prefix and what
stands before it in its own text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agentwire.model.cpu.packing import PACKED_TOKENS, groups_of
from agentwire.model.cpu.prefix import Prefix

_PROBE_PREFIX = 4  # tokens of the prefix of ``can_pack_behind``
_PROBE = (3, 5)  # and lengths of its two texts


@dataclass(frozen=True, slots=True)
class Packed:
    """Some texts of a batch after one forward pass.

    Attributes:
        rows: which texts of the batch.
        sizes: their lengths in tokens.
        states: [T, d], the last layer's, one text after another.
        cache: keys and values of the prefix and of these T tokens, for one row.
    """

    rows: list[int]
    sizes: list[int]
    states: Tensor
    cache: Any

    def last(self) -> Tensor:
        """States [n, d] of each text's last token."""
        ends = torch.tensor(self.sizes, device=self.states.device).cumsum(0) - 1
        return self.states[ends]


def window_of(model: Any) -> int | None:
    """How far back every layer sees, in tokens; None: without end."""
    window: int | None = getattr(model.config.get_text_config(), "sliding_window", None)
    return window


def sees(model: Any, length: int) -> bool:
    """Whether every layer attends over this many tokens: sliding windows may be shorter."""
    window = window_of(model)
    return window is None or length <= window


def read_packed(
    model: Any,
    prefix: Prefix | None,
    rows: Sequence[Sequence[int]],
    most: int = PACKED_TOKENS,
) -> Iterator[Packed]:
    """Reads each text after ``prefix``.

    Args:
        model: a transformers model with an LM head; ``sees`` holds for the longest text with its
            prefix.
        rows: token ids of each text, none of them empty.
        most: tokens of one pass, unless one text alone is longer.
    """
    before = len(prefix.ids) if prefix else 0
    for group in groups_of([len(row) for row in rows], most):
        sizes = [len(rows[i]) for i in group]
        device = model.device
        ids = torch.tensor([[token for i in group for token in rows[i]]], device=device)
        places = torch.cat([torch.arange(before, before + size) for size in sizes])
        cache = prefix.cache(1) if prefix else _no_cache(model)
        output = model.get_decoder()(
            input_ids=ids,
            position_ids=places[None].to(device),
            attention_mask=_mask(before, sizes, model.dtype).to(device),
            past_key_values=cache,
            use_cache=True,
        )
        yield Packed(group, sizes, output.last_hidden_state[0], cache)


def _no_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _mask(before: int, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What is added to the attention scores, [1, 1, T, before + T]: 0 where a token sees."""
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
    """Whether this model keeps packed texts apart and reads their prefix: it is asked.

    A model may ignore the mask or the positions that it is given, or keep what it has read in a
    form of its own.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if not sees(model, _PROBE_PREFIX + max(_PROBE)):
        return False
    ids = [i % vocabulary for i in range(1, 1 + _PROBE_PREFIX + sum(_PROBE))]
    head, texts = ids[:_PROBE_PREFIX], ids[_PROBE_PREFIX:]
    rows = [texts[: _PROBE[0]], texts[_PROBE[0] :]]
    decoder = model.get_decoder()

    def alone(*parts: Sequence[int]) -> Tensor:
        joined = [token for part in parts for token in part]
        states: Tensor = decoder(
            input_ids=torch.tensor([joined], device=model.device), use_cache=False
        ).last_hidden_state[0, -len(parts[-1]) :]
        return states

    try:
        packed = next(read_packed(model, Prefix(model, head), rows, sum(_PROBE)))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False  # it takes no mask of this form
    error = packed.states - torch.cat([alone(head, row) for row in rows])
    mixed = packed.states[-_PROBE[1] :] - alone(head, rows[0], rows[1])
    # Not an absolute bound: some features are 1,000 times as large as others.
    return bool(error.float().norm() < 0.1 * mixed.float().norm())
