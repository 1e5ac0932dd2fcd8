"""Writes a trained reader bridge with its card, from the weights that ``bench/reader.py`` saved.

    python bench/reader_card.py WEIGHTS.safetensors --held HELD.jsonl --out bridges --curve RUN.json

The held-out rows give the range of the latents' RMS, and the confidence below which an answer is
likely wrong: the threshold with the largest difference between the share of right answers above it
and of wrong ones (Youden, 1950). Matrices are stored as int8 rows.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from agentwire.bridge import store
from agentwire.bridge.card import BridgeCard, CardReader, CardTraining
from agentwire.bridge.reader import Reader
from agentwire.bridge.shape import ReaderShape
from agentwire.config import Config
from agentwire.model.backend import Asked
from agentwire.model.sources.lookup import fetch
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.agent import AgentSpec
from agentwire.task.answers import f1
from agentwire.training.cards import NOT_WRITTEN, card_model
from agentwire.wire.messages import Decoding, ModelIdentity, TaskSpec

LAYERS = (0, 8, 16, 24)
SLACK = 0.25
"""The range of the latents' RMS is wider than what held-out rows show by this share."""
JUDGED = 64
"""M whose answers choose the threshold."""
RIGHT = 0.5
"""F1 from which an answer counts as right when the threshold is chosen."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--held", type=Path, required=True, help="held-out rows (JSONL)")
    parser.add_argument("--curve", type=Path, required=True, help="what the training recorded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", required=True, help="what it was trained on")
    parser.add_argument("--rows", type=int, default=200)
    args = parser.parse_args()
    sender, receiver = (load(name) for name in ("smollm2-135m-instruct", "gemma-3-270m"))
    rows = [json.loads(line) for line in args.held.read_text().split("\n") if line][: args.rows]
    reader = trained(args.weights, sender, receiver)
    curve = json.loads(args.curve.read_text())
    card = card_of(args, reader, sender.identity, receiver.identity, curve, len(rows))
    folder = args.out / card.name
    card = store.save(folder, card, reader, int8=True)
    card = measured(card, folder, sender, receiver, rows)
    store.save(folder, card, reader, int8=True)
    print(folder, card.rms_range, card.reader and card.reader.unsure_below)


def load(name: str) -> TransformersBackend:
    folder = fetch(name, config=Config.from_env())
    spec = AgentSpec(name=name, backend="transformers", model=name, folder=str(folder))
    return TransformersBackend.load(spec, lambda stage, done: None)


def trained(weights: Path, sender: TransformersBackend, receiver: TransformersBackend) -> Reader:
    state = {k.removeprefix("reader."): v.float() for k, v in load_file(weights).items()}
    shape = ReaderShape(
        sender_width=sender.identity.width,
        sender_layers=LAYERS,
        width=receiver.identity.width,
        additions=tuple(range(1, receiver.identity.layers)),
    )
    reader = Reader(shape)
    reader.load_state_dict(state)
    return reader.eval()


def card_of(
    args: argparse.Namespace, reader: Reader, sender: ModelIdentity, receiver: ModelIdentity,
    curve: dict[str, object], held: int,
) -> BridgeCard:  # fmt: skip
    shape = reader.shape
    best = max(curve["curve"], key=lambda point: point[2])  # type: ignore[call-overload]
    training = CardTraining(
        dataset="squad_full+qamr+hotpotqa+fairytaleqa+passages",
        split="train",
        rows=110_914,
        held_out=512,
        held_out_accuracy=round(best[2], 4),
        step=best[0],
        seconds=round(float(curve["seconds"]), 1),  # type: ignore[arg-type]
        device=args.device,
        recipe={
            "script": "bench/reader.py train main:add=all,seed=0,steps=6000",
            "steps": 6000, "passages": 64, "questions": 128, "learning_rate": 1e-3,
            "weight_decay": 0.02, "dropout": 0.1, "average": 0.998, "warmup": 0.04, "seed": 0,
            "held_out_accuracy": "greedy F1 at M = 64", "stored": "int8 rows",
        },
        provenance={
            "squad_full": "SQuAD v1.1 train (CC BY-SA 4.0)",
            "qamr": "QAMR (MIT; text CC BY-SA)",
            "hotpotqa": "HotpotQA train, 500 questions with supporting sentences (CC BY-SA 4.0)",
            "fairytaleqa": "FairytaleQA (Apache-2.0)",
            "passages": "English passages (CC BY-SA 3.0; CC BY 2.5), cloze and continuation only",
        },
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )  # fmt: skip
    return BridgeCard(
        name=f"{sender.name}--{receiver.name}--reader",
        description=f"any question about a text: {sender.name} -> {receiver.name}",
        architecture=Reader.architecture,
        answers="free",
        sender=card_model(sender),
        receiver=card_model(receiver),
        layer=LAYERS[-1],
        soft_tokens=shape.sizes[-1],
        hidden=shape.hidden,
        blocks=shape.blocks,
        heads=shape.heads,
        feed_forward=shape.feed_forward,
        parameters=reader.count_parameters(),
        rms_range=(1e-3, 1e3),
        prompts=("any",),
        reader=CardReader(
            layers=LAYERS, sizes=shape.sizes, additions=shape.additions, prompt=shape.prompt,
            down=shape.down, local=shape.local,
        ),
        training=training,
        weights_sha256=NOT_WRITTEN,
    )  # fmt: skip


def measured(
    card: BridgeCard, folder: Path, sender: TransformersBackend, receiver: TransformersBackend,
    rows: list[dict[str, object]],
) -> BridgeCard:  # fmt: skip
    """The card with the range of RMS and the threshold of held-out rows."""
    fingerprint = sender.add_bridge(folder).fingerprint
    receiver.add_reader(folder)
    assert card.reader is not None
    put, stop = card.reader.question, Decoding(stop=card.reader.stop)
    task = TaskSpec("held", put, "{text}" + put, max_new_tokens=24, decoding=stop)
    low, high = np.inf, 0.0
    confidence, right = [], []
    for size in card.reader.sizes:
        for begin in range(0, len(rows), 16):
            part = rows[begin : begin + 16]
            if size != JUDGED and begin >= 64:
                break
            texts = [str(row["context"]) for row in part]
            payload = sender.encode(texts, fingerprint, size).payload
            rms = np.sqrt((payload.astype(np.float32) ** 2).mean(-1))
            low, high = min(low, float(rms.min())), max(high, float(rms.max()))
            if size != JUDGED:
                continue
            asked = Asked(tuple(str(row["question"]) for row in part), fingerprint)
            found = receiver.generate_soft(payload, task, None, asked)
            confidence += list(found.confidence)
            pairs = zip(found.texts, part, strict=True)
            right += [f1(text, row["answers"]) >= RIGHT for text, row in pairs]  # type: ignore[arg-type]
    threshold = youden(np.array(confidence), np.array(right))
    reader = card.reader.model_copy(update={"unsure_below": round(threshold, 3)})
    span = (round(low * (1 - SLACK), 4), round(high * (1 + SLACK), 4))
    kept = np.array(confidence) >= threshold
    print(f"above the threshold {kept.mean():.3f} of {len(kept)} rows")
    for name, chosen in (("above", kept), ("below", ~kept)):
        print(f"right {name} {np.mean(np.array(right)[chosen]):.3f}")
    return card.model_copy(update={"rms_range": span, "reader": reader})


def youden(confidence: np.ndarray, right: np.ndarray) -> float:
    """The threshold with the largest true-positive rate minus false-positive rate."""
    candidates = np.unique(confidence)
    gains = [(confidence[right] >= c).mean() - (confidence[~right] >= c).mean() for c in candidates]
    return float(candidates[int(np.argmax(gains))])


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
