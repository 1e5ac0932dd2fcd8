"""Fan-in on the small pair: two senders, one receiver, bridges trained together.

    python bench/fan_in.py work --out runs/fan-in --device cuda:0
    python bench/fan_in.py record --out runs/fan-in

Trains sets of two bridges (each sender reads a half of the text; both read the whole text) and
ordinary bridges of each sender beside them, three seeds each, and scores every test row once: with
the true texts, and with those of one sender taken from another row. Results are written after each
step; the best set of halves (by held-out rows) lies under <out>/bridges. ``--quick`` rehearses all
of it on a few rows in a few steps; its figures mean nothing and cannot be recorded.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent))

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Out = Annotated[Path, typer.Option("--out", help="Folder of the results.")]


@app.command()
def work(
    out: Out = Path("runs/fan-in"),
    device: Annotated[str, typer.Option(help="cpu, cuda:0, …")] = "cpu",
    task: Annotated[str, typer.Option(help="Dataset.")] = "sst2",
    limit_s: Annotated[float, typer.Option(help="Longest training of one stack, seconds.")] = 240,
    minutes: Annotated[float, typer.Option(help="Nothing is begun, or goes on, after these.")] = 60,
    quick: Annotated[bool, typer.Option("--quick", help="A rehearsal without meaning.")] = False,
) -> None:
    """Train and score everything, the most important first."""
    import torch
    from lab.fan_in import STACKS, Fan, about
    from lab.files import Folder, Predictions
    from lab.jobs import SEEDS
    from lab.world import World

    folder, world = Folder(out), World(torch.device(device), quick=quick)
    command = f"python bench/fan_in.py work --device {device.partition(':')[0]} --task {task}"
    result = about(command, quick=quick)
    predictions: Predictions = {}

    def add(found: list[Any], more: Predictions) -> None:
        result["runs"] += found
        predictions.update(more)
        folder.write(f"fan_in.{task}", result, predictions)
        for run in found:
            what = f"{run['task']} {run['method']} ({run.get('true_texts', run.get('piece'))})"
            held_out = run.get("held_out_accuracy", "")
            folder.log("fan_in", f"ok in {run['seconds']} s: {what} seed {run['seed']} "
                                 f"{run['accuracy']:.4f} held out {held_out}")  # fmt: skip

    until = time.monotonic() + 60 * minutes
    fan = Fan(world, task, SEEDS)
    folder.log("fan_in", f"{task} begins")
    add(*fan.direct())
    for number, kinds in enumerate(STACKS):
        if time.monotonic() > until:
            break
        world.train_until = min(until, time.monotonic() + limit_s)
        done = fan.train(kinds)
        for kind in kinds:
            for seed in SEEDS:
                if (kind.name, seed) in done:
                    add(*fan.score(kind, seed, done[kind.name, seed]))
        if number == 0:
            made = fan.save(out / ".bridges", done, result["runs"])
            result["shipped"] = [_moved(one, out / "bridges") for one in made]
            add([], {})
    folder.log("fan_in", "all done")


@app.command()
def record(
    out: Out = Path("runs/fan-in"),
    to: Annotated[Path, typer.Option(help="The record.")] = Path("bench/results/fan-in-small.json"),
) -> None:
    """Write the record of the results, and the predictions beside it."""
    from lab.fan_in import describe
    from lab.files import Folder, Predictions

    folder, predictions = Folder(out), Predictions()
    names = [file.stem for file in sorted(out.glob("fan_in.*.json"))]
    results = [result for name in names if (result := folder.result(name)) is not None]
    if not results or any(result["quick"] for result in results):
        raise typer.BadParameter(f"{out} holds no results that count", param_hint="--out")
    for name in names:
        predictions |= folder.predictions(name)
    Folder(to.parent).write(to.stem, describe(results), predictions)
    print(f"{sum(len(result['runs']) for result in results)} runs, written to {to}")


def _moved(folder: Path, to: Path) -> str:
    """Appears there whole; its name."""
    to.mkdir(exist_ok=True)
    shutil.rmtree(to / folder.name, ignore_errors=True)
    folder.rename(to / folder.name)
    return folder.name


if __name__ == "__main__":
    app()
