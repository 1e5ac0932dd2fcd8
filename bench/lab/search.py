"""A second look for a better bridge: candidates on held-out rows, then three seeds of the best.

The candidates differ from the recipe of the bridges in the main tables, each in one or two things.
Each has two seeds, so that one lucky run does not choose. Test rows are scored once, for the
frozen winner, and only where held-out rows prefer it to the recipe as it is.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from lab.bridges import Answer, chosen, member_of, note, recipe_of, score_bridges, train_stack
from lab.files import Folder
from lab.jobs import SEEDS, Job
from lab.member import Member
from lab.ship import save_bridge
from lab.world import World

HARDER = {"dropout": 0.3, "token_dropout": 0.3}
CANDIDATES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "more dropout": HARDER,
    "label smoothing": {"label_smoothing": 0.1},
    "16 soft tokens": {"soft_tokens": 16},
    "width 512": {"hidden": 512},
}
TRIED_LAYERS = {"forward": (12, 18, 20, 25), "reverse": (8, 12, 14)}
COMBINED = {"forward": (18, 20), "reverse": (12,)}
"""Layers that are tried with more dropout, too."""
TRIED_SEEDS = (0, 1)


def candidates_of(direction: str) -> dict[str, dict[str, Any]]:
    """What is tried in a direction, by name; the recipe as it is first."""
    found = {**CANDIDATES}
    for layer in TRIED_LAYERS[direction]:
        found[f"layer {layer}"] = {"layer": layer}
    for layer in COMBINED[direction]:
        found[f"layer {layer}, more dropout"] = {"layer": layer, **HARDER}
    return found


def search(world: World, job: Job, folder: Folder) -> Answer:
    """The best candidate on held-out rows; its three seeds are scored where it is not the first."""
    layer, changes = chosen(folder, job)
    base = recipe_of(job.task, changes)
    candidates = candidates_of(job.direction)

    def member(name: str, seed: int) -> Member:
        other = dict(candidates[name])
        at, m = other.pop("layer", layer), other.pop("soft_tokens", 8)
        return member_of(name, at, base, other | {"seed": seed}, soft_tokens=m)

    members = [member(name, seed) for name in candidates for seed in TRIED_SEEDS]
    done = train_stack(world, job, members)
    notes = [note(m, d) for m, d in zip(members, done, strict=True)]

    def held_out(name: str) -> tuple[float, float]:
        mine = [n for n in notes if n["name"] == name and "held_out_accuracy" in n]
        if len(mine) < len(TRIED_SEEDS):
            return 0.0, 0.0
        return fmean(n["held_out_accuracy"] for n in mine), -fmean(n["loss"] for n in mine)

    winner = max(candidates, key=held_out)
    result = {"members": notes, "winner": winner}
    if winner == next(iter(candidates)):
        return result, {}
    final = [pair for pair in zip(members, done, strict=True) if pair[0].name == winner]
    if not world.out_of_time():
        missing = [member(winner, seed) for seed in SEEDS if seed not in TRIED_SEEDS]
        final += list(zip(missing, train_stack(world, job, missing), strict=True))
    runs, predictions = score_bridges(world, job, final, "bridge_searched", len(candidates))
    save_bridge(world, job, Folder(folder.path / "searched"), final, runs)
    return result | {"studies": {"searched": runs}}, predictions
