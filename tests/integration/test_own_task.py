"""The user-defined task in docs/tasks.md is validated, listed, scored and used for training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
from command_line import ROOT, agentwire

from agentwire.bridge.store import verify
from agentwire.errors import DataError
from agentwire.task.definitions import load_definition, read_task

PAGE = ROOT / "docs" / "tasks.md"
BLOCKS = dict(re.findall(r"```\w+ (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
TEST = "tickets/test.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in BLOCKS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def use(folder: Path, agents: dict[str, dict[str, object]], **more: object) -> None:
    scenario = {
        "name": "tickets",
        "agents": agents,
        "wires": [{"from": "reader", "to": "clerk"}],
        "task": {"file": "tickets_task.yaml"},
        **more,
    }
    (folder / "scenario.yaml").write_text(json.dumps(scenario))


def test_the_example_is_short_valid_and_listed(folder: Path) -> None:
    assert sum(text.count("\n") for text in BLOCKS.values()) <= 50
    assert "valid (tickets)" in agentwire(folder, "validate", "scenario.yaml").stdout
    listed = agentwire(folder, "data", "list", "tickets_task.yaml", "--json").stdout
    assert json.loads(listed)[-1]["splits"] == {"test": "files"}
    shown = agentwire(folder, "data", "show", "tickets_task.yaml").stdout
    assert "high  (now)" in shown and "tickets/test.jsonl" in shown


def test_the_example_with_questions_is_listed(folder: Path) -> None:
    listed = json.loads(agentwire(folder, "data", "list", "contracts_task.yaml", "--json").stdout)
    assert (listed[-1]["kind"], listed[-1]["splits"]) == ("answer", {"test": "files"})
    shown = agentwire(folder, "data", "show", "contracts_task.yaml").stdout
    assert "at most 24 tokens" in shown and '"answers": ["..."]' in shown


def test_it_is_scored(folder: Path) -> None:
    fake: dict[str, object] = {"backend": "fake"}
    use(folder, {"reader": {"model": "a", **fake}, "clerk": {"model": "b", **fake}})
    done = agentwire(folder, "run", "scenario.yaml", "--json", "--methods", "bridge,text_relay")
    result = json.loads(done.stdout)
    assert result["dataset"]["name"] == "tickets"
    assert result["methods"]["bridge"]["n"] == 2


def test_it_is_trained_on(folder: Path, tiny_llama: Path, tiny_gemma: Path) -> None:
    tiny.write_rows(folder / "tickets" / "train.jsonl", 150, seed=1)
    use(
        folder,
        {
            "reader": {"model": str(tiny_llama), "layer": 1, "device": "cpu", "threads": 1},
            "clerk": {"model": str(tiny_gemma), "device": "cpu", "threads": 1},
        },
        methods=["bridge"],
        train={"steps": 4, "hidden": 32, "heads": 4, "held_out": 16, "evaluate_every": 2},
    )
    trained = json.loads(agentwire(folder, "train", "scenario.yaml", "--json").stdout)
    assert trained["bridge"] == "tiny-llama--tiny-gemma--tickets"
    card = verify(folder / "bridges" / trained["bridge"])
    assert card.prompts == (read_task(folder / "tickets_task.yaml").spec().prompt_hash,)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("labels: [low, high]", "labls: [low, high]", r"tickets_task.yaml:4: unknown key 'labls'"),
        ("name: tickets", "name: sst2", "belongs to a built-in task"),
        ("label_words: [later, now]", "series: passkey", "for built-in tasks only"),
        (TEST, "tickets/train.jsonl", "each split files of its own"),
    ],
)
def test_a_bad_task_file_is_refused(folder: Path, before: str, after: str, message: str) -> None:
    file = folder / "tickets_task.yaml"
    file.write_text(BLOCKS["tickets_task.yaml"].replace(before, after))
    with pytest.raises(DataError, match=message):
        read_task(file)
    agentwire(folder, "validate", "scenario.yaml", code=2)


def test_bad_rows_and_splits_are_refused(folder: Path) -> None:
    (folder / TEST).write_text('{"text": "x", "label": "hihg"}\n')
    pulled = agentwire(folder, "data", "pull", "tickets_task.yaml", code=2)
    assert "test.jsonl:1: the label 'hihg'" in pulled.stderr and "'high'" in pulled.stderr


def test_a_package_registers_a_task(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_package.py").write_text(code)
    info = tmp_path / "tickets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tickets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[agentwire.tasks]\ntickets = my_package:tickets\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_definition("tickets").labels == ("low", "high")
