"""``agentwire replay``: replays a recorded bus and compares it with the run's journal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentwire.bus.recording import FILE_NAME
from agentwire.bus.replay import differences, to_json
from agentwire.bus.replay import replay as feed
from agentwire.cli.options import AsJson
from agentwire.cli.terminal import echo
from agentwire.telemetry.journal import read_lines, unfinished


def replay(
    run: Annotated[Path, typer.Argument(help="Folder of a run with --record.")],
    as_json: AsJson = False,
) -> None:
    """Replay a run's recording through sessions and routing and compare it with its journal.

    The exit code is 1 if they differ.
    """
    done = feed(run / FILE_NAME)
    journal = run / "journal.jsonl"
    found = differences(done, journal)
    left = unfinished(read_lines(journal))
    if as_json:
        echo(to_json(done))
    else:
        ending = "" if done.recorded is not None else "; the recording was cut short"
        echo(
            f"{done.entries} entries, {len(done.answered)} requests answered, "
            f"{len(done.refused)} refused, {len(left)} unfinished{ending}"
        )
    for place in done.torn:
        echo(f"skipped: {place}, an unfinished last line", err=True)
    for request_id in left:
        echo(f"unfinished: {request_id}", err=True)
    for difference in found:
        typer.secho(f"differs: {difference}", err=True, fg="red")
    if found:
        raise typer.Exit(1)
    if not as_json:
        echo("same outcomes as in the run")
