"""``agentwire doctor``: shows what this machine has and what scenarios would run on it."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from agentwire.cli.data import known_datasets
from agentwire.cli.models import known_models
from agentwire.cli.options import AsJson
from agentwire.cli.terminal import out, print_json
from agentwire.config import Config, ensure_writable
from agentwire.errors import CacheError, InputError
from agentwire.evaluation.summary import hardware, versions
from agentwire.model.backends.transformers import is_static
from agentwire.model.static.memory import estimate
from agentwire.runtime.deployment import Deployment
from agentwire.scenario.bridges import list_bridges
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve
from agentwire.spec.agent import AgentSpec
from agentwire.spec.backends import BACKENDS
from agentwire.spec.routes import agent_of


def doctor(
    scenarios: Annotated[
        list[Path] | None,
        typer.Argument(help="Scenario files; default: all in scenarios/.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what this machine has, what scenarios would run here, and what is missing."""
    report = {
        "machine": _machine(),
        "cache": _cache(),
        **_holdings(),
        "scenarios": [_scenario(p) for p in scenarios or sorted(Path("scenarios").glob("*.yaml"))],
    }
    if as_json:
        print_json(report)
    else:
        _print(report)


def _machine() -> dict[str, Any]:
    inventory = Inventory.here()
    gpus: list[dict[str, Any]] = []
    if inventory.gpus():
        import torch

        for index in range(inventory.gpus()):
            free, total = torch.cuda.mem_get_info(index)
            gpus.append(
                {
                    "device": f"cuda:{index}",
                    "name": torch.cuda.get_device_name(index),
                    "free_gb": round(free / 2**30, 1),
                    "total_gb": round(total / 2**30, 1),
                }
            )
    here = hardware()
    found = versions()
    for package in ("torch", "transformers"):
        found.setdefault(package, "missing: pip install '.[models]'")
    found.update(_backend_libraries())
    found["pip"] = metadata.version("pip") if _installed("pip") else "missing"
    return {
        "platform": here.platform,
        "cpu": here.cpu,
        "cores": inventory.cpus(),
        "memory_gb": here.memory_gb,
        "memory_free_gb": round(psutil.virtual_memory().available / 2**30, 1),
        "gpus": gpus,
        "versions": found,
    }


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _backend_libraries() -> dict[str, str]:
    """Versions of the libraries that backends need, without importing them."""
    found: dict[str, str] = {}
    for name in BACKENDS.names():
        library = BACKENDS.get(name).library
        if library is None:
            continue
        found[library.module] = f"not installed (only `backend: {name}` needs it)"
        for package in filter(_installed, library.distributions):
            build = "" if package == library.module else f" ({package})"
            found[library.module] = metadata.version(package) + build
            break
    return found


def _cache() -> dict[str, Any]:
    home = Config.from_env().home
    try:
        ensure_writable(home)
    except CacheError as error:
        return {"folder": str(home), "writable": False, "error": error.message, "next": error.hint}
    free = round(shutil.disk_usage(home).free / 2**30, 1)
    return {"folder": str(home), "writable": True, "free_gb": free}


def _holdings() -> dict[str, Any]:
    folders = list_bridges(Inventory.here().bridge_folders())
    return {
        "models": known_models(),
        "datasets": known_datasets(),
        "bridges": [{"name": folder.name, "folder": str(folder)} for folder in folders],
    }


def _scenario(path: Path) -> dict[str, Any]:
    """What one scenario would run here, or its first problem and the next step."""
    entry: dict[str, Any] = {"file": str(path), "runs": False}
    try:
        resolved = resolve(
            load_scenario(path), source=path, inventory=Inventory.here(), require_bridges=False
        )
        entry["agents"] = {
            name: {
                "model": spec.model,
                "device": spec.device,
                "threads": spec.threads,
                "weights": resolved.weights[agent_of(name)].detail,
                "gpu": _on_gpu(spec),
            }
            for name, spec in Deployment.of(resolved).processes.items()
        }
        entry["data"] = f"{resolved.data.dataset} {resolved.data.split}" if resolved.data else None
        entry["substitutions"] = [asdict(s) for s in resolved.substitutions]
        entry["bridges"] = {name: wire.bridge for name, wire in resolved.wires.items()}
        resolve(load_scenario(path), source=path, inventory=Inventory.here())
        entry["runs"] = True
    except InputError as error:
        entry["problem"], entry["next"] = error.message, error.hint
    return entry


