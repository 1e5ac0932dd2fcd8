"""Jobs of receivers that read the text with something small trained beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from agentwire.baseline.lora import Adapter, adapters
from agentwire.baseline.reader import (
    LORA_GRID,
    PROMPT_GRID,
    BlindProblem,
    Reader,
    ReaderProblem,
    SoftPrompt,
    TextRows,
    Trainee,
    text_rows,
)
from agentwire.bridge.trainer import Trained, train_many
from agentwire.errors import BridgeError
from agentwire.scenario.schema import TrainSpec
from lab.bridges import Answer, Member, labels_of, note, quickened
from lab.files import Folder, Predictions
from lab.jobs import SEEDS, Job
from lab.scored import run_entry
from lab.world import World

READER = TrainSpec(
    steps=800, batch_size=32, average=0.99, evaluate_every=100, weight_decay=0.0, token_dropout=0.0
)
TEXT_TOKENS = 72
"""Longest text in training, in the receiver's tokens; scored texts are never cut."""
TRIED_STEPS = 250
"""Steps of a run that only chooses settings."""
RANK = 16

Settings = dict[str, Any]


class Trainer:
    """Trains S trainees of one kind side by side on a job's rows.

    Args:
        relayed: train and score on what the sender relayed, instead of the texts.
    """

    def __init__(self, world: World, job: Job, folder: Folder, *, relayed: bool = False) -> None:
        self.world, self.job = world, job
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

    def rows(self, part: str, dtype: str, texts: Sequence[str] | None = None) -> TextRows:
        """A part of the rows in the receiver's tokens."""
        backend = self.world.model(self.receiver, dtype)
        cut = TEXT_TOKENS if part == "train" else None
        return text_rows(backend, self.spec, texts or self.texts[part], self.labels[part], cut)

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
        torch.set_float32_matmul_precision("high")
        try:
            with adapters(backend.model) if lora else nullcontext() as adapted:
                reader = Reader(backend, self.spec, adapted)
                problem = ReaderProblem(
                    reader, modules, self.rows("train", half), self.rows("held_out", half), recipes
                )
                return train_many(problem, recipes, stop=world.out_of_time)
        finally:
            torch.set_float32_matmul_precision("highest")

    def scores(
        self, trained: Trained, part: str, texts: Sequence[str] | None = None
    ) -> torch.Tensor:
        """Label logits of a part of the rows in float32."""
        backend = self.world.model(self.receiver)
        lora = isinstance(trained.module, Adapter)
        with adapters(backend.model) if lora else nullcontext() as adapted:
            reader = Reader(backend, self.spec, adapted)
            return reader.scores([trained.module], self.rows(part, "float32", texts))[0]


def tuned(
    world: World, job: Job, folder: Folder, method: str, grid: Sequence[Settings], *, relayed: bool
) -> Answer:
    """Chooses settings on held-out rows, trains three seeds with them, scores each once."""
    trainer = Trainer(world, job, folder, relayed=relayed)
    tried = trainer.train(grid, [0] * len(grid), TRIED_STEPS)
    notes = [
        note(Member(READER, 0, name=json.dumps(one)), d) for one, d in zip(grid, tried, strict=True)
    ]
    best = grid[max(range(len(grid)), key=lambda i: notes[i].get("held_out_accuracy", 0.0))]
    done = trainer.train([best] * len(SEEDS), list(SEEDS), READER.steps)
    labels = labels_of(world, job.task, "test")
    runs: list[dict[str, Any]] = []
    predictions: Predictions = {}
    for seed, trained in zip(SEEDS, done, strict=True):
        if isinstance(trained, BridgeError):
            continue
        facts = {"hyperparameters": best | ({} if "length" in best else {"rank": RANK}),
                 "chosen_from": len(grid), "step": trained.best.step,
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


def prompt_tuning(world: World, job: Job, folder: Folder) -> Answer:
    """A soft prompt beside the text."""
    return tuned(world, job, folder, "prompt_tuning", PROMPT_GRID, relayed=False)


def lora(world: World, job: Job, folder: Folder) -> Answer:
    """Adapters on the receiver, which reads the text."""
    return tuned(world, job, folder, "lora", LORA_GRID, relayed=False)


def lora_relay(world: World, job: Job, folder: Folder) -> Answer:
    """Adapters on the receiver, trained on what the sender relays and reading that."""
    return tuned(world, job, folder, "lora_relay", LORA_GRID, relayed=True)


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
    problem = BlindProblem(lambda z: receiver.logits_from_soft(z, spec), modules, train, held)
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
