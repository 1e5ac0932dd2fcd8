"""Summarises cells for matrix.json: means over seeds, and rows right in a whole series."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from agentwire.evaluation.answers import FIGURES, values
from agentwire.evaluation.matrix.cells import CellPlan, relevant_axes
from agentwire.evaluation.matrix.expand import Cell
from agentwire.evaluation.matrix.result import Axes, AxisValue, CellBridge, CellRecord, SummaryRow
from agentwire.evaluation.methods import METHODS, get_method
from agentwire.evaluation.predictions import FILE as PREDICTIONS
from agentwire.evaluation.result import RunResult, SubstitutionRecord
from agentwire.spec.scenario import TrainSpec
from agentwire.task.definitions import definitions
from agentwire.task.metrics import bootstrap_interval, wilson_interval
from agentwire.telemetry.journal import read_lines
from agentwire.telemetry.row_tally import is_right

Combination: TypeAlias = tuple[tuple[str, AxisValue], ...]
Right: TypeAlias = Mapping[int, bool]
"""Row of a split -> whether its answer was right."""


def cell_bridge(plan: CellPlan) -> CellBridge | None:
    """The bridge of a cell, and how its training differs from the cell's settings.

    The seed is compared only if an axis or ``train:`` sets one: shipped bridges have the seed that
    was best on held-out rows.
    """
    card = plan.resolved.wire.card
    if card is None or not plan.needs_bridge:
        return None
    wanted = plan.cell.scenario.train.model_dump(mode="json")
    if "seed" not in plan.cell.axes and wanted["seed"] == TrainSpec().seed:
        del wanted["seed"]
    trained = card.training.recipe
    return CellBridge(
        name=card.name,
        fingerprint=card.weights_sha256,
        layer=card.layer,
        soft_tokens=card.soft_tokens,
        held_out_accuracy=card.training.held_out_accuracy,
        recipe_differs=sorted(k for k in wanted if k in trained and trained[k] != wanted[k]),
    )


def substitutions(plans: Iterable[CellPlan]) -> list[SubstitutionRecord]:
    """All substitutions of the cells, each once."""
    records = (
        SubstitutionRecord.model_validate(asdict(s))
        for plan in plans
        for s in plan.resolved.substitutions
    )
    return list(dict.fromkeys(records))


def all_axes(cells: Iterable[Cell]) -> dict[str, list[AxisValue]]:
    """The values of each axis in the order of the cells."""
    axes: dict[str, list[AxisValue]] = {}
    for cell in cells:
        for name, value in cell.axes.items():
            values = axes.setdefault(name, [])
            if value not in values:
                values.append(value)
    return axes


def summary(cells: Sequence[CellRecord], folder: Path) -> list[SummaryRow]:
    """Rows over all seeds; ``folder`` is the matrix's, with the predictions of each cell."""
    groups: dict[tuple[str, Combination], list[CellRecord]] = {}
    for cell in cells:
        for method, record in cell.methods.items():
            if record.n:
                key = (method, tuple(_axes_of(method, cell.axes).items()))
                groups.setdefault(key, []).append(cell)
    rows: list[SummaryRow] = []
    for (method, axes), members in groups.items():
        records = [cell.methods[method] for cell in members]
        if all(record.answers is not None for record in records):
            rows += _answer_rows(method, dict(axes), members, folder)
            continue
        row = _row(
            axes=dict(axes),
            method=method,
            figure="accuracy",
            cells=members,
            accuracies=[record.accuracy for record in records],
            n=min(record.n for record in records),
        )
        rows.append(row)
    return [*rows, *_series_rows(cells, folder)]


def _answer_rows(
    method: str, axes: Axes, cells: Sequence[CellRecord], folder: Path
) -> Iterator[SummaryRow]:
    """EM and F1 of answers in words. The interval is of the mean over seeds of each row."""
    parts = [_lines(folder, cell, method) for cell in cells]
    for figure in FIGURES:
        by_row: dict[int, list[float]] = {}
        for part in parts:
            for record, value in zip(part, values(part, figure), strict=True):
                by_row.setdefault(record["row"], []).append(value)
        row = _row(
            axes=axes,
            method=method,
            figure=figure,
            cells=cells,
            accuracies=[getattr(cell.methods[method].answers, figure) for cell in cells],
            n=min(cell.methods[method].n for cell in cells),
        )
        interval = bootstrap_interval([statistics.fmean(by_row[i]) for i in sorted(by_row)])
        yield row.model_copy(update={"wilson95": None, "bootstrap95": interval})


