"""Figures of tasks that are answered in words: exact match, F1, faulty answers, differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from agentwire.evaluation.predictions import Predictions
from agentwire.evaluation.result import AnswerFigures, Comparison
from agentwire.task.metrics import bootstrap_interval, paired_bootstrap

Records = Sequence[Mapping[str, Any]]
FIGURES = {"em": "exact", "f1": "f1"}
"""Name of a figure -> its key on a line of predictions.jsonl."""


def values(records: Records, figure: str) -> list[float]:
    """A figure of each row, in 0..1."""
    return [float(record[FIGURES[figure]]) for record in records]


def answer_figures(records: Records) -> AnswerFigures | None:
    """The figures of one method; None if its rows have no answers in words."""
    if not records or "exact" not in records[0]:
        return None
    # Answers arrive in any order; a resumed run must draw the same samples.
    records = sorted(records, key=lambda record: int(record["row"]))
    answered = [record for record in records if record["error"] is None]
    exact, overlap = values(records, "em"), values(records, "f1")
    return AnswerFigures(
        em=fmean(exact),
        em95=bootstrap_interval(exact),
        f1=fmean(overlap),
        f1_95=bootstrap_interval(overlap),
        faults=dict(sorted(Counter(r["fault"] for r in answered if r["fault"]).items())),
        prompt_tokens=_mean(answered, "prompt_tokens"),
        completion_tokens=_mean(answered, "completion_tokens"),
    )


def _mean(records: Records, key: str) -> float | None:
    return round(fmean(record[key] for record in records), 3) if records else None


def comparisons(
    methods: Sequence[str], predictions: Predictions, first: str = "bridge"
) -> list[Comparison]:
    """The bridge minus each other method, over the rows that both have."""
    by_row = {
        method: {int(record["row"]): record for record in predictions.of(method)}
        for method in methods
    }
    found = []
    for second in methods:
        rows = sorted(by_row.get(first, {}).keys() & by_row[second].keys())
        if second == first or not rows or "exact" not in by_row[first][rows[0]]:
            continue
        for figure in FIGURES:
            ours, theirs = (
                values([by_row[name][row] for row in rows], figure) for name in (first, second)
            )
            paired = paired_bootstrap(ours, theirs)
            found.append(
                Comparison(
                    first=first,
                    second=second,
                    figure=figure,
                    difference=paired.difference,
                    interval95=paired.interval95,
                    p_value=paired.p_value,
                    n=len(rows),
                )
            )
    return found
