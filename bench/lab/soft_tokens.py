"""How many soft tokens: the papers' "fewer is better" on Banking77, at two budgets.

Three jobs for a group of Ms, which share one loop: the papers' budget; a search for the rate that
suits each M, on held-out rows; and long training at that rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentwire.errors import BridgeError
from agentwire.spec.scenario import TrainSpec
from agentwire.training.loop import Trained
from lab.bridges import BASE, CHANGES, Answer, chosen, note, score_bridges, train_stack
from lab.files import Folder, Predictions
from lab.jobs import SEEDS, Job
from lab.member import Member
from lab.world import World

PAPERS_BUDGET = {"steps": 3000, "batch_size": 8, "learning_rate": 1e-4, "average": 0.99,
                 "evaluate_every": 750}  # fmt: skip
"""Telepathy's setting for Banking77: rate 1e-4, batch 8, 3,000 steps (its M there is 16)."""
RATES = (2e-4, 5e-4, 1e-3, 2e-3)
SEARCH = {"steps": 800, "batch_size": 32, "average": 0.99, "evaluate_every": 200}
LONG = {**CHANGES, "steps": 2000, "batch_size": 64, "evaluate_every": 250}
"""The budget of the bridges in the main tables."""


def papers_budget(world: World, job: Job, folder: Folder) -> Answer:
    """Three seeds of each M at the papers' budget."""
    return _scored(world, job, folder, BASE.model_copy(update=PAPERS_BUDGET), "papers", {})


def rates(world: World, job: Job, folder: Folder) -> Answer:
    """One seed of each M at each rate, on held-out rows alone."""
    layer, _ = chosen(folder, job)
    base = BASE.model_copy(update=SEARCH)
    members = [
        Member(base.model_copy(update={"learning_rate": rate}), layer, soft_tokens=m,
               name=f"m{m} rate {rate:g}", changes={"learning_rate": rate})
        for m in job.options["soft_tokens"]
        for rate in RATES
    ]  # fmt: skip
    done = train_stack(world, job, members)
    notes = [note(member, trained) for member, trained in zip(members, done, strict=True)]
    return {"members": notes, "rates": best_rates(notes)}, {}


def best_rates(notes: Sequence[dict[str, Any]]) -> dict[str, float]:
    """For each M the rate with the best held-out accuracy, and of equal ones the lower loss."""
    found: dict[str, dict[str, Any]] = {}
    for one in notes:
        m = str(one["soft_tokens"])
        if "held_out_accuracy" in one and (m not in found or _rank(one) > _rank(found[m])):
            found[m] = one
    return {m: one["changes"]["learning_rate"] for m, one in found.items()}


def _rank(one: dict[str, Any]) -> tuple[float, float]:
    return one["held_out_accuracy"], -one["loss"]


def converged(world: World, job: Job, folder: Folder) -> Answer:
    """Long training at the rate that the search chose, the best step on held-out rows."""
    searched = folder.result(job.after[-1]) or {}
    return _scored(world, job, folder, BASE.model_copy(update=LONG), "converged",
                   searched.get("rates", {}))  # fmt: skip


def _scored(
    world: World, job: Job, folder: Folder, base: TrainSpec, budget: str, tuned: dict[str, float]
) -> Answer:
    layer, _ = chosen(folder, job)
    members = []
    for m in job.options["soft_tokens"]:
        rate = tuned.get(str(m), base.learning_rate)
        for seed in job.options.get("seeds", SEEDS):
            recipe = base.model_copy(update={"learning_rate": rate, "seed": seed})
            members.append(Member(recipe, layer, soft_tokens=m, name=f"{budget} m{m}"))
    done = train_stack(world, job, members)
    runs: list[dict[str, Any]] = []
    predictions: Predictions = {}
    for m in job.options["soft_tokens"]:
        final: list[tuple[Member, Trained | BridgeError]] = [
            pair for pair in zip(members, done, strict=True) if pair[0].soft_tokens == m
        ]
        mine, more = score_bridges(world, job, final, f"{budget}.m{m}",
                                   len(RATES) if tuned else 1, budget=budget)  # fmt: skip
        runs, predictions = runs + mine, predictions | more
    notes = [note(member, trained) for member, trained in zip(members, done, strict=True)]
    return {"studies": {"soft_tokens": runs}, "members": notes}, predictions
