"""Sizes of bridges, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Where = Literal["receiver", "sender"]


class Shape(Protocol):
    """What the shapes of all architectures have."""

    @property
    def sender_width(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def soft_tokens(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def feed_forward(self) -> int: ...


def size_for(sizes: Sequence[int], tokens: int) -> int:
    """The smallest of the rising ``sizes`` that is at least half of ``tokens``, or the largest."""
    return next((m for m in sizes if 2 * m >= tokens), sizes[-1])


@dataclass(frozen=True, slots=True)
class BridgeShape:
    """Sizes of a bridge.

    Attributes:
        sender_width: width of the sender's hidden states.
        width: width d of the receiver's embedding space.
        soft_tokens: M, the most soft tokens of one text.
        hidden: inner width.
        blocks: number of blocks, N.
        heads: attention heads; divides ``hidden``.
        feed_forward: inner width of the feed-forward layers, in multiples of ``hidden``.
    """

    sender_width: int
    width: int
    soft_tokens: int
    hidden: int = 256
    blocks: int = 2
    heads: int = 8
    feed_forward: int = 4


@dataclass(frozen=True, slots=True)
class ReaderShape:
    """Sizes of a reader bridge; those that it shares with ``BridgeShape`` mean the same.

    Attributes:
        sender_layers: layers whose output is read, in order; the first is 0, the embedding.
        sizes: the declared values of M, in rising order.
        additions: receiver layers before which vectors are added at the soft positions.
        prompt: tuned vectors on each side of the soft tokens.
        down: inner width of the additions.
        local: tokens on each side that the encoder layer attends to.
        where: which side makes the soft tokens. ``receiver``: latents travel; ``sender``: soft
            tokens travel, and there are no additions.
    """

    sender_width: int
    sender_layers: tuple[int, ...]
    width: int
    sizes: tuple[int, ...] = (16, 32, 64, 128)
    additions: tuple[int, ...] = ()
    hidden: int = 512
    blocks: int = 2
    heads: int = 8
    feed_forward: int = 3
    prompt: int = 8
    down: int = 320
    local: int = 16
    where: Where = "receiver"

    @property
    def soft_tokens(self) -> int:
        """The largest M."""
        return self.sizes[-1]

    @property
    def latent_width(self) -> int:
        """Width of a latent and the pooled embedding of its window."""
        return self.hidden + self.sender_width

    @property
    def sent_width(self) -> int:
        """Width of what travels for each soft token."""
        return self.latent_width if self.where == "receiver" else self.width

    def size_for(self, tokens: int) -> int:
        """M for a text of so many tokens."""
        return size_for(self.sizes, tokens)
