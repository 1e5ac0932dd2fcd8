"""Names, finds and checks the bridges of a scenario's wires.

Nothing here imports torch: a bridge that does not fit is refused before any model loads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentwire.bridge.card import CARD_FILE, WEIGHTS_FILE, BridgeCard, part_prompt
from agentwire.config import open_regular, real_path
from agentwire.errors import BridgeError, DataError, MissingBridge
from agentwire.model.sources import random_weights
from agentwire.model.sources.lookup import public_name
from agentwire.spec.backends import BACKENDS
from agentwire.spec.scenario import DataChoice, ModelChoice, WireSpec
from agentwire.task.datasets import shares_sentences
from agentwire.task.definitions import load_definition

RETRAIN = "Train one for this wire with `agentwire train`, or name another bridge."
RESTORE = "Restore the folder, or train it again with `agentwire train`."
MAX_HEADER_BYTES = 8 << 20
"""Limit of a safetensors header; a bridge has a few dozen tensors."""


def slug(model: str) -> str:
    """A model's name in a bridge's name: its last path part, lower case."""
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-.") or "model"


def bridge_name(wire: WireSpec, choices: Mapping[str, ModelChoice], data: DataChoice | None) -> str:
    """The bridge's folder name; ``auto`` names it after the models and data that run.

    On a joint wire, each sender's bridge has the name of the set and the sender's place.

    Raises:
        BridgeError: the name in the scenario is not a folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", wire.bridge):
        raise BridgeError(
            f"wire {wire.name}: {wire.bridge!r} is not the name of a bridge folder.",
            hint="Give the folder's name only; `agentwire bridges list` shows those here.",
        )
    name = set_name(wire, choices, data)
    return f"{name}.{wire.place}" if wire.joint else name


def set_name(wire: WireSpec, choices: Mapping[str, ModelChoice], data: DataChoice | None) -> str:
    """Name of the wire's bridge, or of the set of bridges of a joint wire."""
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
    """The bridge of a wire between models with random weights; None for others."""
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
            f"wire {wire.name}: one agent has random weights and the other does not.",
            hint="Set `weights: random` in both agents, or in neither.",
        )
    if sender.layer is None:
        raise BridgeError(
            f"wire {wire.name}: the sender {wire.sender} has no `layer`.",
            hint=f"Set `layer` in agents.{wire.sender}.",
        )
    return random_weights.bridge_folder(receiver.model, wire.soft_tokens, sender.layer)


def search_folders(source: Path | None, others: Sequence[Path]) -> list[Path]:
    """Folders with bridges: beside the scenario first, then ``others``."""
    if source is None:
        return list(others)
    beside = real_path(source).parent
    return [beside, beside / "bridges", *others]


def find_bridge(name: str, folders: Sequence[Path]) -> Path | None:
    """The first ``<folder>/<name>`` with a card."""
    for place in folders:
        folder = place / name
        if (folder / CARD_FILE).is_file():
            return real_path(folder)
    return None


def list_bridges(folders: Sequence[Path]) -> list[Path]:
    """Every bridge folder; of equal names the first."""
    found: dict[str, Path] = {}
    for place in folders:
        if place.is_dir():
            for card in sorted(place.glob(f"*/{CARD_FILE}")):
                found.setdefault(card.parent.name, real_path(card.parent))
    return list(found.values())


