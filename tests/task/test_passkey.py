"""Generated passkeys: equal texts for all digits, equal rows on all machines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.task import passkey
from agentwire.task.datasets import load_rows, where
from agentwire.task.definitions import load_definition

TASKS = [f"passkey_{digit}" for digit in range(1, 6)]


@pytest.fixture
def bare(tmp_path: Path) -> Config:
    return Config(home=tmp_path / "home", offline=True)


def test_the_label_of_each_task_is_the_digit_that_stands_in_the_text(bare: Config) -> None:
    datasets = [load_rows(task, "validation", config=bare) for task in TASKS]
    for rows in zip(*(d.rows for d in datasets), strict=True):
        assert len({row.text for row in rows}) == 1
        found = re.search(r"\d \d \d \d \d", rows[0].text)
        assert found is not None
        assert [row.label for row in rows] == [int(digit) for digit in found.group().split()]


def test_rows_never_change() -> None:
    first = passkey.generate("test", "passkey_1")[0]
    assert first == passkey.generate("test", "passkey_1")[0]
    assert len(passkey.generate("train", "passkey_1")) == 20_000


def test_rows_are_the_recorded_ones(bare: Config) -> None:
    """Published figures are about these rows, so the generator must not change."""
    recorded = "c2bcc830661bfb98737926c1b86cdc0c4cc8d2725ab5ca99ae3c1579a8a19cc0"
    assert load_rows("passkey_1", "test", config=bare).provenance["rows_sha256"] == recorded


def test_splits_share_no_text() -> None:
    test = {row.text for row in passkey.generate("test", "passkey_1")}
    train = {row.text for row in passkey.generate("train", "passkey_1")}
    assert not test & train


def test_no_digit_is_favoured() -> None:
    rows = passkey.generate("train", "passkey_3")
    shares = [sum(row.label == digit for row in rows) / len(rows) for digit in range(10)]
    assert min(shares) > 0.09
    assert max(shares) < 0.11


def test_provenance_says_that_they_are_generated(bare: Config) -> None:
    assert load_rows("passkey_2", "test", config=bare).provenance["source"] == "generated"
    assert where("passkey_2", "test", config=bare) == "generated"
    with pytest.raises(DataError, match="passkey_2"):
        load_rows("passkey_2", "nonsense", config=bare)


def test_one_series_and_five_questions() -> None:
    definitions = [load_definition(task) for task in TASKS]
    assert {d.series for d in definitions} == {"passkey"}
    assert len({d.prompt for d in definitions}) == 5
    assert len({d.spec().prompt_hash for d in definitions}) == 5
