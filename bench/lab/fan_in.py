"""Fan-in: two senders, one receiver. What a set of bridges knows, and what each sender is worth.

A set's bridges are trained together; beside it stand ordinary bridges of each sender, trained on
the same rows by the same recipe. What one sender of a set is worth is seen where the other one
reads another row's text.
"""

from __future__ import annotations

import datetime
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentwire.errors import BridgeError
from agentwire.scenario.shares import shares
from agentwire.training.joint import JointBridge, JointStates
from agentwire.training.loop import Trained, train_many
from agentwire.training.new_card import Ends, device_name, public_provenance, trained_today
from agentwire.training.objective import Part, scores_of
from agentwire.training.prepare import new_bridge
from agentwire.training.states import StateCache, cache_states
from agentwire.training.train_joint import write_set
from lab.bridges import CHANGES, curve, fast_products, labels_of, quickened, recipe_of, right
from lab.files import Predictions
from lab.jobs import BASE_LAYER, Job
from lab.onepass import OnePass
from lab.record import describe_task
from lab.rivals import answers
from lab.scored import run_entry
from lab.world import PAIR, SCORED_TOKENS, TRAIN_TOKENS, World, versions

RECEIVER = PAIR[1]
LAYERS = {PAIR[0]: BASE_LAYER["forward"], PAIR[1]: BASE_LAYER["reverse"]}
SOFT_TOKENS = 8
"""Of each sender."""
PIECES = ("first half", "second half", "whole")


@dataclass(frozen=True, slots=True)
class Reads:
    """A sender, and which piece of each text it reads."""

    sender: str
    piece: str


@dataclass(frozen=True, slots=True)
class Kind:
    """What is trained: a set of bridges, or, of one sender, an ordinary bridge."""

    name: str
    about: str
    reads: tuple[Reads, ...]


HALVES = Kind(
    "halves",
    "two bridges trained together: each sender reads a half of the text",
    (Reads(PAIR[0], "first half"), Reads(PAIR[1], "second half")),
)
WHOLE = Kind(
    "whole",
    "two bridges trained together: both senders read the whole text",
    (Reads(PAIR[0], "whole"), Reads(PAIR[1], "whole")),
)
ALONE = tuple(
    Kind(name, f"an ordinary bridge: {sender} reads the {what}", (Reads(sender, piece),))
    for name, sender, piece, what in (
        ("first_alone", PAIR[0], "first half", "first half of the text"),
        ("second_alone", PAIR[1], "second half", "second half of the text"),
        ("first_whole", PAIR[0], "whole", "whole text"),
        ("second_whole", PAIR[1], "whole", "whole text"),
    )
)
STACKS = ((HALVES,), ALONE[:2], (WHOLE,), ALONE[2:])
"""Trained side by side, the most important first."""
KINDS = (HALVES, *ALONE[:2], WHOLE, *ALONE[2:])


