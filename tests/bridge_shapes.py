"""A small bridge for tests of the bridge's rooms, without any language model."""

from __future__ import annotations

from agentwire.bridge.card import BridgeCard, CardReader
from agentwire.bridge.resampler import Resampler
from agentwire.bridge.shape import BridgeShape
from agentwire.wire.messages import ModelIdentity

SHAPE = BridgeShape(12, 10, 4, hidden=16, blocks=2, heads=2, feed_forward=2)


def identity(name: str, width: int, digit: str) -> ModelIdentity:
    return ModelIdentity(name, digit * 64, width, 6, 2.0, "float32", "cpu")


def small_card(**changes: object) -> BridgeCard:
    """The card of ``SHAPE``."""
    from tiny import make_card

    return make_card(identity("a", 12, "a"), identity("b", 10, "b"), 3, **changes)


def reader_card(**changes: object) -> BridgeCard:
    """The card of a small reader bridge; ``changes`` may be those of its section ``reader``."""
    section: dict[str, object] = {
        "layers": [0, 2, 3],
        "sizes": [2, 4],
        "additions": [1, 5],
        "prompt": 2,
        "down": 6,
        "local": 3,
    }
    own = {key: changes.pop(key) for key in list(changes) if key in CardReader.model_fields}
    card = {"architecture": "reader", "answers": "free", "reader": section | own}
    return small_card(**card | changes)


def small_module(seed: int = 0, dropout: float = 0.0) -> Resampler:
    import torch

    torch.manual_seed(seed)
    module = Resampler(SHAPE, dropout=dropout)
    module.alpha.fill_(2.0)
    module.mean.normal_()
    module.std.uniform_(0.5, 2.0)
    return module.eval()
