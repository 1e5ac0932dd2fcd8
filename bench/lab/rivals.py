"""Jobs of the bridge's rivals: probes, a sentence encoder, prompts, and models that read text."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agentwire.config import Config
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.scenario import TrainSpec
from agentwire.training.baselines.encoder import embed, fetch_encoder
from agentwire.training.baselines.few_shot import few_shot_task
from agentwire.training.baselines.probe import (
    ATTENTION_GRID,
    AttentionProbe,
    ProbeObjective,
    Scaler,
    choose_logistic,
    mean_pooled,
    probe_logits,
)
from agentwire.training.loop import Trained, train_many
from agentwire.wire.messages import RelaySpec, TaskSpec
from lab.bridges import Answer, chosen, labels_of, note, quickened, right
from lab.files import Folder, Predictions
from lab.jobs import SEEDS, Job
from lab.member import Member as BridgeMember
from lab.scored import run_entry
from lab.world import World

PROBE = TrainSpec(
    steps=1000, batch_size=64, average=0.99, evaluate_every=100, weight_decay=0.01, clip=10.0
)
SHOTS = {"banking77": (1,), "ag_news": (1, 2, 4)}
SHOT_ROWS = 300
RELAY_ROWS = 3_000
"""Training rows that are summarised for the adapter on relayed texts."""


def probe(world: World, job: Job, folder: Folder) -> Answer:
    """Both probes on the layer that the bridge reads."""
    layer, _ = chosen(folder, job)
    train, held, test = (
        world.states(job.direction, job.task, layer, part) for part in ("train", "held_out", "test")
    )
    scaler, classes = Scaler.of(train), world.rows(job.task).classes
    clock = time.monotonic()
    features = [mean_pooled(cache, scaler) for cache in (train, held, test)]
    best = choose_logistic(features[0], train.labels, features[1], held.labels, classes)
    predicted = best.probe(features[2]).argmax(-1)
    mean_run = run_entry(
        job, "probe_mean", device=world.device, predicted=predicted, labels=test.labels,
        held_out=best.held_out_accuracy, seconds=time.monotonic() - clock, layer=layer,
        hyperparameters={"l2": best.l2}, chosen_from=6,
        parameters=(features[0].shape[1] + 1) * classes,
    )  # fmt: skip
    predictions: Predictions = {"probe_mean.seed0": predicted.cpu().numpy()}
    runs, more, members = attention_probe(world, job, layer, scaler)
    return {"runs": [mean_run, *runs], "members": members, "layer": layer}, predictions | more


def attention_probe(
    world: World, job: Job, layer: int, scaler: Scaler
) -> tuple[list[dict[str, Any]], Predictions, list[dict[str, Any]]]:
    """The attention-pooled probe: heads, rate and dropout on held-out rows, then three seeds."""
    train, held, test = (
        world.states(job.direction, job.task, layer, part) for part in ("train", "held_out", "test")
    )
    classes = world.rows(job.task).classes
    grid = ATTENTION_GRID

    def fit(
        settings: Sequence[dict[str, Any]], seeds: list[int]
    ) -> tuple[list[Any], list[TrainSpec]]:
        recipes, modules = [], []
        for one, seed in zip(settings, seeds, strict=True):
            change = {"learning_rate": one["learning_rate"], "seed": seed}
            recipes.append(quickened(world, PROBE.model_copy(update=change)))
            torch.manual_seed(seed)
            module = AttentionProbe(scaler, classes, heads=one["heads"], dropout=one["dropout"])
            modules.append(module.to(world.device))
        return train_many(ProbeObjective(modules, train, held), recipes), recipes

    tried, _ = fit(grid, [0] * len(grid))
    notes = [
        note(BridgeMember(PROBE, layer, name=json.dumps(one)), d)
        for one, d in zip(grid, tried, strict=True)
    ]
    best = max(range(len(grid)), key=lambda i: notes[i].get("held_out_accuracy", 0.0))
    done, _ = fit([grid[best]] * len(SEEDS), list(SEEDS))
    runs, predictions = [], {}
    for seed, trained in zip(SEEDS, done, strict=True):
        if not isinstance(trained, Trained):
            continue
        predicted = probe_logits(trained.module, test).argmax(-1)
        runs.append(
            run_entry(
                job, "probe_attention", device=world.device, seed=seed, predicted=predicted,
                labels=test.labels, held_out=trained.best.accuracy, seconds=trained.seconds,
                layer=layer, hyperparameters=grid[best], chosen_from=len(grid),
                parameters=sum(p.numel() for p in trained.module.parameters()),
            )
        )  # fmt: skip
        predictions[f"probe_attention.seed{seed}"] = predicted.cpu().numpy()
    return runs, predictions, notes


def encoder(world: World, job: Job, folder: Folder) -> Answer:
    """A sentence encoder and logistic regression; it depends on no direction."""
    place = fetch_encoder(Config.from_env())
    rows = world.rows(job.task)
    clock = time.monotonic()
    features = [
        embed(place, [row.text for row in rows.part(part).rows], world.device)
        for part in ("train", "held_out", "test")
    ]
    labels = [labels_of(world, job.task, part) for part in ("train", "held_out", "test")]
    best = choose_logistic(features[0], labels[0], features[1], labels[1], rows.classes)
    predicted = best.probe(features[2]).argmax(-1)
    runs = [
        run_entry(
            replace(job, direction=direction), "encoder_linear", device=world.device,
            predicted=predicted, labels=labels[2], held_out=best.held_out_accuracy,
            seconds=time.monotonic() - clock, hyperparameters={"l2": best.l2}, chosen_from=6,
            parameters=(features[0].shape[1] + 1) * rows.classes,
        )
        for direction in ("forward", "reverse")
    ]  # fmt: skip
    return {"runs": runs}, {"encoder_linear.seed0": predicted.cpu().numpy()}


# -- models that read text, untrained -------------------------------------------------------------


def answers(
    backend: TransformersBackend, task: TaskSpec, texts: list[str], batch_size: int = 128
) -> Tensor:
    """Label log-likelihoods [n, L] of a model that reads each text; the shortest texts first."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = [
        torch.from_numpy(
            backend.score_text([texts[i] for i in order[begin : begin + batch_size]], task).scores
        )
        for begin in range(0, len(order), batch_size)
    ]
    return torch.cat(parts)[torch.tensor(order).argsort()].to(backend.device)


