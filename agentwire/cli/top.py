"""``agentwire top``: a running run, live: agents, wires, rates, latencies, memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agentwire.cli.terminal import out
from agentwire.errors import InputError
from agentwire.telemetry.faults import describe
from agentwire.telemetry.status import STATUS_FILE, quantile, read_status

STALE_S = 5.0
"""A run with an older status was killed or hangs; a run that ends says so in its status."""


def top(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run; default: the newest in runs/.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once and exit.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between updates.")] = 1,
) -> None:
    """Show a run until it ends; Ctrl-C leaves earlier."""
    folder = run or newest(Path("runs"))
    status = read_status(folder)
    if status is None:
        raise InputError(
            f"{folder} has no status: no run writes there.", hint="Name the folder of a run."
        )
    if once:
        out().print(view(folder, status, None))
        return
    with Live(view(folder, status, None), console=out(), auto_refresh=False) as live:
        while not status.get("ended"):
            time.sleep(every)
            before, status = status, read_status(folder) or status
            live.update(view(folder, status, before), refresh=True)


def newest(runs: Path) -> Path:
    """The run whose status was written last."""
    found = sorted(runs.glob(f"*/{STATUS_FILE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"No run in {runs}/ has a status.", hint="Name the folder of a run.")
    return found[-1].parent


def view(folder: Path, status: dict[str, Any], before: dict[str, Any] | None) -> RenderableType:
    """The tables of one status; ``before`` is an earlier one, for rates.

    Raises:
        InputError: the status is damaged.
    """
    try:
        return _view(folder, status, before)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / STATUS_FILE} is damaged ({describe(error)}).",
            hint="Name the folder of another run; a run that goes on replaces the file.",
        ) from error


def _view(folder: Path, status: dict[str, Any], before: dict[str, Any] | None) -> RenderableType:
    age = time.time() - status["time"]
    silent = "running" if age < STALE_S else f"killed, or silent for {age:.0f} s"
    state = "ended" if status.get("ended") else silent
    bus = status["bus"]
    line = (
        f"{folder}: {state}; {status['outstanding']} outstanding; "
        f"{bus.get('queued_messages', 0)} messages queued ({bus.get('queued_bytes', 0):,} bytes); "
        f"{bus.get('peers', 0)} peers"
    )
    refusals = ", ".join(
        f"{name} {count}" for name, count in sorted(bus.items()) if name.startswith("refused.")
    )
    parts: list[RenderableType] = [
        Text(line, style="bold"),
        _agents(status),
        _wires(status, before),
    ]
    parts.append(_stages(status))
    if refusals:
        parts.append(Text(f"refused at the bus: {refusals}", style="yellow"))
    for kind, fault in status.get("faults", {}).items():
        parts.append(
            Text(f"fault: {kind} failed {fault['count']:,} x ({fault['last']})", style="red")
        )
    return Group(*parts)


def _agents(status: dict[str, Any]) -> RenderableType:
    table = Table("agent", "model", "device", "pid", "memory MB", "restarts", box=None)
    for name, info in status["agents"].items():
        restarts = str(status["restarts"].get(name, 0))
        pid = str(info["pid"] or "elsewhere")
        table.add_row(name, info["model"], info["device"], pid, _memory(info["pid"]), restarts)
    return table


def _memory(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).memory_info().rss / 2**20:.0f}" if pid else "-"
    except psutil.Error:
        return "gone"


def _wires(status: dict[str, Any], before: dict[str, Any] | None) -> RenderableType:
    table = Table("wire", "answered", "a second", "as text", "errors", "credit", box=None)
    wires = sorted({row[0] for row in status["outcomes"]} | set(status["credits"]))
    for wire in wires:
        done, errors = _count(status, wire)
        rate = "-"
        if before is not None and status["time"] > before["time"]:
            rate = f"{(done - _count(before, wire)[0]) / (status['time'] - before['time']):.1f}"
        text = sum(row[2] for row in status["fallbacks"] if row[0] == wire)
        credit = str(status["credits"].get(wire, 0))
        table.add_row(wire, f"{done:,}", rate, str(text), str(errors), credit)
    return table


def _count(status: dict[str, Any], wire: str) -> tuple[int, int]:
    rows = [row for row in status["outcomes"] if row[0] == wire]
    done = sum(count for _, outcome, count in rows if outcome == "answered")
    return done, sum(count for _, outcome, count in rows) - done


def _stages(status: dict[str, Any]) -> RenderableType:
    table = Table("stage", "mean ms", "p50 <= ms", "p99 <= ms", box=None)
    for stage, histogram in status["stages"].items():
        counts = histogram["counts"]
        mean = histogram["total_ms"] / max(1, sum(counts))
        table.add_row(
            stage, f"{mean:.1f}", f"{quantile(counts, 0.5):g}", f"{quantile(counts, 0.99):g}"
        )
    return table
