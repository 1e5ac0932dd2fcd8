"""``agentwire train``: trains the bridge of a scenario's wire."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from agentwire.bridge.card import read_card
from agentwire.cli.matrix import MatrixOptions, train_cells
from agentwire.cli.options import AsJson, Device, NoStandIns, ScenarioFile
from agentwire.cli.terminal import echo, err, print_json, steps
from agentwire.cli.terminal import out as stdout
from agentwire.config import ensure_writable
from agentwire.evaluation.report import print_banner
from agentwire.scenario.choose import require_training_rows
from agentwire.scenario.fetch import fetch
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolver
from agentwire.spec.scenario import Scenario

BRIDGES = Path("bridges")


def train(
    scenario: ScenarioFile,
    out: Annotated[
        Path, typer.Option(help="Folder in which the bridge's folder is made.")
    ] = BRIDGES,
    strict: NoStandIns = False,
    device: Device = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot the loss as PNG; of a matrix, one file per bridge.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train the bridge of a scenario; writes <out>/<name>/card.yaml and weights.safetensors."""
    words = ["agentwire", "train", str(scenario)]
    words += [] if out == BRIDGES else ["--out", str(out)]
    words += ["--strict"] if strict else []
    command = shlex.join([*words, *(["--device", device] if device else [])])
    loaded = load_scenario(scenario)
    resolver = Resolver(Inventory.here(ask_hub=True), scenario, strict, device)
    if loaded.matrix is not None:
        options = MatrixOptions(bridges=out, plot=plot)
        with _resume_hint(command):
            made = train_cells(resolver, loaded, options, command)
        if as_json:
            print_json([{"bridge": folder.name, "folder": str(folder)} for folder in made])
        elif made:
            what = f"{len(made)} bridges" if len(made) > 1 else f"[bold]{made[0].name}[/bold]"
            stdout().print(f"trained {what} of the matrix, written to {out}/")
        else:
            stdout().print("every bridge of the matrix exists: nothing to train")
        return
    with _resume_hint(command):
        folder = train_bridge(resolver, loaded, out, plot=plot, command=command)
    if as_json:
        print_json({"bridge": folder.name, "folder": str(folder)})
    else:
        stdout().print(f"trained [bold]{folder.name}[/bold], written to {folder}/")
        for other in others_of(folder):
            stdout().print(f"and with it [bold]{other.name}[/bold], written to {other}/")


@contextmanager
def _resume_hint(command: str) -> Iterator[None]:
    """After Ctrl-C prints the command that continues."""
    try:
        yield
    except KeyboardInterrupt:
        echo(f"next: {command}   (continues from the last evaluation, if any)", err=True)
        raise


def others_of(folder: Path) -> list[Path]:
    """The folders of the bridges that were trained together with this one."""
    joint = read_card(folder).joint
    count = len(joint.parts) if joint is not None else 1
    return [folder.with_suffix(f".{place}") for place in range(2, count + 1)]


def train_bridge(
    resolver: Resolver,
    scenario: Scenario,
    out: Path,
    *,
    command: str,
    plot: Path | None = None,
) -> Path:
    """Resolves, fetches and trains, with progress on stderr; the bridge's folder.

    Args:
        command: what was typed, for errors that say how to continue.
    """
    resolved = resolver.resolve(scenario, bridges=False)
    print_banner(resolved.substitutions, err())
    require_training_rows(resolved.data, resolver.inventory.config, command)
    ensure_writable(out)
    with steps() as shown:
        ready = fetch(resolved, inventory=resolver.inventory, progress=shown.update)
        from agentwire.training.train import train_scenario  # imports torch

        return train_scenario(
            ready,
            out=out,
            progress=lambda stage, fraction: shown.overall("the bridge", stage, fraction),
            plot=plot,
        )
