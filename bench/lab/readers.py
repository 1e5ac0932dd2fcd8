"""Jobs of receivers that read the text with something small trained beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from agentwire.errors import BridgeError
from agentwire.model.prompting import text_ids
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.scenario import TrainSpec
from agentwire.training.baselines.lora import Adapter, adapters
from agentwire.training.baselines.reader import (
    BlindObjective,
    Reader,
    ReaderObjective,
    SoftPrompt,
    TextRows,
    Trainee,
    text_rows,
)
from agentwire.training.loop import Trained, train_many
from lab.bridges import Answer, fast_products, labels_of, note, quickened
from lab.files import Folder, Predictions
from lab.jobs import SEEDS, Job
from lab.member import Member
from lab.scored import run_entry
from lab.world import World

READER = TrainSpec(
    steps=800, batch_size=32, average=0.99, evaluate_every=100, weight_decay=0.0, token_dropout=0.0
)
TEXT_TOKENS = 96
"""Longest text in training, in the receiver's tokens; scored texts are never cut."""
WHOLE = 0.99
"""Share of the training texts that are not cut: every row is padded to the longest."""
STEPS = {"banking77": 1600, "ag_news": 1000}
TRIED_STEPS = 250
"""Steps of a run that only chooses settings; Banking77's 77 classes need more to tell."""
TRIED = {"banking77": 400}
FEWEST_STEPS = 200
RANK = 16
LORA_GRID = tuple({"learning_rate": rate} for rate in (1e-4, 3e-4, 1e-3))
PROMPT_GRID = tuple({"length": 32, "learning_rate": rate} for rate in (1e-2, 5e-2, 1e-1))
"""Around what held-out rows chose on SST-2, among more (rate 3e-4; 32 vectors at 5e-2)."""

Settings = dict[str, Any]


class Trainer:
    """Trains S trainees of one kind side by side on a job's rows.

    Args:
        relayed: train and score on what the sender relayed, instead of the texts.
    """

    def __init__(self, world: World, job: Job, folder: Folder, *, relayed: bool = False) -> None:
        self.world, self.job, self.relayed = world, job, relayed
        self.receiver = world.names(job.direction)[1]
        self.spec = world.rows(job.task).spec
        self.texts = {
            part: [row.text for row in world.rows(job.task).part(part).rows]
            for part in ("train", "held_out", "test")
        }
        self.labels = {
            part: [row.label for row in world.rows(job.task).part(part).rows]
            for part in ("train", "held_out", "test")
        }
        file = folder.path / f"relay.{job.task}.{job.direction}.texts"
        self.relays: dict[str, Any] | None = (
            json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        )
        if relayed:
            if self.relays is None:
                raise FileNotFoundError(f"{file.name}: the relay job failed")
            self.labels["train"] = [self.labels["train"][i] for i in self.relays["rows"]]
            self.texts = {part: self.relays[part] for part in self.texts}

    def rows(self, part: str, texts: Sequence[str] | None = None) -> TextRows:
        """A part of the rows in the receiver's tokens."""
        key = (self.receiver, self.job.task, part, self.relayed)
        if texts is None and key in self.world.tokenised:
            return self.world.tokenised[key]
        backend = self.world.model(self.receiver)
        wanted = self.texts[part] if texts is None else texts
        cut = self._cut(backend, wanted) if part == "train" else None
        found = text_rows(backend, self.spec, wanted, self.labels[part], cut)
        if texts is None:
            self.world.tokenised[key] = found
        return found

    def _cut(self, backend: TransformersBackend, texts: Sequence[str]) -> int:
        """Tokens that all but the longest texts have at most."""
        glue = backend.prepared(self.spec).ids.glue
        lengths = sorted(len(row) for row in text_ids(backend.tokenizer, texts[::8], glue))
        return min(TEXT_TOKENS, lengths[int(WHOLE * (len(lengths) - 1))])

    def trainee(self, settings: Settings, seed: int) -> Trainee:
        torch.manual_seed(seed)
        backend = self.world.model(self.receiver)
        if "length" in settings:
            return SoftPrompt(backend, settings["length"])
        return Adapter(backend.model, RANK).to(self.world.device)

    def train(
        self, settings: Sequence[Settings], seeds: Sequence[int], steps: int
    ) -> list[Trained | BridgeError]:
        """One training for each pair of settings and seed; prompts of one length at a time."""
        found: dict[int, Trained | BridgeError] = {}
        for length in sorted({one.get("length", 0) for one in settings}):
            members = [i for i, one in enumerate(settings) if one.get("length", 0) == length]
            done = self._stack([settings[i] for i in members], [seeds[i] for i in members], steps)
            found |= dict(zip(members, done, strict=True))
        return [found[i] for i in range(len(settings))]

    def _stack(
        self, settings: Sequence[Settings], seeds: Sequence[int], steps: int
    ) -> list[Trained | BridgeError]:
        world, half = self.world, self.world.half
        backend = world.model(self.receiver, half)
        backend.prepare(self.spec)
        every = max(1, min(READER.evaluate_every, steps))
        recipes = [
            quickened(world, READER.model_copy(update={
                "learning_rate": one["learning_rate"], "seed": seed, "steps": steps,
                "evaluate_every": every,
            }))
            for one, seed in zip(settings, seeds, strict=True)
        ]  # fmt: skip
        modules = [self.trainee(one, seed) for one, seed in zip(settings, seeds, strict=True)]
        lora = isinstance(modules[0], Adapter)
        rows, held_out = self.rows("train"), self.rows("held_out")
        with fast_products(), adapters(backend.model) if lora else nullcontext() as adapted:
            reader = Reader(backend, self.spec, adapted)
            problem = ReaderObjective(reader, modules, rows, held_out, recipes)
            return train_many(problem, recipes, stop=world.out_of_time)

    def scores(
        self, trained: Trained, part: str, texts: Sequence[str] | None = None
    ) -> torch.Tensor:
        """Label logits of a part of the rows in float32."""
        backend = self.world.model(self.receiver)
        lora = isinstance(trained.module, Adapter)
        with adapters(backend.model) if lora else nullcontext() as adapted:
            reader = Reader(backend, self.spec, adapted)
            return reader.scores([trained.module], self.rows(part, texts))[0]


