"""Bridges of a scenario's wires: their names, where they are looked for, and whether they fit.

Nothing here imports torch: a bridge that does not fit must be refused before any model loads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentwire.bridge.card import CARD_FILE, WEIGHTS_FILE, BridgeCard, part_prompt
from agentwire.errors import BridgeError, DataError, MissingBridge
from agentwire.model.sources import random_weights as shapes
from agentwire.model.sources.lookup import public_name
from agentwire.spec.backends import BACKENDS
from agentwire.spec.scenario import DataChoice, ModelChoice, WireSpec
from agentwire.task.datasets import shares_sentences
from agentwire.task.definitions import load_definition

RETRAIN = "Train one for this wire with `agentwire train`, or name another bridge."
RESTORE = "Restore the folder, or train it again with `agentwire train`."
MAX_HEADER_BYTES = 8 << 20
"""Largest safetensors header that is read; a bridge has a few dozen tensors."""


def slug(model: str) -> str:
    """A model's name in a bridge's name: its last path part, lower case."""
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-.") or "model"


def bridge_name(wire: WireSpec, choices: Mapping[str, ModelChoice], data: DataChoice | None) -> str:
    """The bridge's folder name: as written, or for ``auto`` by what really runs.

    Where several senders share a wire, each one's bridge has the set's name and its place.

    Raises:
        BridgeError: the written name is not the name of a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", wire.bridge):
        raise BridgeError(
            f"wire {wire.name}: {wire.bridge!r} is not the name of a bridge folder.",
            hint="Give the folder's name only; `agentwire bridges list` shows those here.",
        )
    name = set_name(wire, choices, data)
    return f"{name}.{wire.place}" if wire.joint else name


def set_name(wire: WireSpec, choices: Mapping[str, ModelChoice], data: DataChoice | None) -> str:
    """Name of the wire's bridge, or of the set of bridges where several senders share it."""
    if not wire.auto_bridge:
        return wire.bridge
    senders = [slug(choices[sender].model) for sender in wire.joint or (wire.sender,)]
    parts = ["+".join(senders), slug(choices[wire.receiver].model)]
    if data is not None:
        task = load_definition(data.dataset)
        parts.append(slug(task.series or task.name))
    return "--".join(parts) + wire.bridge.removeprefix("auto")


def synthetic_bridge(wire: WireSpec, choices: Mapping[str, ModelChoice]) -> str | None:
    """Name of a bridge that the sender's backend makes itself; None where it reads a folder."""
    made = BACKENDS.get(choices[wire.sender].backend).bridges
    if made is None:
        return None
    if wire.bridge.startswith(made.prefix):
        return wire.bridge
    if not wire.auto_bridge:
        return None
    name = f"{made.prefix}{choices[wire.receiver].model}"
    return f"{name}:{part_prompt(wire.set_name, wire.place)}" if wire.joint else name


def random_bridge(wire: WireSpec, choices: Mapping[str, ModelChoice]) -> str | None:
    """The bridge of a wire between models with random weights; None for others.

    Raises:
        BridgeError: one end alone is random, or the sender has no ``layer``.
    """
    ends = [choices[wire.sender], choices[wire.receiver]]
    if all(end.weights != "random" for end in ends):
        return None
    if wire.joint:
        raise BridgeError(
            f"wire {wire.set_name}: a set of bridges cannot have random weights.",
            hint="Set `weights: pretrained`, or give the wire one sender.",
        )
    sender, receiver = ends
    if sender.weights != receiver.weights:
        raise BridgeError(
            f"wire {wire.name}: one end has random weights and the other has not.",
            hint="Set `weights: random` in both agents, or in neither.",
        )
    if sender.layer is None:
        raise BridgeError(
            f"wire {wire.name}: nothing says which layer of {wire.sender} is read.",
            hint=f"Set `layer` in agents.{wire.sender}.",
        )
    return shapes.bridge_folder(receiver.model, wire.soft_tokens, sender.layer)


def search_folders(source: Path | None, others: Sequence[Path]) -> list[Path]:
    """Where bridges are looked for: beside the scenario first, then ``others`` in order."""
    if source is None:
        return list(others)
    beside = source.resolve().parent
    return [beside, beside / "bridges", *others]


def find_bridge(name: str, folders: Sequence[Path]) -> Path | None:
    """The first ``<folder>/<name>`` that holds a card."""
    for place in folders:
        folder = place / name
        if (folder / CARD_FILE).is_file():
            return folder.resolve()
    return None


def list_bridges(folders: Sequence[Path]) -> list[Path]:
    """Every bridge folder, the one that is found first for each name."""
    found: dict[str, Path] = {}
    for place in folders:
        if place.is_dir():
            for card in sorted(place.glob(f"*/{CARD_FILE}")):
                found.setdefault(card.parent.name, card.parent.resolve())
    return list(found.values())


def missing_bridge(wire: WireSpec, name: str, source: Path | None) -> MissingBridge:
    """The error for a bridge that is nowhere, naming the command that makes it."""
    command = f"agentwire train {source}" if source else "agentwire train <scenario>"
    if wire.joint:
        return MissingBridge(
            f"wire {wire.set_name}: the bridge {name!r} of {wire.sender} is not here, and soft "
            "tokens of several senders are read together only if their bridges were trained so.",
            hint=f"Train the set with `{command}`, or add --train to train it first.",
        )
    return MissingBridge(
        f"wire {wire.name}: there is no bridge {name!r} here.",
        hint=f"Train it with `{command}`, or add --train to train it first.",
    )


