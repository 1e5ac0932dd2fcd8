"""Greedy continuation of texts of unequal length: nothing padded, nothing computed for ended rows.

The library's ``generate`` pads every row to the longest, grows its cache by copying it at each step
and goes on with rows that have ended. Here the texts are read packed (``reading``), each row writes
its keys and values to its own next slot of a cache made once, and a row that ends makes room for
another. Which token comes next is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from agentwire.model.cpu.prefix import Prefix
from agentwire.model.cpu.reading import Packed, read_packed


class _Slots:
    """Where each row that goes on writes: shared by the layers of one cache.

    Attributes:
        live: rows that go on: the first ``live`` of the cache.
        next: [n] slot of each row's next token.
        used: slots that the longest row has after it.
    """

    def __init__(self, filled: Sequence[int], device: torch.device) -> None:
        self.live = len(filled)
        self.next = torch.tensor(filled, device=device)
        self.rows = torch.arange(self.live, device=device)
        self.used = max(filled) + 1

    def visible(self, dtype: torch.dtype) -> Tensor:
        """What is added to the attention scores, [live, 1, 1, used]: 0 where a row has written."""
        slots = torch.arange(self.used, device=self.next.device)
        hidden = slots[None, :] > self.next[: self.live, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None, :]

    def advance(self) -> None:
        self.next[: self.live] += 1
        self.used = int(self.next[: self.live].max()) + 1


class _Layer:
    """Keys and values [n, G, S, D] of one layer."""

    def __init__(self, keys: Tensor, values: Tensor, slots: _Slots) -> None:
        self.keys, self.values, self._slots = keys, values, slots

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in one token of each row, [live, G, 1, D]; gives all that there is."""
        slots = self._slots
        rows, places = slots.rows[: slots.live], slots.next[: slots.live]
        self.keys[rows, :, places] = keys[:, :, 0]
        self.values[rows, :, places] = values[:, :, 0]
        return self.keys[: slots.live, :, : slots.used], self.values[: slots.live, :, : slots.used]


class RowCache:
    """Keys and values of n rows, each as long as it is, in the form that a decoder asks for.

    Args:
        before: tokens of the prefix.
        lengths: tokens of each text.
        room: tokens that each may grow by.
    """

    def __init__(self, before: int, lengths: Sequence[int], room: int) -> None:
        self._before = before
        self._lengths = lengths
        self._size = before + max(lengths) + room
        self._layers: list[_Layer] = []
        self.slots: _Slots | None = None

    def fill(self, packed: Packed) -> None:
        """Takes over what a packed pass has read."""
        for index, layer in enumerate(packed.cache.layers):
            keys, values = layer.keys[0], layer.values[0]  # [G, before + T, D]
            if len(self._layers) <= index:
                self._add(keys)
            mine = self._layers[index]
            start = self._before
            for row, size in zip(packed.rows, packed.sizes, strict=True):
                whole = self._before + size
                for own, read in ((mine.keys, keys), (mine.values, values)):
                    own[row, :, : self._before] = read[:, : self._before]
                    own[row, :, self._before : whole] = read[:, start : start + size]
                start += size

    def _add(self, like: Tensor) -> None:
        if self.slots is None:
            self.slots = _Slots([self._before + n for n in self._lengths], like.device)
        shape = (len(self._lengths), like.shape[0], self._size, like.shape[2])
        # Zeros: what is hidden is multiplied by nought, and memory may hold a NaN.
        self._layers.append(_Layer(like.new_zeros(shape), like.new_zeros(shape), self.slots))

    def drop(self, row: int) -> None:
        """Row ``row`` ends; the last one that goes on takes its place."""
        slots = self._require()
        slots.live -= 1
        if row == slots.live:
            return
        slots.next[row] = slots.next[slots.live]
        for layer in self._layers:
            layer.keys[row] = layer.keys[slots.live]
            layer.values[row] = layer.values[slots.live]

    def _require(self) -> _Slots:
        if self.slots is None:
            raise RuntimeError("nothing was read into this cache")
        return self.slots

    # -- what a decoder asks for --------------------------------------------------------------

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._layers[layer].update(keys, values)

    def get_seq_length(self, layer: int = 0) -> int:
        return self._require().used - 1


