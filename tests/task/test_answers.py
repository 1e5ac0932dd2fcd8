"""Answer tasks: metrics, definitions, rows of every file form, and hold-out by passage."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.task.answers import exact_match, f1, fault, normalise_answer
from agentwire.task.datasets import Dataset, load_rows, where
from agentwire.task.definitions import (
    AnswerDefinition,
    load_answer_task,
    load_classification,
    parse_definition,
    read_task,
)
from agentwire.task.holdout import Passages, held_out_passages, without_overlap
from agentwire.task.rows import AnswerRow, normalise

BUILT_IN = ("boolq", "fairytaleqa", "hotpotqa", "qamr", "squad", "squad_full")
LINE = {"id": "1", "context": "Anna has a cat.", "question": "Who has a cat?", "answers": ["Anna"]}


# -- metrics: cases of the official SQuAD v1.1 script; torchmetrics 1.9 gives the same figures


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "overlap"),
    [
        ("Denver Broncos", ["Denver Broncos", "the Broncos"], True, 1.0),
        ("The Denver Broncos!", ["Denver Broncos"], True, 1.0),
        ("Broncos of Denver", ["Denver Broncos"], False, 0.8),
        ("Santa Clara", ["Levi's Stadium", "Santa Clara, California"], False, 0.8),
        ("308", ["308 ", "three hundred"], True, 1.0),
        ("gold gold gold", ["gold"], False, 0.5),
        ("l'an-deux", ["lan deux"], False, 0.0),
        ("blue", ["red"], False, 0.0),
        ("", ["red"], False, 0.0),
        ("the", ["a"], True, 1.0),
    ],
)
def test_exact_match_and_f1(
    prediction: str, answers: list[str], exact: bool, overlap: float
) -> None:
    assert exact_match(prediction, answers) is exact
    assert f1(prediction, answers) == pytest.approx(overlap)


def test_normalisation_drops_case_punctuation_articles_and_spaces() -> None:
    assert normalise_answer(" The  U.S.-led\ta 'Plan', an end ") == "usled plan end"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Anna", None),
        ("very very very good", None),
        ("  ", "empty"),
        ("the", "empty"),
        ("no no no no", "loop"),
        ("so the cat the cat the cat the cat", "loop"),
        ("?! ...", "garbage"),
        ("caf\ufffd", "garbage"),
        ("a\x00b", "garbage"),
    ],
)
def test_faulty_answers_are_told_apart(text: str, kind: str | None) -> None:
    assert fault(text) == kind


# -- definitions


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_tasks_ask_one_question_the_same_way(name: str) -> None:
    spec = load_answer_task(name).spec()
    assert spec.prompt == "\nQuestion: {question}\nAnswer:"
    assert spec.text_prompt == "{text}\nQuestion: {question}\nAnswer:"
    assert (spec.labels, spec.decoding.stop) == ((), ("\n",))
    assert spec.max_new_tokens in (4, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('prompt: "\\nWhat?"', r"prompt must hold \{question\} exactly once"),
        ('text_prompt: "{text} {text} {question}"', r"text_prompt must hold \{text\}"),
        ('text_prompt: "{text}"', r"text_prompt must hold \{question\} exactly once"),
        ("labels: [yes, no]", "unknown key 'labels'"),
        ("max_new_tokens: 0", "max_new_tokens"),
        ("stop: ['']", "stop"),
    ],
)
def test_a_bad_definition_is_named(change: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_definition(f"name: mine\nkind: answer\n{change}\n", "mine.yaml")


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"mine.yaml:2: kind: .* 'answers'.*'answer'"):
        parse_definition("name: mine\nkind: answers\n", "mine.yaml")


def test_the_other_kind_is_refused() -> None:
    with pytest.raises(DataError, match="squad is answered in words"):
        load_classification("squad")
    with pytest.raises(DataError, match="sst2 is a task with labels"):
        load_answer_task("sst2")


# -- rows


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(home=tmp_path / "home", data=tmp_path / "data", offline=True)


def write(file: Path, *lines: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def test_a_task_file_reads_json_lines_gzip_and_squads_own_form(
    tmp_path: Path, config: Config
) -> None:
    asked = {"id": "1", "question": LINE["question"], "answers": [{"text": "Anna"}]}
    article = {"title": "Cats", "paragraphs": [{"context": LINE["context"], "qas": [asked]}]}
    write(tmp_path / "a.jsonl", LINE)
    write(tmp_path / "b.jsonl.gz", {**LINE, "id": "2"})
    (tmp_path / "c.json").write_text(json.dumps({"version": "1.1", "data": [article]}))
    task = tmp_path / "cats.yaml"
    task.write_text("name: cats\nkind: answer\nrows: {test: [a.jsonl, b.jsonl.gz, c.json]}\n")
    assert isinstance(read_task(task), AnswerDefinition)
    dataset = load_rows(str(task), "test", config=config)
    row = AnswerRow("1", "Anna has a cat.", "Who has a cat?", ("Anna",))
    assert dataset.rows == (row, row._replace(id="2"), row)
    assert dataset.labels == ()


def test_a_gzipped_split_of_the_data_folder(tmp_path: Path, config: Config) -> None:
    write(tmp_path / "data/squad/train.jsonl.gz", LINE)
    assert where("squad", "train", config=config) == "folder"
    assert len(load_rows("squad", "train", config=config)) == 1


def test_a_row_without_an_id_gets_one_from_its_words(tmp_path: Path, config: Config) -> None:
    lines = [{k: v for k, v in LINE.items() if k != "id"}, {**LINE, "question": "What has Anna?"}]
    del lines[1]["id"]
    ids = [r.id for r in load_rows("squad", "x", path=write(tmp_path / "x.jsonl", *lines),
                                   config=config).rows]  # fmt: skip
    assert len(set(ids)) == 2
    assert all(i.startswith("sha-") for i in ids)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"context": "a", "question": "b"}', "x.jsonl:1: `answers` is not a list"),
        ("x.jsonl", b'{"context": "a", "answers": ["b"]}', "x.jsonl:1: the row has no `question`"),
        ("x.jsonl", b'{"text": "a", "label": 1}', "x.jsonl:1: the row has no `context`"),
        ("x.jsonl", b"\n", "holds no rows"),
        ("x.jsonl.gz", b"plain", "not a whole gzip file"),
        ("x.jsonl.gz", gzip.compress(b"{}\n" * 99)[:-12], "not a whole gzip file|no `context`"),
        ("x.json", b'{"data": [{"paragraphs": 1}]}', "not in SQuAD's own JSON form"),
        ("x.json", b"[", "not in SQuAD's own JSON form"),
    ],
)
def test_a_bad_file_is_named(
    tmp_path: Path, config: Config, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_rows("squad", "test", path=tmp_path / name, config=config)


def test_missing_rows_say_how_a_line_looks(config: Config) -> None:
    with pytest.raises(DataError) as caught:
        load_rows("qamr", "train", config=config)
    assert '{"context": "...", "question": "...", "answers": ["..."]}' in caught.value.hint


def test_the_sample_has_30_passages_and_answers_that_are_spans(config: Config) -> None:
    sample = load_rows("squad", "sample", config=config)
    assert (len(sample), len({row.text for row in sample.rows})) == (90, 30)
    assert len({row.question for row in sample.rows}) == 90
    assert all(answer in row.text for row in sample.rows for answer in row.answers)
    assert all(row.question.endswith("?") for row in sample.rows)
    assert "90 rows written for agentwire; no part of squad" in sample.provenance["note"]


# -- hold-out

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def questions(*texts: str) -> Dataset[AnswerRow]:
    rows = (AnswerRow(f"{i}", text, f"q{i}", ("a",)) for i, text in enumerate(texts))
    return Dataset("squad", "train", tuple(rows), (), {})


def test_passages_overlap_by_13_words_or_as_a_whole() -> None:
    known = Passages([f"{LONG} fourteen", "Anna has a cat."])
    assert known.overlap(f"Zero, {LONG.upper()}!")
    assert known.overlap("anna has a CAT")
    assert not known.overlap(" ".join(LONG.split()[1:]))
    assert not known.overlap("Anna has a cat and a dog.")


def test_rows_of_overlapping_passages_are_dropped() -> None:
    train = questions("A dog.", f"{LONG} more", "A bird.", "A fish.")
    kept = without_overlap(train, questions(f"other {LONG}"), questions("a bird"))
    assert [row.text for row in kept.rows] == ["A dog.", "A fish."]
    assert kept.provenance["overlap"] == "2 rows dropped"


def test_passages_are_held_out_whole() -> None:
    train = questions(*(f"passage {i // 3}" for i in range(30)))
    kept, held = held_out_passages(train, 7, seed=1)
    assert len(held) == 9
    assert len(kept) == 21
    assert not {row.text for row in kept.rows} & {row.text for row in held.rows}
    assert held_out_passages(train, 7, seed=1)[1].rows == held.rows
    assert held_out_passages(train, 7, seed=2)[1].rows != held.rows
    with pytest.raises(DataError, match="Cannot hold out 16 of the 30 rows"):
        held_out_passages(train, 16)


# -- real data


def test_the_real_rows_are_read_and_apart_from_the_sample() -> None:
    config = Config.from_env()
    if config.data is None or not (config.data / "squad_full").is_dir():
        pytest.skip("the real rows are not here: set AGENTWIRE_DATA")
    scored = [load_rows(name, "validation", config=config) for name in ("squad", "hotpotqa")]
    assert [len(data) for data in scored] == [1000, 1100]
    full = load_rows("squad_full", "train", config=config)
    assert len(without_overlap(full, *scored)) == len(full) == 87_309
    sample = load_rows("squad", "sample", config=config)
    passages = Passages({row.text for row in sample.rows})
    assert not any(passages.overlap(text) for text in {row.text for row in full.rows})
    assert not {normalise(r.question) for r in sample.rows} & {
        normalise(r.question) for r in full.rows
    }
