"""Writes trained bridges with their cards."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import torch

from agentwire.bridge import store
from agentwire.bridge.card import (
    ANY_PROMPT,
    BridgeCard,
    CardJoint,
    CardModel,
    CardTraining,
    part_prompt,
    write_card,
)
from agentwire.model.sources.lookup import public_name
from agentwire.task.datasets import TRAIN_SPLIT, Dataset
from agentwire.training.jobs import TrainingJob
from agentwire.training.joint import JointBridge
from agentwire.training.loop import Trained
from agentwire.wire.messages import ModelIdentity

RMS_SLACK = 0.05
"""Soft tokens have RMS alpha by construction; fp16 rounding changes it by far less than this."""
NOT_WRITTEN = "0" * 64
"""Placeholder for the checksum of the weights, which ``store.save`` fills in."""


def training_record(
    job: TrainingJob, trained: Trained, seconds: float, device: torch.device, together: int
) -> CardTraining:
    """What a card says about a training that ends now, one of ``together`` side by side."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    provenance = {data.rows.name: _public_provenance(data.rows) for data in job.data}
    return CardTraining(
        dataset="+".join(data.rows.name for data in job.data),
        split=TRAIN_SPLIT,
        rows=sum(len(data.rows) for data in job.data),
        held_out=sum(len(data.held_out) for data in job.data),
        held_out_accuracy=round(trained.best.accuracy, 4),
        step=trained.best.step,
        seconds=round(seconds, 1),
        device=name + (f", {together} side by side" if together > 1 else ""),
        recipe=job.recipe.model_dump(),
        provenance=provenance if len(job.data) > 1 else provenance[job.data[0].rows.name],
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def write_bridges(
    out: Path,
    job: TrainingJob,
    module: JointBridge,
    senders: Sequence[ModelIdentity],
    receiver: ModelIdentity,
    training: CardTraining,
) -> None:
    """Writes one folder per sender: ``out``/<bridge>, or ``out``/<set>.1, ``out``/<set>.2, …"""
    names = [public_name(sender.name) for sender in senders]
    route = f"{' + '.join(names)} -> {public_name(receiver.name)}"
    hashes = tuple(one.task.prompt_hash for data in job.data for one in data.tasks)
    cards: list[BridgeCard] = []
    for place, (name, sender, bridge) in enumerate(
        zip(job.bridges, senders, module.bridges, strict=True), 1
    ):
        # The prompt of each task is the receiver's, so a bridge for several may be asked anything.
        prompts = (ANY_PROMPT,) if len(job.data) > 1 else hashes
        what = route
        if job.is_set:
            what = f"{place} of {len(senders)} read together, {route}; means nothing alone"
            prompts = (part_prompt(job.name, place),)
        shape, alpha = bridge.shape, receiver.embedding_rms
        card = BridgeCard(
            name=name,
            description=f"{training.dataset}: {what}",
            architecture=bridge.architecture,
            sender=card_model(sender),
            receiver=card_model(receiver),
            layer=job.layers[place - 1],
            soft_tokens=shape.soft_tokens,
            hidden=shape.hidden,
            blocks=shape.blocks,
            heads=shape.heads,
            feed_forward=shape.feed_forward,
            parameters=bridge.count_parameters(),
            rms_range=(round(alpha * (1 - RMS_SLACK), 6), round(alpha * (1 + RMS_SLACK), 6)),
            prompts=prompts,
            training=training,
            weights_sha256=NOT_WRITTEN,
        )
        cards.append(store.save(out / name, card, bridge))
    if not job.is_set:
        return
    # Each card names the weights of all bridges, so the cards are completed last.
    weights = tuple(card.weights_sha256 for card in cards)
    for place, card in enumerate(cards, 1):
        joint = CardJoint(
            name=job.name,
            place=place,
            senders=tuple(names),
            parts=weights,
            prompts=hashes,
            reads=job.wires[0].reads,
        )
        write_card(out / card.name, card.model_copy(update={"joint": joint}))


def card_model(identity: ModelIdentity) -> CardModel:
    return CardModel(
        model=public_name(identity.name),
        fingerprint=identity.fingerprint,
        width=identity.width,
        layers=identity.layers,
    )


def _public_provenance(rows: Dataset) -> dict[str, str]:
    """Provenance without paths of this machine, because a card is published."""
    known = dict(rows.provenance)
    if known.get("source") in ("folder", "files"):
        known["location"] = f"{rows.name}/{rows.split}.jsonl"
    return known
