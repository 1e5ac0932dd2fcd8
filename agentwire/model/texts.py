"""Reads texts after a common prompt: states to score from, and greedy continuations.

Texts are packed on a CPU (``cpu.reading``, ``cpu.decoding``), and padded on a GPU, which is limited
by launches, and for models that cannot be packed. The results are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from agentwire.model.cpu.decoding import continue_greedily, plain_greedy
from agentwire.model.cpu.packed_linear import PackedLinear, can_pack
from agentwire.model.cpu.reading import (
    Prefix,
    can_pack_behind,
    fits_window,
    last_packed_states,
)
from agentwire.model.lru import LruCache

PREFIXES = 16  # prompts whose keys and values are kept


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ragged ids -> ids [n, T] and lengths [n]."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, lengths


def until_end(row: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens before the first one in ``ends``."""
    end = next((i for i, token in enumerate(row) if token in ends), len(row))
    return list(row[:end])


class TextReader:
    """Reads batches of texts, each batch after one prompt.

    Attributes:
        inference_only: the model will not be trained, so its LM head may be repacked for speed.
    """

    def __init__(self, model: Any, *, ends: Collection[int], pad: int) -> None:
        self._model = model
        self._ends = frozenset(ends)
        self._pad = pad
        self._prefixes: LruCache[tuple[int, ...], Prefix] = LruCache(PREFIXES)
        self.inference_only = False

    @cached_property
    def packs(self) -> bool:
        """Whether texts are packed."""
        return self._model.device.type == "cpu" and can_pack_behind(self._model)

    @torch.inference_mode()
    def last_states(self, before: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        """States [n, d] of each text's last token; ``before`` precedes every text."""
        prefix = self._prefix(before)
        if self._can_pack(before, rows, 0):
            return last_packed_states(self._model, prefix, rows)
        ids, lengths = pad_right(rows, self._pad)
        hidden: Tensor = self._model.get_decoder()(
            input_ids=ids.to(self._model.device),
            past_key_values=prefix.cache(len(rows)) if prefix else None,
            use_cache=True,
        ).last_hidden_state
        return hidden[torch.arange(len(rows)), (lengths - 1).to(hidden.device)]

    @torch.inference_mode()
    def continued(
        self, before: Sequence[int], rows: Sequence[Sequence[int]], limit: int
    ) -> list[list[int]]:
        """Greedy continuations of at most ``limit`` tokens, without the end token."""
        if self._can_pack(before, rows, limit) and plain_greedy(self._model):
            prefix = self._prefix(before)
            return continue_greedily(
                self._model, self._head, prefix, rows, ends=self._ends, limit=limit
            )
        return [until_end(row, self._ends) for row in self._continue_padded(before, rows, limit)]

    @cached_property
    def _head(self) -> Any:
        head = self._model.get_output_embeddings()
        return PackedLinear(head) if self.inference_only and can_pack(head) else head

    def _can_pack(self, before: Sequence[int], rows: Sequence[Sequence[int]], limit: int) -> bool:
        longest = max(len(row) for row in rows)
        return self.packs and fits_window(self._model, len(before) + longest + limit)

    def _continue_padded(
        self, before: Sequence[int], rows: Sequence[Sequence[int]], limit: int
    ) -> list[list[int]]:
        """By the library. Rows must end at the same place, so padding precedes the text.

        A sliding window counts padding: if too short, padding goes first and no prefix is shared.
        """
        longest = max(len(row) for row in rows)
        shares = fits_window(self._model, len(before) + longest + limit)
        head = list(before) if shares else []
        rows = rows if shares else [[*before, *row] for row in rows]
        longest = max(len(row) for row in rows)
        gaps = [longest - len(row) for row in rows]
        ids = [[*head, *[self._pad] * gap, *row] for gap, row in zip(gaps, rows, strict=True)]
        mask = [[1] * len(head) + [0] * gap + [1] * (longest - gap) for gap in gaps]
        prefix = self._prefix(head)
        device = self._model.device
        output = self._model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            past_key_values=prefix.cache(len(rows)) if prefix else None,
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=self._pad,
            eos_token_id=sorted(self._ends) or None,
        )
        written: list[list[int]] = output[:, len(head) + longest :].tolist()
        return written

    def _prefix(self, ids: Sequence[int]) -> Prefix | None:
        """Keys and values of ``ids``; None for no ids."""
        key = tuple(ids)
        return self._prefixes.get(key, lambda: Prefix(self._model, key)) if key else None
