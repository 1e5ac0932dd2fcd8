"""Loads the frozen models of a training and builds untrained bridges between them."""

from __future__ import annotations

from agentwire.bridge.architectures import ARCHITECTURES
from agentwire.bridge.module import BridgeModule
from agentwire.bridge.shape import BridgeShape
from agentwire.download import OnProgress
from agentwire.model.transformers import TransformersBackend
from agentwire.scenario.resolve import Resolved
from agentwire.spec.scenario import TrainSpec
from agentwire.training.states import StateCache
from agentwire.wire.messages import ModelIdentity


def load_agent(
    resolved: Resolved, agent: str, progress: OnProgress, precision: str | None = None
) -> TransformersBackend:
    """An agent's model in this process; without ``precision``, in the scenario's dtype."""
    # The models compute one after the other in this process, so each may use all threads.
    changes: dict[str, object] = {"threads": None}
    on_gpu = resolved.agents[agent].device != "cpu"
    if precision == "auto" and on_gpu:
        changes["dtype"] = "bfloat16"
    elif precision in ("float32", "bfloat16"):
        changes["dtype"] = precision
    return TransformersBackend.load(resolved.agents[agent].model_copy(update=changes), progress)


def new_bridge(
    cache: StateCache,
    receiver: TransformersBackend,
    sender: ModelIdentity,
    soft_tokens: int,
    recipe: TrainSpec,
) -> BridgeModule:
    """An untrained bridge with the statistics of ``cache`` and the receiver's embedding scale."""
    module = untrained_bridge(receiver, sender, soft_tokens, recipe)
    module.calibrate(*cache.statistics(), receiver.identity.embedding_rms)
    return module


def untrained_bridge(
    receiver: TransformersBackend, sender: ModelIdentity, soft_tokens: int, recipe: TrainSpec
) -> BridgeModule:
    """A bridge of the recipe's architecture that still needs ``calibrate`` or trained weights."""
    shape = BridgeShape(
        sender_width=sender.width,
        width=receiver.identity.width,
        soft_tokens=soft_tokens,
        hidden=recipe.hidden,
        blocks=recipe.blocks,
        heads=recipe.heads,
        feed_forward=recipe.feed_forward,
    )
    make = ARCHITECTURES.get(recipe.architecture)
    return make(shape, dropout=recipe.dropout).to(receiver.device)
