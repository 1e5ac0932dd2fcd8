"""``agentwire train``: from a resolved scenario to a bridge folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from agentwire.bridge import store, trainer
from agentwire.bridge.checkpoint import Checkpoint
from agentwire.bridge.curve import draw_curve, require_plots
from agentwire.bridge.new_card import Ends, new_card, trained_on
from agentwire.bridge.problem import BridgeProblem, LogitsFromSoft, Part
from agentwire.bridge.reporting import Progress, Report
from agentwire.bridge.resampler import Resampler, ResamplerShape
from agentwire.bridge.rows import refuse_scored_rows, training_rows
from agentwire.bridge.series import TaskPart, task_parts
from agentwire.bridge.states import StateCache, cache_layers
from agentwire.config import Config
from agentwire.errors import BridgeError, ScenarioError
from agentwire.model.transformers import TransformersBackend, trunk
from agentwire.scenario.resolve import Resolved, training_key
from agentwire.scenario.schema import DataChoice, TrainSpec
from agentwire.task.datasets import Dataset
from agentwire.wire.messages import ModelIdentity, TaskSpec

ROWS_AT_ONCE = {"cpu": 64, "cuda": 1024}
"""Rows of one step, over all bridges that train side by side. A CPU gains nothing from more than
fill its caches, and they cost memory; a GPU that lacks the memory takes half as many."""


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
        from agentwire.bridge.train_shared import train_shared

        plot = plots.get(resolved[0].wire.bridge)
        return [train_shared(resolved, out=out, progress=progress, config=config, plot=plot)]
    if len({training_key(one) for one in resolved}) > 1:
        raise ValueError("these scenarios differ in more than what their bridges may differ in")
    config = config or Config.from_env()
    if plots:
        require_plots()
    if resolved[0].wire.spec.joint:
        from agentwire.bridge.train_joint import train_sets

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


@dataclass(frozen=True, slots=True)
class _Member:
    """A bridge in training: its module, and the parts of its task with its states."""

    order: _Order
    module: Resampler
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
            first.resolved, wire.receiver, _stage(progress, 0.0), first.recipe.precision
        )
        sender = load_agent(first.resolved, wire.sender, _stage(progress, 0.03))
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


def in_groups(
    batch_sizes: Sequence[int],
    device: torch.device,
    train: Callable[[Sequence[int]], Sequence[BridgeError]],
) -> None:
    """Trains bridges, as many side by side as go together; half as many where memory ends.

    Args:
        batch_sizes: of each bridge.
        device: the receiver's.
        train: trains those of these numbers, writes them, and says why some could not be.

    Raises:
        BridgeError: the first failure, after all have been tried.
    """
    groups = trainer.side_by_side(
        batch_sizes, ROWS_AT_ONCE["cpu" if device.type == "cpu" else "cuda"]
    )
    failures: list[BridgeError] = []
    while groups:
        numbers = groups.pop(0)
        try:
            failures += train(numbers)
        except torch.OutOfMemoryError:
            if len(numbers) == 1:
                raise
            half = len(numbers) // 2
            groups[:0] = [numbers[:half], numbers[half:]]
    if failures:
        raise failures[0]


def checkpoint_of(config: Config, bridge: str, identity: Sequence[object]) -> Checkpoint:
    """Named by everything that the training depends on, so that two never share one."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Checkpoint(config.home / "training" / f"{bridge}-{digest[:16]}.safetensors", digest)


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


def _stage(progress: Progress, begin: float) -> Progress:
    return lambda stage, fraction: progress(f"loading: {stage}", begin + 0.03 * fraction)


def new_bridge(
    cache: StateCache,
    receiver: TransformersBackend,
    sender: ModelIdentity,
    soft_tokens: int,
    recipe: TrainSpec,
) -> Resampler:
    """An untrained bridge that knows the states' statistics and the receiver's embedding scale."""
    shape = ResamplerShape(
        sender_width=sender.width,
        width=receiver.identity.width,
        soft_tokens=soft_tokens,
        hidden=recipe.hidden,
        blocks=recipe.blocks,
        heads=recipe.heads,
        feed_forward=recipe.feed_forward,
    )
    module = Resampler(shape, dropout=recipe.dropout).to(receiver.device)
    mean, std = cache.statistics()
    module.mean.copy_(mean)
    module.std.copy_(std)
    module.alpha.fill_(receiver.identity.embedding_rms)
    return module


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
    problem = BridgeProblem([member.module for member in members], parts, recipes)
    return learned(problem, recipes, report, checkpoint)


def learned(
    problem: BridgeProblem, recipes: Sequence[TrainSpec], report: Report, checkpoint: Checkpoint
) -> list[trainer.Trained | BridgeError]:
    """Trains, and tells how it goes."""
    # What is trained stays float32; its matrix products may take the tensor cores' TF32.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return trainer.train_many(
            problem, recipes, report.evaluated, checkpoint, stepped=report.stepped
        )
    finally:
        torch.set_float32_matmul_precision(before)


def settled(
    names: Sequence[str],
    done: Sequence[trainer.Trained | BridgeError],
    write: Callable[[int, trainer.Trained], None],
) -> list[BridgeError]:
    """Writes what was trained, by its number; why others were not, with their names ("": none)."""
    failures = []
    for number, (name, result) in enumerate(zip(names, done, strict=True)):
        if isinstance(result, BridgeError):
            who = f"{name}: " if name else ""
            failures.append(BridgeError(f"{who}{result.message}", hint=result.hint))
        else:
            write(number, result)
    return failures


def asked(receiver: TransformersBackend, task: TaskSpec) -> LogitsFromSoft:
    """The receiver, asked a task's question."""
    receiver.prepare(task)
    return lambda soft: receiver.logits_from_soft(soft, task)
