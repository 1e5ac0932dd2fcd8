"""predictions.jsonl: one line per row and method, written as the answers arrive.

A resumed run reads it and skips the rows in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentwire.errors import InputError, NackCode, ScenarioError
from agentwire.evaluation.methods import get_method
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import Reply
from agentwire.task.answers import exact_match, f1, fault
from agentwire.task.rows import AnswerRow
from agentwire.telemetry.journal import drop_torn_line, numbered_lines, read_lines

FILE = "predictions.jsonl"

Wanted: TypeAlias = str | AnswerRow
"""What is right for a row: its label, or its answers."""


def choose_rows(total: int, limit: int, seed: int) -> list[int]:
    """Indices of the rows that a run scores, out of ``total``; ``limit`` 0 takes all.

    Rows are ordered by sha256 of ``seed:index`` and the first ``limit`` are taken. A smaller limit
    is a subset of a larger one, on every machine and Python version.
    """
    order = sorted(range(total), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    return order[:limit] if limit else order


def record_of(method: str, row: int, wanted: Wanted, outcome: Outcome) -> dict[str, Any]:
    """The line of a row."""
    reply = outcome if isinstance(outcome, Reply) else None
    stages = reply.stages if reply else {}
    return {
        "method": method,
        "row": row,
        "request_id": reply and reply.request_id,
        **(_label(wanted, reply) if isinstance(wanted, str) else _answer(wanted, reply)),
        "channel": reply and str(reply.channel),
        "reason": outcome.reason if isinstance(outcome, Reply) else outcome.message,
        "latency_ms": reply and round(reply.latency_ms, 3),
        "stages_ms": {stage: round(ms, 3) for stage, ms in stages.items()},
        "payload_bytes": reply.payload_bytes if reply else 0,
        "unread": reply.unread if reply else 0,
        "error": None if isinstance(outcome, Reply) else str(outcome.code),
    }


def _label(label: str, reply: Reply | None) -> dict[str, Any]:
    scores = reply.scores if reply else {}
    return {
        "label": label,
        "predicted": reply and reply.label,
        "scores": {name: round(value, 6) for name, value in scores.items()},
    }


def _answer(row: AnswerRow, reply: Reply | None) -> dict[str, Any]:
    text = None if reply is None else (reply.text or "").strip()
    return {
        "id": row.id,
        "answers": list(row.answers),
        "predicted": text,
        **_figures(row.answers, text),
        "prompt_tokens": reply.prompt_tokens if reply else 0,
        "completion_tokens": reply.completion_tokens if reply else 0,
    }


def _figures(answers: Sequence[str], text: str | None) -> dict[str, Any]:
    if text is None:
        return {"exact": False, "f1": 0.0, "fault": None}
    score = round(f1(text, answers), 6)
    return {"exact": exact_match(text, answers), "f1": score, "fault": fault(text)}


class _Line(BaseModel):
    """The keys of every line that ``record_of`` writes."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    method: str
    row: int
    request_id: str | None
    predicted: str | None
    channel: Literal["soft", "text"] | None
    reason: str | None
    latency_ms: Annotated[float, Field(ge=0)] | None
    stages_ms: dict[str, float]
    payload_bytes: Annotated[int, Field(ge=0)]
    unread: Annotated[int, Field(ge=0)] = 0  # missing in older files
    error: str | None


class _LabelLine(_Line):
    label: str
    scores: dict[str, float]


class _AnswerLine(_Line):
    id: str
    answers: list[str]
    exact: bool
    f1: float
    fault: str | None
    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)]


def problem_of(
    record: Mapping[str, Any], wanted: Mapping[int, Wanted], words: Sequence[str]
) -> str:
    """Why a line cannot be a prediction of the run; "" if it can.

    ``wanted`` has what is right for each row of the run, ``words`` all labels (questions: none).
    """
    kind = _LabelLine if words else _AnswerLine
    try:
        line: _LabelLine | _AnswerLine = kind.model_validate(record)
        get_method(line.method)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ScenarioError as error:
        return error.message
    if line.row not in wanted:
        return f"row {line.row} is not a row of this run"
    right = wanted[line.row]
    if isinstance(line, _AnswerLine):
        if [line.id, *line.answers] != [right.id, *right.answers]:  # type: ignore[union-attr]
            return f"the answers of row {line.row} are not those of the task"
        figures = {"exact": line.exact, "f1": line.f1, "fault": line.fault}
        if figures != _figures(line.answers, line.predicted):
            return f"its figures are not those of {line.predicted!r}"
    else:
        if line.label != right:
            return f"the label of row {line.row} is {right!r}, not {line.label!r}"
        unknown = {line.predicted or line.label, *line.scores}.difference(words)
        if unknown:
            return f"{min(unknown)!r} is not a label of the task"
    if line.error is not None:
        known = line.error in set(NackCode)
        return "" if known and line.predicted is None else "it holds an answer and an error"
    if line.channel is None or line.latency_ms is None:
        return "it holds neither an answer nor an error"
    if isinstance(line, _AnswerLine) or line.predicted is None:
        return ""
    best = max(line.scores.values(), default=0.0)
    # Scores are rounded to six digits, so two may have become equal.
    if line.scores.get(line.predicted, best) < best - 1e-6:
        return f"the prediction {line.predicted!r} does not have the highest score"
    return ""


def unanswered(folder: Path) -> list[str]:
    """What to say of each row of a run without an answer; empty if all have one."""
    return [
        f"row {record['row']} has no answer ({record['method']}: {record['error']})"
        for record in read_lines(folder / FILE)
        if record["error"]
    ]


class Predictions:
    """The predictions in a run's folder: those of earlier sessions and of this one.

    Raises ScenarioError for a line that is there twice or cannot be of this run (``problem_of``).
    """

    def __init__(self, folder: Path, wanted: Mapping[int, Wanted], words: Sequence[str]) -> None:
        self.path = folder / FILE
        self._records: dict[tuple[str, int], dict[str, Any]] = {}
        drop_torn_line(self.path)
        if self.path.exists():
            self._read(wanted, words)
        self._file: TextIO = self.path.open("a", encoding="utf-8", errors="backslashreplace")

    def _read(self, wanted: Mapping[int, Wanted], words: Sequence[str]) -> None:
        hint = "Remove that line to ask its row again, or leave --resume out to start a new run."
        lines: dict[object, int] = {}
        try:
            for number, record in numbered_lines(self.path):
                problem = problem_of(record, wanted, words)
                for key in ((record.get("method"), record.get("row")), record.get("request_id")):
                    if not problem and key and key in lines:
                        problem = f"it repeats line {lines[key]}"
                    if not problem:
                        lines[key] = number
                if problem:
                    raise ScenarioError(f"{self.path}:{number}: {problem}.", hint=hint)
                self._records[record["method"], record["row"]] = record
        except InputError as error:
            raise ScenarioError(error.message, hint=hint) from None

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Appends lines and flushes; a row that is already there is not changed."""
        for record in records:
            key = (record["method"], record["row"])
            if key not in self._records:
                self._records[key] = record
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def missing(self, method: str, rows: Sequence[int]) -> list[int]:
        """The rows that this method has not answered yet, in order."""
        return [row for row in rows if (method, row) not in self._records]

    def of(self, method: str) -> list[dict[str, Any]]:
        """The records of one method in order of arrival."""
        return [r for (name, _), r in self._records.items() if name == method]

    def close(self) -> None:
        self._file.close()
