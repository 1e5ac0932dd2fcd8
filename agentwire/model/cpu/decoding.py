"""Greedy continuation of texts of different lengths, without padding.

The library's ``generate`` pads rows, copies its cache at each step, and keeps computing rows that
have ended. Here texts are read packed (``reading``), each row writes to its own next position of a
cache that is allocated once, and a row that ends is replaced by the last one. The tokens are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from agentwire.model.cpu.reading import PackedPass, Prefix, read_packed


class RowCache:
    """Keys and values of n rows of different lengths, as a transformers decoder takes them."""

    def __init__(
        self, before: int, lengths: Sequence[int], room: int, device: torch.device
    ) -> None:
        self._before = before
        self._size = before + max(lengths) + room
        self._layers: list[tuple[Tensor, Tensor]] = []  # keys and values, each [n, G, S, D]
        self.live = len(lengths)  # rows that are still running: the first of the cache
        self.next = torch.tensor([before + n for n in lengths], device=device)  # positions, [n]
        self.used = before + max(lengths) + 1  # positions of the longest row, the next included

    def fill(self, packed: PackedPass) -> None:
        """Copies what a packed pass has read."""
        for index, layer in enumerate(packed.cache.layers):
            read = (layer.keys[0], layer.values[0])  # [G, before + T, D]
            if len(self._layers) <= index:
                shape = (self.live, read[0].shape[0], self._size, read[0].shape[2])
                # Zeros: hidden positions are multiplied by 0, and memory may hold a NaN.
                self._layers.append((read[0].new_zeros(shape), read[1].new_zeros(shape)))
            start = self._before
            for row, size in zip(packed.rows, packed.sizes, strict=True):
                end = self._before + size
                for own, given in zip(self._layers[index], read, strict=True):
                    own[row, :, : self._before] = given[:, : self._before]
                    own[row, :, self._before : end] = given[:, start : start + size]
                start += size

    def drop(self, row: int) -> None:
        """Ends a row; the last running row takes its place."""
        self.live -= 1
        if row == self.live:
            return
        self.next[row] = self.next[self.live]
        for keys, values in self._layers:
            keys[row], values[row] = keys[self.live], values[self.live]

    def visible(self, dtype: torch.dtype) -> Tensor:
        """Additive attention mask [live, 1, 1, used]: 0 where a row has written."""
        positions = torch.arange(self.used, device=self.next.device)
        hidden = positions[None, :] > self.next[: self.live, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None, :]

    def advance(self) -> None:
        """Moves every running row to its next position."""
        self.next[: self.live] += 1
        self.used = int(self.next[: self.live].max()) + 1

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores one token of each running row, [live, G, 1, D]; returns all of the layer."""
        rows, places = torch.arange(self.live, device=self.next.device), self.next[: self.live]
        own_keys, own_values = self._layers[layer]
        own_keys[rows, :, places] = keys[:, :, 0]
        own_values[rows, :, places] = values[:, :, 0]
        return own_keys[: self.live, :, : self.used], own_values[: self.live, :, : self.used]

    def get_seq_length(self, layer: int = 0) -> int:
        return self.used - 1


def plain_greedy(model: Any) -> bool:
    """Whether the generation config allows plain greedy decoding: no penalties, no bans."""
    config = model.generation_config
    neutral: dict[tuple[int | None, ...], str] = {
        (None, 1): "repetition_penalty encoder_repetition_penalty num_beams guidance_scale",
        (None, 0): "no_repeat_ngram_size encoder_no_repeat_ngram_size min_length min_new_tokens",
        (None,): "bad_words_ids suppress_tokens begin_suppress_tokens sequence_bias "
        "forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty "
        "watermarking_config",
    }
    return all(
        getattr(config, name, None) in values
        for values, names in neutral.items()
        for name in names.split()
    )


@torch.inference_mode()
def continue_greedily(
    model: Any,
    head: Callable[[Tensor], Tensor],
    prefix: Prefix | None,
    rows: Sequence[Sequence[int]],
    *,
    ends: Collection[int],
    limit: int,
) -> list[list[int]]:
    """The next tokens of each text, up to the first of ``ends`` (excluded) or ``limit``.

    ``can_pack_behind`` and ``plain_greedy`` must hold for the model, and ``fits_window`` for the
    longest row with its continuation. ``head``: states [n, d] -> logits [n, V].
    """
    before = len(prefix.ids) if prefix else 0
    cache = RowCache(before, [len(row) for row in rows], limit, model.device)
    states: list[Tensor] = []
    for packed in read_packed(model, prefix, rows):
        cache.fill(packed)
        states.append(packed.last())
    last = torch.cat(states)  # groups are consecutive rows
    written: list[list[int]] = [[] for _ in rows]
    running = list(range(len(rows)))  # which text is in each row of the cache
    while True:
        # Softcaps and scales are monotonic: they do not change which logit is the largest.
        tokens: list[int] = head(last).argmax(dim=-1).tolist()
        for row in reversed(range(len(running))):
            text, token = running[row], tokens[row]
            if token not in ends:
                written[text].append(token)
            if token in ends or len(written[text]) >= limit:
                cache.drop(row)
                running[row], tokens[row] = running[-1], tokens[-1]
                running.pop()
                tokens.pop()
        if not running:
            return written
        last = _step(model, tokens, cache)


def _step(model: Any, tokens: Sequence[int], cache: RowCache) -> Tensor:
    """States [live, d] after one more token of each running row."""
    states: Tensor = model.get_decoder()(
        input_ids=torch.tensor(tokens, device=model.device)[:, None],
        position_ids=cache.next[: cache.live, None],
        attention_mask=cache.visible(model.dtype),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    cache.advance()
    return states
