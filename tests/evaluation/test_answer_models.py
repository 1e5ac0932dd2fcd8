"""Questions through a reader bridge between two tiny language models: every method, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from command_line import agentwire

from agentwire.bridge.card import write_card
from agentwire.evaluation.result import RunResult
from agentwire.model.sources.lookup import public_name
from agentwire.telemetry.journal import read_lines

pytestmark = pytest.mark.integration

METHODS = [
    "bridge",
    "receiver_direct",
    "receiver_few_shot",
    "question_only",
    "token_budget",
    "shuffled_payload",
    "zero_payload",
    "mean_payload",
]


def rows(n: int, seed: int) -> list[dict[str, object]]:
    return [
        {"context": text, "question": f"What is scene {i}?", "answers": [text.split()[0]]}
        for i, (text, _) in enumerate(tiny.sentences(n, seed))
    ]


def prepare(folder: Path, llama: Path, gemma: Path) -> None:
    from agentwire.model.transformers import TransformersBackend

    ends = [
        TransformersBackend.load(tiny.spec(name, path), lambda stage, done: None).identity
        for name, path in (("ada", llama), ("bob", gemma))
    ]
    card = tiny.write_reader(folder / "tiny-reader", *ends)
    named = {
        end: getattr(card, end).model_copy(update={"model": public_name(str(path))})
        for end, path in (("sender", llama), ("receiver", gemma))
    }
    write_card(folder / "tiny-reader", card.model_copy(update=named))
    for split, seed, n in (("train", 1, 20), ("test", 2, 8)):
        text = "".join(json.dumps(row) + "\n" for row in rows(n, seed))
        (folder / f"{split}.jsonl").write_text(text)
    task = {"name": "ask", "kind": "answer", "max_new_tokens": 6}
    files = {"train": "train.jsonl", "test": "test.jsonl"}
    (folder / "task.yaml").write_text(json.dumps({**task, "rows": files}))
    agents = {
        name: {"model": str(path), "device": "cpu", "threads": 1}
        for name, path in (("ada", llama), ("bob", gemma))
    }
    wire = {"from": "ada", "to": "bob", "bridge": "tiny-reader", "soft_tokens": "auto"}
    scenario = {"name": "ask", "agents": agents, "wires": [wire], "batch_size": 4}
    scenario |= {"task": {"file": "task.yaml"}, "methods": METHODS}
    (folder / "scenario.yaml").write_text(json.dumps(scenario))


def test_every_method_answers(tmp_path: Path, tiny_llama: Path, tiny_gemma: Path) -> None:
    prepare(tmp_path, tiny_llama, tiny_gemma)
    done = agentwire(tmp_path, "run", "scenario.yaml", "--json")
    result = RunResult.model_validate_json(done.stdout)
    assert list(result.methods) == METHODS
    for name, method in result.methods.items():
        assert (method.n, method.errors, method.cut) == (8, {}, 0), name
        assert method.answers is not None and method.answers.prompt_tokens, name
    read = {name: m.answers.prompt_tokens for name, m in result.methods.items() if m.answers}
    assert read["question_only"] < read["token_budget"] < read["receiver_direct"]
    assert read["receiver_few_shot"] > 2 * read["receiver_direct"]
    assert result.methods["bridge"].channels.soft == 8
    (folder,) = (tmp_path / "runs").iterdir()
    answers: dict[str, dict[int, str]] = {}
    for line in read_lines(folder / "predictions.jsonl"):
        answers.setdefault(line["method"], {})[line["row"]] = line["predicted"]
    for method in ("shuffled_payload", "zero_payload", "mean_payload"):
        assert answers[method] != answers["bridge"], method