def texts_of(world: World, task: str, part: str) -> list[str]:
    return [row.text for row in world.rows(task).part(part).rows]


def direct(world: World, job: Job, folder: Folder) -> Answer:
    """Sender and receiver read the text; few-shot; the sender's own answer crosses as a word."""
    sender, receiver = (world.model(name) for name in world.names(job.direction))
    spec, labels = world.rows(job.task).spec, labels_of(world, job.task, "test")
    test = texts_of(world, job.task, "test")
    held = texts_of(world, job.task, "held_out")
    runs, predictions = [], {}

    def add(method: str, logits: Tensor, seed: int = 0, **more: Any) -> None:
        predicted = logits.argmax(-1)
        runs.append(run_entry(job, method, device=world.device, seed=seed, predicted=predicted,
                              labels=labels, **more))  # fmt: skip
        predictions[f"{method}.seed{seed}"] = predicted.cpu().numpy()

    sent = answers(sender, spec, test)
    add("sender_direct", sent, held_out=right(world, job, answers(sender, spec, held), "held_out"))
    received = answers(receiver, spec, test)
    held_direct = right(world, job, answers(receiver, spec, held), "held_out")
    add("receiver_direct", received, held_out=held_direct)
    # The verbatim relay's receiver reads the same text in the same prompt.
    add("text_relay_verbatim", received, held_out=held_direct)
    words = [spec.labels[i] for i in sent.argmax(-1).tolist()]
    add("label_relay", answers(receiver, spec, words), payload_bytes=1)
    for seed, (logits, more) in enumerate(few_shot(world, job, receiver, spec, test)):
        add("few_shot", logits, seed, **more)
    return {"runs": runs}, predictions


