"""The data of ``bench/reader.py``: token ids of training, held-out and test rows, in one file."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agentwire.model.transformers import load_tokenizer
from agentwire.task.rows import AnswerRow, read_answers
from agentwire.task.tokens import data_rows
from agentwire.training.reader.corpus import Corpus, CorpusBuilder, Ragged
from agentwire.training.reader.questions import Passage, read_passages, split
from agentwire.training.reader.receiver import FrozenReceiver

Arrays = dict[str, npt.NDArray[Any]]

SENDER, RECEIVER = "smollm2-135m-instruct", "gemma-3-270m"
QUESTION = "\nQuestion: {question}\nAnswer:"
SEGMENT = 512
"""The sender's tokens of one segment; a longer text becomes several."""
HELD_OUT = 400
CLOZES = 4
"""Most cloze questions of one passage."""
SETS = ("squad", "hotpotqa")
TRAINING = ("squad_full", "qamr", "hotpotqa", "fairytaleqa")


def prepare(args: argparse.Namespace) -> None:
    """Writes token ids of training, held-out and test rows."""
    names = (RECEIVER, SENDER) if args.reverse else (SENDER, RECEIVER)
    sender, receiver = (load_tokenizer(Path(args.models) / name) for name in names)
    data = Path(args.data)
    files = [next(iter(data.glob(f"{name}/train.jsonl*"))) for name in TRAINING]
    asked, held = split(read_passages(files), HELD_OUT)
    texts = read_texts(data / "passages/train.jsonl.gz")
    if args.take:
        asked, texts, held = asked[: args.take], texts[: args.take], held[: args.take]
    made = [Passage(text) for text in texts]
    builder = CorpusBuilder(sender, receiver, question=QUESTION, longest=SEGMENT)
    builder.add_questions(asked, clozes=CLOZES)
    builder.add_questions(made, clozes=CLOZES)
    builder.add_continuations([*(p.text for p in asked), *texts])
    corpus = builder.build()
    builder = CorpusBuilder(sender, receiver, question=QUESTION, longest=SEGMENT)
    builder.add_questions(held)
    judged = builder.build(corpus.vocabulary.tolist())
    sets = {name: read_answers(data / name / "validation.jsonl") for name in SETS}
    if args.take:
        sets = {name: rows[: max(2, args.take // 60)] for name, rows in sets.items()}
    vocabulary = judged.vocabulary.tolist()
    tests: Arrays = {}
    for name, rows in sets.items():
        vocabulary = _add_tests(tests, name, rows, sender, receiver, vocabulary)
    arrays = corpus.arrays() | {f"held.{k}": v for k, v in judged.arrays().items()} | tests
    arrays["vocabulary"] = np.array(vocabulary, dtype=np.int32)
    np.savez_compressed(args.out, **arrays)  # type: ignore[arg-type]
    kinds = np.bincount(corpus.items.kinds.numpy())
    print(len(corpus.sender), "passages", kinds, "items", len(vocabulary), "ids", len(judged.items))


def read_texts(file: Path) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [str(json.loads(line)["text"]) for line in lines]


def segments(tokenizer: Any, text: str) -> list[list[int]]:
    """The text's ids in segments of at most SEGMENT, cut between paragraphs where possible."""
    parts = data_rows(tokenizer, [p + "\n" for p in text.split("\n") if p.strip()])
    found: list[list[int]] = [[]]
    for part in parts:
        while part:
            room = SEGMENT - len(found[-1])
            if len(part) <= room or not found[-1]:
                found[-1] = found[-1] + part[:room]
                part = part[room:]
            if part:
                found.append([])
    return [one for one in found if one]


def _add_tests(
    tests: Arrays, name: str, rows: Sequence[AnswerRow], sender: Any,
    receiver: Any, vocabulary: list[int],
) -> list[int]:  # fmt: skip
    pieces = []
    for row in rows:
        whole = data_rows(sender, [row.text])
        pieces.append(whole if len(whole[0]) <= SEGMENT else segments(sender, row.text))
    texts = data_rows(receiver, [row.text for row in rows])
    asked = data_rows(receiver, [QUESTION.format(question=row.question) for row in rows])
    known = dict.fromkeys(vocabulary)
    for ids in (*texts, *asked, *data_rows(receiver, [f" {a}\n" for r in rows for a in r.answers])):
        known.update(dict.fromkeys(ids))
    index = {number: i for i, number in enumerate(known)}
    flat = [piece for row in pieces for piece in row]
    columns = {
        "sender": flat,
        "receiver": [[index[t] for t in row] for row in texts],
        "asked": [[index[t] for t in row] for row in asked],
    }
    for key, rows_of in columns.items():
        tests[f"{name}.{key}.flat"] = np.array([i for r in rows_of for i in r], dtype=np.uint32)
        tests[f"{name}.{key}.lengths"] = np.array([len(r) for r in rows_of], dtype=np.uint32)
    tests[f"{name}.pieces"] = np.array([len(row) for row in pieces], dtype=np.uint8)
    notes = [{"id": row.id, "question": row.question, "answers": row.answers} for row in rows]
    tests[f"{name}.rows"] = np.frombuffer(json.dumps(notes).encode(), dtype=np.uint8)
    return list(known)


@dataclass
class Scored:
    """Rows to score.

    Attributes:
        sender: segments of the passages in the sender's tokens.
        receiver: passages in the receiver's tokens.
        asked: questions in the receiver's tokens.
        pieces: segments of each row's passage.
        rows: ``id`` and ``answers`` of each row.
    """

    sender: Ragged
    receiver: Ragged
    asked: list[list[int]]
    pieces: list[int]
    rows: list[dict[str, Any]]

    @classmethod
    def of_arrays(
        cls, found: Mapping[str, npt.NDArray[Any]], name: str, device: torch.device
    ) -> Scored:
        """The rows of a test set in the prepared file."""

        sender, receiver, asked = (
            Ragged.of_arrays(found, f"{name}.{key}") for key in ("sender", "receiver", "asked")
        )
        lists = [r.tolist() for r in torch.split(asked.flat, asked.lengths.tolist())]
        rows = json.loads(bytes(found[f"{name}.rows"]))
        sender, receiver = sender.to(device), receiver.to(device)
        return cls(sender, receiver, lists, found[f"{name}.pieces"].tolist(), rows)

    @classmethod
    def of_corpus(cls, corpus: Corpus, receiver: FrozenReceiver, most: int) -> Scored:
        """At most ``most`` items of a corpus, drawn with a fixed seed."""
        items = corpus.items
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))[:most]
        asked, rows, places = [], [], []
        for i in order.tolist():
            begin, end = int(items.begins[i]), int(items.ends[i])
            asked.append(items.ids[i, :begin].tolist())
            answer = receiver.text(items.ids[i, begin:end].tolist())
            rows.append({"id": i, "answers": [answer]})
            places.append(int(items.passages[i]))
        return cls(_rows(corpus.sender, places), _rows(corpus.receiver, places), asked,
                   [1] * len(rows), rows)  # fmt: skip


def _rows(rows: Ragged, chosen: Sequence[int]) -> Ragged:
    index = torch.tensor(list(chosen), device=rows.flat.device)
    return Ragged(rows.flat, rows.offsets[index], rows.lengths[index])


def packed(rows: Ragged) -> Ragged:
    """The same rows, with nothing else in ``flat``."""
    ids = [
        rows.flat[o : o + n]
        for o, n in zip(rows.offsets.tolist(), rows.lengths.tolist(), strict=True)
    ]
    return Ragged.packed(torch.cat(ids), rows.lengths)