def tuned(
    world: World, job: Job, folder: Folder, method: str, grid: Sequence[Settings], *, relayed: bool
) -> Answer:
    """Chooses settings on held-out rows, trains three seeds with them, scores each once."""
    trainer = Trainer(world, job, folder, relayed=relayed)
    tried = trainer.train(grid, [0] * len(grid), TRIED.get(job.task, TRIED_STEPS))
    notes = [
        note(Member(READER, 0, name=json.dumps(one)), d) for one, d in zip(grid, tried, strict=True)
    ]
    best = grid[max(range(len(grid)), key=lambda i: notes[i].get("held_out_accuracy", 0.0))]
    steps = fitting(STEPS.get(job.task, READER.steps), tried, world.time_left())
    done = trainer.train([best] * len(SEEDS), list(SEEDS), steps)
    labels = labels_of(world, job.task, "test")
    runs: list[dict[str, Any]] = []
    predictions: Predictions = {}
    for seed, trained in zip(SEEDS, done, strict=True):
        if isinstance(trained, BridgeError):
            continue
        facts = {"hyperparameters": best | ({} if "length" in best else {"rank": RANK}),
                 "chosen_from": len(grid), "step": trained.best.step, "steps": steps,
                 "steps_done": trained.history[-1].step,
                 "parameters": sum(p.numel() for p in trained.module.parameters())}  # fmt: skip
        passes = {method: None}
        if method == "lora" and trainer.relays is not None:
            # The same adapter, given the sender's words instead of the text.
            passes["lora_reads_relay"] = trainer.relays["test"]
        for name, texts in passes.items():
            predicted = trainer.scores(trained, "test", texts).argmax(-1)
            runs.append(run_entry(job, name, device=world.device, seed=seed, predicted=predicted,
                                  labels=labels, held_out=trained.best.accuracy,
                                  seconds=trained.seconds, **facts))  # fmt: skip
            predictions[f"{name}.seed{seed}"] = predicted.cpu().numpy()
    return {"runs": runs, "members": notes}, predictions


def fitting(wanted: int, tried: Sequence[Trained | BridgeError], left_s: float) -> int:
    """Steps that fit into the time left, at the speed of as many trainings that were tried: a rate
    that decays to its end is worth more than steps that are cut off."""
    speeds = [t.seconds / t.history[-1].step for t in tried if isinstance(t, Trained)]
    if not speeds or not math.isfinite(left_s):
        return wanted
    return max(FEWEST_STEPS, min(wanted, int(left_s / max(speeds))))


