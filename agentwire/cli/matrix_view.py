"""The live view of a matrix: one bar for the cells and one for the current cell."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agentwire.cli.terminal import print_death
from agentwire.evaluation.matrix.cells import CellPlan
from agentwire.evaluation.matrix.result import CellRecord
from agentwire.evaluation.methods import MethodSpec
from agentwire.evaluation.result import MethodRecord
from agentwire.runtime.reply import ProgressEvent

PARTS = 100
"""Units of the lower bar for work without a count of its own."""


class MatrixView:
    """Two bars on a terminal, plain lines elsewhere. Implements ``matrix.run.MatrixDisplay``.

    Args:
        console: stderr, so that stdout has results only.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<44}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._cells = self._bars.add_task("cells", total=1, figures="", visible=False)
        self._work = self._bars.add_task("", total=PARTS, figures="", visible=False)
        self._said: set[str] = set()
        self._done = self._correct = 0

    def __enter__(self) -> MatrixView:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    # -- cells

    def cell_started(self, plan: CellPlan, number: int, total: int) -> None:
        self._said.clear()
        name = escape(plan.cell.id)
        self._bars.update(
            self._cells, completed=number - 1, total=total, description=name, visible=True
        )
        self._say(f"cell {number} of {total}: {plan.cell.id}")

    def cell_finished(self, record: CellRecord, *, reused: bool) -> None:
        self._bars.advance(self._cells)
        self._bars.update(self._work, visible=False)
        figures = ", ".join(
            f"{name} {method.main_figure:.3f}"
            for name, method in record.methods.items()
            if method.accuracy is not None
        )
        was = " (measured before)" if reused else ""
        self._console.print(f"  {record.id}: {figures or record.status}{was}", markup=False)

    def fetching(self, what: str, stage: str, fraction: float) -> None:
        """A model or rows are fetched."""
        self._step(f"{stage} {what}", fraction)

    def training_started(self, plans: Sequence[CellPlan]) -> None:
        """The bridges of these cells are trained together."""
        if len(plans) > 1:
            names = ", ".join(plan.cell.id for plan in plans)
            bridges = {plan.resolved.wire.bridge for plan in plans}
            what = f"{len(bridges)} bridges:" if len(bridges) > 1 else "one bridge for"
            self._console.print(f"  training {what} {names}", markup=False)

    def training(self, stage: str, fraction: float) -> None:
        """Bridges are trained; ``fraction`` of the whole."""
        self._step(f"training: {stage}", fraction)

    def _step(self, text: str, fraction: float) -> None:
        self._show(text, fraction)
        self._say(f"  {text}")

    def _show(self, text: str, fraction: float) -> None:
        done = round(PARTS * min(max(fraction, 0.0), 1.0))
        self._bars.update(
            self._work,
            description=escape(text),
            completed=done,
            total=PARTS,
            figures="",
            visible=True,
        )

    def _say(self, text: str) -> None:
        """Prints a line in a log, once per cell."""
        if not self._console.is_terminal and text not in self._said:
            self._said.add(text)
            self._console.print(text, markup=False)

    # -- the run of a cell: ``evaluation.runner.RunDisplay``

    def progress(self, event: ProgressEvent) -> None:
        if event.stage in {"lost", "down"}:
            print_death(self._console, event.agent, event.stage, event.detail)
        else:
            self._show(f"{event.stage} {event.agent}", event.fraction)

    def method_started(self, method: MethodSpec, done: int, total: int) -> None:
        self._done = self._correct = 0
        self._bars.update(
            self._work,
            description=method.title,
            completed=done,
            total=total,
            figures="",
            visible=True,
        )
        self._say(f"  {method.title}: {total - done} rows ...")

    def rows_done(self, method: MethodSpec, rows: int, correct: int) -> None:
        self._done += rows
        self._correct += correct
        self._bars.update(
            self._work, advance=rows, figures=f"{self._correct / max(self._done, 1):.3f} right"
        )

    def method_finished(self, method: MethodSpec, record: MethodRecord) -> None:
        """Nothing to do: ``cell_finished`` shows the figures."""
