"""``agentwire deadletters``: requests that killed an agent twice: show them, ask them again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import anyio
import typer
from rich.table import Table
from rich.text import Text

from agentwire.cli.terminal import out, print_json
from agentwire.errors import RequestError
from agentwire.runtime.deadletters import DeadLetter, DeadLetters, pick
from agentwire.runtime.pending import Outcome
from agentwire.runtime.runtime import Runtime
from agentwire.scenario.reopen import reopen
from agentwire.scenario.resolve import Resolved
from agentwire.telemetry.journal import read_lines, unfinished

app = typer.Typer(no_args_is_help=True, help="Requests that were in flight at an agent's deaths.")
SHOWN = 48
"""Characters of a text in the table."""


@app.command("list")
def show(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run's dead letters, what became of retries, and what its runner left unfinished."""

    letters = DeadLetters(run).all()
    if as_json:
        print_json([asdict(letter) for letter in letters])
        return
    _show_unfinished(run)
    if not letters:
        typer.echo(f"{run} has no dead letters.")
        return
    table = Table("request", "wire", "agent", "text", "last death", "retried", box=None)
    for letter in letters:
        text = letter.text if len(letter.text) <= SHOWN else letter.text[: SHOWN - 1] + "…"
        cells = (
            letter.request_id[:12], letter.wire, letter.agent, text, letter.reason,
            letter.outcome or "-",
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells))
    out().print(table)


def _show_unfinished(run: Path) -> None:
    """Requests that were admitted and have not ended: of a runner that was killed, or runs."""

    journal = run / "journal.jsonl"
    for request_id in unfinished(read_lines(journal)) if journal.is_file() else ():
        typer.echo(f"unfinished: {request_id}")


@app.command("retry")
def retry(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Only this request (or the start of its id).")
    ] = None,
    scenario: Annotated[
        Path | None, typer.Option("--scenario", help="Scenario file; default: the run's own.")
    ] = None,
    deadline: Annotated[
        float, typer.Option("--deadline", min=0.1, help="Seconds for each request.")
    ] = 300.0,
) -> None:
    """Ask the dead letters of a run again, by their ids; those that were answered are left out."""

    file = DeadLetters(run)
    letters = pick(file.all(), ids or ())
    if not letters:
        typer.echo("nothing to ask again.")
        return
    outcomes = anyio.run(_ask, reopen(run, scenario), file, letters, deadline)
    failed = 0
    for letter, outcome in zip(letters, outcomes, strict=True):
        if isinstance(outcome, RequestError):
            failed += 1
            typer.echo(f"{letter.request_id[:12]}: {outcome.code.value}: {outcome.message}")
        else:
            typer.echo(f"{letter.request_id[:12]}: {outcome.label or outcome.text}")
    if failed:
        raise typer.Exit(1)


async def _ask(
    resolved: Resolved, file: DeadLetters, letters: list[DeadLetter], deadline: float
) -> list[Outcome]:
    """One after the other: each may kill its agent again."""

    outcomes: list[Outcome] = []
    async with Runtime(resolved) as runtime:
        for letter in letters:
            outcome = await runtime.resend(letter, deadline=deadline)
            file.retried(letter.request_id, outcome)
            outcomes.append(outcome)
    return outcomes