def missing_bridge(wire: WireSpec, name: str, source: Path | None) -> MissingBridge:
    """The error for a missing bridge, with the command that trains it."""
    command = f"agentwire train {source}" if source else "agentwire train <scenario>"
    if wire.joint:
        return MissingBridge(
            f"wire {wire.set_name}: there is no bridge {name!r} for {wire.sender} here, and a wire "
            "with several senders needs bridges that were trained together.",
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
    """Refuses a bridge that does not fit this wire.

    Args:
        choices: the model of each agent.
        fingerprints: of the models, if known without reading the weights.

    Raises:
        BridgeError: the bridge is for other models, another layer or another M.
    """
    for role, end, made_for in (
        ("sender", wire.sender, card.sender),
        ("receiver", wire.receiver, card.receiver),
    ):
        runs, known = choices[end].model, fingerprints.get(end)
        if made_for.fingerprint != known if known else made_for.model != public_name(runs):
            shown = f" ({known[:12]})" if known else ""
            raise BridgeError(
                f"wire {wire.name}: the bridge {card.name} was trained for the {role} "
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
    if wire.fallback_below is not None and card.reader is None:
        raise BridgeError(
            f"wire {wire.name}: `fallback_below` needs a reader bridge; {card.name} answers in "
            "labels.",
            hint="Leave it out.",
        )
    if wire.fallback_below == "card" and card.reader and card.reader.unsure_below is None:
        raise BridgeError(
            f"wire {wire.name}: the card of {card.name} has no `unsure_below`.",
            hint="Set `fallback_below` to a number, such as -1.0.",
        )
    sizes = (card.soft_tokens,) if card.reader is None else (0, *card.reader.sizes)
    if wire.soft_tokens not in sizes:
        made = str(card.soft_tokens)
        hint = RETRAIN
        if card.reader is not None:
            made = " or ".join(map(str, card.reader.sizes))
            hint = f"Set `soft_tokens: auto` or one of these. {RETRAIN}"
        raise BridgeError(
            f"wire {wire.name}: the bridge {card.name} makes {made} soft tokens, "
            f"but the wire says {wire.soft_tokens or 'auto'}.",
            hint=hint,
        )


def _check_joint(card: BridgeCard, wire: WireSpec) -> None:
    joint = card.joint
    if joint is None and not wire.joint:
        return
    problem = ""
    if joint is None:
        problem = f"the bridge {card.name} was trained for one sender only"
    elif not wire.joint:
        problem = (
            f"the bridge {card.name} belongs to a set for {len(joint.parts)} senders and cannot be "
            "used alone"
        )
    elif (joint.place, len(joint.parts)) != (wire.place, len(wire.joint)):
        problem = (
            f"the bridge {card.name} was trained for place {joint.place} of {len(joint.parts)}, "
            f"not {wire.place} of {len(wire.joint)}"
        )
    elif joint.reads != wire.reads:
        problem = f"the bridge {card.name} was trained with `reads: {joint.reads}`"
    if problem:
        raise BridgeError(f"wire {wire.set_name}: {problem}.", hint=RETRAIN)


def check_set(wires: Sequence[WireSpec], cards: Sequence[BridgeCard]) -> None:
    """Refuses bridges of a joint wire that were not trained together."""
    for card in cards:  # empty if the bridges are fake or missing
        if card.joint is None or card.joint.parts != tuple(c.weights_sha256 for c in cards):
            raise BridgeError(
                f"wire {wires[0].set_name}: the bridges {', '.join(c.name for c in cards)} were "
                "not trained together.",
                hint=RETRAIN,
            )


def check_data(card: BridgeCard, wire: WireSpec, data: DataChoice | None) -> None:
    """Refuses to score a bridge on sentences that it was trained on under another name."""
    if data is None:
        return
    for trained_on in card.training.dataset.split("+"):  # a universal bridge has several
        try:
            leak = shares_sentences(trained_on, data.dataset)
        except DataError:  # trained on a dataset that is not known here
            continue
        if leak:
            raise BridgeError(
                f"wire {wire.name}: the bridge {card.name} was trained on {trained_on}, which "
                f"shares sentences with {data.dataset}: its accuracy would be meaningless.",
                hint=f"Use a bridge trained on {data.dataset}, or score on {trained_on}.",
            )


def check_weights(folder: Path, card: BridgeCard) -> None:
    """Refuses a weights file that is not the card's, or whose header does not match its size.

    The agent checks the shape of every tensor again when it loads the file.

    Raises:
        BridgeError: the file is missing, corrupt, or not the one that the card names.
    """
    path = folder / WEIGHTS_FILE
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise BridgeError(f"{path} is not a safetensors file.", hint=RESTORE)
            header = json.loads(file.read(length))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise BridgeError(f"{folder} has no {WEIGHTS_FILE}.", hint=RESTORE) from None
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
