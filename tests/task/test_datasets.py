"""Rows from folders, a fake hub library, and a cached registry file."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.task import datasets
from agentwire.task.datasets import Dataset, load_rows, shares_sentences, where
from agentwire.task.holdout import held_out_split
from agentwire.task.rows import Example, normalise, rows_sha256

ROWS = [{"text": "a fine film", "label": 1}, {"text": "a dull film", "label": 0}]


def write_rows(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(home=tmp_path / "home", data=tmp_path / "data", offline=True)


# -- folders


def test_a_file_by_path(tmp_path: Path, config: Config) -> None:
    file = write_rows(tmp_path / "mine.jsonl", ROWS)
    dataset = load_rows("sst2", "validation", path=file, config=config)
    assert dataset.rows == (Example("a fine film", 1), Example("a dull film", 0))
    assert (dataset.name, dataset.split, len(dataset)) == ("sst2", "validation", 2)
    assert dataset.labels == ("negative", "positive")
    assert dataset.provenance["source"] == "folder"
    assert dataset.provenance["location"] == str(file)
    assert dataset.provenance["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert dataset.provenance["rows_sha256"] == rows_sha256(dataset.rows)


def test_the_data_folder_is_found_by_name_and_path_goes_first(
    tmp_path: Path, config: Config
) -> None:
    write_rows(tmp_path / "data/sst2/train.jsonl", ROWS)
    write_rows(tmp_path / "mine/train.jsonl", ROWS[:1])
    assert len(load_rows("sst2", "train", config=config)) == 2
    assert len(load_rows("sst2", "train", path=tmp_path / "mine", config=config)) == 1
    assert where("sst2", "train", config=config) == "folder"
    assert where("sst2", "train", path=tmp_path / "mine", config=config) == "path"
    assert where("sst2", "train", path=tmp_path / "no", config=config) == ""


def test_dataset_json_gives_licence_and_origin(tmp_path: Path, config: Config) -> None:
    file = write_rows(tmp_path / "data/sst2/train.jsonl", ROWS)
    card = {
        "labels": ["negative", "positive"],
        "licence": "CC BY 4.0",
        "source": "somewhere",
        "splits": {"train": {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}},
    }
    (file.parent / "dataset.json").write_text(json.dumps(card))
    provenance = load_rows("sst2", "train", config=config).provenance
    assert (provenance["licence"], provenance["origin"]) == ("CC BY 4.0", "somewhere")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"labels": ["positive", "negative"]}, "its labels differ from those of sst2"),
        ({"splits": {"train": {"sha256": "0" * 64}}}, "is not the file that dataset.json"),
        ({"splits": {"train": 3}}, "is not a dataset description"),
        ([], "is not a dataset description"),
    ],
)
def test_a_dataset_json_that_disagrees_is_refused(
    tmp_path: Path, config: Config, card: object, message: str
) -> None:
    write_rows(tmp_path / "data/sst2/train.jsonl", ROWS)
    (tmp_path / "data/sst2/dataset.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match=message):
        load_rows("sst2", "train", config=config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"label": 1}', "the row has no `text`"),
        (b'{"text": "  ", "label": 1}', "the row has no `text`"),
        (b'{"text": 3, "label": 1}', "the row has no `text`"),
        (b'{"text": "x"}', "`label` is not an integer"),
        (b'{"text": "x", "label": true}', "`label` is not an integer"),
        (b'{"text": "x", "label": 1.0}', "`label` is not an integer"),
        (b'{"text": "x", "label": 2}', "label 2 is out of range .classes 0 to 1"),
        (b'{"text": "x", "label": -1}', "label -1 is out of range"),
        (b'{"text": "x", "label": 1', "not valid JSON"),
        (b'["x", 1]', "not a JSON object"),
        (b'{"text": "\xff", "label": 1}', "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    tmp_path: Path, config: Config, line: bytes, message: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "good", "label": 1}\n\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        load_rows("sst2", "test", path=file, config=config)
    assert caught.value.message.startswith(f"{file}:3: ")
    assert message.replace(".classes", "(the task has classes") in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, config: Config, content: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="holds no rows"):
        load_rows("sst2", "test", path=tmp_path / "rows.jsonl", config=config)


def test_line_separators_inside_a_text_do_not_split_it(tmp_path: Path, config: Config) -> None:
    text = "one\u2028two\x85three"
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": text, "label": 0}, ensure_ascii=False), encoding="utf-8")
    assert load_rows("sst2", "test", path=file, config=config).rows == (Example(text, 0),)


def test_what_is_nowhere_says_what_was_tried(tmp_path: Path, config: Config) -> None:
    with pytest.raises(DataError) as caught:
        load_rows("trec", "test", config=config)
    assert "off (offline)" in caught.value.message
    assert "AGENTWIRE_DATA" in str(caught.value.hint)
    with pytest.raises(DataError, match="AGENTWIRE_DATA is not set"):
        load_rows("trec", "test", config=Config(home=tmp_path, offline=True))
    with pytest.raises(DataError, match="it has train, validation, test"):
        load_rows("movie_snippets", "dev", config=config)
    with pytest.raises(DataError, match="not downloaded yet"):
        load_rows("movie_snippets", "test", config=config, allow_download=False)
    with pytest.raises(DataError, match="does not exist"):
        load_rows("sst2", "test", path=tmp_path / "none", config=config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no split 'test'"):
        load_rows("sst2", "test", path=tmp_path / "empty", config=config)
    assert where("trec", "test", config=config) == ""
    assert where("movie_snippets", "test", config=config) == "registry"


# -- hub


class Table:
    """The used part of ``datasets.Dataset``."""

    def __init__(self, columns: dict[str, list[Any]], names: list[str]) -> None:
        self._columns = columns
        self.features = {"label": SimpleNamespace(names=names), "coarse_label": None}
        self.features["coarse_label"] = self.features["label"]

    def __getitem__(self, column: str) -> list[Any]:
        return self._columns[column]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A fake library; returns its answers and the calls to it."""
    state: dict[str, Any] = {}

    def load_dataset(name: str, config: str | None, *, split: str) -> Table:
        state["asked"] = (name, config, split)
        if isinstance(state["answer"], Exception):
            raise state["answer"]
        return state["answer"]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(datasets, "_hub_reason", lambda config: "")
    return state


