"""What a training needs before it begins: rows, models, states, and a bridge that knows nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from agentwire.bridge.architectures import ARCHITECTURES, BridgeShape
from agentwire.bridge.module import BridgeModule
from agentwire.config import Config
from agentwire.errors import ScenarioError
from agentwire.model.transformers import TransformersBackend
from agentwire.scenario.resolve import Resolved
from agentwire.spec.scenario import DataChoice, TrainSpec
from agentwire.task.datasets import Dataset
from agentwire.training.reporting import Progress
from agentwire.training.rows import refuse_scored_rows, training_rows
from agentwire.training.states import StateCache
from agentwire.wire.messages import ModelIdentity


def check_trainable(resolved: Resolved) -> DataChoice:
    """What a scenario's bridges train on.

    Raises:
        ScenarioError, DataError: there is nothing that they could learn from.
    """
    if resolved.data is None:
        raise ScenarioError(
            "the scenario has no `task:`, so there is nothing to train for.",
            hint="Add a task with a dataset.",
        )
    if any(choice.weights == "random" for choice in resolved.choices.values()):
        raise ScenarioError(
            "models with random weights teach a bridge nothing.",
            hint="Set `weights: pretrained`; `python bench/train_step.py` times the steps.",
        )
    ARCHITECTURES.get(resolved.scenario.train.architecture)  # refuses one that does not exist
    refuse_scored_rows(resolved.data)
    return resolved.data


def layer_of(resolved: Resolved, sender: str) -> int:
    """After how many of its layers a sender is read.

    Raises:
        ScenarioError: nothing says so.
    """
    layer = resolved.choices[sender].layer
    if layer is None:
        raise ScenarioError(
            f"the agent {sender} sends but has no `layer`.",
            hint="Say after how many of its layers the bridge reads, e.g. `layer: 16`.",
        )
    return layer


def rows_of(
    data: DataChoice,
    recipe: TrainSpec,
    config: Config,
    known: dict[tuple[int, ...], tuple[Dataset, Dataset]],
) -> tuple[Dataset, Dataset]:
    """``training_rows``; those of a recipe that chose the same are in ``known``."""
    chosen_by = (recipe.held_out, recipe.max_rows, recipe.seed)
    if chosen_by not in known:
        known[chosen_by] = training_rows(data, recipe, config)
    return known[chosen_by]


def places_of(parts: Iterable[Dataset]) -> dict[str, int]:
    """Every text of these rows, once, and where its states stand."""
    texts = dict.fromkeys(row.text for rows in parts for row in rows.rows)
    return {text: place for place, text in enumerate(texts)}


def states_of(states: StateCache, rows: Dataset, places: Mapping[str, int]) -> StateCache:
    """The states of these rows' texts, with their labels."""
    device = states.flat.device
    chosen = torch.tensor([places[row.text] for row in rows.rows], device=device)
    return states.part(chosen, torch.tensor([row.label for row in rows.rows], device=device))


def load_agent(
    resolved: Resolved, agent: str, progress: Progress, precision: str | None = None
) -> TransformersBackend:
    """The model of an agent in this process.

    Args:
        precision: as ``TrainSpec.precision``; None: as the agent's file says.

    Raises:
        ModelError, DeviceError: see ``TransformersBackend.load``.
    """
    # Both models share this process, so they share all its threads instead of dividing them.
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
    """An untrained bridge that knows the states' statistics and the receiver's embedding scale."""
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
    module = make(shape, dropout=recipe.dropout).to(receiver.device)
    module.calibrate(*cache.statistics(), receiver.identity.embedding_rms)
    return module