class Fan:
    """The trainings of one task.

    Args:
        seeds: of each kind.
    """

    def __init__(self, world: World, task: str, seeds: Sequence[int]) -> None:
        self.world, self.task, self.seeds = world, task, tuple(seeds)
        self.job = Job("fan_in", "fan_in", task)
        self._states: dict[tuple[Reads, str], StateCache] = {}

    def states(self, reads: Reads, part: str) -> StateCache:
        """A sender's states for its piece of each text of a part of the rows."""
        key = (reads, part)
        if key not in self._states:
            rows = self.world.rows(self.task).part(part).rows
            texts = [piece_of(row.text, reads.piece) for row in rows]
            torch.set_float32_matmul_precision("highest")
            self._states[key] = cache_states(
                self.world.model(reads.sender), texts, [row.label for row in rows],
                layer=LAYERS[reads.sender],
                max_tokens=SCORED_TOKENS if part == "test" else TRAIN_TOKENS,
                batch_size=256 if self.world.device.type == "cuda" else 16,
            )  # fmt: skip
        return self._states[key]

    def cache(self, kind: Kind, part: str, others: Sequence[Tensor | None] = ()) -> Any:
        """What a kind's module reads; ``others``: for a sender, whose texts it reads instead."""
        caches = []
        for reads, rows in zip(kind.reads, others or [None] * len(kind.reads), strict=True):
            cache = self.states(reads, part)
            caches.append(cache if rows is None else cache.part(rows, cache.labels))
        return JointStates.of(caches) if len(caches) > 1 else caches[0]

    def module(self, kind: Kind, seed: int) -> Any:
        """Untrained; every seed draws the same numbers for the first bridge of each kind."""
        recipe = recipe_of(self.task, {**CHANGES, "seed": seed})
        torch.manual_seed(seed)
        bridges = [
            new_bridge(self.states(reads, "train"), self.world.model(RECEIVER),
                       self.world.model(reads.sender).identity, SOFT_TOKENS, recipe)
            for reads in kind.reads
        ]  # fmt: skip
        return JointBridge(bridges) if len(bridges) > 1 else bridges[0]

    def train(self, kinds: Sequence[Kind]) -> dict[tuple[str, int], Trained]:
        """Trains every seed of these kinds side by side."""
        members = [(kind, seed) for kind in kinds for seed in self.seeds]
        recipes = [quickened(self.world, recipe_of(self.task, {**CHANGES, "seed": seed}))
                   for _, seed in members]  # fmt: skip
        modules = [self.module(kind, seed) for kind, seed in members]
        train, held_out = ([self.cache(kind, part) for kind, _ in members]
                           for part in ("train", "held_out"))  # fmt: skip
        receiver = self.world.model(RECEIVER, self.world.half)
        spec = self.world.rows(self.task).spec
        receiver.prepare(spec)
        part = Part(lambda soft: receiver.logits_from_soft(soft, spec), train, held_out)
        problem = OnePass(modules, [part], recipes, receiver, [spec])
        with fast_products():
            done = train_many(problem, recipes, stop=self.world.out_of_time)
        return {(kind.name, seed): trained
                for (kind, seed), trained in zip(members, done, strict=True)
                if not isinstance(trained, BridgeError)}  # fmt: skip

    def scores(self, kind: Kind, module: Any, part: str, others: Sequence[Any] = ()) -> Tensor:
        """Label logits in float32: the figures that count."""
        receiver = self.world.model(RECEIVER)
        spec = self.world.rows(self.task).spec
        cache = self.cache(kind, part, others)
        return scores_of([module], lambda z: receiver.logits_from_soft(z, spec), [cache], 512)[0]

    def score(self, kind: Kind, seed: int, trained: Trained) -> tuple[list[Any], Predictions]:
        """Every test row once; of a set also with each other sender's text from another row."""
        n = len(self.world.rows(self.task).test)
        held = right(self.world, self.job, self.scores(kind, trained.module, "held_out"),
                     "held_out", self.task)  # fmt: skip
        conditions: dict[str, list[Tensor | None]] = {"all": [None] * len(kind.reads)}
        if len(kind.reads) > 1:
            other = another_row(n, seed).to(self.world.device)
            for i in range(len(kind.reads)):
                conditions[f"only {i + 1}"] = [None if j == i else other
                                               for j in range(len(kind.reads))]  # fmt: skip
        runs, predictions = [], {}
        labels = labels_of(self.world, self.task, "test")
        recipe = recipe_of(self.task, {**CHANGES, "seed": seed})
        for true, others in conditions.items():
            predicted = self.scores(kind, trained.module, "test", others).argmax(-1)
            more: dict[str, Any] = {}
            if true == "all":
                more = {"held_out": held, "seconds": trained.seconds, "step": trained.best.step,
                        "steps_done": trained.history[-1].step, "curve": curve(trained.history),
                        "parameters": sum(p.numel() for p in trained.module.parameters()),
                        "hyperparameters": quickened(self.world, recipe).model_dump()}  # fmt: skip
            runs.append(run_entry(self.job, kind.name, device=self.world.device, seed=seed,
                                  predicted=predicted, labels=labels, true_texts=true,
                                  **more))  # fmt: skip
            name = f"{self.task}.{kind.name}.{true.replace(' ', '')}.seed{seed}"
            predictions[name] = predicted.cpu().numpy()
        return runs, predictions

    def direct(self) -> tuple[list[Any], Predictions]:
        """The receiver reads each piece itself, untrained."""
        runs, predictions = [], {}
        rows = self.world.rows(self.task)
        for piece in PIECES:
            texts = [piece_of(row.text, piece) for row in rows.test.rows]
            predicted = answers(self.world.model(RECEIVER), rows.spec, texts).argmax(-1)
            labels = labels_of(self.world, self.task, "test")
            runs.append(run_entry(self.job, "receiver_direct", device=self.world.device,
                                  predicted=predicted, labels=labels, piece=piece))  # fmt: skip
            predictions[f"{self.task}.receiver_direct.{piece.replace(' ', '_')}"] = (
                predicted.cpu().numpy()
            )
        return runs, predictions

    def save(self, out: Path, done: dict[tuple[str, int], Trained], runs: list[Any]) -> list[Path]:
        """The set of halves whose seed did best on held-out rows, as folders that can ship."""
        mine = [run for run in runs if (run["task"], run["method"]) == (self.task, HALVES.name)]
        held = {r["seed"]: r["held_out_accuracy"] for r in mine if "held_out_accuracy" in r}
        seed = max(held, key=lambda one: (held[one], -one))
        trained = done[HALVES.name, seed]
        if not isinstance(trained.module, JointBridge):
            raise TypeError("only a set can be written as one")
        rows = self.world.rows(self.task)
        recipe = quickened(self.world, recipe_of(self.task, {**CHANGES, "seed": seed}))
        training = trained_today(
            recipe,
            dataset=self.task,
            rows=len(rows.train),
            held_out=len(rows.held_out),
            provenance=public_provenance(rows.train),
            accuracy=held[seed],
            step=trained.best.step,
            seconds=trained.seconds,
            device=f"{device_name(self.world.device)}, {len(held)} sets side by side",
        )
        receiver = self.world.model(RECEIVER).identity
        ends = [Ends(self.world.model(reads.sender).identity, LAYERS[reads.sender], receiver)
                for reads in HALVES.reads]  # fmt: skip
        name = f"{'+'.join(reads.sender for reads in HALVES.reads)}--{RECEIVER}--{self.task}"
        return write_set(out, name, rows.spec, trained.module, ends, training, "share")