def test_rows_from_the_hub(hub: dict[str, Any], config: Config) -> None:
    hub["answer"] = Table({"sentence": ["good", "bad"], "label": [1, 0]}, ["negative", "positive"])
    dataset = load_rows("sst2", "validation", config=config)
    assert hub["asked"] == ("stanfordnlp/sst2", None, "validation")
    assert dataset.rows == (Example("good", 1), Example("bad", 0))
    assert dataset.provenance["source"] == "hub"


def test_hub_classes_are_matched_by_name(hub: dict[str, Any], config: Config) -> None:
    names = ["NUM", "ABBR", "ENTY", "DESC", "HUM", "LOC"]
    hub["answer"] = Table({"text": ["How many?"], "coarse_label": [0]}, names)
    dataset = load_rows("trec", "test", config=config)
    assert dataset.labels[dataset.rows[0].label] == "Numeric"
    hub["answer"] = Table({"text": ["How many?"], "coarse_label": [0]}, ["a", "b"])
    with pytest.raises(DataError, match="its classes differ from those of trec"):
        load_rows("trec", "test", config=config)


def test_hub_failures_are_data_errors(hub: dict[str, Any], config: Config) -> None:
    hub["answer"] = ConnectionError("no route\nto host")
    with pytest.raises(DataError, match=r"cannot be loaded from the hub .*: no route"):
        load_rows("sst2", "train", config=config)
    hub["answer"] = Table({"sentence": ["hidden"], "label": [-1]}, ["negative", "positive"])
    with pytest.raises(DataError, match="train:1: label -1 is out of range"):
        load_rows("sst2", "train", config=config)
    hub["answer"] = Table({"sentence": [], "label": []}, ["negative", "positive"])
    with pytest.raises(DataError, match="holds no rows"):
        load_rows("sst2", "train", config=config)
    with pytest.raises(DataError, match="the hub has only train, validation"):
        load_rows("sst2", "test", config=config)


# -- splits


def dataset_of(texts: list[str]) -> Dataset:
    rows = tuple(Example(text, index % 2) for index, text in enumerate(texts))
    return Dataset("sst2", "train", rows, ("negative", "positive"), {"source": "folder"})


