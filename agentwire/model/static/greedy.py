"""Greedy generation with a static cache: one program reads the texts, one computes a step.

Rows are padded on the right, and a row's new tokens overwrite its padding in the cache, so a step
needs no mask and has one shape. Steps are launched without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from agentwire.model.static.buckets import fill
from agentwire.model.static.decoder import Prefix, StaticDecoder
from agentwire.model.static.graphs import WARM_UPS, GraphDevice, Program, Runner
from agentwire.model.texts import until_end

CHECK_EVERY = 8  # steps between checks whether all rows have ended


class Generation:
    """Continues texts of one static shape (rows, tokens) after ``prefix`` by ``limit`` tokens.

    ``head`` maps states [n, d] to logits [n, V]. Without ``ends``, every row has its full length.
    """

    def __init__(
        self,
        device: GraphDevice,
        decoder: StaticDecoder,
        head: Any,
        shape: tuple[int, int],
        prefix: Prefix,
        limit: int,
        ends: Collection[int],
    ) -> None:
        rows, tokens = self.shape = shape
        self._device = device
        self._limit = limit
        self._ends = sorted(ends)
        where = decoder.device
        before = prefix[0][0].shape[0] if prefix else 0
        # Each warm-up of a captured step writes one more token.
        self._cache = decoder.cache(rows, before + tokens + limit + WARM_UPS)
        self._written = torch.zeros(rows, limit + WARM_UPS, dtype=torch.long, device=where)
        self._token = torch.zeros(rows, dtype=torch.long, device=where)
        self._position = torch.full((rows,), before, dtype=torch.long, device=where)
        self._index = torch.zeros(1, dtype=torch.long, device=where)
        packed = torch.ones(rows, tokens + 1, dtype=torch.long, device=where)
        prompt_cache = [(k[:, : before + tokens], v[:, : before + tokens]) for k, v in self._cache]

        def take(states: Tensor) -> Tensor:
            self._token.copy_(head(states).argmax(dim=-1))
            self._written.index_copy_(1, self._index, self._token[:, None])
            return self._written

        def read() -> Tensor:
            ids, lengths = packed[:, :tokens], packed[:, tokens]
            self._index.zero_()
            self._position.copy_(lengths + before)
            x = decoder.embed(ids)
            return take(decoder.last(x, lengths - 1, prefix, prompt_cache))

        def step() -> Tensor:
            states = decoder.step(self._token, self._position, self._cache)
            self._position.add_(1)
            self._index.add_(1)
            return take(states)

        self._runner = Runner(device, [packed], read)
        # The step is captured from a state in which it stays inside the cache.
        self._index.zero_()
        self._position.fill_(before + 1)
        self._step = Program(device, step) if limit > 1 else None

    @property
    def cache_bytes(self) -> int:
        """Size of its keys and values."""
        return sum(k.nbytes + v.nbytes for k, v in self._cache)

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """The new ids of each row, up to the first that ends it (excluded)."""
        staging = self._runner.staging()
        fill(staging.host_in[0].numpy(), rows)
        self._runner.launch(staging)
        stream = self._device.compute
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            for done in range(1, self._limit):
                if self._step is not None:
                    self._step.launch()
                check = self._ends and done % CHECK_EVERY == 0
                if check and self._all_ended(len(rows), done + 1):
                    break
            written = self._written[: len(rows), : self._limit].tolist()
        self._runner.release(staging)
        return [until_end(row, self._ends) for row in written]

    def _all_ended(self, rows: int, length: int) -> bool:
        ends = torch.tensor(self._ends, device=self._written.device)
        return bool(torch.isin(self._written[:rows, :length], ends).any(dim=1).all())
