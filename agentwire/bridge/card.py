"""The bridge card (card.yaml): what a trained bridge is, its models, and its training."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from agentwire.bridge.architectures import DEFAULT, READER, ArchitectureName
from agentwire.bridge.shape import BridgeShape, ReaderShape, Where
from agentwire.errors import BridgeError, ScenarioError
from agentwire.spec.document import read_document, write_document
from agentwire.wire.messages import FREE_TEXT, QUESTION, BridgeIdentity, ModelIdentity

CARD_FILE = "card.yaml"
WEIGHTS_FILE = "weights.safetensors"
ANY_PROMPT = "any"
MAX_CARD_BYTES = 256 * 1024
TEXT_TOKENS: Literal[512] = 512
"""Tokens of the longest text that a bridge reads."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Prompt = Sha256 | Literal["any"]
"""``TaskSpec.prompt_hash`` of a prompt, or ``any``."""
# Limits of the wire; a card cannot ask for a module that is too large to build.
Width = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=1024)]
Blocks = Annotated[int, Field(ge=1, le=64)]
Size = Annotated[int, Field(ge=1, le=512)]


class CardPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CardModel(CardPart):
    """A model that the bridge was trained for."""

    model: str
    fingerprint: Sha256
    width: Width
    layers: Layers


class CardTraining(CardPart):
    """How the bridge was trained, and its accuracy on held-out *training* rows.

    Attributes:
        dataset: name of the dataset; of a universal bridge, all of them, joined by ``+``.
        rows: training rows without held-out rows.
        held_out: number of rows that selected the step.
        held_out_accuracy: fraction correct on them at ``step``.
        recipe: all settings of the training (``spec.scenario.TrainSpec``).
        provenance: source and checksum of the data.
    """

    dataset: str
    split: str
    rows: int
    held_out: int
    held_out_accuracy: float
    step: int
    seconds: float
    device: str
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    versions: dict[str, str]
    date: str


class CardJoint(CardPart):
    """The set of a bridge that was trained together with others and is only used with them.

    Attributes:
        name: of the set.
        place: position of this bridge's soft tokens among those of the set, from 1.
        senders: the models that the set reads, in that order.
        parts: fingerprints of its bridges, in that order.
        prompts: what the set was trained for.
        reads: what each sender reads of a text (``spec.scenario.WireSpec.reads``).
    """

    name: Annotated[str, Field(min_length=1, max_length=128)]
    place: Annotated[int, Field(ge=1, le=16)]
    senders: tuple[str, ...] = Field(min_length=2, max_length=16)
    parts: tuple[Sha256, ...] = Field(min_length=2, max_length=16)
    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=256)
    reads: Literal["whole", "share"] = "whole"