def test_held_out_rows_are_stable_and_disjoint() -> None:
    dataset = dataset_of([f"row {index}" for index in range(200)])
    train, held = held_out_split(dataset, 40, seed=1)
    assert (len(train), len(held)) == (160, 40)
    assert sorted(train.rows + held.rows) == sorted(dataset.rows)
    assert list(held.rows) == [row for row in dataset.rows if row in set(held.rows)]
    assert held_out_split(dataset, 40, seed=1)[1].rows == held.rows
    assert held_out_split(dataset, 40, seed=2)[1].rows != held.rows
    assert held.provenance["rows_sha256"] == rows_sha256(held.rows)
    assert "held_out" in held.provenance["part"]


def test_equal_sentences_never_stand_on_both_sides() -> None:
    dataset = dataset_of([f"Row {index} !" for index in range(60)] + ["row 7", "ROW, 8"] * 5)
    for seed in range(20):
        train, held = held_out_split(dataset, 10, seed=seed)
        sides = [{normalise(row.text) for row in part.rows} for part in (train, held)]
        assert not sides[0] & sides[1]
        assert len(held) >= 10


@pytest.mark.parametrize("n", [0, 6])
def test_too_many_held_out_rows_are_refused(n: int) -> None:
    with pytest.raises(DataError, match=f"Cannot hold out {n} of the 10 rows"):
        held_out_split(dataset_of([str(index) for index in range(10)]), n)


def split_by_searching_everything(words: list[str], n: int, seed: int) -> tuple[set[int], set[int]]:
    """A slow reference of ``held_out_split``: kept and held-out row numbers."""
    lines = "".join(f"\n {text} " for text in words) + "\n"
    order = sorted(
        range(len(words)), key=lambda i: hashlib.sha256(f"{seed}:{words[i]}".encode()).digest()
    )
    held: list[int] = []
    seen: set[str] = set()
    for index in order:
        text = words[index]
        longer = lines.count(f" {text} ") > lines.count(f"\n {text} \n")
        if text and text not in seen and not longer and len(held) < n:
            seen.add(text)
            held.append(index)
    inside = "".join(f"\n {words[i]} " for i in held) + "\n"
    return {i for i, text in enumerate(words) if f" {text} " not in inside}, set(held)


@pytest.mark.parametrize("seed", range(12))
def test_the_index_finds_what_searching_every_row_finds(seed: int) -> None:
    """Few words, short texts, repetitions (also in successive rows), and texts without words."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices("abcdef", k=draw.randint(1, 5))) for _ in range(90)]
    texts += [" ".join(draw.choices("uvwxyz", k=9)) for _ in range(12)]
    texts += [texts[-1], texts[-2], "... !", "?"]
    dataset = dataset_of(texts)
    words = [normalise(text) for text in texts]
    kept, held = split_by_searching_everything(words, 6, seed)
    assert len(held) == 6
    parts = held_out_split(dataset, 6, seed)
    for part, expected in zip(parts, (kept, held), strict=True):
        assert list(part.rows) == [dataset.rows[i] for i in sorted(expected)]


def test_which_datasets_share_sentences() -> None:
    assert shares_sentences("sst2", "movie_snippets")
    assert shares_sentences("movie_snippets", "sst2")
    assert not shares_sentences("sst2", "sst2")
    assert not shares_sentences("sst2", "trec")
    assert not shares_sentences("ag_news", "trec")


def test_phrases_of_a_held_out_sentence_leave_training_and_phrases_are_not_held_out() -> None:
    sentences = [f"a film number {index} of some kind" for index in range(30)]
    phrases = [f"number {index} of" for index in range(30)]
    train, held = held_out_split(dataset_of(sentences + phrases), 10)
    held_texts = {row.text for row in held.rows}
    assert held_texts <= set(sentences)
    kept = {row.text for row in train.rows}
    for index, (sentence, phrase) in enumerate(zip(sentences, phrases, strict=True)):
        assert (sentence in kept, phrase in kept) == ((sentence not in held_texts,) * 2), index


def test_a_word_inside_a_longer_word_is_no_phrase() -> None:
    texts = [f"art {index}" for index in range(10)] + [f"party {index} x" for index in range(10)]
    _, held = held_out_split(dataset_of(texts), 10)
    assert any(row.text.startswith("art") for row in held.rows)
