"""Keys and values of a prompt's static part, computed once and shared by all rows.

An instruct model's chat template and question come before the text and are the same for every row:
often more tokens than the text itself. Every text method uses this, so that the comparison with
soft tokens is one of channels and not of care.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch


class Prefix:
    """The first tokens of many rows.

    Args:
        model: a transformers model with an LM head.
        ids: their token ids; at least one.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        from transformers import DynamicCache

        self.ids = tuple(ids)
        cache = DynamicCache(config=model.config)
        device = model.get_input_embeddings().weight.device
        with torch.inference_mode():
            model.get_decoder()(
                input_ids=torch.tensor([self.ids], device=device),
                past_key_values=cache,
                use_cache=True,
            )
        self._cache = cache

    def cache(self, n: int) -> Any:
        """A cache of its own for n rows: a forward pass appends to it."""
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(n)
        return cache
