"""``agentwire run``: a scenario end to end, with a live view, a report and a folder of results."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import anyio
import typer

from agentwire.agent.launching.placement import Remote
from agentwire.bus.access import RemoteAccess
from agentwire.bus.keys import AllowList
from agentwire.cli.devices import check_device
from agentwire.cli.keys import key_folder
from agentwire.cli.live import LiveView
from agentwire.cli.matrix import Options, run_cells
from agentwire.cli.terminal import err, out, steps
from agentwire.cli.train import train_bridge
from agentwire.errors import ScenarioError
from agentwire.evaluation.plan import RunPlan, methods_of, pick_methods, plan_run
from agentwire.evaluation.report import banner, print_report
from agentwire.evaluation.result import RunResult
from agentwire.evaluation.runner import run_plan
from agentwire.scenario.choose import require_training_rows
from agentwire.scenario.fetch import fetch
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.spec.launchers import LAUNCHERS
from agentwire.spec.scenario import Scenario


def run(
    scenario: Annotated[Path, typer.Argument(help="Scenario file.")],
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=0, help="Rows to score; 0: all. On a CPU: 200.", show_default=False
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Only these, separated by commas.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Let nothing stand in.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Train a missing bridge first.")] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with this interrupted run.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs.")] = Path("runs"),
    device: Annotated[
        str | None, typer.Option("--device", help="All agents on this device: cpu, cuda:0, …")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option("--listen", help="tcp://address:port where --remote agents join, with keys."),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option("--remote", help="Agents that other machines run (`agentwire agent`)."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write down what the bus takes in, for `replay`.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", min=0, help="Serve Prometheus metrics on loopback; 0: any."),
    ] = None,
    launcher: Annotated[
        str | None,
        typer.Option("--launcher", help="local (processes here) or ray (a cluster)."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Of the Ray cluster: auto, local, host:port.")
    ] = None,
) -> None:
    """Run a scenario: every method over the same rows, through real processes and the bus.

    A scenario with a matrix runs cell by cell, one bridge each, and ends in one table.
    """

    loaded = launched_by(load_scenario(scenario), launcher, address)
    if loaded.matrix is not None:
        options = Options(
            limit=limit,
            methods=_names(methods),
            as_json=as_json,
            strict=strict,
            train=train,
            resume=resume,
            out=out,
            device=device,
        )
        run_cells(scenario, loaded, options, _command(scenario, limit, methods, strict, device))
        return
    plan = _plan(
        scenario,
        loaded,
        limit=limit,
        methods=methods,
        strict=strict,
        train=train,
        resume=resume,
        out=out,
        device=device,
        quiet=as_json,
        remote=remote_of(listen, _names(remote), loaded.processes),
    )
    plan = replace(plan, metrics_port=metrics_port, record=record)
    result = _execute(plan, scenario, as_json=as_json)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    if result.interrupted:
        _say_resume(plan, scenario)
        raise typer.Exit(130)


def _plan(
    source: Path,
    loaded: Scenario,
    *,
    limit: int | None,
    methods: str | None,
    strict: bool,
    train: bool,
    resume: Path | None,
    out: Path,
    device: str | None,
    quiet: bool,
    remote: Remote | None = None,
) -> RunPlan:
    """Everything that can be found out before a process starts."""

    names = _names(methods)
    if names is None:
        names = methods_of(resume) if resume else list(loaded.methods)
    chosen = pick_methods(names)
    needs_bridge = any(method.needs_bridge for method in chosen)
    # What is trained first is trained here, with the weights of every agent.
    trains = any(method.prepare is not None for method in chosen)
    elsewhere = remote.agents if remote is not None and not trains else ()
    inventory = Inventory.here(ask_hub=True)

    def resolved(*, bridges: bool) -> Resolved:
        return resolve(
            loaded,
            source=source,
            inventory=inventory,
            strict=strict,
            device=check_device(device),
            require_bridges=bridges,
        )

    if train and needs_bridge and resolved(bridges=False).wire.folder is None:
        again = f"{_command(source, limit, methods, strict, device)} --train"
        train_bridge(source, loaded, Path("bridges"), strict=strict, device=device, command=again)
    decided = resolved(bridges=needs_bridge)
    notice = banner(decided.substitutions)
    if notice is not None:
        err().print(notice)
    if trains:
        again = _command(source, limit, methods, strict, device)
        require_training_rows(decided.data, inventory.config, again)
    with steps() as shown:
        ready = fetch(decided, inventory=inventory, progress=shown.update, elsewhere=elsewhere)
        plan = plan_run(
            ready,
            config=inventory.config,
            methods=names,
            limit=limit,
            out=out,
            resume=resume,
            command=_command(source, limit, methods, strict, device),
            progress=lambda stage, fraction: shown.update("rows", stage, fraction),
        )
    return replace(plan, remote=remote)


def launched_by(scenario: Scenario, launcher: str | None, address: str | None) -> Scenario:
    """The scenario with the launcher that the options name.

    Raises:
        ScenarioError: no such launcher, or an address without Ray.
    """
    changes = {"launcher": launcher, "address": address}
    given = {name: value for name, value in changes.items() if value is not None}
    if launcher is not None and launcher not in LAUNCHERS:
        raise ScenarioError(
            f"There is no launcher {launcher!r}.",
            hint=f"Use --launcher {' or --launcher '.join(LAUNCHERS.names())}.",
        )
    changed = scenario.model_copy(update=given)
    if address is not None and changed.launcher != "ray":
        raise ScenarioError("--address is of a Ray cluster.", hint="Add --launcher ray.")
    return changed


def remote_of(listen: str | None, names: list[str] | None, known: list[str]) -> Remote | None:
    """Where agents of other machines join, and which they are.

    Raises:
        ScenarioError: one option without the other, or no such agent.
    """

    if listen is None and names is None:
        return None
    if listen is None or not names:
        raise ScenarioError(
            "--listen and --remote belong together.",
            hint="Say where agents join, and which: --listen tcp://0.0.0.0:5555 --remote llama",
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ScenarioError(
            f"There is no agent {unknown[0]!r}.", hint=f"Agents: {', '.join(known)}."
        )
    keys = key_folder(None)
    access = RemoteAccess(listen, keys.server().secret, AllowList(keys.allowed))
    return Remote.of(access, names)


def _names(methods: str | None) -> list[str] | None:
    if methods is None:
        return None
    return [name.strip() for name in methods.split(",") if name.strip()]


def _command(
    source: Path, limit: int | None, methods: str | None, strict: bool, device: str | None
) -> str:
    """The command that repeats this run."""
    words = ["agentwire", "run", str(source)]
    for flag, value in (("--limit", limit), ("--methods", methods), ("--device", device)):
        if value is not None:
            words += [flag, str(value)]
    return shlex.join([*words, *(["--strict"] if strict else [])])


def _execute(plan: RunPlan, source: Path, *, as_json: bool) -> RunResult:

    try:
        with LiveView(err()) as view:
            result = anyio.run(run_plan, plan, view)
    except Exception:
        _say_resume(plan, source)
        raise
    if not as_json:
        print_report(result, plan.folder, out())
    return result


def _say_resume(plan: RunPlan, source: Path) -> None:
    """What was kept, and how to go on; nothing where no row was answered."""
    predictions = plan.folder / "predictions.jsonl"
    if predictions.exists() and predictions.stat().st_size:
        typer.echo(f"kept: {plan.folder}/ (every row that was answered)", err=True)
        command = plan.command.removeprefix(f"agentwire run {source}")
        typer.echo(f"next: agentwire run {source}{command} --resume {plan.folder}", err=True)