class CardReader(CardPart):
    """What a card of a reader bridge adds; sizes as in ``shape.ReaderShape``.

    Attributes:
        question: what follows the soft tokens, with ``{question}`` once.
        stop: strings that end an answer, in addition to the request's.
        unsure_below: confidence (``Reply.confidence``) below which an answer is likely wrong, from
            held-out rows; what a wire with ``fallback_below: card`` uses.
    """

    layers: tuple[Annotated[int, Field(ge=0, le=1024)], ...] = Field(min_length=1, max_length=64)
    sizes: tuple[Size, ...] = Field(min_length=1, max_length=16)
    additions: tuple[Annotated[int, Field(ge=0, le=1024)], ...] = Field((), max_length=1024)
    prompt: Annotated[int, Field(ge=0, le=64)] = 8
    down: Width = 320
    local: Annotated[int, Field(ge=0, le=512)] = 16
    where: Where = "receiver"
    question: Annotated[str, Field(max_length=2048)] = "\nQuestion: {question}\nAnswer:"
    stop: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ("\n",)
    unsure_below: Annotated[FiniteFloat, Field(le=0)] | None = None

    @field_validator("layers", "sizes", "additions")
    @classmethod
    def _rises(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if list(numbers) != sorted(set(numbers)):
            raise ValueError("must be in rising order, each number once")
        return numbers

    @model_validator(mode="after")
    def _is_consistent(self) -> CardReader:
        if self.layers[0] != 0:
            raise ValueError("layers must begin with 0, the sender's embedding")
        if self.where == "sender" and self.additions:
            raise ValueError("additions are made at the receiver; leave them out or set `where`")
        if self.question.count(QUESTION) != 1:
            raise ValueError("question must contain {question} once")
        return self


def part_prompt(name: str, place: int) -> str:
    """Prompt hash of one bridge of a set: of no real prompt, so that it is never used alone."""
    return hashlib.sha256(f"bridge {place} of {name}, never alone".encode()).hexdigest()


class BridgeCard(CardPart):
    """card.yaml. ``weights_sha256`` is the bridge's fingerprint on the wire.

    Attributes:
        text_tokens: tokens of the longest text that it reads.
        answers: ``free`` promises answers to any question, in generated text.
    """

    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str = ""
    architecture: ArchitectureName = DEFAULT
    sender: CardModel
    receiver: CardModel
    layer: Layers
    soft_tokens: Annotated[int, Field(ge=1, le=512)]
    text_tokens: Literal[512] = TEXT_TOKENS
    hidden: Width
    blocks: Blocks
    heads: Width
    feed_forward: Blocks
    parameters: int
    rms_range: tuple[FiniteFloat, FiniteFloat]
    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=256)
    training: CardTraining
    weights_sha256: Sha256
    joint: CardJoint | None = None
    answers: Literal["labels", "free"] = "labels"
    reader: CardReader | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> BridgeCard:
        if self.layer > self.sender.layers:
            raise ValueError(
                f"layer {self.layer} does not exist in a sender with {self.sender.layers} layers"
            )
        if self.hidden % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the inner width {self.hidden}")
        if not 0 < self.rms_range[0] < self.rms_range[1]:
            raise ValueError("rms_range must be two positive numbers, the smaller first")
        if (self.reader is not None) != (self.architecture == READER):
            raise ValueError("a card has a section `reader` if its architecture is reader")
        if self.reader is not None:
            sizes = self.reader.layers[-1], self.reader.sizes[-1]
            if (self.layer, self.soft_tokens) != sizes:
                raise ValueError(
                    "layer and soft_tokens must be the last of reader.layers and sizes"
                )
            if self.joint is not None:
                raise ValueError("a reader bridge cannot belong to a set")
            if self.reader.additions and self.reader.additions[-1] >= self.receiver.layers:
                raise ValueError("reader.additions names a layer that the receiver does not have")
        if self.joint is not None:
            place, parts = self.joint.place, self.joint.parts
            if place > len(parts) or parts[place - 1] != self.weights_sha256:
                raise ValueError("joint.parts must hold weights_sha256 at position joint.place")
            if self.prompts != (part_prompt(self.joint.name, place),):
                raise ValueError("a bridge of a set must have only the prompt of part_prompt")
        return self

    @property
    def width(self) -> int:
        """d of the receiver."""
        return self.receiver.width

    @property
    def shape(self) -> BridgeShape | ReaderShape:
        """Sizes of its module."""
        if self.reader is not None:
            return self._reader_shape(self.reader)
        return BridgeShape(
            sender_width=self.sender.width,
            width=self.width,
            soft_tokens=self.soft_tokens,
            hidden=self.hidden,
            blocks=self.blocks,
            heads=self.heads,
            feed_forward=self.feed_forward,
        )

    def _reader_shape(self, reader: CardReader) -> ReaderShape:
        return ReaderShape(
            sender_width=self.sender.width,
            sender_layers=reader.layers,
            width=self.width,
            sizes=reader.sizes,
            additions=reader.additions,
            hidden=self.hidden,
            blocks=self.blocks,
            heads=self.heads,
            feed_forward=self.feed_forward,
            prompt=reader.prompt,
            down=reader.down,
            local=reader.local,
            where=reader.where,
        )

    def identity(self) -> BridgeIdentity:
        """What both ends of a wire agree on before the first payload."""
        reader, prompts = self.reader, self.prompts
        if self.answers == "free":
            prompts = tuple(dict.fromkeys((*prompts, ANY_PROMPT, FREE_TEXT)))
        return BridgeIdentity(
            name=self.name,
            fingerprint=self.weights_sha256,
            sender=self.sender.fingerprint,
            receiver=self.receiver.fingerprint,
            layer=self.layer,
            soft_tokens=self.soft_tokens,
            width=self.width if reader is None else self._reader_shape(reader).sent_width,
            prompts=prompts,
            rms_range=self.rms_range,
            sizes=() if reader is None else reader.sizes,
            receiver_half=reader is not None and (reader.where == "receiver" or reader.prompt > 0),
        )


