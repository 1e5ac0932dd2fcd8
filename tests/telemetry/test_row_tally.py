"""Totals over rows."""

from __future__ import annotations

from typing import Any

import pytest

from agentwire.telemetry.row_tally import RowTally


def record(**changes: Any) -> dict[str, Any]:
    return {
        "label": "good",
        "predicted": "good",
        "channel": "soft",
        "reason": "",
        "latency_ms": 10.0,
        "stages_ms": {"encode": 6.0, "wire": 4.0},
        "payload_bytes": 256,
        "error": None,
        **changes,
    }


def test_an_empty_tally() -> None:
    tally = RowTally()
    assert (tally.n, tally.correct, tally.stages_ms, tally.payload_bytes) == (0, 0, {}, None)


def test_rows_are_counted_by_outcome_and_channel() -> None:
    tally = RowTally()
    tally.add(record())
    tally.add(record(predicted="bad", latency_ms=20.0, stages_ms={"encode": 12.0, "wire": 8.0}))
    tally.add(record(channel="text", reason="bad_payload", payload_bytes=40))
    tally.add(record(error="deadline", predicted=None, latency_ms=None, channel=None))
    assert (tally.n, tally.answered, tally.correct) == (4, 3, 2)
    assert tally.channels == {"soft": 2, "text": 1}
    assert tally.reasons == {"bad_payload": 1}
    assert tally.errors == {"deadline": 1}
    assert tally.payload_bytes == pytest.approx((256 + 256 + 40) / 3)


def test_stages_add_up_to_the_mean_latency() -> None:
    tally = RowTally()
    tally.add(record())
    tally.add(record(latency_ms=20.0, stages_ms={"encode": 12.0, "wire": 5.0, "queue": 3.0}))
    assert sum(tally.stages_ms.values()) == pytest.approx(15.0)
