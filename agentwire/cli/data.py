"""``agentwire data``: lists, shows and downloads datasets."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from agentwire.cli.options import AsJson
from agentwire.cli.terminal import echo, out, print_json, steps
from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.task.datasets import load_rows, where
from agentwire.task.definitions import (
    TASKS,
    Definition,
    TaskDefinition,
    is_task_file,
    load_definition,
)
from agentwire.task.samples import SAMPLE_SPLIT

app = typer.Typer(help="Datasets: list, show, pull.", no_args_is_help=True)
SPLITS = ("train", "validation", "test")
Names = Annotated[list[str], typer.Argument(help="Names of datasets, or task files of your own.")]


def known_datasets(more: list[str] | None = None) -> list[dict[str, Any]]:
    """Every dataset known by name and those of the task files ``more``, with their splits here."""
    return [_entry(name, load_definition(name)) for name in (*sorted(TASKS.names()), *(more or ()))]


def _entry(name: str, task: Definition) -> dict[str, Any]:
    config = Config.from_env()
    splits = dict.fromkeys((*SPLITS, SAMPLE_SPLIT, *task.rows))
    places = {split: where(name, split, config=config) for split in splits}
    return {
        "name": task.name,
        "description": task.description,
        "kind": task.kind,
        "classes": len(task.labels),
        "licence": task.licence,
        "splits": {split: place for split, place in places.items() if place},
    }


def _places(entry: dict[str, Any]) -> str:
    return ", ".join(f"{split} ({place})" for split, place in entry["splits"].items())


@app.command("list")
def list_(
    files: Annotated[
        list[str] | None, typer.Argument(help="Task files of your own to list too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the known datasets and where each split would come from."""
    rows = known_datasets(files)
    if as_json:
        print_json(rows)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title in ("dataset", "classes", "here", "licence"):
        right = title == "classes"
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(
            f"{row['name']}\n[dim]{row['description']}[/dim]",
            str(row["classes"] or "words"),
            _places(row) or "no: set AGENTWIRE_DATA to a folder with it",
            row["licence"],
        )
    out().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a dataset, or a task file of your own.")],
    as_json: AsJson = False,
) -> None:
    """Show a dataset's classes, prompts and files."""
    task = load_definition(name)
    here = _entry(name, task)
    if as_json:
        shown = {"labels", "label_words", "prompt", "text_prompt", "max_new_tokens", "stop"}
        print_json({**here, **task.model_dump(include=shown, mode="json")})
        return
    licence = f"; licence: {task.licence}" if task.licence else ""
    echo(f"{task.name}: {task.description}{licence}")
    echo(f"here: {_places(here) or 'nothing'}")
    files = [file for files in task.rows.values() for file in files]
    places = ", ".join(files) or f"AGENTWIRE_DATA/{task.name}/<split>.jsonl[.gz]"
    example = '{"context": "...", "question": "...", "answers": ["..."]}'
    if isinstance(task, TaskDefinition):
        example = '{"text": "...", "label": 0}'
    echo(f"files: {places}, lines of {example}")
    echo(f"prompt after soft tokens: {task.prompt!r}; prompt with text: {task.text_prompt!r}")
    if not isinstance(task, TaskDefinition):
        stop = " or ".join(map(repr, task.stop))
        echo(f"answers: at most {task.max_new_tokens} tokens, up to {stop}")
        return
    echo("label, class, and the word that is scored for it:")
    for number, (label, word) in enumerate(zip(task.labels, task.label_words, strict=True)):
        echo(f"  {number:>3}  {label}" + (f"  ({word})" if word != label else ""))


@app.command()
def pull(names: Names, as_json: AsJson = False) -> None:
    """Download every available split of datasets and check every row."""
    config = Config.from_env()
    tasks = {name: load_definition(name) for name in names}  # all are known before any download
    done: list[dict[str, Any]] = []
    with steps() as shown:
        for name, task in tasks.items():
            known = dict.fromkeys((*SPLITS, *task.rows))
            splits = [split for split in known if where(name, split, config=config)]
            if not splits:
                files = is_task_file(name)
                raise DataError(
                    f"No split of {name} was found.",
                    hint="Check the paths under `rows`."
                    if files
                    else f"Set AGENTWIRE_DATA to a folder that holds {name}/, "
                    "or `pip install '.[hub]'`.",
                )
            for split in splits:
                progress = partial(shown.update, name)
                rows = load_rows(name, split, config=config, progress=progress)
                done.append(
                    {
                        "name": task.name,
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
        echo(f"{item['name']} {item['split']}: {item['rows']:,} rows ({source})")
