"""Greedy generation with a static cache: one program for the texts, one for a step.

Rows are padded on the right: a row's first new token overwrites its padding in the cache, so no
mask and no position is shared between rows, and a step has one shape however far it is. Both
programs are captured, and the steps are launched one after the other without asking the device.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from agentwire.model.static.buckets import fill
from agentwire.model.static.decoder import Prefix, StaticDecoder
from agentwire.model.static.graphs import WARM_UPS, Device, Port, Program

ASK_EVERY = 8
"""Steps between two looks at whether all rows have ended."""


class Generation:
    """Continues texts of one static shape.

    Args:
        device: where.
        decoder: the model.
        head: its LM head: states [n, d] -> logits [n, V].
        shape: rows and tokens of a row.
        prefix: what every row reads first.
        most: longest continuation in tokens.
        ends: ids that end a row; none: every row has its full length.
    """

    def __init__(
        self,
        device: Device,
        decoder: StaticDecoder,
        head: Any,
        shape: tuple[int, int],
        prefix: Prefix,
        most: int,
        ends: Collection[int],
    ) -> None:
        rows, tokens = self.shape = shape
        self._device = device
        self._most = most
        self._ends = sorted(ends)
        where = decoder.device
        before = prefix[0][0].shape[0] if prefix else 0
        # Each warm-up of a captured step writes one token more.
        self._cache = decoder.cache(rows, before + tokens + most + WARM_UPS)
        self._written = torch.zeros(rows, most + WARM_UPS, dtype=torch.long, device=where)
        self._token = torch.zeros(rows, dtype=torch.long, device=where)
        self._position = torch.full((rows,), before, dtype=torch.long, device=where)
        self._index = torch.zeros(1, dtype=torch.long, device=where)
        packed = torch.ones(rows, tokens + 1, dtype=torch.long, device=where)
        prompt_slots = self._cache.first(rows, before + tokens)

        def take(states: Tensor) -> Tensor:
            self._token.copy_(head(states).argmax(dim=-1))
            self._written.index_copy_(1, self._index, self._token[:, None])
            return self._written

        def read() -> Tensor:
            ids, lengths = packed[:, :tokens], packed[:, tokens]
            self._index.zero_()
            self._position.copy_(lengths + before)
            x = decoder.embed(ids)
            return take(decoder.last(x, lengths - 1, prefix, prompt_slots))

        def step() -> Tensor:
            states = decoder.step(self._token, self._position, self._cache)
            self._position.add_(1)
            self._index.add_(1)
            return take(states)

        self._port = Port(device, [packed], Program(device, read))
        # Captured from a state in which a step stays inside the cache.
        self._index.zero_()
        self._position.fill_(before + 1)
        self._step = Program(device, step) if most > 1 else None

    @property
    def cache_bytes(self) -> int:
        """What its keys and values take."""
        return sum(k.nbytes + v.nbytes for k, v in self._cache.layers)

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """The new ids of each row, up to and without the first that ends it."""
        slot = self._port.slot()
        fill(slot.host_in[0].numpy(), rows)
        self._port.launch(slot)
        device = self._device
        with device.on(device.compute):
            for done in range(1, self._most):
                if self._step is not None:
                    self._step.launch()
                if self._ends and done % ASK_EVERY == 0 and self._all_ended(len(rows), done + 1):
                    break
            written = self._written[: len(rows), : self._most].tolist()
        self._port.give_back(slot)
        return [self._cut(row) for row in written]

    def _all_ended(self, rows: int, length: int) -> bool:
        ends = torch.tensor(self._ends, device=self._written.device)
        return bool(torch.isin(self._written[:rows, :length], ends).any(dim=1).all())

    def _cut(self, row: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(row) if token in self._ends), len(row))
        return row[:end]