def few_shot(
    world: World, job: Job, receiver: TransformersBackend, spec: TaskSpec, test: list[str]
) -> list[tuple[Tensor, dict[str, Any]]]:
    """The receiver with solved examples; how many, held-out rows decide."""
    rows = world.rows(job.task)
    chosen_rows = random.Random(0).sample(range(len(rows.held_out)),
                                          min(SHOT_ROWS, len(rows.held_out)))  # fmt: skip
    held = [rows.held_out.rows[i] for i in chosen_rows]
    wanted = torch.tensor([row.label for row in held], device=world.device)

    def accuracy(shots: int, seed: int) -> float:
        task = few_shot_task(spec, rows.train.rows, shots, seed)
        logits = answers(receiver, task, [row.text for row in held], 64)
        return float((logits.argmax(-1) == wanted).double().mean())

    grid = SHOTS.get(job.task, (1, 2, 4, 8))
    found = {shots: accuracy(shots, 0) for shots in grid}
    best = max(found, key=lambda shots: found[shots])
    return [
        (
            answers(receiver, few_shot_task(spec, rows.train.rows, best, seed), test, 64),
            {"held_out": found[best] if seed == 0 else accuracy(best, seed),
             "hyperparameters": {"shots": best}, "chosen_from": len(grid)},
        )
        for seed in SEEDS
    ]  # fmt: skip


# -- text relay -----------------------------------------------------------------------------------


def relay(world: World, job: Job, folder: Folder) -> Answer:
    """The sender's summaries of test, held-out and training rows; the receiver reads the test's."""
    sender, receiver = (world.model(name) for name in world.names(job.direction))
    spec = world.rows(job.task).spec
    texts = {part: texts_of(world, job.task, part) for part in ("test", "held_out", "train")}
    if len(texts["train"]) > RELAY_ROWS:
        picked = sorted(random.Random(0).sample(range(len(texts["train"])), RELAY_ROWS))
        texts["train"] = [texts["train"][i] for i in picked]
    else:
        picked = list(range(len(texts["train"])))
    clock = time.monotonic()
    written = {part: summaries(sender, spec, rows) for part, rows in texts.items()}
    predicted = answers(receiver, spec, written["test"]).argmax(-1)
    held = right(world, job, answers(receiver, spec, written["held_out"]), "held_out")
    run = run_entry(
        job, "text_relay", device=world.device, predicted=predicted,
        labels=labels_of(world, job.task, "test"), held_out=held, seconds=time.monotonic() - clock,
        mean_bytes=sum(len(t.encode()) for t in written["test"]) / len(written["test"]),
    )  # fmt: skip
    content = {"rows": picked, **written}
    (folder.path / f"{job.name}.texts").write_text(json.dumps(content), encoding="utf-8")
    return {"runs": [run]}, {"text_relay.seed0": predicted.cpu().numpy()}


def summaries(
    sender: TransformersBackend, spec: TaskSpec, texts: list[str], batch_size: int = 768
) -> list[str]:
    """Greedy summaries, as the sender would put them on the bus."""
    if sender.device.type == "cpu":
        batch_size = 16
    relay_task = replace(spec, relay=RelaySpec(spec.relay.template, spec.relay.max_new_tokens))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = [""] * len(texts)
    for begin in range(0, len(order), batch_size):
        chosen_rows = order[begin : begin + batch_size]
        written = sender.relay([texts[i] for i in chosen_rows], relay_task).texts
        for i, text in zip(chosen_rows, written, strict=True):
            found[i] = text
    return found
