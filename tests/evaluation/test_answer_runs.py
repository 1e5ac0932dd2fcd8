"""``agentwire run`` of questions answered in words: figures, files, resume, matrix, reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import agentwire
from scenario_files import FAKE, write

from agentwire.evaluation.matrix.result import MatrixResult
from agentwire.evaluation.predictions import Predictions, problem_of, record_of
from agentwire.evaluation.result import RunResult
from agentwire.runtime.reply import Reply
from agentwire.task.rows import AnswerRow
from agentwire.telemetry.journal import read_lines
from agentwire.wire.messages import Channel

SCENARIO = (
    FAKE.replace("to: bob}", 'to: bob, bridge: "fake:model-b:reader", soft_tokens: 16}')
    + """\
task: {dataset: squad, split: sample}
batch_size: 4
limit: 10
"""
)
METHODS = (
    "bridge,text_relay,text_relay_verbatim,receiver_direct,sender_direct,question_only,"
    "token_budget,summary_budget,shuffled_payload"
)
ROW = AnswerRow("7", "Anna has a cat.", "Who has a cat?", ("Anna", "Anna B."))
REPLY = Reply(
    request_id="ab" * 16, label=None, label_index=None, scores={}, text=" Anna a cat\n",
    channel=Channel.SOFT, reason="", stages={"generate": 3.0}, latency_ms=3.0, payload_bytes=512,
    prompt_tokens=30, completion_tokens=4,
)  # fmt: skip


def only_run(folder: Path) -> Path:
    (found,) = (folder / "runs").iterdir()
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(read_lines(only_run(folder) / "predictions.jsonl"))


# -- lines


def test_a_line_holds_the_answer_and_its_figures(tmp_path: Path) -> None:
    record = record_of("bridge", 3, ROW, REPLY)
    assert (record["predicted"], record["exact"], record["f1"]) == ("Anna a cat", False, 0.666667)
    assert (record["prompt_tokens"], record["completion_tokens"]) == (30, 4)
    assert "label" not in record
    assert problem_of(record, {3: ROW}, ()) == ""
    file = Predictions(tmp_path, {3: ROW}, ())
    file.add([record])
    file.close()
    again = Predictions(tmp_path, {3: ROW}, ())
    again.close()
    assert again.missing("bridge", [3, 4]) == [4]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"f1": 1.0}, "its figures are not those of 'Anna a cat'"),
        ({"fault": "loop"}, "its figures are not those"),
        ({"answers": ["Otto"]}, "the answers of row 3 are not those of the task"),
        ({"id": "8"}, "the answers of row 3"),
        ({"row": 4}, "row 4 is not a row of this run"),
        ({"error": "deadline"}, "it holds an answer and an error"),
        ({"label": "good"}, "label: Extra inputs"),
    ],
)
def test_a_changed_line_is_refused(change: dict[str, Any], problem: str) -> None:
    record = record_of("bridge", 3, ROW, REPLY) | change
    assert problem in problem_of(record, {3: ROW}, ())


# -- runs


@pytest.mark.integration
def test_every_method_answers_the_same_rows(tmp_path: Path) -> None:
    write(tmp_path, SCENARIO)
    shown = agentwire(tmp_path, "run", "scenario.yaml", "--methods", METHODS).stdout
    folder = only_run(tmp_path)
    result = RunResult.model_validate_json((folder / "result.json").read_text())
    assert ",".join(result.methods) == METHODS
    questions = {r["row"]: r["predicted"].rpartition(" ")[2] for r in lines(tmp_path)}
    for record in lines(tmp_path):
        if record["method"] in ("bridge", "question_only"):  # fakes repeat the question
            assert record["predicted"].rpartition(" ")[2] == questions[record["row"]]
    for name, method in result.methods.items():
        assert method.n == 10 and method.errors == {}
        figures = method.answers
        assert figures is not None, name
        of_rows = [r["f1"] for r in lines(tmp_path) if r["method"] == name]
        assert figures.f1 == pytest.approx(sum(of_rows) / 10)
        assert figures.f1_95[0] <= figures.f1 <= figures.f1_95[1]
        assert method.accuracy == figures.em
    bridge, budget = result.methods["bridge"], result.methods["token_budget"]
    assert (bridge.channels.soft, bridge.payload_bytes) == (10, 16 * 16 * 2)
    assert budget.answers is not None and budget.answers.prompt_tokens == 16
    assert result.methods["question_only"].payload_bytes == 0
    assert result.methods["shuffled_payload"].channels.soft == 10
    soft = {r["row"]: r["predicted"] for r in lines(tmp_path) if r["method"] == "bridge"}
    other = {r["row"]: r["predicted"] for r in lines(tmp_path) if r["method"] == "shuffled_payload"}
    assert all(soft[row] != other[row] for row in soft)
    found = {(one.second, one.figure): one for one in result.comparisons}
    assert len(found) == 16 and {one.first for one in result.comparisons} == {"bridge"}
    relay = result.methods["text_relay"].answers
    assert bridge.answers is not None and relay is not None
    difference = found["text_relay", "f1"].difference
    assert difference == pytest.approx(bridge.answers.f1 - relay.f1)
    assert "F1, exact match" in shown and "F1 of bridge minus text relay" in shown
    agentwire(tmp_path, "report", str(folder), "--html", "report.html", "--svg", "report.svg")
    assert "<html>" in (tmp_path / "report.html").read_text()
    assert "token budget" in (tmp_path / "report.svg").read_text().replace("&#160;", " ")


@pytest.mark.integration
def test_a_resumed_run_asks_only_what_is_missing_and_draws_the_same_intervals(
    tmp_path: Path,
) -> None:
    write(tmp_path, SCENARIO)
    ask = ["run", "scenario.yaml", "--json", "--methods", "bridge,question_only"]
    first = json.loads(agentwire(tmp_path, *ask).stdout)
    folder = only_run(tmp_path)
    kept = (folder / "predictions.jsonl").read_text().splitlines(keepends=True)
    (folder / "predictions.jsonl").write_text("".join(reversed(kept[3:])))
    (folder / "result.json").unlink()
    again = json.loads(agentwire(tmp_path, *ask, "--resume", str(folder)).stdout)
    assert len(lines(tmp_path)) == 20
    for name in ("bridge", "question_only"):
        assert again["methods"][name]["answers"] == first["methods"][name]["answers"]
    assert again["comparisons"] == first["comparisons"]


@pytest.mark.integration
def test_a_matrix_over_m_uses_one_bridge_and_averages_f1(tmp_path: Path) -> None:
    write(tmp_path, SCENARIO + "matrix: {soft_tokens: [8, 32]}\n")
    methods = "bridge,token_budget,receiver_direct"
    done = agentwire(tmp_path, "run", "scenario.yaml", "--methods", methods)
    result = MatrixResult.model_validate_json((only_run(tmp_path) / "matrix.json").read_text())
    assert [cell.id for cell in result.cells] == ["m8", "m32"]
    assert [list(cell.methods) for cell in result.cells] == [
        ["bridge", "token_budget", "receiver_direct"],
        ["bridge", "token_budget"],
    ]
    assert [cell.methods["bridge"].payload_bytes for cell in result.cells] == [256, 1024]
    rows = {(row.method, row.axes.get("soft_tokens"), row.figure): row for row in result.summary}
    assert set(rows) == {
        (method, m, figure)
        for method, m in [
            ("bridge", 8),
            ("bridge", 32),
            ("token_budget", 8),
            ("token_budget", 32),
            ("receiver_direct", None),
        ]
        for figure in ("em", "f1")
    }
    row = rows["bridge", 32, "f1"]
    figures = result.cells[1].methods["bridge"].answers
    assert figures is not None
    assert (row.mean, row.bootstrap95, row.wilson95) == (figures.f1, figures.f1_95, None)
    assert "token budget, F1" in done.stdout
    assert {one.second for one in result.cells[1].comparisons} == {"token_budget"}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("label_relay", "label_relay does not support tasks with answers in words"),
        ("receiver_few_shot", "The split 'train' of squad was not found"),
        ("zero_payload", "has no reader bridge, whose payload could be replaced"),
    ],
)
def test_a_method_that_cannot_run_says_why(tmp_path: Path, method: str, message: str) -> None:
    write(tmp_path, SCENARIO)
    assert (
        message in agentwire(tmp_path, "run", "scenario.yaml", "--methods", method, code=2).stderr
    )


@pytest.mark.integration
def test_a_method_for_questions_refuses_labels(tmp_path: Path) -> None:
    task = "task: {dataset: sst2, split: sample}\n"
    write(tmp_path, FAKE + task)
    done = agentwire(tmp_path, "run", "scenario.yaml", "--methods", "token_budget", code=2)
    assert "token_budget does not support tasks with labels" in done.stderr
