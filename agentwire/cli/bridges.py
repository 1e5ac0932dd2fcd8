"""``agentwire bridges``: lists, shows and verifies trained bridges."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from agentwire.bridge.card import CARD_FILE, read_card
from agentwire.cli.options import AsJson
from agentwire.cli.terminal import echo, out, print_json
from agentwire.errors import BridgeError
from agentwire.scenario.bridges import list_bridges
from agentwire.scenario.inventory import Inventory
from agentwire.spec.registry import suggestion

app = typer.Typer(help="Trained bridges: list, show, verify.", no_args_is_help=True)
Bridge = Annotated[str, typer.Argument(help="Name or folder of a bridge.")]


def find(wanted: str) -> Path:
    """The folder of a bridge, by path or by name."""
    if Path(wanted, CARD_FILE).is_file():
        return Path(wanted)
    known = {folder.name: folder for folder in list_bridges(Inventory.here().bridge_folders())}
    if wanted in known:
        return known[wanted]
    raise BridgeError(
        f"There is no bridge {wanted!r} here.", hint=suggestion(wanted, known, "Bridges here")
    )


def _row(folder: Path) -> dict[str, Any]:
    card = read_card(folder)
    return {
        "name": folder.name,
        "sender": card.sender.model,
        "receiver": card.receiver.model,
        "layer": card.layer,
        "soft_tokens": card.soft_tokens,
        "sizes": list(card.identity().sizes) or [card.soft_tokens],
        "payload_bytes": card.soft_tokens * card.identity().width * 2,
        "parameters": card.parameters,
        "dataset": card.training.dataset,
        "held_out_accuracy": card.training.held_out_accuracy,
        "folder": str(folder),
    }


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the bridges that scenarios find here."""
    rows: list[dict[str, Any]] = []
    for folder in list_bridges(Inventory.here().bridge_folders()):
        try:
            rows.append(_row(folder))
        except BridgeError as error:
            rows.append({"name": folder.name, "folder": str(folder), "error": error.message})
    if as_json:
        print_json(rows)
        return
    if not rows:
        out().print("no bridges here; `agentwire train <scenario>` makes one")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title in ("bridge", "layer", "M", "bytes", "parameters", "held-out accuracy"):
        table.add_column(title, justify="left" if title == "bridge" else "right", overflow="fold")
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], f"[red]{escape(row['error'])}[/red]")
            continue
        table.add_row(
            row["name"],
            str(row["layer"]),
            ", ".join(map(str, row["sizes"])),
            f"{row['payload_bytes']:,}",
            f"{row['parameters']:,}",
            f"{row['held_out_accuracy']:.3f}",
        )
    out().print(table)


@app.command()
def show(bridge: Bridge, as_json: AsJson = False) -> None:
    """Show a bridge's card: models, layer, size, training."""
    folder = find(bridge)
    card = read_card(folder)
    if as_json:
        print_json(card.model_dump(mode="json"))
    else:
        echo((folder / CARD_FILE).read_text(encoding="utf-8").rstrip())


@app.command()
def verify(
    bridge: Annotated[
        str | None, typer.Argument(help="Name or folder of a bridge; default: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a bridge's card, checksum and tensor shapes; exit code 2 if anything is wrong."""
    from agentwire.bridge import store  # imports torch

    if bridge is not None:
        folder = find(bridge)
        card = store.load(folder).card
        if as_json:
            print_json({"bridge": folder.name, "valid": True, "fingerprint": card.weights_sha256})
        else:
            echo(f"{folder.name}: valid (sha256 {card.weights_sha256})")
        return
    found: list[dict[str, Any]] = []
    for folder in list_bridges(Inventory.here().bridge_folders()):
        one: dict[str, Any] = {"bridge": folder.name, "valid": True}
        try:
            one["fingerprint"] = store.load(folder).card.weights_sha256
        except BridgeError as error:
            one |= {"valid": False, "error": error.message}
        found.append(one)
        if not as_json:
            state = f"valid (sha256 {one['fingerprint']})" if one["valid"] else one["error"]
            echo(f"{folder.name}: {state}", err=not one["valid"])
    if as_json:
        print_json(found)
    wrong = sum(not one["valid"] for one in found)
    if wrong:
        raise BridgeError(
            f"{wrong} of {len(found)} bridges are not valid.", hint="Train them again, or restore."
        )
