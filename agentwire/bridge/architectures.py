"""Bridge architectures, by the name in a card's ``architecture:`` (docs/design/bridge.md).

This module needs no torch: cards are read where no model runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from agentwire.spec.registry import Registry, known_name

if TYPE_CHECKING:
    from agentwire.bridge.module import BridgeModule

DEFAULT: Final = "resampler"
ARCHITECTURES: Registry[type[BridgeModule]] = Registry("agentwire.bridges", "bridge architecture")
ARCHITECTURES.lazy(DEFAULT, "agentwire.bridge.resampler:Resampler")

ArchitectureName = Annotated[str, known_name(ARCHITECTURES)]


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
