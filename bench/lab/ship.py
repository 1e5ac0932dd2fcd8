"""Trained bridges as folders that can be shipped: the seed that did best on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentwire.bridge import store
from agentwire.bridge.resampler import Resampler
from agentwire.errors import BridgeError
from agentwire.training.loop import Trained
from agentwire.training.new_card import (
    Ends,
    device_name,
    new_card,
    public_provenance,
    trained_today,
)
from lab.files import Folder
from lab.jobs import Job
from lab.member import Member
from lab.world import Rows, World


def bridge_folder_name(world: World, direction: str, task: str) -> str:
    """The name under which a scenario looks for it."""
    sender, receiver = world.names(direction)
    return f"{sender}--{receiver}--{task}"


def save_bridge(
    world: World,
    job: Job,
    folder: Folder,
    final: Sequence[tuple[Member, Trained | BridgeError]],
    runs: Sequence[dict[str, Any]],
) -> Path | None:
    """Writes the best seed's card and weights under ``<run>/bridges/``."""
    held = {run["seed"]: run["held_out_accuracy"] for run in runs}
    alive = [(m, t) for m, t in final if not isinstance(t, BridgeError)]
    if not alive:
        return None
    member, trained = max(alive, key=lambda pair: held[pair[0].recipe.seed])
    accuracy = held[member.recipe.seed]
    name = bridge_folder_name(world, job.direction, job.task)
    target = folder.path / "bridges" / name
    if isinstance(trained.module, Resampler):
        write_bridge(world, job, target, member, trained, accuracy, (world_hash(world, job.task),))
    return target


def world_hash(world: World, task: str) -> str:
    """The prompt that the bridge was trained for."""
    return world.rows(task).spec.prompt_hash


def write_bridge(
    world: World, job: Job, target: Path, member: Member, trained: Trained, held_out: float,
    prompts: tuple[str, ...], tasks: Sequence[str] = (), dataset: str | None = None,
) -> None:  # fmt: skip
    """One bridge with its card.

    Args:
        tasks: whose rows it was trained on; none: the job's.
        dataset: what the card calls them; None: their names.
    """
    sender, receiver = (world.model(name).identity for name in world.names(job.direction))
    module, recipe = trained.module, member.recipe
    if not isinstance(module, Resampler):
        raise TypeError("only a Resampler can be shipped")
    parts = [world.rows(task) for task in tasks or (job.task,)]
    data = dataset or "+".join(rows.name for rows in parts)
    training = trained_today(
        recipe,
        dataset=data,
        rows=sum(len(rows.train) for rows in parts),
        held_out=sum(len(rows.held_out) for rows in parts),
        provenance=_provenance(parts),
        accuracy=held_out,
        step=trained.best.step,
        seconds=trained.seconds,
        device=device_name(world.device),
    )
    ends = Ends(sender, member.layer, receiver)
    card = new_card(target.name, f"{data}: {ends.title}", module, ends, prompts, training)
    store.save(target, card, module)


def _provenance(parts: Sequence[Rows]) -> dict[str, Any]:
    """Where the training rows are from; of several tasks, by task."""
    found = {rows.name: public_provenance(rows.train) for rows in parts}
    return found if len(found) > 1 else next(iter(found.values()))
