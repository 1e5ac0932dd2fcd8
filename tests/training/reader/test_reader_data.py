"""The training data of reader bridges: questions, token ids and the schedule."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from agentwire.errors import DataError
from agentwire.model.transformers import load_tokenizer
from agentwire.training.reader.alignment import least_squares, shared_pieces
from agentwire.training.reader.corpus import (
    ANSWER_TOKENS,
    CLOZE,
    CONTINUATION,
    ITEM_TOKENS,
    QUESTION,
    Corpus,
    CorpusBuilder,
    Items,
    Ragged,
)
from agentwire.training.reader.questions import BLANK, Passage, cloze, read_passages, split
from agentwire.training.reader.schedule import BUCKETS, ReaderStage, Schedule

TEXT = (
    "The bridge was built in 1874 by Mary Stone. It was one of the first of its kind. "
    "In that year 300 people lived in the town of Elm Hill. Nobody expected that it would last."
)


def numbers(counts: dict[int, int], passages: int, tokens: int) -> Corpus:
    """A corpus without words, in which every kind has its own passages.

    Args:
        counts: items of each kind about each of its passages.
        passages: passages of each kind.
        tokens: of each passage.
    """
    kinds, places = [], []
    for number, (kind, count) in enumerate(counts.items()):
        for place in range(passages):
            kinds += [kind] * count
            places += [number * passages + place] * count
    n, total = len(kinds), passages * len(counts)
    rows = Ragged.of([[1] * tokens] * total)
    items = Items(
        torch.zeros(n, ITEM_TOKENS, dtype=torch.int32),
        torch.full((n,), 4),
        torch.full((n,), 6),
        torch.tensor(places),
        torch.tensor(kinds),
    )
    return Corpus(rows, rows, items, torch.arange(10))


ALL = {CONTINUATION: 1, QUESTION: 3, CLOZE: 3}


# -- questions ------------------------------------------------------------------------------------


def test_passages_with_the_same_text_are_joined_over_files(tmp_path: Path) -> None:
    rows = [
        {"context": f"text {i}", "question": f"q{i}?", "answers": ["a", "b"]} for i in (1, 1, 2)
    ]
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_passages([tmp_path / "one.jsonl", tmp_path / "two.jsonl"])
    assert [passage.text for passage in found] == ["text 1", "text 2"]
    assert found[0].questions == [("q1?", "a")] * 4
    (tmp_path / "bad.jsonl").write_text('{"context": "text"}\n')
    with pytest.raises(DataError):
        read_passages([tmp_path / "bad.jsonl"])


def test_the_split_depends_on_the_texts_alone() -> None:
    passages = [Passage(f"text {i}") for i in range(20)]
    asked, held = split(passages, 5)
    again, same = split(passages[::-1], 5)
    assert (len(asked), len(held)) == (15, 5)
    assert (again, same) == (asked, held)


def test_a_cloze_question_lacks_a_name_or_a_number_of_its_sentence() -> None:
    made = cloze(TEXT, 0, 6)
    assert cloze(TEXT, 0, 6) == made
    assert len(made) == 2  # the other sentences have neither
    for question, answer in made:
        assert question.count(BLANK) == 1
        assert question.replace(BLANK, answer) in TEXT
    assert len(cloze(TEXT, 0, 1)) == 1


# -- corpus ---------------------------------------------------------------------------------------


def test_a_corpus_survives_its_arrays_with_large_ids() -> None:
    whole = numbers(ALL, 4, 20)
    large = torch.tensor([70_000, 262_143, 5] * 100, dtype=torch.int32)
    whole.sender.flat[:] = large[: len(whole.sender.flat)]
    whole.items.ids[0, :2] = torch.tensor([66_000, 199_999])
    corpus = Corpus(whole.sender, whole.receiver, whole.items, torch.tensor([3, 262_143]))
    found = Corpus.of_arrays(corpus.arrays())
    for name in ("sender", "receiver"):
        for part in ("flat", "offsets", "lengths"):
            before, after = (getattr(getattr(one, name), part) for one in (corpus, found))
            assert torch.equal(before, after)
    for part in ("ids", "begins", "ends", "passages", "kinds"):
        assert torch.equal(getattr(corpus.items, part), getattr(found.items, part))
    assert torch.equal(corpus.vocabulary, found.vocabulary)


def test_rows_are_gathered_with_their_mask() -> None:
    ids, mask = Ragged.of([[1, 2, 3], [4], [5, 6]]).gather(torch.tensor([2, 0, 1]), 3)
    assert [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)] == [
        [5, 6],
        [1, 2, 3],
        [4],
    ]


def test_the_builder_tokenizes_passages_questions_and_continuations(
    tiny_llama: Path, tiny_gemma: Path
) -> None:
    sender, receiver = load_tokenizer(tiny_llama), load_tokenizer(tiny_gemma)
    words = "the warm story is moving and the cast is brave and funny in the end"
    builder = CorpusBuilder(sender, receiver, question=" Q: {question} A:", longest=60)
    builder.add_questions([Passage("a warm film", [("how is it?", "warm"), ("x?", "dull " * 20)])])
    builder.add_questions([Passage(words * 9, [("too long?", "yes")])])
    builder.add_continuations([words * 2, "too short"])
    corpus = builder.build()
    known = corpus.vocabulary.tolist()

    def text(ids: torch.Tensor) -> str:
        return str(receiver.decode([known[i] for i in ids.tolist()]))

    assert corpus.items.kinds.tolist() == [QUESTION, CONTINUATION]
    assert corpus.items.passages.tolist() == [0, 1]
    assert len(corpus.sender) == len(corpus.receiver) == 2
    ids, begin, end = (
        part[0] for part in (corpus.items.ids, corpus.items.begins, corpus.items.ends)
    )
    assert text(ids[:begin]) == " Q: how is it? A:"
    assert text(ids[begin:end]) == " warm\n"
    assert end - begin <= ANSWER_TOKENS
    cut, rest = corpus.receiver.gather(torch.tensor([1]), int(corpus.receiver.lengths[1]))[0][0], 1
    said = corpus.items.ids[rest, : int(corpus.items.ends[rest])]
    assert (words * 2).startswith(text(cut) + text(said))
    assert int(corpus.items.begins[rest]) == 0
    later = CorpusBuilder(sender, receiver, question="{question}", longest=60)
    later.add_questions([Passage("a dull score", [("why?", "noisy")])])
    assert later.build(known).vocabulary.tolist()[: len(known)] == known


# -- alignment ------------------------------------------------------------------------------------


def test_least_squares_recovers_an_affine_map() -> None:
    draw = torch.Generator().manual_seed(0)
    source = torch.randn(200, 6, generator=draw)
    weight, bias = torch.randn(4, 6, generator=draw), torch.randn(4, generator=draw)
    found = least_squares(source, source @ weight.T + bias, torch.rand(200, generator=draw) + 0.5)
    assert torch.allclose(found[0], weight, atol=1e-4)
    assert torch.allclose(found[1], bias, atol=1e-4)
    assert found[2] == pytest.approx(1.0, abs=1e-5)
    assert least_squares(source, torch.randn(200, 4, generator=draw), torch.ones(200))[2] < 0.2


def test_shared_pieces_have_the_same_text(tiny_llama: Path, tiny_gemma: Path) -> None:
    sender, receiver = load_tokenizer(tiny_llama), load_tokenizer(tiny_gemma)
    pairs = shared_pieces(sender, receiver)
    assert len(pairs) > 50
    words = {sender.decode([mine]): receiver.decode([other]) for mine, other in pairs}
    assert all(mine == other for mine, other in words.items() if mine.isalnum())
    assert " the" in words


# -- schedule -------------------------------------------------------------------------------------

SIZES = (16, 32, 64, 128)


def test_the_same_seed_gives_the_same_schedule() -> None:
    corpus = numbers(ALL, 12, 20)
    stages = [ReaderStage(continuation=0.3, cloze=0.3, question=0.4, joined=0.2)]
    one, same, other = (Schedule(corpus, stages, 30, 8, SIZES, seed) for seed in (0, 0, 1))
    assert torch.equal(one.rows, same.rows) and one.shapes == same.shapes
    assert not torch.equal(one.rows, other.rows)
    assert one.rows.shape == (30, 8)


def test_a_step_has_items_of_its_kind_two_about_each_passage() -> None:
    corpus = numbers(ALL, 12, 20)
    stages = [ReaderStage(continuation=0.3, cloze=0.3, question=0.4)]
    schedule = Schedule(corpus, stages, 60, 8, SIZES, 0)
    for rows, shape in zip(schedule.rows, schedule.shapes, strict=True):
        assert set(corpus.items.kinds[rows].tolist()) == {shape.kind}
        assert shape.longest == BUCKETS[0] and shape.joined == 1
        places = corpus.items.passages[rows]
        if shape.kind != CONTINUATION:
            assert torch.equal(places[::2], places[1::2])
            assert (rows[::2] != rows[1::2]).all()
            places = places[::2]
        assert len(set(places[:4].tolist())) == 4


def test_an_epoch_reads_every_passage_once() -> None:
    corpus = numbers({QUESTION: 2}, 12, 20)
    schedule = Schedule(corpus, [ReaderStage()], 6, 8, SIZES, 0)
    for epoch in schedule.rows.view(2, -1):
        assert Counter(corpus.items.passages[epoch].tolist()) == dict.fromkeys(range(12), 2)


def test_joined_steps_have_sizes_that_fit() -> None:
    schedule = Schedule(numbers(ALL, 12, 20), [ReaderStage(joined=0.5)], 200, 8, SIZES, 0)
    joined = [shape for shape in schedule.shapes if shape.joined > 1]
    assert 60 < len(joined) < 140
    assert {shape.joined for shape in joined} == {2, 4}
    assert all(128 <= shape.size * shape.joined <= 256 for shape in joined)
    assert {shape.size for shape in schedule.shapes} == set(SIZES)


def test_too_few_passages_for_a_step_are_left_out() -> None:
    few, many = numbers({QUESTION: 3}, 3, 200), numbers({QUESTION: 3}, 12, 20)
    corpus = Corpus(
        Ragged.of([[1] * int(n) for n in (*many.sender.lengths, *few.sender.lengths)]),
        many.receiver,
        Items(
            torch.cat([many.items.ids, few.items.ids]),
            torch.cat([many.items.begins, few.items.begins]),
            torch.cat([many.items.ends, few.items.ends]),
            torch.cat([many.items.passages, few.items.passages + 12]),
            torch.cat([many.items.kinds, few.items.kinds]),
        ),
        many.vocabulary,
    )
    schedule = Schedule(corpus, [ReaderStage()], 40, 8, SIZES, 0)
    assert {shape.longest for shape in schedule.shapes} == {BUCKETS[0]}
    assert int(corpus.items.passages[schedule.rows].max()) < 12


def test_kinds_follow_the_weights_of_their_stage() -> None:
    stages = [
        ReaderStage(share=1, continuation=0.5, cloze=0.25, question=0.25),
        ReaderStage(share=3, cloze=0.2, question=0.8),
    ]
    shapes = Schedule(numbers(ALL, 12, 20), stages, 800, 8, SIZES, 0).shapes
    first, second = (Counter(shape.kind for shape in part) for part in (shapes[:200], shapes[200:]))
    assert np.isclose(first[CONTINUATION] / 200, 0.5, atol=0.1)
    assert np.isclose(second[QUESTION] / 600, 0.8, atol=0.06)
    assert second[CONTINUATION] == 0
