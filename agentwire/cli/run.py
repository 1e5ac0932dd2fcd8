"""``agentwire run``: runs a scenario end to end and writes a folder of results."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import anyio
import typer

from agentwire.agent.launching.placement import Remote
from agentwire.bus.keys import AllowList
from agentwire.bus.transport import RemoteAccess
from agentwire.cli.keys import key_folder
from agentwire.cli.live import LiveView
from agentwire.cli.matrix import MatrixOptions, exit_if_unanswered, run_cells
from agentwire.cli.options import Device, NoStandIns, ScenarioFile, names_in
from agentwire.cli.terminal import echo, err, print_json, steps
from agentwire.cli.terminal import out as stdout
from agentwire.cli.train import BRIDGES, train_bridge
from agentwire.errors import ScenarioError
from agentwire.evaluation.methods import need_training_rows
from agentwire.evaluation.plan import RunPlan, methods_of, pick_methods, plan_run
from agentwire.evaluation.report import print_banner, print_report
from agentwire.evaluation.result import RunResult
from agentwire.evaluation.runner import run_plan
from agentwire.scenario.choose import require_training_rows
from agentwire.scenario.fetch import fetch
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolver
from agentwire.spec.launchers import LAUNCHERS
from agentwire.spec.scenario import Scenario


def run(
    scenario: ScenarioFile,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Rows to score; 0: all. Default: 200 on a CPU, else all.",
            show_default=False,
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods to run, separated by commas.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
    strict: NoStandIns = False,
    train: Annotated[bool, typer.Option("--train", help="Train a missing bridge first.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the interrupted run in this folder.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    device: Device = None,
    listen: Annotated[
        str | None, typer.Option(help="Address at which --remote agents join: tcp://address:port.")
    ] = None,
    remote: Annotated[
        str | None, typer.Option(help="Agents on other machines, separated by commas.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Record the bus for `agentwire replay`.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Loopback port of metrics; 0: any free one."),
    ] = None,
    launcher: Annotated[
        str | None, typer.Option(help="local (processes here) or ray (a cluster).")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster: auto, local or host:port.")
    ] = None,
) -> None:
    """Run a scenario: every method over the same rows, through real processes and the bus.

    A scenario with a matrix runs cell by cell, each with its own bridge, and ends in one table.
    """
    loaded = launched_by(load_scenario(scenario), launcher, address)
    resolver = Resolver(Inventory.here(ask_hub=True), scenario, strict, device)
    names = names_in(methods)
    command = _command(scenario, limit, methods, strict, device)
    if loaded.matrix is not None:
        options = MatrixOptions(
            limit=limit,
            methods=names,
            as_json=as_json,
            train=train,
            resume=resume,
            out=out,
        )
        run_cells(resolver, loaded, options, command)
        return
    if names is None:
        names = methods_of(resume) if resume else [*loaded.methods]
    agents = remote_of(listen, names_in(remote), loaded.processes)
    plan = _plan(
        resolver,
        loaded,
        names,
        command,
        limit=limit,
        train=train,
        resume=resume,
        out=out,
        remote=agents,
    )
    plan = replace(plan, remote=agents, metrics_port=metrics_port, record=record)
    result = _execute(plan, scenario)
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        print_report(result, plan.folder, stdout())
    if result.interrupted:
        _print_resume(plan, scenario)
        raise typer.Exit(130)
    exit_if_unanswered({"": plan.folder})


def _plan(
    resolver: Resolver,
    scenario: Scenario,
    methods: Sequence[str],
    command: str,
    *,
    limit: int | None,
    train: bool,
    resume: Path | None,
    out: Path,
    remote: Remote | None,
) -> RunPlan:
    """Checks and fetches everything before a process starts; trains a bridge if asked to."""
    chosen = pick_methods(methods)
    needs_bridge = any(method.needs_bridge for method in chosen)
    # Baselines are trained in this process, which needs the weights of every agent.
    trains = any(method.prepare is not None for method in chosen)
    elsewhere = remote.agents if remote is not None and not trains else ()
    if train and needs_bridge and resolver.resolve(scenario, bridges=False).wire.folder is None:
        train_bridge(resolver, scenario, BRIDGES, command=f"{command} --train")
    resolved = resolver.resolve(scenario, bridges=needs_bridge)
    print_banner(resolved.substitutions, err())
    inventory = resolver.inventory
    if need_training_rows(chosen, resolved.data):
        require_training_rows(resolved.data, inventory.config, command)
    with steps() as shown:
        return plan_run(
            fetch(resolved, inventory=inventory, progress=shown.update, elsewhere=elsewhere),
            config=inventory.config,
            methods=methods,
            limit=limit,
            out=out,
            resume=resume,
            command=command,
            progress=lambda stage, fraction: shown.update("rows", stage, fraction),
        )


def launched_by(scenario: Scenario, launcher: str | None, address: str | None) -> Scenario:
    """The scenario with the launcher that the options name."""
    changes = {"launcher": launcher, "address": address}
    given = {name: value for name, value in changes.items() if value is not None}
    if launcher is not None and launcher not in LAUNCHERS:
        raise ScenarioError(
            f"There is no launcher {launcher!r}.",
            hint=f"Use --launcher {' or --launcher '.join(LAUNCHERS.names())}.",
        )
    changed = scenario.model_copy(update=given)
    if address is not None and changed.launcher != "ray":
        raise ScenarioError("--address names a Ray cluster.", hint="Add --launcher ray.")
    return changed


def remote_of(listen: str | None, names: list[str] | None, known: list[str]) -> Remote | None:
    """The agents on other machines, and the address at which they join."""
    if listen is None and names is None:
        return None
    if listen is None or not names:
        raise ScenarioError(
            "--listen and --remote belong together.",
            hint="For example: --listen tcp://0.0.0.0:5555 --remote llama",
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ScenarioError(
            f"There is no agent {unknown[0]!r}.", hint=f"Agents: {', '.join(known)}."
        )
    keys = key_folder(None)
    access = RemoteAccess(listen, keys.server().secret, AllowList(keys.allowed))
    return Remote(access, frozenset(names))


def _command(
    source: Path, limit: int | None, methods: str | None, strict: bool, device: str | None
) -> str:
    """The command that repeats this run."""
    words = ["agentwire", "run", str(source)]
    for flag, value in (("--limit", limit), ("--methods", methods), ("--device", device)):
        if value is not None:
            words += [flag, str(value)]
    return shlex.join([*words, *(["--strict"] if strict else [])])


def _execute(plan: RunPlan, source: Path) -> RunResult:
    try:
        with LiveView(err()) as view:
            return anyio.run(run_plan, plan, view)
    except Exception as error:
        if not isinstance(error, ScenarioError):  # which resuming would meet again
            _print_resume(plan, source)
        raise


def _print_resume(plan: RunPlan, source: Path) -> None:
    """Prints what was kept and how to continue, if any row was answered."""
    predictions = plan.folder / "predictions.jsonl"
    if predictions.exists() and predictions.stat().st_size:
        echo(f"kept: {plan.folder}/ (every answered row)", err=True)
        command = plan.command.removeprefix(f"agentwire run {source}")
        echo(f"next: agentwire run {source}{command} --resume {plan.folder}", err=True)
