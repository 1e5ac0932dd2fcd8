"""``agentwire keys``: CURVE keys for buses that other machines join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentwire.bus.keys import KeyFolder, read_allowed, read_pair, read_public
from agentwire.cli.terminal import print_json
from agentwire.config import Config

app = typer.Typer(no_args_is_help=True, help="Keys of agents that join from other machines.")
Folder = Annotated[
    Path | None, typer.Option("--folder", help="Where keys lie; default: the user's own folder.")
]


def key_folder(folder: Path | None) -> KeyFolder:

    return KeyFolder(folder or Config.from_env().keys)


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Name of the agent that will have it.")],
    folder: Folder = None,
) -> None:
    """Make a pair of keys; only its public half ever leaves this machine."""
    keys = key_folder(folder)
    pair = keys.new(name)
    typer.echo(f"secret: {keys.folder / name}.key (keep it here)")
    typer.echo(f"public: {keys.folder / name}.pub")
    typer.echo(f"next:   agentwire keys allow {name} '{pair.public}'   (where the bus runs)")


@app.command("list")
def show(
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the pairs that lie here, and who is let in."""

    keys = key_folder(folder)
    allowed = read_allowed(keys.allowed)
    if as_json:
        print_json({"folder": str(keys.folder), "pairs": keys.names(), "allowed": allowed})
        return
    typer.echo(f"pairs in {keys.folder}: {', '.join(keys.names()) or 'none'}")
    for name, public in allowed.items():
        typer.echo(f"let in: {name} {public}")
    if not allowed:
        typer.echo("let in: nobody")


@app.command("allow")
def allow(
    name: Annotated[str, typer.Argument(help="Name that the key stands for.")],
    key: Annotated[
        str | None,
        typer.Argument(help="Public key or .pub file; default: the pair here."),
    ] = None,
    folder: Folder = None,
) -> None:
    """Let a public key in, as one agent."""

    keys = key_folder(folder)
    public = read_pair(keys.folder / f"{name}.key").public if key is None else read_public(key)[1]
    keys.allow(name, public)
    typer.echo(f"{name} is let in.")


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="Name whose key is let in no more.")],
    folder: Folder = None,
) -> None:
    """Let a key in no more; who is connected with it is cut off."""
    key_folder(folder).revoke(name)
    typer.echo(f"{name} is not let in any more.")
