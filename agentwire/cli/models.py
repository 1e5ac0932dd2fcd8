"""``agentwire models``: which models are known, which are here, and getting them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from agentwire.cli.terminal import out, print_json, steps
from agentwire.config import Config
from agentwire.model.sources.lookup import fetch, locate
from agentwire.model.sources.registry import HUB_MODELS, MODELS, HubModel, RegistryModel

app = typer.Typer(help="Models: list, pull.", no_args_is_help=True)


def known_models() -> list[dict[str, Any]]:
    """Every model known by name, and where it is."""

    config = Config.from_env()
    known: dict[str, RegistryModel | HubModel] = {**MODELS, **HUB_MODELS}
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
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The models known by name. Any hub name or local folder works too."""

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
    names: Annotated[list[str], typer.Argument(help="Model names.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Download models (and convert registry models, once) into the cache."""

    config = Config.from_env()
    for name in names:
        locate(name, config=config)  # all names are known before the first download
    done: list[dict[str, str]] = []
    with steps() as shown:
        for name in names:

            def report(stage: str, fraction: float, name: str = name) -> None:
                shown.update(name, stage, fraction)

            folder = fetch(name, config=config, progress=report)
            done.append({"name": name, "folder": str(folder)})
    if as_json:
        print_json(done)
        return
    for item in done:
        typer.echo(f"{item['name']}: {item['folder']}")