def plain_greedy(model: Any) -> bool:
    """Whether greedy decoding of this model is the largest logit and nothing else.

    A checkpoint may ask for penalties or for forbidden tokens in its generation config.
    """
    config = model.generation_config
    neutral: dict[str, Collection[Any]] = {
        "repetition_penalty": (None, 1.0),
        "encoder_repetition_penalty": (None, 1.0),
        "no_repeat_ngram_size": (None, 0),
        "encoder_no_repeat_ngram_size": (None, 0),
        "min_length": (None, 0),
        "min_new_tokens": (None, 0),
        "num_beams": (None, 1),
        "guidance_scale": (None, 1, 1.0),
        "bad_words_ids": (None,),
        "suppress_tokens": (None,),
        "begin_suppress_tokens": (None,),
        "sequence_bias": (None,),
        "forced_bos_token_id": (None,),
        "forced_eos_token_id": (None,),
        "exponential_decay_length_penalty": (None,),
        "watermarking_config": (None,),
    }
    return all(getattr(config, name, None) in values for name, values in neutral.items())


@torch.inference_mode()
def continue_greedily(
    model: Any,
    head: Callable[[Tensor], Tensor],
    prefix: Prefix | None,
    rows: Sequence[Sequence[int]],
    *,
    ends: Collection[int],
    most: int,
) -> list[list[int]]:
    """The next tokens of each text, up to the first of ``ends`` (not included) or ``most``.

    Args:
        model: a transformers model with an LM head for which ``can_pack_behind``,
            ``plain_greedy`` and, for the longest row with its continuation, ``sees`` hold.
        head: its LM head: states [n, d] -> logits [n, V].
        prefix: what stands before every text.
        rows: token ids of each text, none of them empty.
    """
    before = len(prefix.ids) if prefix else 0
    cache = RowCache(before, [len(row) for row in rows], most)
    last = torch.empty(0)
    for packed in read_packed(model, prefix, rows):
        cache.fill(packed)
        states = packed.last()
        last = last.to(states) if len(last) else states.new_empty(len(rows), states.shape[1])
        last[packed.rows] = states
    written: list[list[int]] = [[] for _ in rows]
    alive = list(range(len(rows)))  # which text is in each of the cache's rows
    while True:
        # Softcaps and scales of the logits are monotonic: they do not change which is the largest.
        best: list[int] = head(last).argmax(dim=-1).tolist()
        tokens = _settle(best, alive, written, cache, ends, most)
        if not alive:
            return written
        last = _step(model, tokens, cache)


def _settle(
    tokens: list[int],
    alive: list[int],
    written: list[list[int]],
    cache: RowCache,
    ends: Collection[int],
    most: int,
) -> list[int]:
    """Notes each row's token and drops the rows that are done; the tokens of the others."""
    for row in reversed(range(len(alive))):
        text, token = alive[row], tokens[row]
        if token not in ends:
            written[text].append(token)
        if token in ends or len(written[text]) >= most:
            cache.drop(row)
            alive[row], tokens[row] = alive[-1], tokens[-1]
            alive.pop()
            tokens.pop()
    return tokens


def _step(model: Any, tokens: Sequence[int], cache: RowCache) -> Tensor:
    """States [live, d] after one more token of each row."""
    slots = cache.slots
    if slots is None:
        raise RuntimeError("nothing was read into this cache")
    states: Tensor = model.get_decoder()(
        input_ids=torch.tensor(tokens, device=model.device)[:, None],
        position_ids=slots.next[: slots.live, None],
        attention_mask=slots.visible(model.dtype),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    slots.advance()
    return states