def piece_of(text: str, piece: str) -> str:
    """What is read of a text."""
    if piece == "whole":
        return text
    return shares(text, 2)[PIECES.index(piece)]


def another_row(n: int, seed: int) -> Tensor:
    """For each of n rows another one, drawn at random; each row is drawn once."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def about(command: str, *, quick: bool) -> dict[str, Any]:
    """What a result says of itself, before there are any figures."""
    return {
        "kind": "fan_in",
        "quick": quick,
        "started": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "versions": versions(),
        "runs": [],
        "shipped": [],
    }


def describe(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record: the tasks' results, what they are about, and their means over seeds."""
    runs = [run for result in results for run in result["runs"]]
    groups: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        what = run.get("true_texts", run.get("piece")).replace(" ", "_")
        groups[f"{run['task']}.{run['method']}.{what}"].append(run["accuracy"])
        if "held_out_accuracy" in run:
            groups[f"{run['task']}.{run['method']}.held_out"].append(run["held_out_accuracy"])
    figures: dict[str, float] = {}
    for name, values in sorted(groups.items()):
        figures[f"{name}.mean"] = round(statistics.fmean(values), 6)
        if len(values) > 1:
            figures[f"{name}.std"] = round(statistics.stdev(values), 6)
    return {
        "kind": "fan_in",
        "started": min(result["started"] for result in results),
        "command": "; ".join(result["command"] for result in results),
        "hardware": ", ".join(sorted({run["device"] for run in runs})),
        "versions": results[0]["versions"],
        "models": {
            "senders": list(PAIR),
            "receiver": RECEIVER,
            "stand_ins": f"{PAIR[0]} for Llama-3.1-8B-Instruct, {PAIR[1]} for "
            "Mistral-7B-Instruct-v0.3",
            "layers": LAYERS,
            "soft_tokens": SOFT_TOKENS,
        },
        "kinds": {
            kind.name: {"about": kind.about, "reads": [[r.sender, r.piece] for r in kind.reads]}
            for kind in KINDS
        },
        "tasks": {task: describe_task(task) for task in dict.fromkeys(r["task"] for r in runs)},
        "figures": figures,
        "shipped": [name for result in results for name in result["shipped"]],
        "runs": runs,
    }
