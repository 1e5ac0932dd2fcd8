"""The training data of a reader bridge: passages and questions as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentwire.task.tokens import Tokenizer, data_rows
from agentwire.training.reader.questions import Passage, cloze
from agentwire.training.states import gather

ITEM_TOKENS: Final = 64
"""Longest question with its answer, or continuation, in the receiver's tokens."""
QUESTION_TOKENS: Final = 48
"""Longest question with its answer that is trained on."""
ANSWER_TOKENS: Final = 16
CONTINUED: Final = 0.6
"""Share of a passage that the sender reads before the receiver continues it."""
CONTINUATION, QUESTION, CLOZE = 0, 1, 2
"""Kinds of items."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of token ids without padding.

    Attributes:
        flat: [tokens] of all rows, one row after the other.
        offsets, lengths: [n] where each row begins, and how many tokens it has.
    """

    flat: Tensor
    offsets: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        lengths = torch.tensor([len(row) for row in rows])
        flat = torch.from_numpy(np.fromiter((i for row in rows for i in row), dtype=np.int32))
        return cls.packed(flat, lengths)

    @classmethod
    def packed(cls, flat: Tensor, lengths: Tensor) -> Ragged:
        """Rows of these lengths that follow one another in ``flat`` without a gap."""
        return cls(flat, lengths.cumsum(0) - lengths, lengths)

    @classmethod
    def of_arrays(cls, found: Mapping[str, npt.NDArray[Any]], name: str) -> Ragged:
        """The rows that stand under ``name.flat`` and ``name.lengths``."""
        lengths = torch.from_numpy(found[f"{name}.lengths"].astype(np.int64))
        return cls.packed(torch.from_numpy(found[f"{name}.flat"].astype(np.int32)), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> Ragged:
        return Ragged(self.flat.to(device), self.offsets.to(device), self.lengths.to(device))

    def gather(self, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Ids [n, width] of ``rows`` and their mask; ids where the mask is False mean nothing."""
        ids, mask = gather(self.flat, self.offsets, self.lengths, rows, width)
        return ids.long(), mask


@dataclass(frozen=True, slots=True)
class Items:
    """Questions about passages, and continuations of them.

    Attributes:
        ids: [N, ITEM_TOKENS] question and answer, padded on the right.
        begins, ends: [N] where the answer begins and ends; a continuation begins at 0.
        passages: [N] the passage of each.
        kinds: [N] CONTINUATION, QUESTION or CLOZE.
    """

    ids: Tensor
    begins: Tensor
    ends: Tensor
    passages: Tensor
    kinds: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Items:
        parts = (self.ids, self.begins, self.ends, self.passages, self.kinds)
        return Items(*(part.to(device) for part in parts))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages in both models' tokens, and the items about them.

    The receiver's tokens and those of items are indices into ``vocabulary``: the receiver's ids
    that occur in the data.
    """

    sender: Ragged
    receiver: Ragged
    items: Items
    vocabulary: Tensor

    def to(self, device: torch.device) -> Corpus:
        return Corpus(
            self.sender.to(device),
            self.receiver.to(device),
            self.items.to(device),
            self.vocabulary.to(device),
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The corpus as arrays for ``numpy.savez_compressed``."""
        found: dict[str, npt.NDArray[Any]] = {}
        for name in ("sender", "receiver"):
            rows: Ragged = getattr(self, name)
            found[f"{name}.flat"] = rows.flat.numpy().astype(np.uint32)
            found[f"{name}.lengths"] = rows.lengths.numpy().astype(np.uint16)
        items = self.items
        found["items.ids"] = items.ids.numpy().astype(np.uint32)
        for name in ("begins", "ends", "kinds"):
            found[f"items.{name}"] = getattr(items, name).numpy().astype(np.uint8)
        found["items.passages"] = items.passages.numpy().astype(np.uint32)
        found["vocabulary"] = self.vocabulary.numpy().astype(np.int32)
        return found

    @classmethod
    def of_arrays(cls, found: Mapping[str, npt.NDArray[Any]]) -> Corpus:
        """The corpus that ``arrays`` stored."""

        def column(name: str) -> Tensor:
            return torch.from_numpy(found[f"items.{name}"].astype(np.int64))

        names = ("begins", "ends", "passages", "kinds")
        ids = torch.from_numpy(found["items.ids"].astype(np.int32))
        items = Items(ids, *(column(name) for name in names))
        vocabulary = torch.from_numpy(found["vocabulary"].astype(np.int64))
        sender, receiver = (Ragged.of_arrays(found, name) for name in ("sender", "receiver"))
        return cls(sender, receiver, items, vocabulary)


@dataclass(frozen=True, slots=True)
class _Draft:
    """An item before it is tokenized."""

    passage: int
    kind: int
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Item:
    """An item in the receiver's tokens; its answer begins at ``begin`` and ends with ``ids``."""

    draft: _Draft
    ids: list[int]
    begin: int


class CorpusBuilder:
    """Collects passages and items, then tokenizes them.

    Args:
        question: the prompt of a question, with ``{question}``.
        longest: passages with more of the sender's tokens are left out.
    """

    def __init__(
        self, sender: Tokenizer, receiver: Tokenizer, *, question: str, longest: int
    ) -> None:
        self._sender, self._receiver = sender, receiver
        self._question, self._longest = question, longest
        self._texts: list[str] = []
        self._drafts: list[_Draft] = []

    def add_questions(self, passages: Iterable[Passage], *, clozes: int = 0) -> None:
        """Adds passages with their questions, and at most ``clozes`` cloze questions for each."""
        for passage in passages:
            number = len(self._texts)
            self._texts.append(passage.text)
            for question, answer in passage.questions:
                self._drafts.append(_Draft(number, QUESTION, question, answer))
            digest = hashlib.sha256(passage.text.encode()).digest()
            seed = int.from_bytes(digest[:4], "little")
            for question, answer in cloze(passage.text, seed, clozes):
                self._drafts.append(_Draft(number, CLOZE, question, answer))

    def add_continuations(self, texts: Iterable[str]) -> None:
        """Adds the beginnings of texts as passages, and what follows as their continuations."""
        for text in texts:
            words = text.split(" ")
            cut = round(len(words) * CONTINUED)
            if cut < 8 or len(words) - cut < 8:
                continue
            number = len(self._texts)
            self._texts.append(" ".join(words[:cut]))
            self._drafts.append(_Draft(number, CONTINUATION, "", " " + " ".join(words[cut:])))

    def build(self, vocabulary: Sequence[int] = ()) -> Corpus:
        """Tokenizes what was added. Items that are too long are left out.

        Args:
            vocabulary: ids of an earlier corpus. They keep their indices; new ids follow them.
        """
        sender = data_rows(self._sender, self._texts)
        fits = [0 < len(row) <= self._longest for row in sender]
        place = np.cumsum(fits) - 1
        read = data_rows(self._receiver, self._texts)
        receiver = [row for row, fit in zip(read, fits, strict=True) if fit]
        items = self._items([draft for draft in self._drafts if fits[draft.passage]])
        known = dict.fromkeys(vocabulary)
        for ids in (*receiver, *(item.ids for item in items)):
            known.update(dict.fromkeys(ids))
        index = {number: i for i, number in enumerate(known)}
        matrix = torch.zeros(len(items), ITEM_TOKENS, dtype=torch.int32)
        for row, item in zip(matrix, items, strict=True):
            row[: len(item.ids)] = torch.tensor([index[t] for t in item.ids], dtype=torch.int32)
        return Corpus(
            Ragged.of([row for row, fit in zip(sender, fits, strict=True) if fit]),
            Ragged.of([[index[t] for t in row] for row in receiver]),
            Items(
                matrix,
                torch.tensor([item.begin for item in items]),
                torch.tensor([len(item.ids) for item in items]),
                torch.tensor([int(place[item.draft.passage]) for item in items]),
                torch.tensor([item.draft.kind for item in items]),
            ),
            torch.tensor(list(known)),
        )

    def _items(self, drafts: Sequence[_Draft]) -> list[_Item]:
        """The items that are short enough."""
        prompts = [self._question.format(question=d.question) if d.kind else "" for d in drafts]
        answers = [f" {d.answer}\n" if d.kind else d.answer for d in drafts]
        asked = data_rows(self._receiver, prompts)
        answered = data_rows(self._receiver, answers)
        found = []
        for draft, question, answer in zip(drafts, asked, answered, strict=True):
            if draft.kind == CONTINUATION:
                if len(answer) >= 8:
                    found.append(_Item(draft, answer[:ITEM_TOKENS], 0))
            elif len(answer) <= ANSWER_TOKENS and len(question) + len(answer) <= ITEM_TOKENS:
                found.append(_Item(draft, [*question, *answer], len(question)))
        return found
