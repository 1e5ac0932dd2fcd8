"""``agentwire deadletters``: lists and retries requests that were in flight when agents died."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import anyio
import typer
from rich.table import Table
from rich.text import Text

from agentwire.cli.options import AsJson, RunFolder
from agentwire.cli.terminal import echo, out, print_json
from agentwire.errors import RequestError
from agentwire.runtime.deadletters import DeadLetter, DeadLetters, pick
from agentwire.runtime.pending import Outcome
from agentwire.runtime.runtime import Runtime
from agentwire.scenario.reopen import reopen
from agentwire.scenario.resolve import Resolved
from agentwire.telemetry.journal import read_lines, unfinished

app = typer.Typer(
    no_args_is_help=True, help="Requests that were in flight when an agent died: list, retry."
)
SHOWN = 48
"""Characters of a text in the table."""


@app.command("list")
def show(
    run: RunFolder,
    as_json: AsJson = False,
) -> None:
    """List a run's dead letters, the results of retries, and unfinished requests."""
    letters = DeadLetters(run).all()
    if as_json:
        print_json([asdict(letter) for letter in letters])
        return
    _show_unfinished(run)
    if not letters:
        echo(f"{run} has no dead letters.")
        return
    table = Table("request", "wire", "agent", "text", "last death", "retry", box=None)
    for letter in letters:
        text = letter.text if len(letter.text) <= SHOWN else letter.text[: SHOWN - 1] + "…"
        cells = (
            letter.request_id[:12], letter.wire, letter.agent, text, letter.reason,
            letter.outcome or "-",
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells))
    out().print(table)


def _show_unfinished(run: Path) -> None:
    """Requests without an outcome: the runner was killed, or still runs."""
    journal = run / "journal.jsonl"
    for request_id in unfinished(read_lines(journal)) if journal.is_file() else ():
        echo(f"unfinished: {request_id}")


@app.command("retry")
def retry(
    run: RunFolder,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", help="Only this request: its id, or the start of it."),
    ] = None,
    scenario: Annotated[
        Path | None, typer.Option(help="Scenario file; default: the run's own.")
    ] = None,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds for each request.")] = 300.0,
) -> None:
    """Send the dead letters of a run again, except those that a retry answered."""
    file = DeadLetters(run)
    letters = pick(file.all(), ids or ())
    if not letters:
        echo("nothing to retry.")
        return
    outcomes = anyio.run(_ask, reopen(run, scenario), file, letters, deadline)
    failed = 0
    for letter, outcome in zip(letters, outcomes, strict=True):
        if isinstance(outcome, RequestError):
            failed += 1
            echo(f"{letter.request_id[:12]}: {outcome.code.value}: {outcome.message}")
        else:
            echo(f"{letter.request_id[:12]}: {outcome.label or outcome.text}")
    if failed:
        raise typer.Exit(1)


async def _ask(
    resolved: Resolved, file: DeadLetters, letters: list[DeadLetter], deadline: float
) -> list[Outcome]:
    """Sends one at a time: each may kill its agent again."""
    outcomes: list[Outcome] = []
    async with Runtime(resolved) as runtime:
        for letter in letters:
            outcome = await runtime.resend(letter, deadline=deadline)
            file.retried(letter.request_id, outcome)
            outcomes.append(outcome)
    return outcomes
