"""Totals over the rows of a run: outcomes, channels, latencies, stage times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def is_right(record: Mapping[str, Any]) -> bool:
    """Whether the answer on a line of predictions.jsonl is right; of words, an exact match."""
    return bool(record["exact"] if "exact" in record else record["predicted"] == record["label"])


@dataclass
class RowTally:
    """Totals over the rows of one method.

    Attributes:
        n: rows with an outcome, errors included.
        correct: rows whose predicted label is the row's own, or whose answer is an exact match.
        latencies_ms: round trip of each answered row.
        channels: answered rows by channel.
        reasons: rows that went as text although soft tokens were asked for, or that were cut, by
            reason.
        errors: rows without an answer, by cause.
        cut: answered rows whose text was not read to its end.
    """

    n: int = 0
    correct: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    channels: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    _stages: Counter[str] = field(default_factory=Counter)
    _payload_bytes: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts one row, a line of predictions.jsonl (``evaluation.predictions``)."""
        self.n += 1
        error = record.get("error")
        if error:
            self.errors[error] += 1
            return
        self.correct += is_right(record)
        self.latencies_ms.append(record["latency_ms"])
        self.channels[record["channel"]] += 1
        if record["reason"]:
            self.reasons[record["reason"]] += 1
        for stage, ms in record["stages_ms"].items():
            self._stages[stage] += ms
        self._payload_bytes += record["payload_bytes"]
        self.cut += record.get("unread", 0) > 0

    @property
    def answered(self) -> int:
        return len(self.latencies_ms)

    @property
    def stages_ms(self) -> dict[str, float]:
        """Mean milliseconds of a row in each stage; they add up to the mean latency."""
        if not self.answered:
            return {}
        return {stage: total / self.answered for stage, total in self._stages.items()}

    @property
    def payload_bytes(self) -> float | None:
        """Mean bytes of one row's message on the bus."""
        return self._payload_bytes / self.answered if self.answered else None
