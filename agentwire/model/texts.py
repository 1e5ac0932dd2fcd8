"""A model reads texts after a prompt: states to score from, and greedy continuations.

Two ways to the same numbers. On a CPU texts are packed (``reading``, ``decoding``), where the model
can do that. On a GPU, which is bound by launches and not by padding, and for models that cannot be
packed, they are padded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from agentwire.model.cpu.decoding import continue_greedily, plain_greedy
from agentwire.model.cpu.packed_linear import PackedLinear, can_pack
from agentwire.model.cpu.prefix import Prefix
from agentwire.model.cpu.reading import can_pack_behind, read_packed, sees

PREFIXES = 16
"""Prompts whose keys and values are kept."""


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ragged ids -> ids [n, T] and lengths [n]."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, lengths


class TextReader:
    """Reads batches of texts, each batch after one prompt.

    Args:
        model: a transformers model with an LM head.
        ends: ids of tokens that end a continuation.
        pad: id of the token that pads.

    Attributes:
        answers_only: the model does not train, so that more can be laid out for speed.
    """

    def __init__(self, model: Any, *, ends: Collection[int], pad: int) -> None:
        self._model = model
        self._ends = frozenset(ends)
        self._pad = pad
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self.answers_only = False

    @cached_property
    def packs(self) -> bool:
        """Whether texts are packed."""
        return self._model.device.type == "cpu" and can_pack_behind(self._model)

    @torch.inference_mode()
    def last_states(self, before: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        """States [n, d] of each text's last token.

        Args:
            before: ids that every text comes after.
            rows: ids of each text, none of them empty.
        """
        prefix = self._prefix(before)
        if self._packs(before, rows, 0):
            states = torch.empty(len(rows), 0)
            for packed in read_packed(self._model, prefix, rows):
                last = packed.last()
                states = states if states.shape[1] else last.new_empty(len(rows), last.shape[1])
                states[packed.rows] = last
            return states
        ids, lengths = pad_right(rows, self._pad)
        hidden: Tensor = self._model.get_decoder()(
            input_ids=ids.to(self._model.device),
            past_key_values=prefix.cache(len(rows)) if prefix else None,
            use_cache=True,
        ).last_hidden_state
        return hidden[torch.arange(len(rows)), (lengths - 1).to(hidden.device)]

    @torch.inference_mode()
    def continued(
        self, before: Sequence[int], rows: Sequence[Sequence[int]], most: int
    ) -> list[list[int]]:
        """Greedy continuations of at most ``most`` tokens; the token that ends one is left out.

        Args:
            before, rows: as in ``last_states``.
        """
        if self._packs(before, rows, most) and plain_greedy(self._model):
            prefix = self._prefix(before)
            return continue_greedily(
                self._model, self._head, prefix, rows, ends=self._ends, most=most
            )
        return [self._cut(row) for row in self._continued_padded(before, rows, most)]

    @cached_property
    def _head(self) -> Any:
        """The LM head; a copy laid out for its product is made by the first who writes."""
        head = self._model.get_output_embeddings()
        return PackedLinear(head) if self.answers_only and can_pack(head) else head

    def _packs(self, before: Sequence[int], rows: Sequence[Sequence[int]], most: int) -> bool:
        longest = max(len(row) for row in rows)
        return self.packs and sees(self._model, len(before) + longest + most)

    def _continued_padded(
        self, before: Sequence[int], rows: Sequence[Sequence[int]], most: int
    ) -> list[list[int]]:
        """By the library: all rows end where they go on, so padding stands before the text.

        It is masked, and positions do not count it. A sliding window does count it: where one is
        shorter than the longest row, padding goes before everything and nothing is shared.
        """
        shares = sees(self._model, len(before) + max(len(row) for row in rows) + most)
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
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=self._pad,
            eos_token_id=sorted(self._ends) or None,
        )
        written: list[list[int]] = output[:, len(head) + longest :].tolist()
        return written

    def _cut(self, row: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(row) if token in self._ends), len(row))
        return row[:end]

    def _prefix(self, ids: Sequence[int]) -> Prefix | None:
        """Keys and values of ``ids``, kept; None where there are none."""
        if not ids:
            return None
        key = tuple(ids)
        if key not in self._prefixes:
            while len(self._prefixes) >= PREFIXES:
                self._prefixes.popitem(last=False)
            self._prefixes[key] = Prefix(self._model, key)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]
