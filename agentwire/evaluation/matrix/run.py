"""Runs the cells of a matrix one after the other, each as a run in ``cells/<cell>/``.

matrix.json is written after every cell, so a crash loses at most the batches in flight. A resumed
matrix skips finished cells and continues an interrupted one where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import anyio
from pydantic import ValidationError

from agentwire.config import lock_file, read_regular
from agentwire.errors import ScenarioError
from agentwire.evaluation.matrix.cells import (
    CellPlan,
    plan_cell,
    trained_together,
    without_bridges,
)
from agentwire.evaluation.matrix.result import FILE, CellRecord, MatrixResult
from agentwire.evaluation.matrix.summary import all_axes, record_of_cell, substitutions, summary
from agentwire.evaluation.plan import CONFIG_FILE, LOCK_FILE, RunPlan, plan_run
from agentwire.evaluation.predictions import Predictions
from agentwire.evaluation.result import RunResult
from agentwire.evaluation.runner import RunDisplay, run_plan
from agentwire.evaluation.summary import hardware, method_record, versions
from agentwire.scenario.fetch import FetchProgress, fetch
from agentwire.scenario.resolve import Resolver

CELLS = "cells"
SETTINGS = "settings.json"
"""The file with the settings that must be equal in all sessions of a matrix."""

Train = Callable[[Sequence[CellPlan]], None]
"""Trains the bridges of cells that can be trained together (``cells.trained_together``)."""


class MatrixDisplay(RunDisplay, Protocol):
    """Shows a matrix: its cells, and the run of each."""

    def cell_started(self, plan: CellPlan, number: int, total: int) -> None:
        """``number`` counts from 1."""

    def cell_finished(self, record: CellRecord, *, reused: bool) -> None:
        """``reused``: an earlier session measured it."""


@dataclass(frozen=True, slots=True)
class MatrixRun:
    """A matrix, ready to start."""

    name: str
    plans: tuple[CellPlan, ...]
    resolver: Resolver  # resolves a cell again after its bridge is trained
    folder: Path
    limit: int | None  # rows of each cell; None: see ``plan_run``
    command: str
    train: Train | None = None  # None: cells without a bridge are skipped


def read_settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads(read_regular(folder / SETTINGS))
    except (OSError, ValueError, RecursionError):
        settings = None
    if isinstance(settings, dict) and isinstance(settings.get("methods"), list):
        return settings
    hint = "Give the folder of an interrupted matrix, such as runs/<time>-<scenario>."
    raise ScenarioError(f"{folder} has no matrix to resume.", hint=hint)


def write_settings(folder: Path, run: dict[str, Any]) -> None:
    """Writes the settings that a resumed session must share."""
    (folder / SETTINGS).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def run_matrix(run: MatrixRun, display: MatrixDisplay, fetching: FetchProgress) -> MatrixResult:
    """Trains missing bridges if allowed, and runs the unfinished cells.

    An interrupt (Ctrl-C) ends the matrix early; the result is marked ``interrupted``. If a cell
    cannot run, the finished cells are in matrix.json.
    """
    with lock_file(run.folder / LOCK_FILE, f"The matrix {run.folder}"):
        session = _Session(run, display, fetching)
        try:
            session.go()
        except KeyboardInterrupt:
            session.interrupted = True
        except BaseException:
            session.write()
            raise
        return session.write()


class _Session:
    """One session of a matrix."""

    def __init__(self, run: MatrixRun, display: MatrixDisplay, fetching: FetchProgress) -> None:
        self._run = run
        self._display = display
        self._fetching = fetching
        self._plans = list(run.plans)
        self._records: dict[str, CellRecord] = {}
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._clock = time.monotonic()
        self.interrupted = False

    def go(self) -> None:
        for index in range(len(self._plans)):
            self._display.cell_started(self._plans[index], index + 1, len(self._plans))
            self._plans[index] = plan = self._with_bridge(index)
            self._cell(plan)
            self.write()
            if self.interrupted:
                return

    def _with_bridge(self, index: int) -> CellPlan:
        """The plan with its bridge, trained if allowed together with those of later cells.

        An earlier cell may have trained it already.
        """
        plan = self._plans[index]
        if not plan.can_be_trained or self._run.train is None:
            return plan
        again = plan_cell(plan.cell, plan.methods, self._run.resolver)
        if not again.can_be_trained:
            return again
        later = [
            plan_cell(other.cell, other.methods, self._run.resolver)
            for other in self._plans[index + 1 :]
            if other.can_be_trained
        ]
        self._run.train(trained_together(again, later))
        return plan_cell(plan.cell, plan.methods, self._run.resolver)

    def _cell(self, plan: CellPlan) -> None:
        runnable = plan if plan.problem is None else without_bridges(plan)
        if runnable is None:
            self._finish(record_of_cell(plan, None, status="skipped", folder=None), reused=False)
            return
        folder = self._run.folder / CELLS / plan.cell.id
        ready = self._plan(runnable, folder)
        earlier = finished(ready)
        result = earlier or anyio.run(run_plan, ready, self._display)
        self.interrupted = result.interrupted
        status = "interrupted" if result.interrupted else "skipped" if plan.problem else "done"
        name = folder.relative_to(self._run.folder).as_posix()
        record = record_of_cell(plan, result, status=status, folder=name)
        self._finish(record, reused=earlier is not None)

    def _finish(self, record: CellRecord, *, reused: bool) -> None:
        self._records[record.id] = record
        self._display.cell_finished(record, reused=reused)

    def _plan(self, plan: CellPlan, folder: Path) -> RunPlan:
        run = self._run
        resolved = fetch(plan.resolved, inventory=run.resolver.inventory, progress=self._fetching)
        begun = (folder / CONFIG_FILE).is_file()
        folder.mkdir(parents=True, exist_ok=True)
        return plan_run(
            resolved,
            config=run.resolver.inventory.config,
            methods=[method.name for method in plan.methods],
            limit=run.limit,
            folder=folder,
            resume=folder if begun else None,
            command=run.command,
            progress=lambda stage, fraction: self._fetching("rows", stage, fraction),
        )

    def write(self) -> MatrixResult:
        run = self._run
        cells = [
            self._records.get(p.cell.id) or record_of_cell(p, None, status="pending", folder=None)
            for p in self._plans
        ]
        result = MatrixResult(
            scenario=run.name,
            run_id=run.folder.name,
            interrupted=self.interrupted,
            started=self._started,
            seconds=round(time.monotonic() - self._clock, 3),
            command=run.command,
            axes=all_axes(p.cell for p in run.plans),
            substitutions=substitutions(self._plans),
            cells=cells,
            summary=summary(cells, run.folder),
            versions=versions(),
            hardware=hardware(),
        )
        result.write(run.folder / FILE)
        return result


def finished(plan: RunPlan) -> RunResult | None:
    """The result of an earlier session if it is complete, else None.

    Raises ScenarioError if it is not what the predictions there say, or if those are damaged.
    """
    try:
        result = RunResult.model_validate_json(read_regular(plan.folder / "result.json"))
    except (OSError, ValidationError):
        return None
    counts = {name: record.n for name, record in result.methods.items()}
    whole = all(counts.get(method.name) == len(plan.rows) for method in plan.methods)
    if not whole or result.interrupted:
        return None
    predictions = Predictions(plan.folder, plan.wanted, plan.label_words)
    predictions.close()
    for method in plan.methods:
        recorded = result.methods[method.name]
        if method_record(method, plan, predictions, recorded.rows_per_s) != recorded:
            raise ScenarioError(
                f"{plan.folder / 'result.json'}: its {method.name} is not that of "
                f"{predictions.path.name}.",
                hint="Delete result.json; a resumed matrix then computes it again.",
            )
    return result
