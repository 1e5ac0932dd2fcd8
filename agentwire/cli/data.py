"""``agentwire data``: which datasets are known, which are here, and getting them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from agentwire.cli.terminal import out, print_json, steps
from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.task.datasets import load_rows, where
from agentwire.task.definitions import definitions, load_definition
from agentwire.task.samples import SAMPLE_SPLIT

app = typer.Typer(help="Datasets: list, show, pull.", no_args_is_help=True)
SPLITS = ("train", "validation", "test")


def known_datasets() -> list[dict[str, Any]]:
    """Every dataset known by name, and where each split would come from."""

    config = Config.from_env()
    return [
        {
            "name": name,
            "description": task.description,
            "classes": len(task.labels),
            "licence": task.licence,
            "splits": {
                split: place
                for split in (*SPLITS, SAMPLE_SPLIT)
                if (place := where(name, split, config=config))
            },
        }
        for name, task in definitions().items()
    ]


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The datasets known by name, and where each split would come from here."""

    rows = known_datasets()
    if as_json:
        print_json(rows)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title in ("dataset", "classes", "here", "licence"):
        right = title == "classes"
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for row in rows:
        places = ", ".join(f"{split} ({place})" for split, place in row["splits"].items())
        table.add_row(
            f"{row['name']}\n[dim]{row['description']}[/dim]",
            str(row["classes"]),
            places or "no: set AGENTWIRE_DATA to a folder with it",
            row["licence"],
        )
    out().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Dataset name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """A dataset's classes in their order, its prompts, and the files that would hold its rows."""

    task = load_definition(name)
    here = next(known for known in known_datasets() if known["name"] == name)
    if as_json:
        print_json({**here, "labels": task.labels, "label_words": task.label_words,
                    "prompt": task.prompt, "text_prompt": task.text_prompt})  # fmt: skip
        return
    places = ", ".join(f"{split} ({place})" for split, place in here["splits"].items())
    typer.echo(f"{name}: {task.description}; licence: {task.licence}")
    typer.echo(f"here: {places or 'nothing'}")
    typer.echo(
        f'files: AGENTWIRE_DATA/{name}/<split>.jsonl, lines of {{"text": "...", "label": 0}}'
    )
    typer.echo(f"asked after the soft tokens: {task.prompt!r}; of a text: {task.text_prompt!r}")
    typer.echo("label, class, and the word that stands for it in an answer:")
    for number, (label, word) in enumerate(zip(task.labels, task.label_words, strict=True)):
        typer.echo(f"  {number:>3}  {label}" + (f"  ({word})" if word != label else ""))


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(help="Dataset names.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Get every split of datasets that can be had here, and check every row."""

    config = Config.from_env()
    for name in names:
        load_definition(name)
    done: list[dict[str, Any]] = []
    with steps() as shown:
        for name in names:

            def report(stage: str, fraction: float, name: str = name) -> None:
                shown.update(name, stage, fraction)

            splits = [split for split in SPLITS if where(name, split, config=config)]
            if not splits:
                raise DataError(
                    f"the dataset {name} cannot be had here.",
                    hint=f"Set AGENTWIRE_DATA to a folder that holds {name}/, "
                    "or `pip install 'agentwire[hub]'`.",
                )
            for split in splits:
                rows = load_rows(name, split, config=config, progress=report)
                done.append(
                    {
                        "name": name,
                        "split": split,
                        "rows": len(rows),
                        "provenance": dict(rows.provenance),
                    }
                )
    if as_json:
        print_json(done)
        return
    for item in done:
        source = item["provenance"].get("source", "")
        typer.echo(f"{item['name']} {item['split']}: {item['rows']:,} rows ({source})")
