"""``agentwire train`` of a wire that several senders share: a set of bridges, trained together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from agentwire.bridge import store
from agentwire.bridge.card import (
    BridgeCard,
    CardJoint,
    CardTraining,
    part_prompt,
    write_card,
)
from agentwire.config import Config
from agentwire.errors import BridgeError, ScenarioError
from agentwire.model.sources.lookup import public_name
from agentwire.model.transformers import trunk
from agentwire.scenario.bridges import set_name
from agentwire.scenario.resolve import Resolved
from agentwire.scenario.shares import texts_for
from agentwire.spec.scenario import TrainSpec, WireSpec
from agentwire.task.datasets import Dataset
from agentwire.task.definitions import load_definition
from agentwire.training.curve import draw_curve
from agentwire.training.jobs import asked, checkpoint_of, in_groups, learned, settled
from agentwire.training.joint import JointBridge, JointStates
from agentwire.training.loop import Trained
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
from agentwire.training.states import StateCache, cache_states
from agentwire.wire.messages import ModelIdentity, TaskSpec


@dataclass(frozen=True, slots=True)
class _Order:
    """A set of bridges to be trained, and its rows."""

    resolved: Resolved
    name: str
    rows: Dataset
    held_out: Dataset

    @property
    def recipe(self) -> TrainSpec:
        return self.resolved.scenario.train

    @property
    def soft_tokens(self) -> list[int]:
        """Of each sender."""
        return [part.spec.soft_tokens for part in self.resolved.parts]


@dataclass(frozen=True, slots=True)
class _Read:
    """A sender, and its states for its part of every text."""

    identity: ModelIdentity
    layer: int
    states: StateCache


@dataclass(frozen=True, slots=True)
class _Member:
    """A set in training, and its states."""

    order: _Order
    module: JointBridge
    cache: JointStates
    held_out: JointStates


def train_sets(
    resolved: Sequence[Resolved],
    *,
    out: Path,
    progress: Progress,
    config: Config,
    plots: Mapping[str, Path],
) -> list[list[Path]]:
    """Trains the bridges of scenarios' first wires, which several senders share, and writes
    ``out``/<set>.1/, ``out``/<set>.2/, …: one folder for each sender, in the wire's order.

    Each sender reads its part of every row once; then all bridges of a set learn together, through
    one frozen receiver that reads their soft tokens one after the other. One loss, one choice of
    step. Several sets (seeds, Ms, settings) train side by side.

    Args, errors: as for ``train.train_scenarios``.
    """
    known: dict[tuple[int, ...], tuple[Dataset, Dataset]] = {}
    orders = [_order(one, config, known) for one in resolved]
    return _Session(orders, out, progress, config, plots).run()


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
    if load_definition(data.dataset).series is not None:
        raise ScenarioError(
            f"{data.dataset} is one of a series, for which no set of bridges is trained.",
            hint="Give the wire one sender, or the scenario another task.",
        )
    name = set_name(resolved.wire.spec, resolved.choices, data)
    return _Order(resolved, name, *rows_of(data, resolved.scenario.train, config, known))


class _Session:
    """The sets of one call: models and states are there once for all of them."""

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
        self.task = load_definition(first.rows.name).spec()
        self.reads_what: Literal["whole", "share"] = wire.reads
        layers = [layer_of(first.resolved, part.spec.sender) for part in first.resolved.parts]
        self.receiver = load_agent(
            first.resolved, wire.receiver, within(progress, "loading", 0.0, 0.03),
            first.recipe.precision,
        )  # fmt: skip
        self.places = places_of(
            rows for order in self.orders for rows in (order.rows, order.held_out)
        )
        share = 0.25 / len(layers)
        self.reads = [
            self._read(part.spec, layer, i * share, share)
            for i, (part, layer) in enumerate(zip(first.resolved.parts, layers, strict=True))
        ]
        self.ends = [Ends(r.identity, r.layer, self.receiver.identity) for r in self.reads]

    def _read(self, wire: WireSpec, layer: int, begin: float, share: float) -> _Read:
        """A sender's states for its part of each text; the sender is let go again."""
        first = self.orders[0]
        progress = within(self.progress, wire.sender, 0.03 + begin, share)
        sender = load_agent(
            first.resolved, wire.sender, lambda stage, done: progress(stage, done / 8)
        )
        trunk(sender.model, layer)  # refused now, not after the states of all rows
        states = cache_states(
            sender,
            [texts_for(text, wire)[wire.place - 1] for text in self.places],
            [0] * len(self.places),
            layer=layer,
            max_tokens=first.recipe.max_text_tokens,
            progress=lambda done: progress("states", 0.15 + 0.85 * done),
        )
        return _Read(sender.identity, layer, states.to(self.receiver.device))

    def run(self) -> list[list[Path]]:
        in_groups(
            [order.recipe.batch_size for order in self.orders],
            self.receiver.device,
            lambda numbers: self._train([self._member(self.orders[i]) for i in numbers], numbers),
        )
        return [
            [self.out / f"{order.name}.{place}" for place in range(1, len(self.reads) + 1)]
            for order in self.orders
        ]

    def _member(self, order: _Order) -> _Member:
        def part(rows: Dataset) -> JointStates:
            return JointStates.of(
                [states_of(read.states, rows, self.places) for read in self.reads]
            )

        cache, held_out = part(order.rows), part(order.held_out)
        torch.manual_seed(order.recipe.seed)
        bridges = [
            new_bridge(mine, self.receiver, read.identity, m, order.recipe)
            for mine, read, m in zip(cache.parts, self.reads, order.soft_tokens, strict=True)
        ]
        return _Member(order, JointBridge(bridges), cache, held_out)

    def _train(self, members: Sequence[_Member], numbers: Sequence[int]) -> list[BridgeError]:
        """Trains sets side by side and writes each; why some could not be."""
        recipes = [member.order.recipe for member in members]
        checkpoint = checkpoint_of(self.config, members[0].order.name, self._identity(members))
        report = Report(self.progress, len(members), recipes[0].steps, numbers[0],
                        len(self.orders))  # fmt: skip
        part = Part(asked(self.receiver, self.task), [member.cache for member in members],
                    [member.held_out for member in members])  # fmt: skip
        problem = BridgeObjective([member.module for member in members], [part], recipes)
        done = learned(problem, recipes, report, checkpoint)
        names = [member.order.name if len(self.orders) > 1 else "" for member in members]
        failures = settled(names, done, lambda i, one: self._write(members[i], one, len(members)))
        checkpoint.remove()
        return failures

    def _identity(self, members: Sequence[_Member]) -> list[object]:
        """Everything that the training depends on."""
        return [[(read.identity.fingerprint, read.layer) for read in self.reads],
                self.receiver.identity.fingerprint, self.task.task_id, self.reads_what,
                *([m.order.name, m.order.soft_tokens, m.order.rows.provenance["rows_sha256"],
                   m.order.recipe.model_dump()] for m in members)]  # fmt: skip

    def _write(self, member: _Member, trained: Trained, together: int) -> None:
        order = member.order
        training = trained_on(order.recipe, order.rows, order.held_out, trained,
                              time.monotonic() - self.started, self.receiver.device,
                              together)  # fmt: skip
        write_set(self.out, order.name, self.task, member.module, self.ends, training,
                  self.reads_what)  # fmt: skip
        plot = self.plots.get(order.resolved.wire.bridge)
        if plot is not None:
            draw_curve(trained.history, order.name, plot)


