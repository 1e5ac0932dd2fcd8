"""predictions.jsonl: one line per row and method, written as the answers arrive.

A resumed run reads it and skips the rows in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from agentwire.errors import InputError, ScenarioError
from agentwire.runtime.reply import Reply
from agentwire.telemetry.journal import drop_torn_line, read_lines

FILE = "predictions.jsonl"


def choose_rows(total: int, limit: int, seed: int) -> list[int]:
    """Indices of the rows that a run scores, out of ``total``; ``limit`` 0 takes all.

    Rows are ordered by sha256 of ``seed:index`` and the first ``limit`` are taken. A smaller limit
    is a subset of a larger one, on every machine and Python version.
    """
    order = sorted(range(total), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    return order[:limit] if limit else order


def record_of(method: str, row: int, label: str, reply: Reply) -> dict[str, Any]:
    """The line of an answered row."""
    return {
        "method": method,
        "row": row,
        "request_id": reply.request_id,
        "label": label,
        "predicted": reply.label,
        "scores": {name: round(value, 6) for name, value in (reply.scores or {}).items()},
        "channel": str(reply.channel),
        "reason": reply.reason,
        "latency_ms": round(reply.latency_ms, 3),
        "stages_ms": {stage: round(ms, 3) for stage, ms in reply.stages.items()},
        "payload_bytes": reply.payload_bytes,
        "error": None,
    }


def failure_of(method: str, row: int, label: str, code: str, message: str) -> dict[str, Any]:
    """The line of a row without an answer."""
    return {
        "method": method,
        "row": row,
        "request_id": None,
        "label": label,
        "predicted": None,
        "scores": {},
        "channel": None,
        "reason": message,
        "latency_ms": None,
        "stages_ms": {},
        "payload_bytes": 0,
        "error": code,
    }


class Predictions:
    """The predictions in a run's folder: those of earlier sessions and of this one.

    Raises:
        ScenarioError: the file there cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._records: dict[tuple[str, int], dict[str, Any]] = {}
        drop_torn_line(self.path)
        if self.path.exists():
            self._read()
        self._file: TextIO = self.path.open("a", encoding="utf-8")

    def _read(self) -> None:
        try:
            for record in read_lines(self.path):
                self._records.setdefault((record["method"], record["row"]), record)
        except (InputError, KeyError, TypeError) as error:
            reason = error.message if isinstance(error, InputError) else f"{error}."
            raise ScenarioError(
                f"{self.path} cannot be resumed: {reason}",
                hint="Leave --resume out to start a new run.",
            ) from None

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
