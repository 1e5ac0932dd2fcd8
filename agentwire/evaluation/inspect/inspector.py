"""``agentwire inspect``: what the soft tokens of a bridge look like, per text and over many rows.

The sender reads and the bridge makes soft tokens. Only the receiver's input embeddings are used.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from agentwire.bridge import store
from agentwire.bridge.card import BridgeCard
from agentwire.bridge.resampler import Resampler
from agentwire.download import OnProgress
from agentwire.errors import BridgeError
from agentwire.evaluation.inspect import payloads as inspection
from agentwire.evaluation.result import Record
from agentwire.model.prompting import MAX_TEXT_TOKENS
from agentwire.model.transformers import TransformersBackend, trunk

BATCH = 32
COMPARED = 256
"""Soft tokens that are compared with the whole vocabulary for a mean; more would take minutes."""


class NearestToken(Record):
    """A token of the receiver's vocabulary."""

    token: str
    id: int
    cosine: float


class AttendedWord(Record):
    """A word of the text and its share of a soft token's attention."""

    word: str
    weight: float


class SoftTokenView(Record):
    """One soft token of one text."""

    index: int
    rms: float
    nearest: list[NearestToken]
    attention: list[AttendedWord] = Field(description="in the order of the text; the sum is 1")


class TextView(Record):
    """One text."""

    text: str
    label: str | None = Field(description="if the text is a row of a dataset")
    soft_tokens: list[SoftTokenView]


class RowStatistics(Record):
    """Statistics of the soft tokens of many texts."""

    rows: int
    pairwise_cosine: list[list[float]] = Field(description="[M, M], mean over the rows")
    mean_cosine: float | None = Field(description="off the diagonal; null for M = 1")
    effective_rank_soft_tokens: float = Field(description="of one text's M soft tokens, mean; <= M")
    effective_rank_payloads: float = Field(description="of the centred payloads [rows, M * d]")
    nearest_cosine: float = Field(
        description="of a soft token to its nearest token; mean of 256 soft tokens"
    )


class Inspection(Record):
    """Everything that ``agentwire inspect --json`` prints."""

    bridge: str
    fingerprint: str
    sender: str
    receiver: str
    layer: int
    soft_tokens: int
    width: int
    parameters: int
    random_cosine: float = Field(description="of a random direction to its nearest token, mean")
    texts: list[TextView]
    spread: RowStatistics | None = Field(description="null without rows")
    data: dict[str, Any] | None = Field(description="provenance of the rows")
    plot: str | None = Field(description="file of the t-SNE plot")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Soft tokens [n, M, d], rounded to fp16 as sent, and attention weights [n, M, T]."""

    soft: Tensor
    weights: Tensor


def check_inspectable(card: BridgeCard) -> None:
    """Raises BridgeError if the bridge has another architecture than the inspector looks into."""
    if card.architecture != Resampler.architecture:
        raise BridgeError(
            f"the bridge {card.name} has the architecture {card.architecture}; "
            f"only a {Resampler.architecture} can be inspected.",
            hint="Name another bridge (`agentwire bridges list`).",
        )


class BridgeInspector:
    """A bridge and its two models; raises BridgeError unless they fit."""

    def __init__(
        self, folder: Path, sender: TransformersBackend, receiver: TransformersBackend
    ) -> None:
        loaded = store.load(folder)
        self.card: BridgeCard = loaded.card
        for made_for, model in ((self.card.sender, sender), (self.card.receiver, receiver)):
            if made_for.fingerprint != model.identity.fingerprint:
                raise BridgeError(
                    f"the bridge {self.card.name} was made for {made_for.model}, not for the "
                    f"weights of {model.identity.name} on this machine.",
                    hint="Name another bridge (`agentwire bridges list`).",
                )
        self._sender, self._receiver = sender, receiver
        module = loaded.module.to(sender.device)
        check_inspectable(self.card)
        assert isinstance(module, Resampler)
        self._module = module
        self._short = trunk(sender.model, self.card.layer)
        self._table: Tensor = receiver.model.get_input_embeddings().weight

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Encoded:
        """Soft tokens and attention weights of some texts."""
        ids, mask = self._sender.tokens(texts)
        states = self._sender.states(self._short, ids).float()
        soft = self._module(states, mask).half().float()
        return Encoded(soft, inspection.attention(self._module, states, mask))

    def payloads(self, texts: Sequence[str], progress: OnProgress) -> Tensor:
        """Soft tokens [n, M, d] of many texts."""
        parts: list[Tensor] = []
        for start in range(0, len(texts), BATCH):
            parts.append(self.encode(texts[start : start + BATCH]).soft)
            progress("reading rows", min(1.0, (start + BATCH) / len(texts)))
        return torch.cat(parts)

    def view(self, text: str, label: str | None, k: int) -> TextView:
        """One text, with the k nearest tokens of the vocabulary for each soft token."""
        found = self.encode([text])
        soft = found.soft[0]
        cosines, ids = inspection.nearest(soft, self._table, k)
        return TextView(
            text=text,
            label=label,
            soft_tokens=[
                SoftTokenView(
                    index=i,
                    rms=round(float(soft[i].pow(2).mean().sqrt()), 6),
                    nearest=[
                        NearestToken(
                            token=self._receiver.tokenizer.decode([int(token)]),
                            id=int(token),
                            cosine=round(float(cosine), 4),
                        )
                        for cosine, token in zip(cosines[i], ids[i], strict=True)
                    ],
                    attention=attention_by_word(self._sender, text, found.weights[0, i]),
                )
                for i in range(soft.shape[0])
            ],
        )

    def spread(self, payloads: Tensor) -> RowStatistics:
        """Statistics of the soft tokens [n, M, d] of many texts."""
        cosines = inspection.pairwise_cosine(payloads)
        mean = inspection.off_diagonal_mean(cosines)
        flat = payloads.flatten(1)
        ranks = [inspection.effective_rank(soft) for soft in payloads]
        every = payloads.flatten(0, 1)
        some = every[:: max(1, len(every) // COMPARED)][:COMPARED]
        near = inspection.nearest(some, self._table, 1)[0]
        return RowStatistics(
            rows=len(payloads),
            pairwise_cosine=[[round(float(x), 4) for x in row] for row in cosines],
            mean_cosine=None if mean is None else round(mean, 4),
            effective_rank_soft_tokens=round(float(np.mean(ranks)), 3),
            effective_rank_payloads=round(inspection.effective_rank(flat - flat.mean(0)), 3),
            nearest_cosine=round(float(near.mean()), 4),
        )

    def random_cosine(self) -> float:
        return round(inspection.random_cosine(self._table), 4)


def attention_by_word(
    sender: TransformersBackend, text: str, weights: Tensor
) -> list[AttendedWord]:
    """The attention [T] of one soft token, summed over the tokens of each word."""
    words = list(re.finditer(r"\S+", text))
    if not words:
        return []
    encoded = sender.tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        truncation=True,
        max_length=MAX_TEXT_TOKENS,
        return_offsets_mapping=True,
    )
    ends = [word.end() for word in words]
    shares = [0.0] * len(words)
    for (begin, end), weight in zip(encoded["offset_mapping"], weights.tolist(), strict=False):
        # The word in which the token begins, after its leading spaces.
        spaces = len(text[begin:end]) - len(text[begin:end].lstrip())
        shares[min(bisect_right(ends, begin + spaces), len(words) - 1)] += weight
    pairs = zip(words, shares, strict=True)
    return [AttendedWord(word=word.group(), weight=round(share, 4)) for word, share in pairs]