def write_set(
    out: Path,
    name: str,
    task: TaskSpec,
    module: JointBridge,
    ends: Sequence[Ends],
    training: CardTraining,
    reads: Literal["whole", "share"],
) -> list[Path]:
    """Writes ``out``/``name``.1/, ``out``/``name``.2/, …: a trained set, one folder a sender.

    Weights first; then the cards, each of which names the weights of all.

    Args:
        ends: of each bridge, in the set's order.
        reads: what of a text each sender was trained on.
    """
    senders = tuple(public_name(end.sender.name) for end in ends)
    cards: list[BridgeCard] = []
    for place, (end, bridge) in enumerate(zip(ends, module.bridges, strict=True), 1):
        description = (
            f"{training.dataset}: {place} of {len(ends)} read together, "
            f"{' + '.join(senders)} -> {public_name(end.receiver.name)}; means nothing alone"
        )
        prompts = [part_prompt(name, place)]
        card = new_card(f"{name}.{place}", description, bridge, end, prompts, training)
        cards.append(store.save(out / card.name, card, bridge))
    fingerprints = tuple(card.weights_sha256 for card in cards)
    for place, card in enumerate(cards, 1):
        joint = CardJoint(
            name=name,
            place=place,
            senders=senders,
            parts=fingerprints,
            prompts=(task.prompt_hash,),
            reads=reads,
        )
        write_card(out / card.name, card.model_copy(update={"joint": joint}))
    return [out / card.name for card in cards]