def _on_gpu(spec: AgentSpec) -> str | None:
    """The GPU memory that an agent will take; None on a CPU or where it is unknown."""
    if not spec.device.startswith("cuda"):
        return None
    found = estimate(spec)
    if found is None:
        return None
    weights = f"about {found.weights / 2**30:.1f} GB of weights"
    if not is_static(spec) or not found.shapes:
        return weights
    graphs = f"{found.shapes} captured shapes with about {found.graphs / 2**30:.1f} GB"
    return f"{weights}, {graphs}"


# -- printing -------------------------------------------------------------------------------


def _print(report: dict[str, Any]) -> None:
    console = out()
    machine, cache = report["machine"], report["cache"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("machine", escape(f"{machine['platform']}, {machine['cpu']}"))
    memory = f"{machine['memory_free_gb']} of {machine['memory_gb']} GB memory free"
    table.add_row("", f"{machine['cores']} cores, {memory}")
    for gpu in machine["gpus"]:
        free = f"{gpu['free_gb']} of {gpu['total_gb']} GB free"
        table.add_row(gpu["device"], escape(f"{gpu['name']}, {free}"))
    if not machine["gpus"]:
        table.add_row("GPUs", "none that torch can use")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    table.add_row("versions", escape(versions))
    if cache["writable"]:
        table.add_row("cache", escape(f"{cache['folder']}, {cache['free_gb']} GB free"))
    else:
        table.add_row("cache", f"[red]{escape(cache['error'])}[/red]\n{escape(cache['next'])}")
    for model in report["models"]:
        mark = "[green]here[/green]" if model["here"] else f"[yellow]{model['detail']}[/yellow]"
        get = "" if model["here"] else f"\n  agentwire models pull {model['name']}"
        table.add_row("model", f"{model['name']}: {mark}[dim]{get}[/dim]")
    for data in report["datasets"]:
        places = ", ".join(f"{split} ({place})" for split, place in data["splits"].items())
        table.add_row("data", f"{data['name']}: {places or '[yellow]not here[/yellow]'}")
    for bridge in report["bridges"]:
        table.add_row("bridge", escape(bridge["name"]))
    if not report["bridges"]:
        table.add_row("bridges", "none; `agentwire train <scenario>` makes one")
    console.print(table)
    for scenario in report["scenarios"]:
        console.print(_scenario_text(scenario))


def _scenario_text(scenario: dict[str, Any]) -> Text:
    """What a scenario would run, with stand-ins and the first problem."""
    instead = {s["subject"]: s for s in scenario.get("substitutions", ())}
    state = ("runs here", "green") if scenario["runs"] else ("does not run here", "red")
    text = Text.assemble("\n", (scenario["file"], "bold"), ": ", state, "\n")

    def line(what: str, subject: str) -> None:
        text.append(f"  {what}\n")
        if subject in instead:
            text.append(f"    stands in for {instead[subject]['wanted']}: ", style="yellow")
            text.append(f"{instead[subject]['reason']}\n", style="dim")

    for name, agent in scenario.get("agents", {}).items():
        shown = f"{name}: {agent['model']} on {agent['device']} ({agent['weights']})"
        line(shown, agent_of(name))
        if agent["gpu"]:
            text.append(f"    {agent['gpu']}\n", style="dim")
    if scenario.get("data"):
        line(f"rows: {scenario['data']}", "task")
    for wire, bridge in scenario.get("bridges", {}).items():
        line(f"bridge of {wire}: {bridge}", "")
    if "problem" in scenario:
        text.append(f"  {scenario['problem']}\n", style="red")
        text.append(f"  next: {scenario['next']}\n")
    text.rstrip()
    return text
