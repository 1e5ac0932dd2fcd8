"""``agentwire keys``: CURVE keys of agents that join from other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentwire.bus.keys import KeyFolder, read_allowed, read_pair, read_public
from agentwire.cli.options import AsJson
from agentwire.cli.terminal import echo, print_json
from agentwire.config import Config

app = typer.Typer(
    no_args_is_help=True, help="CURVE keys of agents on other machines: new, list, allow, revoke."
)
Folder = Annotated[
    Path | None, typer.Option("--folder", help="Folder of the keys; default: the user's own.")
]


def key_folder(folder: Path | None) -> KeyFolder:
    return KeyFolder(folder or Config.from_env().keys)


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Name of the agent.")], folder: Folder = None
) -> None:
    """Make a pair of keys; only the public key leaves this machine."""
    keys = key_folder(folder)
    pair = keys.new(name)
    echo(f"secret: {keys.folder / name}.key (keep it here)")
    echo(f"public: {keys.folder / name}.pub")
    echo(f"next:   agentwire keys allow {name} '{pair.public}'   (where the bus runs)")


@app.command("list")
def show(folder: Folder = None, as_json: AsJson = False) -> None:
    """List the key pairs here and the allowed agents."""
    keys = key_folder(folder)
    allowed = read_allowed(keys.allowed)
    if as_json:
        print_json({"folder": str(keys.folder), "pairs": keys.names(), "allowed": allowed})
        return
    echo(f"pairs in {keys.folder}: {', '.join(keys.names()) or 'none'}")
    for name, public in allowed.items():
        echo(f"allowed: {name} {public}")
    if not allowed:
        echo("allowed: nobody")


@app.command("allow")
def allow(
    name: Annotated[str, typer.Argument(help="Name of the agent that has the key.")],
    key: Annotated[
        str | None, typer.Argument(help="Public key or .pub file; default: the pair here.")
    ] = None,
    folder: Folder = None,
) -> None:
    """Allow the agent with this public key to join."""
    keys = key_folder(folder)
    public = read_pair(keys.folder / f"{name}.key").public if key is None else read_public(key)[1]
    keys.allow(name, public)
    echo(f"{name} is allowed.")


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the agent.")], folder: Folder = None
) -> None:
    """Remove an agent's key; a connected agent is disconnected."""
    key_folder(folder).revoke(name)
    echo(f"{name} is no longer allowed.")
