"""Sizes of a bridge, without torch."""

from __future__ import annotations

from dataclasses import dataclass


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
