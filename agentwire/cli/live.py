"""The live view of a run: agents while they load, then one line per method."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from agentwire.cli.terminal import StepProgress, print_death
from agentwire.evaluation.methods import MethodSpec
from agentwire.evaluation.result import MethodRecord
from agentwire.runtime.reply import ProgressEvent


class LiveView:
    """Bars on a terminal, plain lines elsewhere. Implements ``evaluation.runner.RunDisplay``.

    Args:
        console: stderr, so that stdout has results only.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._loading: StepProgress | None = StepProgress(console)
        self._rows = Progress(
            TextColumn("[bold]{task.description:<22}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._done = self._correct = self._total = self._before = 0
        self._start = 0.0
        self._stage = ""

    def __enter__(self) -> LiveView:
        if self._loading is not None:
            self._loading.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_loading()
        if self._task is not None:
            self._rows.stop()

    def _end_loading(self) -> None:
        if self._loading is not None:
            self._loading.stop()
            self._loading = None

    def progress(self, event: ProgressEvent) -> None:
        if event.stage in {"lost", "down"}:
            print_death(self._console, event.agent, event.stage, event.detail)
        elif self._loading is not None:
            self._loading.update(event.agent, event.stage, event.fraction)
        elif self._task is not None:  # a baseline is trained before its first row
            ready = event.stage == "ready"
            figures = "" if ready else f"{event.stage} ({event.fraction:.0%})"
            self._rows.update(self._task, figures=figures)
        elif event.stage != self._stage:
            self._stage = event.stage
            self._console.print(f"{event.agent}: {event.stage}", markup=False)

    def method_started(self, method: MethodSpec, done: int, total: int) -> None:
        self._end_loading()
        self._done, self._correct, self._total, self._before = done, 0, total, done
        self._start = time.monotonic()
        if self._console.is_terminal:
            self._rows.start()
            self._task = self._rows.add_task(method.title, total=total, completed=done, figures="")
        else:
            self._console.print(f"{method.title}: {total - done} rows ...")

    def rows_done(self, method: MethodSpec, rows: int, correct: int) -> None:
        self._done += rows
        self._correct += correct
        if self._task is not None:
            new = max(self._done - self._before, 1)
            rate = new / max(time.monotonic() - self._start, 1e-9)
            figures = f"{self._correct / new:.3f} right   {rate:.1f} rows/s"
            self._rows.update(self._task, completed=self._done, figures=figures)

    def method_finished(self, method: MethodSpec, record: MethodRecord) -> None:
        if self._task is None:
            figure = "F1" if record.answers else "accuracy"
            value = record.main_figure
            right = "done" if value is None else f"{figure} {value:.3f}"
            self._console.print(f"{method.title}: {right}, {record.n} rows")
