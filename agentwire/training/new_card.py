"""The card of a bridge that a training has just made: every training writes it here."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from agentwire.bridge.card import BridgeCard, CardModel, CardTraining
from agentwire.bridge.module import BridgeModule
from agentwire.model.sources.lookup import public_name
from agentwire.spec.scenario import TrainSpec
from agentwire.task.datasets import TRAIN_SPLIT, Dataset
from agentwire.training.loop import Trained
from agentwire.wire.messages import ModelIdentity

RMS_SLACK = 0.05
"""Soft tokens have RMS alpha by construction; fp16 rounding moves it by far less than this part."""
UNWRITTEN = "0" * 64
"""In the place of the weights' checksum, which ``store.save`` fills in."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Between which models a bridge stands.

    Attributes:
        sender: read after ``layer`` layers.
        layer: as above.
        receiver: takes the soft tokens.
    """

    sender: ModelIdentity
    layer: int
    receiver: ModelIdentity

    @property
    def title(self) -> str:
        """For people: ``sender -> receiver``."""
        return f"{public_name(self.sender.name)} -> {public_name(self.receiver.name)}"


def new_card(
    name: str,
    description: str,
    module: BridgeModule,
    ends: Ends,
    prompts: Sequence[str],
    training: CardTraining,
) -> BridgeCard:
    """The card of ``module``; its checksum is filled in when the weights are written."""
    shape, alpha = module.shape, ends.receiver.embedding_rms
    return BridgeCard(
        name=name,
        description=description,
        architecture=module.architecture,
        sender=card_model(ends.sender),
        receiver=card_model(ends.receiver),
        layer=ends.layer,
        soft_tokens=shape.soft_tokens,
        hidden=shape.hidden,
        blocks=shape.blocks,
        heads=shape.heads,
        feed_forward=shape.feed_forward,
        parameters=module.count_parameters(),
        rms_range=(round(alpha * (1 - RMS_SLACK), 6), round(alpha * (1 + RMS_SLACK), 6)),
        prompts=tuple(prompts),
        training=training,
        weights_sha256=UNWRITTEN,
    )


def trained_today(
    recipe: TrainSpec,
    *,
    dataset: str,
    rows: int,
    held_out: int,
    provenance: Mapping[str, Any],
    accuracy: float,
    step: int,
    seconds: float,
    device: str,
) -> CardTraining:
    """What a card tells of a training that ends now, with the versions of this process.

    Args:
        rows, held_out: how many rows it learned from, and how many chose the step.
        accuracy: fraction right on the latter at ``step``.
        device: its name, for people.
    """
    return CardTraining(
        dataset=dataset,
        split=TRAIN_SPLIT,
        rows=rows,
        held_out=held_out,
        held_out_accuracy=round(accuracy, 4),
        step=step,
        seconds=round(seconds, 1),
        device=device,
        recipe=recipe.model_dump(),
        provenance=dict(provenance),
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def trained_on(
    recipe: TrainSpec,
    rows: Dataset,
    held_out: Dataset,
    trained: Trained,
    seconds: float,
    device: torch.device,
    together: int,
) -> CardTraining:
    """What the card of a bridge tells that was trained on one task, beside others or alone."""
    return trained_today(
        recipe,
        dataset=rows.name,
        rows=len(rows),
        held_out=len(held_out),
        provenance=public_provenance(rows),
        accuracy=trained.best.accuracy,
        step=trained.best.step,
        seconds=seconds,
        device=device_name(device) + (f", {together} side by side" if together > 1 else ""),
    )


def card_model(identity: ModelIdentity) -> CardModel:
    """A model as a card names it."""
    return CardModel(
        model=public_name(identity.name),
        fingerprint=identity.fingerprint,
        width=identity.width,
        layers=identity.layers,
    )


def device_name(device: torch.device) -> str:
    """For people: the GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def public_provenance(rows: Dataset) -> dict[str, str]:
    """Provenance without this machine's paths: a card is for everybody."""
    known = dict(rows.provenance)
    if known.get("source") == "folder":
        known["location"] = f"{rows.name}/{rows.split}.jsonl"
    return known
