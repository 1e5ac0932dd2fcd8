"""``agentwire run`` and ``agentwire train`` of a scenario with a matrix."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer

from agentwire.cli.matrix_view import MatrixView
from agentwire.cli.terminal import echo, err, out, print_json
from agentwire.config import ensure_writable
from agentwire.errors import ScenarioError
from agentwire.evaluation.matrix.cells import (
    CellPlan,
    check_bridges,
    plan_cell,
    plan_cells,
    trained_together,
)
from agentwire.evaluation.matrix.report import print_matrix
from agentwire.evaluation.matrix.run import (
    MatrixRun,
    read_settings,
    run_matrix,
    write_settings,
)
from agentwire.evaluation.matrix.summary import substitutions
from agentwire.evaluation.methods import MethodSpec, get_method, need_training_rows
from agentwire.evaluation.plan import check_unchanged, new_folder, pick_methods, settings_of
from agentwire.evaluation.predictions import unanswered
from agentwire.evaluation.report import print_banner
from agentwire.scenario.choose import require_training_rows
from agentwire.scenario.fetch import fetch
from agentwire.scenario.resolve import Resolver
from agentwire.spec.scenario import Scenario

MOST_UNANSWERED = 5
"""Rows without an answer that are named on the terminal."""


@dataclass(frozen=True, slots=True)
class MatrixOptions:
    """MatrixOptions of ``agentwire run`` and ``train`` that concern a matrix."""

    limit: int | None = None
    methods: Sequence[str] | None = None
    as_json: bool = False
    train: bool = False
    resume: Path | None = None
    out: Path = field(default=Path("runs"))
    bridges: Path = field(default=Path("bridges"))
    plot: Path | None = None


def run_cells(resolver: Resolver, scenario: Scenario, options: MatrixOptions, command: str) -> None:
    """Runs the unfinished cells of a matrix and prints the table of all."""
    plans = _plans(resolver, scenario, options, command)
    with MatrixView(err()) as view:
        run = _prepared(resolver, scenario, plans, options, command, view)
        try:
            result = run_matrix(run, view, view.fetching)
        except Exception as error:
            if not isinstance(error, ScenarioError):  # which resuming would meet again
                _say_resume(run)
            raise
    if options.as_json:
        print_json(result.model_dump(mode="json"))
    else:
        print_matrix(result, run.folder, out())
    if result.interrupted:
        _say_resume(run)
        raise typer.Exit(130)
    exit_if_unanswered(
        {f"{c.id}: ": run.folder / c.folder for c in result.cells if c.folder is not None}
    )


def train_cells(
    resolver: Resolver, scenario: Scenario, options: MatrixOptions, command: str
) -> list[Path]:
    """Trains every missing bridge of a matrix; their folders.

    Args:
        command: what was typed, for errors that say how to continue.

    Raises:
        BridgeError: an existing bridge does not fit.
        DataError: a training split is missing; nothing was trained yet.
    """
    bridge = (get_method("bridge"),)
    plans = _resolved(scenario, bridge, resolver)
    check_bridges(plans, train=True, skip=False, source=resolver.source)
    _require_rows(plans, resolver, command, train=True)
    made: list[Path] = []
    with MatrixView(err()) as view:
        train = _trainer(options, view)
        for number, plan in enumerate(plans, start=1):
            view.cell_started(plan, number, len(plans))
            again, *later = (plan_cell(p.cell, bridge, resolver) for p in plans[number - 1 :])
            if again.can_be_trained:
                together = trained_together(again, later)
                train(together)
                names = dict.fromkeys(w.bridge for p in together for w in p.resolved.parts)
                made += [options.bridges / name for name in names]
    return made


# -- plans ---------------------------------------------------------------------------


def _resolved(
    scenario: Scenario, methods: tuple[MethodSpec, ...], resolver: Resolver
) -> tuple[CellPlan, ...]:
    """The planned cells; prints what stands in for what."""
    plans = plan_cells(scenario, methods, resolver)
    print_banner(substitutions(plans), err())
    return plans


def _plans(
    resolver: Resolver, scenario: Scenario, options: MatrixOptions, command: str
) -> tuple[CellPlan, ...]:
    names = options.methods
    if names is None and options.resume is not None:
        names = [str(name) for name in read_settings(options.resume)["methods"]]
    methods = pick_methods(names or scenario.methods)
    plans = _resolved(scenario, methods, resolver)
    skip = scenario.matrix is not None and scenario.matrix.missing == "skip"
    skipped = check_bridges(plans, train=options.train, skip=skip, source=resolver.source)
    again = f"{command} --train" if options.train else command
    _require_rows(plans, resolver, again, train=options.train)
    if skipped:
        ids = ", ".join(plan.cell.id for plan in skipped)
        err().print(
            f"{len(skipped)} of {len(plans)} cells have no bridge here and are skipped "
            f"(--train trains them): {ids}",
            style="bold yellow",
            markup=False,
        )
    return plans


def _require_rows(
    plans: Sequence[CellPlan], resolver: Resolver, command: str, *, train: bool
) -> None:
    """
    Raises:
        DataError: a baseline or (with ``train``) a bridge needs rows that are not here.
    """
    for plan in plans:
        fits = need_training_rows(plan.methods, plan.resolved.data)
        if fits or (train and plan.can_be_trained):
            require_training_rows(plan.resolved.data, resolver.inventory.config, command)


def _prepared(
    resolver: Resolver,
    scenario: Scenario,
    plans: tuple[CellPlan, ...],
    options: MatrixOptions,
    command: str,
    view: MatrixView,
) -> MatrixRun:
    limit = options.limit
    if options.resume is not None and limit is None:
        limit = read_settings(options.resume).get("limit")
    settings = {
        "scenario": settings_of(scenario),
        "limit": limit,
        "cells": [plan.cell.id for plan in plans],
        "methods": list(dict.fromkeys(m.name for p in plans for m in p.methods)),
    }
    if options.resume is not None:
        folder = options.resume
        check_unchanged(folder, read_settings(folder), settings)
    else:
        folder = new_folder(options.out, scenario.name)
        write_settings(folder, settings)
    return MatrixRun(
        name=scenario.name,
        plans=plans,
        resolver=resolver,
        folder=folder,
        limit=limit,
        command=command,
        train=_trainer(options, view) if options.train else None,
    )


def _trainer(options: MatrixOptions, view: MatrixView) -> Callable[[Sequence[CellPlan]], None]:
    """A function that trains the bridges of cells."""

    def train(plans: Sequence[CellPlan]) -> None:
        from agentwire.training.train import train_scenarios  # imports torch

        ensure_writable(options.bridges)
        view.training_started(plans)
        first = fetch(plans[0].resolved, progress=view.fetching)
        # The other cells use the same models, which are here now.
        ready = [first, *(fetch(plan.resolved) for plan in plans[1:])]
        plot = options.plot
        names = [one.wire.bridge for one in ready]
        plots = {n: plot.with_name(f"{plot.stem}--{n}{plot.suffix}") for n in names} if plot else {}
        train_scenarios(ready, out=options.bridges, progress=view.training, plots=plots)

    return train


def exit_if_unanswered(runs: Mapping[str, Path]) -> None:
    """Exits with code 1 if rows have no answer, and names the first ones.

    Args:
        runs: the folders of runs, each with what precedes its lines.
    """
    lines = [f"{what}{line}" for what, folder in runs.items() for line in unanswered(folder)]
    for line in lines[:MOST_UNANSWERED]:
        echo(line, err=True)
    if len(lines) > MOST_UNANSWERED:
        echo(f"and {len(lines) - MOST_UNANSWERED:,} more", err=True)
    if lines:
        raise typer.Exit(1)


def _say_resume(run: MatrixRun) -> None:
    echo(f"kept: {run.folder}/ (all finished cells and rows)", err=True)
    command = f"{run.command} --train" if run.train is not None else run.command
    echo(f"next: {command} --resume {shlex.quote(str(run.folder))}", err=True)
