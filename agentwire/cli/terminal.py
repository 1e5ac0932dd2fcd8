"""Consoles and progress of the commands: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.segment import Segment

PLAIN_WIDTH = 110
"""Columns of logs and pipes."""


_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """The text without control characters: names and texts from files must not steer a terminal."""
    return text.translate(_CONTROLS)


def echo(text: str, *, err: bool = False) -> None:
    """Prints a line as ``visible`` makes it."""
    typer.echo(visible(text), err=err)


class VisibleConsole(Console):
    """Prints texts as ``visible`` makes them; styles stay."""

    def render(self, *args: Any, **options: Any) -> Iterator[Segment]:
        for segment in super().render(*args, **options):
            plain = segment.control or segment.text.isprintable()
            yield segment if plain else segment._replace(text=visible(segment.text))


def out() -> Console:
    """The console for results."""
    return _console(stderr=False)


def err() -> Console:
    """The console for progress and notices."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = VisibleConsole(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def print_json(value: Any) -> None:
    """One JSON document on stdout, for programs."""
    print(json.dumps(value, indent=2))  # ASCII, for any terminal


def print_death(console: Console, agent: str, stage: str, detail: str) -> None:
    """Prints that an agent process died; ``stage`` is ``lost`` or ``down``."""
    words = {"lost": "died and restarts", "down": "is down"}[stage]
    why = f" ({detail})" if detail else ""
    console.print(f"{agent} {words}{why}", style="yellow", markup=False)


class StepProgress:
    """Progress of slow steps: bars on a terminal, one line per step in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._started: set[tuple[str, str]] = set()
        self._bars = Progress(
            TextColumn("{task.description:<44}"),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            console=console,
            transient=False,
        )

    def update(self, what: str, stage: str, fraction: float) -> None:
        """``stage`` of ``what`` is at ``fraction`` (0..1)."""
        key = (what, stage)
        if not self._console.is_terminal:
            if key not in self._started:
                self._started.add(key)
                self._console.print(f"{stage} {what} ...", markup=False)
            return
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(f"{stage} {what}", total=1.0)
        self._bars.update(self._tasks[key], completed=min(max(fraction, 0.0), 1.0))

    def overall(self, what: str, stage: str, fraction: float) -> None:
        """Like ``update``, but ``fraction`` is of all stages together."""
        if not self._console.is_terminal:
            if (what, stage) not in self._started:
                self._started.add((what, stage))
                self._console.print(f"{fraction:4.0%} {stage}", markup=False)
            return
        key = (what, "")
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(what, total=1.0)
        shown = min(max(fraction, 0.0), 1.0)
        self._bars.update(self._tasks[key], completed=shown, description=escape(stage))

    def start(self) -> None:
        if self._console.is_terminal:
            self._bars.start()

    def stop(self) -> None:
        if self._console.is_terminal:
            self._bars.stop()


@contextmanager
def steps() -> Iterator[StepProgress]:
    """Shows progress on stderr while the block runs."""
    shown = StepProgress(err())
    shown.start()
    try:
        yield shown
    finally:
        shown.stop()
