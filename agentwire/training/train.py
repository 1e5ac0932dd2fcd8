"""``agentwire train``: from a resolved scenario to a bridge folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from agentwire.bridge import store
from agentwire.bridge.module import BridgeModule
from agentwire.config import Config
from agentwire.errors import BridgeError
from agentwire.model.transformers import TransformersBackend, trunk
from agentwire.scenario.resolve import Resolved, training_key
from agentwire.spec.scenario import DataChoice, TrainSpec
from agentwire.task.datasets import Dataset
from agentwire.training import loop as trainer
from agentwire.training.checkpoint import Checkpoint
from agentwire.training.curve import draw_curve, require_plots
from agentwire.training.jobs import asked, checkpoint_of, in_groups, learned, settled
from agentwire.training.new_card import Ends, new_card, trained_on
from agentwire.training.objective import BridgeObjective, Part
from agentwire.training.prepare import (
    check_trainable,
    layer_of,
    load_agent,
    new_bridge,
    places_of,
    rows_of,
    states_of,
)
from agentwire.training.reporting import Progress, Report, within
from agentwire.training.series import TaskPart, task_parts
from agentwire.training.states import StateCache, cache_layers


def train_scenario(
    resolved: Resolved,
    *,
    out: Path,
    progress: Progress,
    config: Config | None = None,
    plot: Path | None = None,
) -> Path:
    """Trains the bridge of the scenario's first wire and writes ``out``/<bridge name>/.

    A task of a series trains the bridge of the whole series (``series.task_parts``).

    Only the dataset's training split is read: part of it is held out and chooses the step. A
    training that was stopped, or killed, goes on where its last evaluation was: what it needs for
    that lies in the user cache until the bridge is written.

    Args:
        resolved: what runs here; the models' weights are on this machine.
        out: folder that holds bridges.
        progress: told the stage and the fraction done.
        plot: file for a picture of the loss.

    Returns:
        the bridge's folder; of a wire that several senders share, the first one's.

    Raises:
        ScenarioError: the scenario has no task, or its sender has no layer.
        DataError: the rows cannot be had, or are the very rows that are scored.
        ModelError, DeviceError, BridgeError: see the called functions.
    """
    plots = {resolved.wire.bridge: plot} if plot is not None else {}
    (folder,) = train_scenarios([resolved], out=out, progress=progress, config=config, plots=plots)
    return folder


def train_scenarios(
    resolved: Sequence[Resolved],
    *,
    out: Path,
    progress: Progress,
    config: Config | None = None,
    plots: Mapping[str, Path] | None = None,
) -> list[Path]:
    """Trains the bridges of scenarios that may share a training (``resolve.training_key``), or the
    one bridge that scenarios of several tasks name (``train_shared``).

    Models load once, and the sender reads each text once, for all layers that are asked for. As
    many bridges as ``ROWS_AT_ONCE`` allows go through each pass of the receiver, the others after
    them; each is written when its training ends. On a CPU each is the bridge that it would be
    alone, but for the rounding of sums; on a GPU what dropout hides depends on the neighbours.

    Args:
        plots: files for pictures of the losses, by bridge.

    Returns:
        the bridges' folders, in order; of one bridge for all, its only one.

    Raises:
        ValueError: they may not share a training.
        BridgeError: a loss is not finite any more; the other bridges are written.
        ScenarioError, DataError, ModelError, DeviceError: see ``train_scenario``.
    """
    plots = plots or {}
    if len(resolved) > 1 and len({one.wire.bridge for one in resolved}) == 1:
        from agentwire.training.train_shared import train_shared

        plot = plots.get(resolved[0].wire.bridge)
        return [train_shared(resolved, out=out, progress=progress, config=config, plot=plot)]
    if len({training_key(one) for one in resolved}) > 1:
        raise ValueError("these scenarios differ in more than what their bridges may differ in")
    config = config or Config.from_env()
    if plots:
        require_plots()
    if resolved[0].wire.spec.joint:
        from agentwire.training.train_joint import train_sets

        sets = train_sets(resolved, out=out, progress=progress, config=config, plots=plots)
        return [folders[0] for folders in sets]
    known: dict[tuple[int, ...], tuple[Dataset, Dataset]] = {}
    orders = [_order(one, config, known) for one in resolved]
    return _Session(orders, out, progress, config, plots).run()


@dataclass(frozen=True, slots=True)
class _Order:
    """A bridge to be trained, and its rows."""

    resolved: Resolved
    data: DataChoice
    layer: int
    rows: Dataset
    held_out: Dataset

    @property
    def recipe(self) -> TrainSpec:
        return self.resolved.scenario.train

    @property
    def bridge(self) -> str:
        return self.resolved.wire.bridge

    @property
    def soft_tokens(self) -> int:
        return self.resolved.wire.spec.soft_tokens

    @property
    def title(self) -> str:
        return f"{self.bridge}, layer {self.layer}, M = {self.soft_tokens}"


def _order(
    resolved: Resolved, config: Config, known: dict[tuple[int, ...], tuple[Dataset, Dataset]]
) -> _Order:
    """
    Args:
        known: rows of the same data by the settings that choose them; new ones are put there.

    Raises:
        ScenarioError, DataError: it cannot be trained.
    """
    data = check_trainable(resolved)
    layer = layer_of(resolved, resolved.wire.spec.sender)
    return _Order(resolved, data, layer, *rows_of(data, resolved.scenario.train, config, known))


@dataclass(frozen=True, slots=True)
class _Member:
    """A bridge in training: its module, and the parts of its task with its states."""

    order: _Order
    module: BridgeModule
    parts: Sequence[TaskPart]


class _Session:
    """The bridges of one call: models and states are there once for all of them."""

    def __init__(
        self,
        orders: Sequence[_Order],
        out: Path,
        progress: Progress,
        config: Config,
        plots: Mapping[str, Path],
    ) -> None:
        self.orders, self.out, self.config, self.plots = list(orders), out, config, plots
        self.progress = progress
        self.started = time.monotonic()
        first = self.orders[0]
        wire = first.resolved.wire.spec
        self.receiver = load_agent(
            first.resolved, wire.receiver, within(progress, "loading", 0.0, 0.03),
            first.recipe.precision,
        )  # fmt: skip
        sender = load_agent(first.resolved, wire.sender, within(progress, "loading", 0.03, 0.03))
        self.sender = sender.identity
        self.places = places_of(
            rows for order in self.orders for rows in (order.rows, order.held_out)
        )
        self.states = self._states(sender)

    def _states(self, sender: TransformersBackend) -> dict[int, StateCache]:
        """The states of every text after each layer that is read, where the receiver is.

        The sender is not kept: it makes room for the receiver's activations.
        """
        texts = list(self.places)
        layers = sorted({order.layer for order in self.orders})
        for layer in layers:
            trunk(sender.model, layer)  # refused now, not after the states of all rows
        found = cache_layers(
            sender,
            texts,
            [0] * len(texts),
            layers=layers,
            max_tokens=self.orders[0].recipe.max_text_tokens,
            progress=lambda done: self.progress("the sender's states", 0.06 + 0.22 * done),
        )
        return {layer: cache.to(self.receiver.device) for layer, cache in found.items()}

    def run(self) -> list[Path]:
        in_groups(
            [order.recipe.batch_size for order in self.orders],
            self.receiver.device,
            lambda numbers: self._train([self._member(self.orders[i]) for i in numbers], numbers),
        )
        return [self.out / order.bridge for order in self.orders]

    def _member(self, order: _Order) -> _Member:
        cache, held_out = (
            states_of(self.states[order.layer], rows, self.places)
            for rows in (order.rows, order.held_out)
        )
        torch.manual_seed(order.recipe.seed)
        module = new_bridge(cache, self.receiver, self.sender, order.soft_tokens, order.recipe)
        parts = task_parts(order.data, (order.rows, order.held_out), (cache, held_out), self.config)
        return _Member(order, module, parts)

    def _train(self, members: Sequence[_Member], numbers: Sequence[int]) -> list[BridgeError]:
        """Trains bridges side by side and writes each; why some could not be."""
        orders = [member.order for member in members]
        checkpoint = checkpoint_of(self.config, orders[0].bridge, self._identity(members))
        report = Report(
            self.progress, len(members), orders[0].recipe.steps, numbers[0], len(self.orders)
        )
        done = _trained(members, self.receiver, report, checkpoint)
        names = [order.bridge if len(self.orders) > 1 else "" for order in orders]
        failures = settled(names, done, lambda i, one: self._write(members[i], one, len(members)))
        checkpoint.remove()
        return failures

    def _identity(self, members: Sequence[_Member]) -> list[object]:
        """Everything that the training depends on."""
        return [self.sender.fingerprint, self.receiver.identity.fingerprint,
                *([m.order.title, [part.task.task_id for part in m.parts],
                   m.order.rows.provenance["rows_sha256"], m.order.recipe.model_dump()]
                  for m in members)]  # fmt: skip

    def _write(self, member: _Member, trained: trainer.Trained, together: int) -> None:
        order = member.order
        training = trained_on(
            order.recipe, order.rows, order.held_out, trained, time.monotonic() - self.started,
            self.receiver.device, together,
        )  # fmt: skip
        ends = Ends(self.sender, order.layer, self.receiver.identity)
        prompts = [part.task.prompt_hash for part in member.parts]
        card = new_card(
            order.bridge, f"{order.data.dataset}: {ends.title}", member.module, ends, prompts,
            training,
        )  # fmt: skip
        store.save(self.out / order.bridge, card, member.module)
        if order.bridge in self.plots:
            draw_curve(trained.history, order.title, self.plots[order.bridge])


def _trained(
    members: Sequence[_Member],
    receiver: TransformersBackend,
    report: Report,
    checkpoint: Checkpoint,
) -> list[trainer.Trained | BridgeError]:
    recipes = [member.order.recipe for member in members]
    parts = [
        Part(
            asked(receiver, same[0].task),
            [part.cache for part in same],
            [part.held_out for part in same],
        )
        for same in zip(*(member.parts for member in members), strict=True)
    ]
    problem = BridgeObjective([member.module for member in members], parts, recipes)
    return learned(problem, recipes, report, checkpoint)
