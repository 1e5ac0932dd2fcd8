"""``agentwire models``: lists, downloads and verifies models."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from agentwire.cli.options import AsJson
from agentwire.cli.terminal import echo, out, print_json, steps
from agentwire.config import Config
from agentwire.errors import ModelError
from agentwire.model.sources.fingerprint import fingerprint
from agentwire.model.sources.lookup import fetch, locate
from agentwire.model.sources.registry import HUB_MODELS, MODELS, KnownModel

app = typer.Typer(help="Models: list, pull, verify.", no_args_is_help=True)


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
        echo(f"{item['name']}: {item['folder']}")


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names or folders; default: the known models here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read models' files again and check them; exit code 2 if any was changed or damaged."""
    names = names or [row["name"] for row in known_models() if row["here"]]
    rows = [_verified(name, Config.from_env()) for name in names]
    if as_json:
        print_json(rows)
    for row in [] if as_json else rows:
        echo(f"{row['name']}: {row['error'] or 'valid (sha256 ' + row['fingerprint'] + ')'}")
    if not all(row["valid"] for row in rows):
        raise typer.Exit(2)


def _verified(name: str, config: Config) -> dict[str, Any]:
    """The verdict on one model, whose files are all read."""
    row: dict[str, Any] = {"name": name, "valid": False, "fingerprint": None, "error": None}
    try:
        found = locate(name, config=config)
        if found.folder is None:
            raise ModelError(f"it is not here: {found.detail}.")
        row["fingerprint"] = fingerprint(found.folder, config=config, fresh=True)
        if name in MODELS and row["fingerprint"] != MODELS[name].sha256:
            raise ModelError(
                f"{found.folder} was converted from another file than {MODELS[name].file}.",
                hint=f"Remove the folder and run `agentwire models pull {name}`.",
            )
        row["valid"] = True
    except ModelError as error:
        row["error"] = str(error)
    return row
