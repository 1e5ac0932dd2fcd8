"""``agentwire validate``: is a scenario file right, and what would it run here?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agentwire.cli.terminal import print_json
from agentwire.errors import InputError
from agentwire.evaluation.matrix.expand import expand
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.load import load_scenario
from agentwire.spec.scenario import Scenario


def validate(
    scenarios: Annotated[list[Path], typer.Argument(help="Scenario files.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check scenario files; nothing is downloaded or run."""

    found: list[dict[str, Any]] = []
    for path in scenarios:
        try:
            scenario = load_scenario(path)
            cells = [cell.id for cell in expand(scenario)] if scenario.matrix else []
        except InputError as error:
            found.append(
                {"file": str(path), "valid": False, "error": error.message, "hint": error.hint}
            )
        else:
            found.append(
                {
                    "file": str(path),
                    "valid": True,
                    "name": scenario.name,
                    "cells": cells,
                    "lacks": missing_libraries(scenario),
                }
            )
    if as_json:
        print_json(found)
    for item in found:
        if item["valid"]:
            if not as_json:
                count = f", {len(item['cells'])} cells" if item["cells"] else ""
                typer.echo(f"{item['file']}: valid ({item['name']}{count})")
                for problem in item["lacks"]:
                    typer.secho(f"note:  {problem['problem']}", err=True, fg="yellow")
                    typer.echo(f"next:  {problem['next']}", err=True)
            continue
        typer.secho(f"error: {item['error']}", err=True, fg="red")
        if item["hint"]:
            typer.echo(f"next:  {item['hint']}", err=True)
    if not all(item["valid"] for item in found):
        raise typer.Exit(2)


def missing_libraries(scenario: Scenario) -> list[dict[str, str]]:
    """What agents of a scenario would need installed here: the file is valid all the same."""

    inventory = Inventory.here()
    return [
        {"problem": f"agents.{name} cannot run here: {problem.reason}.", "next": problem.hint}
        for name, agent in scenario.agents.items()
        if (problem := inventory.missing_library(agent)) is not None
    ]