def read_card(folder: Path) -> BridgeCard:
    """Reads and checks ``folder``/card.yaml. Raises a BridgeError if there is none."""
    path = folder / CARD_FILE
    retrain = "Train it again with `agentwire train`, or restore the folder."
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise BridgeError(f"{path} exceeds the size limit of a bridge card.", hint=retrain)
        raw = read_document(path).value
    except FileNotFoundError:
        raise BridgeError(f"{folder} holds no {CARD_FILE}.", hint=retrain) from None
    except OSError as error:
        raise BridgeError(f"{path} cannot be read: {error.strerror}.", hint=retrain) from None
    except ScenarioError as error:
        raise BridgeError(error.message, hint=retrain) from None
    try:
        return BridgeCard.model_validate(raw)
    except ValidationError as error:
        first_error = error.errors()[0]
        where = ".".join(str(part) for part in first_error["loc"]) or "the file"
        raise BridgeError(
            f"{path} is not a bridge card: {where}: {first_error['msg']}.", hint=retrain
        ) from error


def write_card(folder: Path, card: BridgeCard) -> None:
    """Writes card.yaml, keys in the order of the class."""
    # Newer keys are left out at their default, so that older cards stay as they were.
    defaults = {"architecture": DEFAULT, "joint": None, "answers": "labels", "reader": None}
    without = {key for key, value in defaults.items() if getattr(card, key) == value}
    write_document(folder / CARD_FILE, card.model_dump(mode="json", exclude=without))


def check_sender(card: BridgeCard, model: ModelIdentity) -> None:
    """
    Raises:
        BridgeError: the bridge is for other weights, or its card gives the sender another shape.
    """
    _check_model(card.name, "reads", card.sender, model)


def check_receiver(card: BridgeCard, model: ModelIdentity) -> BridgeCard:
    """The card of a reader bridge that ``model`` receives from; raises as ``check_sender``, or a
    BridgeError if it has no receiver half."""
    if card.reader is None:
        raise BridgeError(
            f"the bridge {card.name} has no receiver half: its architecture is "
            f"{card.architecture}.",
            hint="Only a bridge with `architecture: reader` has one.",
        )
    _check_model(card.name, "writes for", card.receiver, model)
    return card


def _check_model(bridge: str, verb: str, end: CardModel, model: ModelIdentity) -> None:
    if end.fingerprint != model.fingerprint:
        raise BridgeError(
            f"the bridge {bridge} {verb} {end.model}, not the weights of "
            f"{model.name} on this machine.",
            hint="Train one with `agentwire train`, or name another under `bridge:`.",
        )
    if (end.width, end.layers) != (model.width, model.layers):
        raise BridgeError(
            f"the card of the bridge {bridge} gives {end.model} {end.layers} layers "
            f"of width {end.width}; {model.name} has {model.layers} of {model.width}.",
            hint="Restore the folder, or train it again with `agentwire train`.",
        )
