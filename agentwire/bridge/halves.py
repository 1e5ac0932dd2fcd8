"""The halves of a reader bridge beside their models: what each model gives and takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from agentwire.bridge import store
from agentwire.bridge.card import CardReader
from agentwire.bridge.reader import Reader, ReceiverHalf
from agentwire.bridge.shape import ReaderShape
from agentwire.wire.messages import TaskSpec


class ManyLayers:
    """A ``trunk`` whose ``last_hidden_state`` holds the states of several layers side by side.

    ``layers`` are in rising order, and the last of them is the trunk's own last layer.
    """

    def __init__(self, short: Any, layers: Sequence[int]) -> None:
        self._short = short
        self._before = tuple(layers[:-1])
        self.get_input_embeddings = short.get_input_embeddings

    def __call__(self, **inputs: Any) -> Any:
        found: list[Tensor] = []

        def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])

        with before_layers(self._short.layers, self._before, [keep] * len(self._before)):
            last = self._short(**inputs).last_hidden_state
        return SimpleNamespace(last_hidden_state=torch.cat([*found, last], dim=-1))


@dataclass(frozen=True, slots=True)
class SendingReader:
    """The sender's part of a reader bridge (``store.load_half``)."""

    module: nn.Module
    shape: ReaderShape

    def __call__(self, states: Tensor, mask: Tensor, soft_tokens: int) -> tuple[Tensor, list[int]]:
        """fp16 [n, M, sent_width], zero beyond each row's own M, and M of each row.

        Args:
            states: [n, T, layers * sender_width].
            soft_tokens: M of all rows; 0: by each text's length.
        """
        sizes = [soft_tokens or self.shape.size_for(n) for n in mask.sum(-1).tolist()]
        states = states.view(*mask.shape, len(self.shape.sender_layers), -1)
        make = self.module.sent if isinstance(self.module, Reader) else self.module
        sent = states.new_zeros(
            (len(sizes), max(sizes), self.shape.sent_width), dtype=torch.float16
        )
        for size in sorted(set(sizes)):
            rows = [i for i, m in enumerate(sizes) if m == size]
            longest = int(mask[rows].sum(-1).max())
            sent[rows, :size] = make(states[rows, :longest], mask[rows, :longest], size).half()
        return sent, sizes


@dataclass(frozen=True, slots=True)
class SoftInputs:
    """What a receiver reads, padded on the left.

    Attributes:
        embeds: [n, L, d].
        mask: [n, L], 1 where a row has a vector.
        additions: [n, M, layers, d] for the positions ``places`` [n, M]; None: none.
        layers: before which the additions are made.
    """

    embeds: Tensor
    mask: Tensor
    additions: Tensor | None = None
    places: Tensor | None = None
    layers: tuple[int, ...] = ()

    @property
    def lengths(self) -> list[int]:
        found: list[int] = self.mask.sum(-1).tolist()
        return found

    @property
    def positions(self) -> Tensor:
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    @contextmanager
    def added(self, decoder: Any) -> Iterator[None]:
        """Inside, a pass over the whole input adds ``additions``; one over a new token does not."""
        if self.additions is None:
            yield
            return
        n, length = self.mask.shape
        rows = torch.arange(n, device=self.mask.device)[:, None]

        def add(index: int) -> Any:
            vectors = self.additions[:, :, index]  # type: ignore[index]

            def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                states = args[0] if args else kwargs["hidden_states"]
                if states.shape[1] != length:
                    return None
                states = states.clone()
                states[rows, self.places] += vectors.to(states.dtype)
                if args:
                    return (states, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": states}

            return hook

        hooks = [add(i) for i in range(len(self.layers))]
        with before_layers(decoder.layers, self.layers, hooks):
            yield


@dataclass(frozen=True, slots=True)
class ReceivingReader:
    """The receiver's half of a reader bridge, and what its card says about it."""

    half: ReceiverHalf
    card: CardReader

    def read(self, payload: Tensor) -> tuple[Tensor, Tensor | None]:
        """As ``ReceiverHalf.read``."""
        return self.half.read(payload.float())

    def with_stops(self, task: TaskSpec) -> TaskSpec:
        """The task with the card's stop strings."""
        stop = tuple(dict.fromkeys((*task.decoding.stop, *self.card.stop)))
        return replace(task, decoding=replace(task.decoding, stop=stop))


def load_sending(folder: Path, device: torch.device) -> SendingReader:
    """The sender's part of the bridge in ``folder``, which must be a reader bridge."""
    loaded = store.load_half(folder, "sender")
    shape = loaded.card.shape
    assert isinstance(shape, ReaderShape)
    return SendingReader(loaded.module.to(device), shape)


def load_receiving(folder: Path, device: torch.device) -> ReceivingReader:
    """The receiver's half of the bridge in ``folder``, which must be a reader bridge."""
    loaded = store.load_half(folder, "receiver")
    half, section = loaded.module.to(device), loaded.card.reader
    assert isinstance(half, ReceiverHalf) and section is not None
    return ReceivingReader(half, section)


def lay_out(
    start: Tensor,
    payload: Tensor,
    prompts: Sequence[Tensor],
    dtype: torch.dtype,
    reader: ReceivingReader | None = None,
) -> SoftInputs:
    """``[BOS][soft tokens][prompt]`` for rows whose prompts differ.

    Args:
        start: embeddings [0 or 1, d] of BOS.
        payload: [n, M, sent width].
        prompts: of each row the embeddings [P, d].
        reader: puts its vectors around the soft tokens, and makes additions.
    """
    vectors, additions = (payload, None) if reader is None else reader.read(payload)
    n, device = len(payload), payload.device
    longest = max(len(prompt) for prompt in prompts)
    gaps = [longest - len(prompt) for prompt in prompts]
    length = len(start) + vectors.shape[1] + longest
    embeds = torch.zeros(n, length, vectors.shape[-1], dtype=dtype, device=device)
    for row, (gap, prompt) in enumerate(zip(gaps, prompts, strict=True)):
        embeds[row, gap:] = torch.cat([start, vectors[row].to(dtype), prompt])
    padding = torch.tensor(gaps, device=device)[:, None]
    mask = (torch.arange(length, device=device)[None, :] >= padding).long()
    if reader is None or additions is None:
        return SoftInputs(embeds, mask)
    first = padding + len(start) + reader.card.prompt
    places = first + torch.arange(payload.shape[1], device=device)[None, :]
    return SoftInputs(embeds, mask, additions, places, reader.card.additions)


@contextmanager
def before_layers(layers: Any, numbers: Sequence[int], hooks: Sequence[Any]) -> Iterator[None]:
    """Inside, each of the ``hooks`` is called before its layer, with the layer's arguments."""
    handles = [
        layers[number].register_forward_pre_hook(hook, with_kwargs=True)
        for number, hook in zip(numbers, hooks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
