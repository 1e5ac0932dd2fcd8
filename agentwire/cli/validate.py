"""``agentwire validate``: checks scenario files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agentwire.cli.options import AsJson
from agentwire.cli.terminal import echo, print_json
from agentwire.errors import InputError
from agentwire.evaluation.matrix.expand import expand
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.load import load_scenario
from agentwire.spec.scenario import Scenario
from agentwire.task.definitions import load_definition


def validate(
    scenarios: Annotated[list[Path], typer.Argument(help="Scenario files.")],
    as_json: AsJson = False,
) -> None:
    """Check scenario files; nothing is downloaded or run."""
    found = [_checked(path) for path in scenarios]
    if as_json:
        print_json(found)
    for item in found:
        if not item["valid"]:
            typer.secho(f"error: {item['error']}", err=True, fg="red")
            if item["hint"]:
                echo(f"next:  {item['hint']}", err=True)
        elif not as_json:
            count = f", {len(item['cells'])} cells" if item["cells"] else ""
            echo(f"{item['file']}: valid ({item['name']}{count})")
            for missing in item["lacks"]:
                typer.secho(f"note:  {missing['problem']}", err=True, fg="yellow")
                echo(f"next:  {missing['next']}", err=True)
    if not all(item["valid"] for item in found):
        raise typer.Exit(2)


def _checked(path: Path) -> dict[str, Any]:
    try:
        scenario = load_scenario(path)
        if scenario.task is not None:
            load_definition(scenario.task.dataset)
        cells = [cell.id for cell in expand(scenario)] if scenario.matrix else []
    except InputError as error:
        return {"file": str(path), "valid": False, "error": error.message, "hint": error.hint}
    return {
        "file": str(path),
        "valid": True,
        "name": scenario.name,
        "cells": cells,
        "lacks": _missing_libraries(scenario),
    }


def _missing_libraries(scenario: Scenario) -> list[dict[str, str]]:
    """Libraries that agents would need here; the file is valid without them."""
    inventory = Inventory.here()
    return [
        {"problem": f"agents.{name} cannot run here: {missing.reason}.", "next": missing.hint}
        for name, agent in scenario.agents.items()
        if (missing := inventory.missing_library(agent)) is not None
    ]
