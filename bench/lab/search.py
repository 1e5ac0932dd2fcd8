"""A second look for a better bridge: candidates on held-out rows, then three seeds of the best.

The candidates differ from the recipe of the bridges in the main tables, each in one or two things.
Each has two seeds, so that one lucky run does not choose. Test rows are scored once, for the
frozen winner, and only where held-out rows prefer it to the recipe as it is.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from lab.bridges import (
    Answer,
    Member,
    chosen,
    member_of,
    note,
    recipe_of,
    score_bridges,
    train_stack,
)
from lab.files import Folder
from lab.jobs import SEEDS, Job
from lab.ship import save_bridge
from lab.world import World

CANDIDATES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "layer 12": {"layer": 12},
    "layer 18": {"layer": 18},
    "layer 20": {"layer": 20},
    "rate 1e-3": {"learning_rate": 1e-3},
    "label smoothing": {"label_smoothing": 0.1},
    "16 soft tokens": {"soft_tokens": 16},
    "width 512": {"hidden": 512},
}
TRIED_SEEDS = (0, 1)


def search(world: World, job: Job, folder: Folder) -> Answer:
    """The best candidate on held-out rows; its three seeds are scored where it is not the first."""
    layer, changes = chosen(folder, job)
    base = recipe_of(job.task, changes)

    def member(name: str, seed: int) -> Member:
        other = dict(CANDIDATES[name])
        at, m = other.pop("layer", layer), other.pop("soft_tokens", 8)
        return member_of(name, at, base, other | {"seed": seed}, soft_tokens=m)

    members = [member(name, seed) for name in CANDIDATES for seed in TRIED_SEEDS]
    done = train_stack(world, job, members)
    notes = [note(m, d) for m, d in zip(members, done, strict=True)]

    def held_out(name: str) -> tuple[float, float]:
        mine = [n for n in notes if n["name"] == name and "held_out_accuracy" in n]
        if len(mine) < len(TRIED_SEEDS):
            return 0.0, 0.0
        return fmean(n["held_out_accuracy"] for n in mine), -fmean(n["loss"] for n in mine)

    winner = max(CANDIDATES, key=held_out)
    result = {"members": notes, "winner": winner}
    if winner == next(iter(CANDIDATES)):
        return result, {}
    final = [pair for pair in zip(members, done, strict=True) if pair[0].name == winner]
    missing = [member(winner, seed) for seed in SEEDS if seed not in TRIED_SEEDS]
    final += list(zip(missing, train_stack(world, job, missing), strict=True))
    runs, predictions = score_bridges(world, job, final, "bridge_searched", len(CANDIDATES))
    save_bridge(world, job, Folder(folder.path / "searched"), final, runs)
    return result | {"studies": {"searched": runs}}, predictions
