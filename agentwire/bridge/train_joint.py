"""``agentwire train`` of a wire that several senders share: a set of bridges, trained together."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
from agentwire.bridge.curve import draw_curve, require_plots
from agentwire.bridge.joint import JointBridge, JointStates
from agentwire.bridge.new_card import (
    Ends,
    device_name,
    new_card,
    public_provenance,
    trained_today,
)
from agentwire.bridge.problem import BridgeProblem, Part
from agentwire.bridge.reporting import Progress, Report, within
from agentwire.bridge.rows import training_rows
from agentwire.bridge.states import StateCache, cache_states
from agentwire.bridge.train import (
    asked,
    check_trainable,
    checkpoint_of,
    layer_of,
    learned,
    load_agent,
    new_bridge,
)
from agentwire.config import Config
from agentwire.errors import BridgeError, ScenarioError
from agentwire.model.sources import public_name
from agentwire.model.transformers import trunk
from agentwire.scenario.bridging import set_name
from agentwire.scenario.resolve import Resolved, ResolvedWire
from agentwire.scenario.shares import texts_for
from agentwire.task.datasets import Dataset
from agentwire.task.definitions import load_definition
from agentwire.wire.messages import ModelIdentity, TaskSpec


@dataclass(frozen=True, slots=True)
class _Read:
    """What one sender made of the rows."""

    wire: ResolvedWire
    layer: int
    sender: ModelIdentity
    cache: StateCache
    held_out: StateCache


def train_joint(
    resolved: Resolved,
    *,
    out: Path,
    progress: Progress,
    config: Config | None = None,
    plot: Path | None = None,
) -> list[Path]:
    """Trains the bridges of the scenario's first wire, which several senders share, and writes
    ``out``/<set>.1/, ``out``/<set>.2/, …: one folder for each sender, in the wire's order.

    Each sender reads its part of every row once; then all bridges learn together, through one
    frozen receiver that reads their soft tokens one after the other. One loss, one choice of step.

    Args, errors: as for ``train.train_scenario``.
    """
    config = config or Config.from_env()
    if plot is not None:
        require_plots()
    data = check_trainable(resolved)
    definition = load_definition(data.dataset)
    if definition.series is not None:
        raise ScenarioError(
            f"{data.dataset} is one of a series, for which no set of bridges is trained.",
            hint="Give the wire one sender, or the scenario another task.",
        )
    layers = [layer_of(resolved, part.spec.sender) for part in resolved.parts]
    recipe = resolved.scenario.train
    rows, held_out = training_rows(data, recipe, config)
    started = time.monotonic()
    receiver = load_agent(
        resolved, resolved.wire.spec.receiver, within(progress, "loading", 0.0, 0.03),
        recipe.precision,
    )  # fmt: skip
    share = 0.25 / len(layers)
    reads = [
        _read(resolved, wire, layer, (rows, held_out), receiver.device,
              within(progress, wire.spec.sender, 0.03 + i * share, share))
        for i, (wire, layer) in enumerate(zip(resolved.parts, layers, strict=True))
    ]  # fmt: skip
    torch.manual_seed(recipe.seed)  # here, so that nothing depends on what loading drew
    module = JointBridge(
        [new_bridge(r.cache, receiver, r.sender, r.wire.spec.soft_tokens, recipe) for r in reads]
    )
    name = set_name(resolved.wire.spec, resolved.choices, data)
    task = definition.spec()
    identity = [name, [(r.sender.fingerprint, r.layer, r.wire.spec.soft_tokens) for r in reads],
                receiver.identity.fingerprint, task.task_id, resolved.wire.spec.reads,
                rows.provenance["rows_sha256"], recipe.model_dump()]  # fmt: skip
    checkpoint = checkpoint_of(config, name, identity)
    states = (
        [JointStates.of([r.cache for r in reads])],
        [JointStates.of([r.held_out for r in reads])],
    )
    problem = BridgeProblem([module], [Part(asked(receiver, task), *states)], [recipe])
    (trained,) = learned(problem, [recipe], Report(progress, 1, recipe.steps), checkpoint)
    if isinstance(trained, BridgeError):
        raise trained
    training = trained_today(
        recipe,
        dataset=rows.name,
        rows=len(rows),
        held_out=len(held_out),
        provenance=public_provenance(rows),
        accuracy=trained.best.accuracy,
        step=trained.best.step,
        seconds=time.monotonic() - started,
        device=device_name(receiver.device),
    )
    ends = [Ends(read.sender, read.layer, receiver.identity) for read in reads]
    folders = write_set(out, name, task, module, ends, training, resolved.wire.spec.reads)
    checkpoint.remove()
    if plot is not None:
        draw_curve(trained.history, name, plot)
    return folders


def _read(
    resolved: Resolved,
    wire: ResolvedWire,
    layer: int,
    parts: tuple[Dataset, Dataset],
    device: torch.device,
    progress: Progress,
) -> _Read:
    """The states of a sender for its texts of the rows; the sender is let go again."""
    recipe = resolved.scenario.train
    sender = load_agent(resolved, wire.spec.sender, lambda stage, done: progress(stage, done / 8))
    trunk(sender.model, layer)  # refused now, not after the states of all rows
    texts = [[texts_for(row.text, wire.spec)[wire.spec.place - 1] for row in part.rows]
             for part in parts]  # fmt: skip
    labels = [[row.label for row in part.rows] for part in parts]

    def cached(i: int, begin: float, share: float) -> StateCache:
        return cache_states(
            sender,
            texts[i],
            labels[i],
            layer=layer,
            max_tokens=recipe.max_text_tokens,
            progress=lambda done: progress("states", begin + share * done),
        ).to(device)

    return _Read(wire, layer, sender.identity, cached(0, 0.15, 0.75), cached(1, 0.9, 0.1))


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