def _axes_of(method: str, axes: Axes) -> Axes:
    """The axes that a method's figures depend on, without the seed."""
    relevant = relevant_axes(get_method(method), axes) if method in METHODS else axes
    return {name: value for name, value in relevant.items() if name != "seed"}


def _row(
    *,
    axes: Axes,
    method: str,
    figure: str,
    cells: Sequence[CellRecord],
    accuracies: Sequence[float | None],
    n: int,
) -> SummaryRow:
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    mean = statistics.fmean(known) if known else None
    return SummaryRow.model_validate(
        {
            "axes": axes,
            "method": method,
            "figure": figure,
            "seeds": [cell.axes["seed"] for cell in cells if "seed" in cell.axes],
            "mean": mean,
            "std": statistics.stdev(known) if len(known) > 1 else None,
            "lowest": min(known, default=None),
            "highest": max(known, default=None),
            "wilson95": None if mean is None else wilson_interval(round(mean * n), n),
            "n": n,
            "cells": [cell.id for cell in cells],
        }
    )


def _series_rows(cells: Sequence[CellRecord], folder: Path) -> Iterator[SummaryRow]:
    """Two rows per method and combination for which all tasks of a series are there."""
    groups: dict[tuple[str, Combination], list[CellRecord]] = {}
    for cell in cells:
        task = definitions().get(cell.dataset.name) if cell.dataset else None
        # Tasks of users have none, and questions have other rows in each task.
        series = task.series if task and task.kind == "classify" else None
        if series is not None and "task" in cell.axes:
            for method in cell.methods:
                axes = {**_axes_of(method, cell.axes), "task": series}
                groups.setdefault((method, tuple(axes.items())), []).append(cell)
    for (method, combination), same in groups.items():
        yield from _series_rows_of(method, dict(combination), same, folder)


def _series_rows_of(
    method: str, axes: Axes, cells: Sequence[CellRecord], folder: Path
) -> Iterator[SummaryRow]:
    tasks = {cell.axes["task"] for cell in cells}
    by_seed: dict[AxisValue | None, list[CellRecord]] = {}
    for cell in cells:
        by_seed.setdefault(cell.axes.get("seed"), []).append(cell)
    whole = [same for same in by_seed.values() if len(same) == len(tasks)]
    if len(tasks) < 2 or not whole:
        return
    together = [all_right([_right(folder, cell, method) for cell in same]) for same in whole]
    figures: dict[str, list[float | None]] = {
        "mean_of_tasks": [_mean([cell.methods[method].accuracy for cell in c]) for c in whole],
        "all_right": [sum(rows.values()) / len(rows) if rows else None for rows in together],
    }
    for figure, accuracies in figures.items():
        yield _row(
            axes=axes,
            method=method,
            figure=figure,
            cells=[same[0] for same in whole],
            accuracies=accuracies,
            n=min(len(rows) for rows in together),
        )


def _mean(accuracies: Sequence[float | None]) -> float | None:
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return statistics.fmean(known) if len(known) == len(accuracies) else None


def _lines(folder: Path, cell: CellRecord, method: str) -> list[dict[str, Any]]:
    if cell.folder is None:
        return []
    lines = read_lines(folder / cell.folder / PREDICTIONS)
    return [record for record in lines if record["method"] == method]


def _right(folder: Path, cell: CellRecord, method: str) -> Right:
    return {record["row"]: is_right(record) for record in _lines(folder, cell, method)}


def all_right(parts: Sequence[Right]) -> Right:
    """The rows that all parts have, and whether they are right in each."""
    rows = set(parts[0]).intersection(*parts[1:]) if parts else set()
    return {row: all(part[row] for part in parts) for row in sorted(rows)}


def record_of_cell(
    plan: CellPlan, result: RunResult | None, *, status: str, folder: str | None
) -> CellRecord:
    """A cell for matrix.json; ``folder`` is relative to the matrix's."""
    return CellRecord.model_validate(
        {
            "id": plan.cell.id,
            "axes": dict(plan.cell.axes),
            "status": status,
            "reason": plan.problem.message if plan.problem else None,
            "folder": folder,
            "bridge": cell_bridge(plan) if plan.problem is None else None,
            "dataset": result.dataset if result else None,
            "agents": result.agents if result else {},
            "settings": result.settings if result else None,
            "methods": result.methods if result else {},
            "comparisons": result.comparisons if result else [],
        }
    )