def prompt_tuning(world: World, job: Job, folder: Folder) -> Answer:
    """A soft prompt beside the text."""
    return tuned(world, job, folder, "prompt_tuning", PROMPT_GRID, relayed=False)


def lora(world: World, job: Job, folder: Folder) -> Answer:
    """Adapters on the receiver, which reads the text."""
    return tuned(world, job, folder, "lora", LORA_GRID, relayed=False)


def lora_relay(world: World, job: Job, folder: Folder) -> Answer:
    """Adapters on the receiver, trained on what the sender relays and reading that."""
    return tuned(world, job, folder, "lora_relay", LORA_GRID, relayed=True)


def lora_reads_relay(world: World, job: Job, folder: Folder) -> Answer:
    """Adapters as the ``lora`` job chose them, where it ran before there was a relay.

    Trained again on the texts, and scored on the sender's summaries alone: how they do on the texts
    is known.
    """
    before = folder.result(f"lora.{job.task}.{job.direction}") or {}
    if any(run["method"] == "lora_reads_relay" for run in before.get("runs", [])):
        return {"runs": []}, {}  # there was one: the lora job has scored them
    known = [run for run in before.get("runs", []) if run["method"] == "lora"]
    if not known:
        raise FileNotFoundError(f"lora.{job.task}.{job.direction}: no result to take settings from")
    trainer = Trainer(world, job, folder)
    if trainer.relays is None:
        raise FileNotFoundError(f"relay.{job.task}.{job.direction}: the relay job failed")
    best = {"learning_rate": known[0]["hyperparameters"]["learning_rate"]}
    steps = known[0].get("steps", STEPS.get(job.task, READER.steps))
    seeds = [run["seed"] for run in known]
    done = trainer.train([best] * len(seeds), seeds, steps)
    runs: list[dict[str, Any]] = []
    predictions: Predictions = {}
    for seed, trained in zip(seeds, done, strict=True):
        if isinstance(trained, BridgeError):
            continue
        predicted = trainer.scores(trained, "test", trainer.relays["test"]).argmax(-1)
        runs.append(run_entry(
            job, "lora_reads_relay", device=world.device, seed=seed, predicted=predicted,
            labels=labels_of(world, job.task, "test"), held_out=trained.best.accuracy,
            seconds=trained.seconds, hyperparameters=best | {"rank": RANK},
            chosen_from=len(LORA_GRID), step=trained.best.step, steps=steps,
            steps_done=trained.history[-1].step,
            parameters=sum(p.numel() for p in trained.module.parameters()),
        ))  # fmt: skip
        predictions[f"lora_reads_relay.seed{seed}"] = predicted.cpu().numpy()
    return {"runs": runs}, predictions


def blind(world: World, job: Job, folder: Folder) -> Answer:
    """A soft prompt in the place of soft tokens, the same for every row."""
    half, spec = world.half, world.rows(job.task).spec
    name = world.names(job.direction)[1]
    receiver, exact = world.model(name, half), world.model(name)
    receiver.prepare(spec)
    recipes, modules = [], []
    for seed in SEEDS:
        change = {"learning_rate": 1e-2, "seed": seed, "steps": 300}
        recipes.append(quickened(world, READER.model_copy(update=change)))
        torch.manual_seed(seed)
        modules.append(SoftPrompt(exact, 8))
    train, held, test = (labels_of(world, job.task, p) for p in ("train", "held_out", "test"))
    problem = BlindObjective(lambda z: receiver.logits_from_soft(z, spec), modules, train, held)
    runs, predictions = [], {}
    for seed, trained in zip(
        SEEDS, train_many(problem, recipes, stop=world.out_of_time), strict=True
    ):
        if isinstance(trained, BridgeError) or not isinstance(trained.module, SoftPrompt):
            continue
        with torch.inference_mode():
            answer = exact.logits_from_soft(trained.module()[None], spec).argmax(-1)
        predicted = answer.expand(len(test))
        runs.append(run_entry(job, "prompt_tuning_blind", device=world.device, seed=seed,
                              predicted=predicted, labels=test, held_out=trained.best.accuracy,
                              hyperparameters={"length": 8, "learning_rate": 1e-2}))  # fmt: skip
        predictions[f"prompt_tuning_blind.seed{seed}"] = predicted.cpu().numpy()
    return {"runs": runs}, predictions
