"""``agentwire train`` of a bridge that several tasks name: trained on all of them at once.

The question of each task is the receiver's prompt, so one payload of a text serves them all, and
tasks that the bridge never saw may be asked too (``prompts: any``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from agentwire.bridge import store
from agentwire.bridge.card import ANY_PROMPT, CardTraining
from agentwire.config import Config
from agentwire.errors import BridgeError, ScenarioError
from agentwire.model.transformers import TransformersBackend, trunk
from agentwire.scenario.resolve import Resolved
from agentwire.spec.scenario import TrainSpec
from agentwire.task.datasets import Dataset
from agentwire.task.definitions import load_definition
from agentwire.training.curve import draw_curve, require_plots
from agentwire.training.jobs import asked, checkpoint_of, learned
from agentwire.training.loop import Trained
from agentwire.training.new_card import (
    Ends,
    device_name,
    new_card,
    public_provenance,
    trained_today,
)
from agentwire.training.objective import BridgeObjective, Part
from agentwire.training.prepare import check_trainable, layer_of, load_agent, new_bridge
from agentwire.training.reporting import Progress, Report, within
from agentwire.training.rows import training_rows
from agentwire.training.states import StateCache, cache_states, evenly
from agentwire.wire.messages import TaskSpec


@dataclass(frozen=True, slots=True)
class _Task:
    """One of the tasks, its training rows and those held out."""

    spec: TaskSpec
    rows: Dataset
    held_out: Dataset


def train_shared(
    resolved: Sequence[Resolved],
    *,
    out: Path,
    progress: Progress,
    config: Config | None = None,
    plot: Path | None = None,
) -> Path:
    """Trains the one bridge that the first wires of these scenarios name and writes it to ``out``.

    Each step draws a batch of every task, and the losses count alike; so do their held-out
    accuracies, whose mean chooses the step.

    Args:
        resolved: scenarios that differ in their task alone, one for each task.

    Returns:
        the bridge's folder.

    Raises:
        ValueError: they differ in more.
        ScenarioError: a task is one of a series, which asks about texts of its own.
        Others: as for ``train.train_scenario``.
    """
    config = config or Config.from_env()
    if plot is not None:
        require_plots()
    first = resolved[0]
    _check_alike(resolved)
    recipe, name = first.scenario.train, first.wire.bridge
    tasks = [_task(one, config) for one in resolved]
    torch.manual_seed(recipe.seed)
    started = time.monotonic()
    receiver = load_agent(first, first.wire.spec.receiver, within(progress, "loading", 0.0, 0.03),
                          recipe.precision)  # fmt: skip
    ends, read = _states(first, tasks, receiver, progress)
    statistics = evenly([cache for cache, _ in read])
    soft_tokens = first.wire.spec.soft_tokens
    module = new_bridge(statistics, receiver, ends.sender, soft_tokens, recipe)
    parts = [Part(asked(receiver, task.spec), [cache], [held_out])
             for task, (cache, held_out) in zip(tasks, read, strict=True)]  # fmt: skip
    identity = [name, ends.sender.fingerprint, ends.layer, soft_tokens, ends.receiver.fingerprint,
                [(task.spec.task_id, task.rows.provenance["rows_sha256"]) for task in tasks],
                recipe.model_dump()]  # fmt: skip
    checkpoint = checkpoint_of(config, name, identity)
    (trained,) = learned(BridgeObjective([module], parts, [recipe]), [recipe],
                         Report(progress, 1, recipe.steps), checkpoint)  # fmt: skip
    if isinstance(trained, BridgeError):
        raise trained
    training = _record(recipe, tasks, trained, time.monotonic() - started, receiver.device)
    description = f"{training.dataset}: {ends.title}"
    card = new_card(name, description, module, ends, [ANY_PROMPT], training)
    store.save(out / name, card, module)
    checkpoint.remove()
    if plot is not None:
        draw_curve(trained.history, name, plot)
    return out / name


def _record(
    recipe: TrainSpec,
    tasks: Sequence[_Task],
    trained: Trained,
    seconds: float,
    device: torch.device,
) -> CardTraining:
    """What the card says of the training: the rows of all tasks together."""
    return trained_today(
        recipe,
        dataset="+".join(task.rows.name for task in tasks),
        rows=sum(len(task.rows) for task in tasks),
        held_out=sum(len(task.held_out) for task in tasks),
        provenance={task.rows.name: public_provenance(task.rows) for task in tasks},
        accuracy=trained.best.accuracy,
        step=trained.best.step,
        seconds=seconds,
        device=device_name(device),
    )


def _states(
    resolved: Resolved, tasks: Sequence[_Task], receiver: TransformersBackend, progress: Progress
) -> tuple[Ends, list[tuple[StateCache, StateCache]]]:
    """Of each task the states of its training rows and of those held out, where the receiver is.

    The sender is let go again: it makes room for the receiver's activations.
    """
    layer = layer_of(resolved, resolved.wire.spec.sender)
    loading = within(progress, "loading", 0.03, 0.03)
    sender = load_agent(resolved, resolved.wire.spec.sender, loading)
    trunk(sender.model, layer)  # refused now, not after the states of all rows
    longest, share = resolved.scenario.train.max_text_tokens, 0.22 / len(tasks)
    read = [
        _read(sender, task, layer, longest, receiver.device,
              within(progress, task.rows.name, 0.06 + i * share, share))
        for i, task in enumerate(tasks)
    ]  # fmt: skip
    return Ends(sender.identity, layer, receiver.identity), read


def _check_alike(resolved: Sequence[Resolved]) -> None:
    """
    Raises:
        ValueError: the scenarios differ in more than their task.
    """
    first = resolved[0]
    ends = (first.wire.spec.sender, first.wire.spec.receiver)
    for other in resolved[1:]:
        same = (
            other.wire.bridge == first.wire.bridge
            and other.wire.spec == first.wire.spec
            and other.scenario.train == first.scenario.train
            and all(other.choices[end] == first.choices[end] for end in ends)
        )
        if not same:
            raise ValueError("these scenarios differ in more than their task")


def _task(resolved: Resolved, config: Config) -> _Task:
    """
    Raises:
        ScenarioError, DataError: the task cannot be trained for, or not with others.
    """
    data = check_trainable(resolved)
    definition = load_definition(data.dataset)
    if definition.series is not None:
        raise ScenarioError(
            f"{data.dataset} is one of a series, which has a bridge of its own.",
            hint="Leave `bridge:` out of the wire, so that each task or series gets its own.",
        )
    rows, held_out = training_rows(data, resolved.scenario.train, config)
    return _Task(definition.spec(), rows, held_out)


def _read(
    sender: TransformersBackend,
    task: _Task,
    layer: int,
    max_tokens: int,
    device: torch.device,
    progress: Progress,
) -> tuple[StateCache, StateCache]:
    """The sender's states of a task's training rows and of those held out."""

    def cached(part: Dataset, begin: float, share: float) -> StateCache:
        return cache_states(
            sender,
            [row.text for row in part.rows],
            [row.label for row in part.rows],
            layer=layer,
            max_tokens=max_tokens,
            progress=lambda done: progress("states", begin + share * done),
        ).to(device)

    return cached(task.rows, 0.0, 0.9), cached(task.held_out, 0.9, 0.1)