def check_card(
    card: BridgeCard,
    wire: WireSpec,
    choices: Mapping[str, ModelChoice],
    fingerprints: Mapping[str, str | None],
) -> None:
    """Refuses a bridge that was made for something else than this wire.

    Args:
        choices: the model of each agent.
        fingerprints: theirs, where they are known without reading the weights.

    Raises:
        BridgeError: made for other models, another layer, or another M.
    """
    for role, end, made_for in (
        ("sender", wire.sender, card.sender),
        ("receiver", wire.receiver, card.receiver),
    ):
        runs, known = choices[end].model, fingerprints.get(end)
        if made_for.fingerprint != known if known else made_for.model != public_name(runs):
            shown = f" ({known[:12]})" if known else ""
            raise BridgeError(
                f"wire {wire.name}: the bridge {card.name} was made for the {role} "
                f"{made_for.model} ({made_for.fingerprint[:12]}), but {end} runs {runs}{shown}.",
                hint=RETRAIN,
            )
    _check_joint(card, wire)
    layer = choices[wire.sender].layer
    if layer is not None and card.layer != layer:
        raise BridgeError(
            f"wire {wire.name}: the bridge {card.name} reads layer {card.layer}, "
            f"but agents.{wire.sender} says layer {layer}.",
            hint=RETRAIN,
        )
    if card.soft_tokens != wire.soft_tokens:
        raise BridgeError(
            f"wire {wire.name}: the bridge {card.name} makes {card.soft_tokens} soft tokens, "
            f"but the wire says {wire.soft_tokens}.",
            hint=RETRAIN,
        )


def _check_joint(card: BridgeCard, wire: WireSpec) -> None:
    joint = card.joint
    if joint is None and not wire.joint:
        return
    problem = ""
    if joint is None:
        problem = f"the bridge {card.name} was trained alone, for one sender"
    elif not wire.joint:
        problem = (
            f"the bridge {card.name} is one of a set for {len(joint.parts)} senders, and means "
            "nothing alone"
        )
    elif (joint.place, len(joint.parts)) != (wire.place, len(wire.joint)):
        problem = (
            f"the bridge {card.name} was trained to stand at place {joint.place} of "
            f"{len(joint.parts)}, not {wire.place} of {len(wire.joint)}"
        )
    elif joint.reads != wire.reads:
        problem = f"the bridge {card.name} was trained with `reads: {joint.reads}`"
    if problem:
        raise BridgeError(f"wire {wire.set_name}: {problem}.", hint=RETRAIN)


def check_set(wires: Sequence[WireSpec], cards: Sequence[BridgeCard]) -> None:
    """Refuses bridges of different trainings for a wire that several senders share.

    Raises:
        BridgeError: they were not trained together.
    """
    for card in cards:  # none: fake ones, or none are here
        if card.joint is None or card.joint.parts != tuple(c.weights_sha256 for c in cards):
            raise BridgeError(
                f"wire {wires[0].set_name}: the bridges {', '.join(c.name for c in cards)} are not "
                "of one training.",
                hint=RETRAIN,
            )


def check_data(card: BridgeCard, wire: WireSpec, data: DataChoice | None) -> None:
    """Refuses to score a bridge on rows that it was trained on under another name.

    Raises:
        BridgeError: its training data and ``data`` share sentences.
    """
    if data is None:
        return
    for trained_on in card.training.dataset.split("+"):  # of a universal bridge: all its tasks
        try:
            leak = shares_sentences(trained_on, data.dataset)
        except DataError:  # trained on a dataset that is not known here
            continue
        if leak:
            raise BridgeError(
                f"wire {wire.name}: the bridge {card.name} was trained on {trained_on}, which "
                f"shares sentences with {data.dataset}: its accuracy there would mean nothing.",
                hint=f"Use a bridge trained on {data.dataset}, or score on {trained_on}.",
            )


def check_weights(folder: Path, card: BridgeCard) -> None:
    """Refuses a weights file that is not the card's, or whose header lies about its size.

    The agent checks every tensor's shape once more when it loads them.

    Raises:
        BridgeError: missing, corrupt, or not the file that the card names.
    """
    path = folder / WEIGHTS_FILE
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise BridgeError(f"{path} is not a safetensors file.", hint=RESTORE)
            header = json.loads(file.read(length))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise BridgeError(f"{folder} holds no {WEIGHTS_FILE}.", hint=RESTORE) from None
    except OSError as error:
        raise BridgeError(f"{path} cannot be read: {error.strerror}.", hint=RESTORE) from None
    except (ValueError, RecursionError):
        raise BridgeError(f"{path} is not a safetensors file.", hint=RESTORE) from None
    if not isinstance(header, dict) or not _fills(header, size - 8 - length):
        raise BridgeError(f"{path} is corrupt: its header does not match its size.", hint=RESTORE)
    if digest != card.weights_sha256:
        raise BridgeError(
            f"{path} is not the file that its card names (sha256 {digest[:12]}…, the card says "
            f"{card.weights_sha256[:12]}…).",
            hint=RESTORE,
        )


def _fills(header: Mapping[str, object], size: int) -> bool:
    """Whether the header's tensors cover the body exactly."""
    end = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2):
            return False
        if not all(isinstance(o, int) and 0 <= o <= size for o in offsets):
            return False
        end = max(end, offsets[1])
    return end == size
