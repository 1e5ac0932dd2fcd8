"""The record of fan-in: a rehearsal on tiny models, from states to a set that can ship."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from lab import fan_in
from lab.world import PAIR, Rows, World

from agentwire.bridge.card import read_card
from agentwire.model.transformers import TransformersBackend
from agentwire.task.datasets import Dataset
from agentwire.task.definitions import load_definition
from agentwire.task.holdout import held_out_split
from agentwire.task.rows import Example


class TinyWorld(World):
    """Tiny models under the pair's names, and made-up rows."""

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(torch.device("cpu"), quick=True)
        self.folders = folders

    def model(
        self, name: str, dtype: str = "float32", random: int | None = None
    ) -> TransformersBackend:
        if (name, dtype, random) not in self._models:
            spec = tiny.spec("x", self.folders[name]).model_copy(update={"model": name})
            loaded = TransformersBackend.load(spec, lambda stage, fraction: None)
            self._models[name, dtype, random] = loaded
        return self._models[name, dtype, random]

    def rows(self, task: str) -> Rows:
        definition = load_definition(task)
        parts = [
            Dataset(
                task, split, tuple(Example(*s) for s in tiny.sentences(n, seed)),
                definition.labels, {"source": "folder", "location": "x", "sha256": "0" * 64},
            )
            for split, n, seed in (("train", 120, 1), ("validation", 30, 2))
        ]  # fmt: skip
        kept, held_out = held_out_split(parts[0], 16, 0)
        return Rows(task, definition.spec(), definition.labels, kept, held_out, parts[1])


def test_each_row_gets_another_and_each_is_given_once() -> None:
    other = fan_in.another_row(50, seed=3)
    assert sorted(other.tolist()) == list(range(50))
    assert not (other == torch.arange(50)).any()


def test_pieces_of_a_text() -> None:
    pieces = [fan_in.piece_of("a b c d e", piece) for piece in fan_in.PIECES]
    assert pieces == ["a b c", "d e", "a b c d e"]


def test_a_set_is_trained_scored_with_and_without_each_sender_and_written(
    tmp_path: Path, tiny_llama: Path, tiny_gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PAIR:
        monkeypatch.setitem(fan_in.LAYERS, name, 1)
    fan = fan_in.Fan(TinyWorld(dict(zip(PAIR, (tiny_llama, tiny_gemma), strict=True))), "sst2", [4])
    done = fan.train([fan_in.HALVES])
    runs, predictions = fan.score(fan_in.HALVES, 4, done["halves", 4])
    assert [run["true_texts"] for run in runs] == ["all", "only 1", "only 2"]
    assert all(run["n"] == 30 and run["test_scorings"] == 1 for run in runs)
    assert list(predictions) == [f"sst2.halves.{what}.seed4" for what in ("all", "only1", "only2")]
    direct, more = fan.direct()
    assert [run["piece"] for run in direct] == list(fan_in.PIECES) and len(more) == 3

    folders = fan.save(tmp_path, done, runs)
    name = "smollm2-135m-instruct+gemma-3-270m--gemma-3-270m--sst2"
    assert [folder.name for folder in folders] == [f"{name}.1", f"{name}.2"]
    joint = read_card(folders[1]).joint
    assert joint is not None and (joint.place, joint.reads) == (2, "share")

    about = fan_in.about("python bench/fan_in.py work", quick=False)
    monkeypatch.setattr(fan_in, "describe_task", lambda task: {"rows": 30})
    record = fan_in.describe([{**about, "runs": runs + direct}])
    assert record["figures"]["sst2.halves.all.mean"] == pytest.approx(runs[0]["accuracy"], abs=1e-6)
    assert record["tasks"] == {"sst2": {"rows": 30}} and "quick" not in record
