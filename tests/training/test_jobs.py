"""Which tasks a bridge is trained on: its own, or every task of a series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.spec.scenario import DataChoice
from agentwire.task.datasets import Dataset, Example, load_rows
from agentwire.task.definitions import load_definition
from agentwire.training.jobs import TrainingData, training_data


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(home=tmp_path, offline=True)


def some(data: Dataset, *numbers: int) -> Dataset:
    return replace(data, rows=tuple(data.rows[i] for i in numbers))


def data_of(choice: DataChoice, rows: Dataset, held_out: Dataset, config: Config) -> TrainingData:
    return training_data(choice, load_definition(choice.dataset), rows, held_out, config)


def test_a_passkey_bridge_is_trained_on_all_five_digits(config: Config) -> None:
    split = load_rows("passkey_2", "train", config=config)
    rows, held_out = some(split, 7, 3, 11), some(split, 5)
    data = data_of(DataChoice(dataset="passkey_2"), rows, held_out, config)
    assert [one.task.name for one in data.tasks] == [f"passkey_{digit}" for digit in range(1, 6)]
    digits = [[int(d) for d in row.text if d.isdigit()] for row in rows.rows]
    assert [one.labels for one in data.tasks] == list(zip(*digits, strict=True))
    assert [len(one.held_out) for one in data.tasks] == [1] * 5


def test_a_task_without_a_series_stands_alone(config: Config) -> None:
    rows = load_rows("trec", "sample", config=config)
    data = data_of(DataChoice(dataset="trec"), rows, rows, config)
    (one,) = data.tasks
    assert one.task.name == "trec"
    assert one.labels == tuple(row.label for row in rows.rows)


def test_rows_from_a_path_stand_alone(config: Config) -> None:
    rows = some(load_rows("passkey_1", "train", config=config), 0)
    choice = DataChoice(dataset="passkey_1", path="somewhere")
    assert len(data_of(choice, rows, rows, config).tasks) == 1


def test_a_text_that_another_task_lacks_is_named(config: Config) -> None:
    split = load_rows("passkey_1", "train", config=config)
    rows = replace(split, rows=(Example("not one of the passkeys", 0),))
    with pytest.raises(DataError, match="no row for the text 'not one of the passkeys'"):
        data_of(DataChoice(dataset="passkey_1"), rows, rows, config)
