"""The view of a benchmark: agents while they load, one line per cell, then tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from agentwire.benchmark.drive import Burst
from agentwire.benchmark.plan import Measurement
from agentwire.benchmark.record import BenchRecord, BusRecord, MeasurementRecord
from agentwire.cli.terminal import StepProgress, print_death
from agentwire.runtime.reply import ProgressEvent


class BenchView:
    """Plain lines. Implements ``benchmark.session.BenchObserver``.

    Args:
        console: stderr, so that stdout has results only.
        loading: progress of loading agents; stopped when the first cell is measured.
    """

    def __init__(self, console: Console, loading: StepProgress) -> None:
        self._console = console
        self._steps: StepProgress | None = loading

    def _end_loading(self) -> None:
        if self._steps is not None:
            self._steps.stop()
            self._steps = None

    def progress(self, event: ProgressEvent) -> None:
        if event.stage in {"lost", "down"}:
            print_death(self._console, event.agent, event.stage, event.detail)
        elif self._steps is not None:
            self._steps.update(event.agent, event.stage, event.fraction)

    def loading(self, what: str) -> None:
        if self._steps is not None:
            self._steps.update(what, "load", 0.0)

    def measured(self, round_: int, rounds: int, measurement: Measurement, burst: Burst) -> None:
        self._end_loading()
        rate = burst.rows_per_s
        if rate is None:
            middle = sorted(burst.latencies_ms)[len(burst.latencies_ms) // 2]
            figure = f"{middle:,.2f} ms, {len(burst.latencies_ms)} messages"
        else:
            figure = f"{rate:,.1f} rows/s"
        self._console.print(
            f"round {round_ + 1} of {rounds}  {measurement.method:<18} "
            f"{measurement.batch_size:>3} x {measurement.text_tokens} tokens  {figure}",
            markup=False,
        )

    def failed(self, measurement: Measurement, reason: str) -> None:
        self._end_loading()
        where = f"{measurement.method} {measurement.batch_size} x {measurement.text_tokens} tokens"
        self._console.print(f"{where}: {reason}", style="yellow", markup=False)


def print_record(record: BenchRecord, console: Console) -> None:
    """Prints the conditions of a record and its tables."""
    for label in record.labels:
        console.print(f"* {label}", markup=False, style="dim")
    latency = [cell for cell in record.cells if cell.kind == "latency"]
    throughput = [cell for cell in record.cells if cell.kind == "throughput"]
    if latency:
        console.print(_latency_table(latency))
    if throughput:
        console.print(_throughput_table(throughput))
    table = Table("figure", "value", title="figures")
    for name, value in record.figures.items():
        if name.startswith(("vs_", "bus_cost", "stages_gap")) or name.endswith("@best"):
            table.add_row(name, f"{value:,.4g}")
    if table.row_count:
        console.print(table)


def _latency_table(cells: list[MeasurementRecord]) -> Table:
    table = Table("method", "tokens", "p50 ms", "p95", "p99", "n", "stages, median ms")
    for cell in cells:
        found = cell.latency_ms
        figures = (
            ["-"] * 4
            if found is None
            else [f"{found.p50:,.2f}", f"{found.p95:,.2f}", f"{found.p99:,.2f}", str(found.n)]
        )
        stages = ", ".join(f"{name} {ms:,.2f}" for name, ms in cell.stages_ms.items() if ms)
        table.add_row(cell.method, str(cell.text_tokens), *figures, cell.error or stages)
    return table


def _throughput_table(cells: list[MeasurementRecord]) -> Table:
    table = Table("batch", "tokens", "method", "rows/s", "p50 ms", "p99 ms")
    for cell in cells:
        rate = cell.error if cell.rows_per_s is None else f"{cell.rows_per_s:,.1f}"
        found = cell.latency_ms
        times = ["-", "-"] if found is None else [f"{found.p50:,.1f}", f"{found.p99:,.1f}"]
        table.add_row(str(cell.batch_size), str(cell.text_tokens), cell.method, rate, *times)
    return table


def print_bus(record: BusRecord, console: Console) -> None:
    """Prints the bus beside bare sockets."""
    for label in record.labels:
        console.print(f"* {label}", markup=False, style="dim")
    table = Table("", "p50 us", "p99 us", "messages/s", title="64 KiB one way over ipc, medians")
    for kind in record.rounds:
        figures = [
            record.figures.get(f"{kind}_{p}") for p in ("p50_us", "p99_us", "messages_per_s")
        ]
        table.add_row(kind, *("-" if value is None else f"{value:,.0f}" for value in figures))
        ratios = [
            record.figures.get(f"{kind}_to_bare_{p}") for p in ("p50", "p99", "messages_per_s")
        ]
        if kind.startswith("bus"):
            words = ("-" if value is None else f"{value:.2f} x" for value in ratios)
            table.add_row(f"{kind}, to bare", *words)
    console.print(table)
