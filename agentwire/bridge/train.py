"""``agentwire train``: from a resolved scenario to a bridge folder."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from agentwire.bridge import store, trainer
from agentwire.bridge.card import BridgeCard, CardModel, CardTraining
from agentwire.bridge.checkpoint import Checkpoint
from agentwire.bridge.curve import draw_curve, require_plots, sparkline
from agentwire.bridge.problem import BridgeProblem, Part
from agentwire.bridge.resampler import Resampler, ResamplerShape
from agentwire.bridge.series import TaskPart, task_parts
from agentwire.bridge.states import StateCache, cache_states
from agentwire.config import Config
from agentwire.errors import BridgeError, DataError, ScenarioError
from agentwire.model.sources import public_name
from agentwire.model.transformers import TransformersBackend, trunk
from agentwire.scenario.resolve import Resolved
from agentwire.scenario.schema import DataChoice, TrainSpec
from agentwire.task.datasets import Dataset, load_rows
from agentwire.task.holdout import held_out_split
from agentwire.task.rows import rows_sha256
from agentwire.wire.messages import ModelIdentity

TRAIN_SPLIT = "train"
RMS_SLACK = 0.05
"""Soft tokens have RMS alpha by construction; fp16 rounding moves it by far less than this part."""

Progress = Callable[[str, float], None]


def train_scenario(
    resolved: Resolved,
    *,
    out: Path,
    progress: Progress,
    config: Config | None = None,
    plot: Path | None = None,
) -> Path:
    """Trains the bridge of the scenario's first wire and writes ``out``/<bridge name>/.

    A task of a series trains the bridge of the whole series (``series.task_parts``).

    Only the dataset's training split is read: part of it is held out and chooses the step. A
    training that was stopped, or killed, goes on where its last evaluation was: what it needs for
    that lies in the user cache until the bridge is written.

    Args:
        resolved: what runs here; the models' weights are on this machine.
        out: folder that holds bridges.
        progress: told the stage and the fraction done.
        plot: file for a picture of the loss.

    Returns:
        the bridge's folder.

    Raises:
        ScenarioError: the scenario has no task, or its sender has no layer.
        DataError: the rows cannot be had, or are the very rows that are scored.
        ModelError, DeviceError, BridgeError: see the called functions.
    """
    config = config or Config.from_env()
    if plot is not None:
        require_plots()
    if resolved.data is None:
        raise ScenarioError(
            "the scenario has no `task:`, so there is nothing to train for.",
            hint="Add a task with a dataset.",
        )
    if any(choice.weights == "random" for choice in resolved.choices.values()):
        raise ScenarioError(
            "models with random weights teach a bridge nothing.",
            hint="Set `weights: pretrained`; `python bench/train_step.py` times the steps.",
        )
    refuse_scored_rows(resolved.data)
    recipe = resolved.scenario.train
    torch.manual_seed(recipe.seed)
    wire = resolved.wire
    layer = resolved.choices[wire.spec.sender].layer
    if layer is None:
        raise ScenarioError(
            f"the agent {wire.spec.sender} sends but has no `layer`.",
            hint="Say after how many of its layers the bridge reads, e.g. `layer: 16`.",
        )
    rows, held_out = training_rows(resolved.data, recipe, config)
    started = time.monotonic()
    receiver = load_agent(resolved, wire.spec.receiver, _stage(progress, 0.0), recipe.precision)
    sender = load_agent(resolved, wire.spec.sender, _stage(progress, 0.03))
    sender_identity = sender.identity
    trunk(sender.model, layer)  # refused now, not after the states of all rows
    caches = _cache(sender, rows, held_out, layer, recipe, progress)
    del sender  # a large sender makes room for the receiver's activations
    cache, held = (c.to(receiver.device) for c in caches)
    module = _new_bridge(cache, receiver, sender_identity, wire.spec.soft_tokens, recipe)
    name = f"{wire.bridge}, layer {layer}, M = {wire.spec.soft_tokens}"
    parts = task_parts(resolved.data, (rows, held_out), (cache, held), config)
    identity = [name, sender_identity.fingerprint, receiver.identity.fingerprint,
                [part.task.task_id for part in parts],
                rows.provenance["rows_sha256"], recipe.model_dump()]  # fmt: skip
    checkpoint = _checkpoint(config, wire.bridge, identity)
    trained = _train(module, receiver, parts, recipe, progress, checkpoint)
    card = BridgeCard(
        name=wire.bridge,
        description=f"{resolved.data.dataset}: {public_name(sender_identity.name)} -> "
        f"{public_name(receiver.identity.name)}",
        sender=card_model(sender_identity),
        receiver=card_model(receiver.identity),
        layer=layer,
        soft_tokens=wire.spec.soft_tokens,
        hidden=recipe.hidden,
        blocks=recipe.blocks,
        heads=recipe.heads,
        feed_forward=recipe.feed_forward,
        parameters=module.count_parameters(),
        rms_range=rms_range(receiver.identity.embedding_rms),
        prompts=tuple(part.task.prompt_hash for part in parts),
        training=CardTraining(
            dataset=rows.name,
            split=TRAIN_SPLIT,
            rows=len(rows),
            held_out=len(held_out),
            held_out_accuracy=round(trained.best.accuracy, 4),
            step=trained.best.step,
            seconds=round(time.monotonic() - started, 1),
            device=device_name(receiver.device),
            recipe=recipe.model_dump(),
            provenance=public_provenance(rows),
            versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        ),
        weights_sha256="0" * 64,  # ``save`` fills it in
    )
    folder = out / wire.bridge
    store.save(folder, card, module)
    checkpoint.remove()
    if plot is not None:
        draw_curve(trained.history, name, plot)
    return folder


def _checkpoint(config: Config, bridge: str, identity: Sequence[object]) -> Checkpoint:
    """Named by everything that the training depends on, so that two never share one."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Checkpoint(config.home / "training" / f"{bridge}-{digest[:16]}.safetensors", digest)


