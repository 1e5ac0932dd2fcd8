"""Keys and values of a prompt's static part, computed once and shared by all rows.

A chat template and question are often longer than the text. All text methods share them, so a
comparison with soft tokens is one of channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch


class Prefix:
    """The first tokens (at least one) of many rows."""

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        self._cache = empty_cache(model)
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


def empty_cache(model: Any) -> Any:
    """The library's cache without any tokens."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)
