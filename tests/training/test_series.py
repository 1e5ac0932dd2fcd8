"""Which tasks a bridge is trained on: its own, or every one of a series on the same states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.spec.scenario import DataChoice
from agentwire.task.datasets import Dataset, Example, load_rows
from agentwire.training.series import task_parts
from agentwire.training.states import StateCache


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(home=tmp_path, offline=True)


def states_of(rows: Dataset) -> StateCache:
    n = len(rows)
    labels = torch.tensor([row.label for row in rows.rows])
    return StateCache(torch.zeros(n, 2), torch.arange(n), torch.ones(n, dtype=torch.long), labels)


def some(data: Dataset, *numbers: int) -> Dataset:
    return replace(data, rows=tuple(data.rows[i] for i in numbers))


def test_a_passkeys_bridge_is_trained_on_all_five_digits(config: Config) -> None:
    data = load_rows("passkey_2", "train", config=config)
    rows = some(data, 7, 3, 11), some(data, 5)
    caches = states_of(rows[0]), states_of(rows[1])
    parts = task_parts(DataChoice(dataset="passkey_2"), rows, caches, config)
    assert [part.task.name for part in parts] == [f"passkey_{digit}" for digit in range(1, 6)]
    digits = [[int(d) for d in row.text if d.isdigit()] for row in rows[0].rows]
    assert [part.cache.labels.tolist() for part in parts] == [
        list(d) for d in zip(*digits, strict=True)
    ]
    assert [len(part.held_out) for part in parts] == [1] * 5
    # The states are not computed again.
    assert all(part.cache.flat is caches[0].flat for part in parts)


def test_other_tasks_stand_alone(config: Config) -> None:
    rows = load_rows("trec", "sample", config=config)
    cache = states_of(rows)
    (part,) = task_parts(DataChoice(dataset="trec"), (rows, rows), (cache, cache), config)
    assert part.task.name == "trec"
    assert part.cache is cache


def test_rows_from_a_path_stand_alone(config: Config) -> None:
    rows = some(load_rows("passkey_1", "train", config=config), 0)
    cache = states_of(rows)
    data = DataChoice(dataset="passkey_1", path="somewhere")
    assert len(task_parts(data, (rows, rows), (cache, cache), config)) == 1


def test_a_text_that_another_task_lacks_is_named(config: Config) -> None:
    data = load_rows("passkey_1", "train", config=config)
    rows = replace(data, rows=(Example("no passkey of ours", 0),))
    cache = states_of(rows)
    with pytest.raises(DataError, match="no row for the text 'no passkey of ours'"):
        task_parts(DataChoice(dataset="passkey_1"), (rows, rows), (cache, cache), config)