def training_rows(data: DataChoice, recipe: TrainSpec, config: Config) -> tuple[Dataset, Dataset]:
    """The rows that everything of a scenario trains on, and those that choose its settings.

    Raises:
        DataError: the rows cannot be had, or are the very rows that are scored.
    """
    refuse_scored_rows(data)
    split = load_rows(data.dataset, TRAIN_SPLIT, config=config, path=data.path)
    rows, held_out = held_out_split(split, min(recipe.held_out, len(split) // 8), recipe.seed)
    if recipe.max_rows and recipe.max_rows < len(rows):
        rows = sample(rows, recipe.max_rows, recipe.seed)
    return rows, held_out


def sample(rows: Dataset, n: int, seed: int) -> Dataset:
    """At most n rows, drawn at random (files are often sorted by class); the source's order."""
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(n, len(rows))))
    kept = tuple(rows.rows[i] for i in chosen)
    marks = {
        "sample": f"{len(kept)} of {len(rows)} (seed={seed})",
        "rows_sha256": rows_sha256(kept),
    }
    return replace(rows, rows=kept, provenance={**rows.provenance, **marks})


def refuse_scored_rows(data: DataChoice) -> None:
    """A bridge is never trained on the rows that its scenario scores.

    Raises:
        DataError: the scenario scores the training split, or names one file for both.
    """
    if data.path is not None and Path(data.path).expanduser().is_file():
        raise DataError(
            f"{data.path} is one file: training on it would learn the rows that are scored.",
            hint=f"Set `path` to a folder with {TRAIN_SPLIT}.jsonl and {data.split}.jsonl.",
        )
    if data.split == TRAIN_SPLIT:
        raise DataError(
            f"the scenario scores the split {data.split!r} of {data.dataset}: training reads it.",
            hint="Set `task.split` to another split, e.g. `test`.",
        )


