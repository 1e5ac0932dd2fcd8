"""The package's samples: marked as such, every class covered, no training split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.task.datasets import load_rows, where
from agentwire.task.definitions import load_definition
from agentwire.task.rows import normalise
from agentwire.task.samples import sample_file, sample_note

TASKS = ["ag_news", "banking77", "sst2", "trec"]


@pytest.fixture
def bare(tmp_path: Path) -> Config:
    """A machine without data."""
    return Config(home=tmp_path / "home", offline=True)


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_covers_every_class_equally(bare: Config, task: str) -> None:
    sample = load_rows(task, "sample", config=bare)
    counts = Counter(row.label for row in sample.rows)
    assert set(counts) == set(range(len(load_definition(task).labels)))
    assert len(set(counts.values())) == 1
    assert 40 <= len(sample) <= 154
    assert len({normalise(row.text) for row in sample.rows}) == len(sample)


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_says_what_it_is(bare: Config, task: str) -> None:
    sample = load_rows(task, "sample", config=bare)
    assert sample.split == "sample"
    assert sample.provenance["source"] == "sample"
    assert sample.provenance["note"] == sample_note(task)
    assert f"no part of {task}" in sample_note(task)
    assert sample_note(task).startswith(f"{len(sample)} rows written for agentwire")
    assert where(task, "sample", config=bare) == "sample"


@pytest.mark.parametrize(
    ("split", "words"),
    [("train", "is too small to train on"), ("test", "has only the split 'sample'")],
)
def test_a_sample_has_no_other_split(bare: Config, split: str, words: str) -> None:
    with pytest.raises(DataError, match=f"agentwire's own sample {words}"):
        load_rows("ag_news", split, config=bare)


def test_a_task_without_a_sample(bare: Config) -> None:
    assert sample_file("movie_snippets") is None
    assert where("movie_snippets", "sample", config=bare) == ""
    with pytest.raises(DataError):
        load_rows("movie_snippets", "sample", config=bare)


@pytest.mark.parametrize("task", TASKS)
def test_no_row_of_a_sample_is_a_row_of_the_real_data(task: str) -> None:
    """A bridge trained on the real data must not have seen the sample."""
    config = Config.from_env()
    if config.data is None or not (config.data / task).is_dir():
        pytest.skip("the real rows are not here: set AGENTWIRE_DATA")
    real = {
        normalise(row.text)
        for split in ("train", "validation", "test")
        if where(task, split, config=config)
        for row in load_rows(task, split, config=config).rows
    }
    sample = load_rows(task, "sample", config=config)
    assert not [row.text for row in sample.rows if normalise(row.text) in real]
