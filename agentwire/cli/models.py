"""``agentwire models``: lists and downloads models."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from agentwire.cli.options import AsJson
from agentwire.cli.terminal import out, print_json, steps
from agentwire.config import Config
from agentwire.model.sources.lookup import fetch, locate
from agentwire.model.sources.registry import HUB_MODELS, MODELS, KnownModel

app = typer.Typer(help="Models: list, pull.", no_args_is_help=True)


def known_models() -> list[dict[str, Any]]:
    """Every model known by name, and where it is."""
    config = Config.from_env()
    known: dict[str, KnownModel] = {**MODELS, **HUB_MODELS}
    rows: list[dict[str, Any]] = []
    for name, model in known.items():
        found = locate(name, config=config)
        rows.append(
            {
                "name": name,
                "source": found.kind,
                "here": found.present,
                "detail": found.detail,
                "parameters": model.parameters,
                "width": model.width,
                "layers": model.layers,
                "licence": model.licence,
                "folder": str(found.folder) if found.folder else None,
            }
        )
    return rows


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the models known by name. Any hub name or local folder works too."""
    rows = known_models()
    if as_json:
        print_json(rows)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title in ("model", "source", "here", "parameters", "width", "layers"):
        right = title in {"parameters", "width", "layers"}
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "here")
    for row in rows:
        table.add_row(
            row["name"],
            row["source"],
            ("[green]yes[/green], " if row["here"] else "no, ") + row["detail"],
            f"{row['parameters'] / 1e6:,.0f} M",
            str(row["width"]),
            str(row["layers"]),
        )
    out().print(table)


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(help="Names of models.")], as_json: AsJson = False
) -> None:
    """Download models into the cache; registry models are converted once."""
    config = Config.from_env()
    for name in names:
        locate(name, config=config)  # all names are checked before the first download
    with steps() as shown:
        done = [
            {
                "name": name,
                "folder": str(fetch(name, config=config, progress=partial(shown.update, name))),
            }
            for name in names
        ]
    if as_json:
        print_json(done)
        return
    for item in done:
        typer.echo(f"{item['name']}: {item['folder']}")
