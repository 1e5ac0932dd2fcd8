"""Accuracy of bridges, rivals and controls: the jobs, and the record made of their results.

    python bench/accuracy.py work --out runs/accuracy --device cuda:0    (several at a time may run)
    python bench/accuracy.py work --out runs/accuracy --plan jobs.txt    (these jobs, in this order)
    python bench/accuracy.py status --out runs/accuracy
    python bench/accuracy.py record --out runs/accuracy

A worker takes jobs in order of their importance and writes each result as soon as it is there, so
that it may be stopped at any time and started again. ``--quick`` rehearses every job on a few rows
in a few steps; its figures mean nothing and cannot be recorded.
"""

from __future__ import annotations

import fnmatch
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent))

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Out = Annotated[Path, typer.Option("--out", help="Folder of the results.")]


@app.command()
def work(
    out: Out = Path("runs/accuracy"),
    device: Annotated[str, typer.Option(help="cpu, cuda:0, …")] = "cpu",
    name: Annotated[str, typer.Option(help="Of this worker; unique.")] = "worker",
    only: Annotated[str, typer.Option(help="Jobs whose names match (with * and ?).")] = "*",
    plan: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files of job names, one a line: these jobs, in this order; may be "
            "repeated, and what another worker has is passed over."
        ),
    ] = None,
    light: Annotated[
        bool | None, typer.Option("--light/--heavy", help="Prefer light or heavy jobs.")
    ] = None,
    prefer: Annotated[str, typer.Option(help="Direction whose bridges come first.")] = "forward",
    minutes: Annotated[float, typer.Option(help="No job is begun after these.")] = 600,
    quick: Annotated[bool, typer.Option("--quick", help="A rehearsal without meaning.")] = False,
) -> None:
    """Do jobs until none is left."""
    import torch
    from lab.files import Folder
    from lab.jobs import every_job, planned
    from lab.work import work as take
    from lab.world import World

    until = time.monotonic() + 60 * minutes
    jobs = [job for job in every_job(prefer) if fnmatch.fnmatch(job.name, only)]
    if plan:
        names = dict.fromkeys(name for file in plan for name in file.read_text().split())
        try:
            jobs = planned(jobs, names)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--plan") from None
    world = World(torch.device(device), quick=quick)
    command = f"python bench/accuracy.py work --device {device.partition(':')[0]}"
    take(jobs, world, Folder(out), name, light=light, command=command, until=until)


@app.command()
def status(out: Out = Path("runs/accuracy")) -> None:
    """What is done, and what failed."""
    from lab.files import Folder
    from lab.jobs import every_job

    folder = Folder(out)
    for job in every_job():
        found = folder.result(job.name)
        state = "open" if found is None else found["status"]
        print(f"{job.name:34} {state:8} {(found or {}).get('error', '')}")


@app.command()
def record(
    out: Out = Path("runs/accuracy"),
    to: Annotated[Path, typer.Option(help="The record.")] = Path(
        "bench/results/accuracy-small.json"
    ),
    bridges: Annotated[Path, typer.Option(help="Bridges that ship.")] = Path("bridges"),
    hardware: Annotated[str, typer.Option(help="In words; default: the runs' devices.")] = "",
) -> None:
    """Write the record of all results, and the predictions beside it."""
    import json

    from lab.files import Folder
    from lab.record import build, save_predictions

    folder = Folder(out)
    content = build(folder, bridges, hardware, "python bench/accuracy.py work --device cuda")
    if not hardware:
        content["hardware"] = ", ".join(sorted({run["device"] for run in content["runs"]}))
    to.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    save_predictions(folder, to.with_suffix(".npz"))
    print(f"{len(content['runs'])} runs, {len(content['missed'])} jobs missed, written to {to}")


if __name__ == "__main__":
    app()