def device_name(device: torch.device) -> str:
    """For people: the GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def load_agent(
    resolved: Resolved, agent: str, progress: Progress, precision: str | None = None
) -> TransformersBackend:
    """The model of an agent in this process.

    Args:
        precision: as ``TrainSpec.precision``; None: as the agent's file says.

    Raises:
        ModelError, DeviceError: see ``TransformersBackend.load``.
    """
    # Both models share this process, so they share all its threads instead of dividing them.
    changes: dict[str, object] = {"threads": None}
    on_gpu = resolved.agents[agent].device != "cpu"
    if precision == "auto" and on_gpu:
        changes["dtype"] = "bfloat16"
    elif precision in ("float32", "bfloat16"):
        changes["dtype"] = precision
    return TransformersBackend.load(resolved.agents[agent].model_copy(update=changes), progress)


def _stage(progress: Progress, begin: float) -> Progress:
    return lambda stage, fraction: progress(f"loading: {stage}", begin + 0.03 * fraction)


def _cache(
    sender: TransformersBackend,
    rows: Dataset,
    held_out: Dataset,
    layer: int,
    recipe: TrainSpec,
    progress: Progress,
) -> tuple[StateCache, StateCache]:
    """The sender's states for both parts."""

    def one(part: Dataset, begin: float, share: float) -> StateCache:
        return cache_states(
            sender,
            [row.text for row in part.rows],
            [row.label for row in part.rows],
            layer=layer,
            max_tokens=recipe.max_text_tokens,
            progress=lambda done: progress("the sender's states", begin + share * done),
        )

    return one(rows, 0.06, 0.2), one(held_out, 0.26, 0.02)


def _new_bridge(
    cache: StateCache,
    receiver: TransformersBackend,
    sender: ModelIdentity,
    soft_tokens: int,
    recipe: TrainSpec,
) -> Resampler:
    """An untrained bridge that knows the states' statistics and the receiver's embedding scale."""
    shape = ResamplerShape(
        sender_width=sender.width,
        width=receiver.identity.width,
        soft_tokens=soft_tokens,
        hidden=recipe.hidden,
        blocks=recipe.blocks,
        heads=recipe.heads,
        feed_forward=recipe.feed_forward,
    )
    module = Resampler(shape, dropout=recipe.dropout).to(receiver.device)
    mean, std = cache.statistics()
    module.mean.copy_(mean)
    module.std.copy_(std)
    module.alpha.fill_(receiver.identity.embedding_rms)
    return module


def _train(
    module: Resampler,
    receiver: TransformersBackend,
    parts: Sequence[TaskPart],
    recipe: TrainSpec,
    progress: Progress,
    checkpoint: Checkpoint,
) -> trainer.Trained:
    problem = BridgeProblem([module], [_asked(receiver, part) for part in parts], [recipe])
    losses: list[float] = []

    def report(member: int, now: trainer.Evaluation) -> None:
        losses.append(now.train_loss)
        progress(
            f"step {now.step}: loss {now.train_loss:.3f} {sparkline(losses)}, "
            f"held-out {now.accuracy:.3f}",
            0.28 + 0.72 * now.step / recipe.steps,
        )

    # What is trained stays float32; its matrix products may take the tensor cores' TF32.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        (done,) = trainer.train_many(problem, [recipe], report, checkpoint)
    finally:
        torch.set_float32_matmul_precision(before)
    if isinstance(done, BridgeError):
        raise done
    return done


def _asked(receiver: TransformersBackend, part: TaskPart) -> Part:
    """A task's part of the training: the receiver is asked its question."""
    receiver.prepare(part.task)

    def logits(soft: Tensor) -> Tensor:
        return receiver.logits_from_soft(soft, part.task)

    return Part(logits, [part.cache], [part.held_out])


def card_model(identity: ModelIdentity) -> CardModel:
    """A model as a card names it."""
    return CardModel(
        model=public_name(identity.name),
        fingerprint=identity.fingerprint,
        width=identity.width,
        layers=identity.layers,
    )


def rms_range(alpha: float) -> tuple[float, float]:
    """What the receiver accepts: alpha, give or take ``RMS_SLACK``."""
    return (round(alpha * (1 - RMS_SLACK), 6), round(alpha * (1 + RMS_SLACK), 6))


def public_provenance(rows: Dataset) -> dict[str, str]:
    """Provenance without this machine's paths: a card is for everybody."""
    known = dict(rows.provenance)
    if known.get("source") == "folder":
        known["location"] = f"{rows.name}/{rows.split}.jsonl"
    return known
