"""Goals of speed, of the bus and of endurance, set before anything was measured: what came of them.

The goals for accuracy have a section of their own (``goals``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rendering.markdown import Records, table

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Aim:
    """One goal.

    Attributes:
        what: is measured, in words.
        record: the stem of its file.
        figure: its name in the record's figures, or how it follows from them.
        goal: the bound; reached by a value that is equal.
        least: the bound is the least that is wanted, else the most.
        shape: how value and goal are written.
    """

    what: str
    record: str
    figure: str | Callable[[Figures], float]
    goal: float
    least: bool = True
    shape: str = "{:.2f} x"

    def value(self, figures: Figures) -> float:
        """Raises: KeyError: the record lacks the figure."""
        return figures[self.figure] if isinstance(self.figure, str) else self.figure(figures)

    def reached(self, value: float) -> bool:
        return value >= self.goal if self.least else value <= self.goal


def _tail(figures: Figures) -> float:
    return float(figures["e2e_p99_ms@1"] / figures["e2e_p50_ms@1"])


def _lost(figures: Figures) -> float:
    return float(sum(figures[key] for key in figures if key.endswith(("_lost", "_duplicated"))))


def _wrong(figures: Figures) -> float:
    return float(sum(figures[key] for key in figures if key.endswith("_wrong")))


GPUS, BUS = "speed-h100x2", "bus-cpu"
MS, RATE, SHARE, COUNT = "{:.1f} ms", "{:,.0f} rows/s", "{:.1%}", "{:,.0f}"
AIMS = (
    Aim("one text, end to end, p50", GPUS, "e2e_p50_ms@1", 11.0, least=False, shape=MS),
    Aim("one text: p99 to p50", GPUS, _tail, 1.5, least=False),
    Aim("stages against the whole", GPUS, "stages_gap@1", 0.05, least=False, shape=SHARE),
    Aim("bridge, batches of 16", GPUS, "samples_per_s@16", 850, shape=RATE),
    Aim("bridge, best batch", GPUS, "samples_per_s@best", 1050, shape=RATE),
    Aim("bridge to receiver direct, batch 1", GPUS, "vs_direct@1", 1.0),
    Aim("bridge to receiver direct, batch 4", GPUS, "vs_direct@4", 1.25),
    Aim("bridge to receiver direct, batch 16", GPUS, "vs_direct@16", 1.8),
    Aim("bridge to receiver direct, batch 64", GPUS, "vs_direct@64", 2.0),
    Aim("text relay's latency to the bridge's", GPUS, "vs_text_relay_latency@1", 20.0),
    Aim("bridge to text relay, batch 16", GPUS, "vs_text_relay_throughput@16", 12.0),
    Aim("processes and bus, batch 16", GPUS, "bus_cost@16", 0.05, least=False, shape=SHARE),
    Aim("64 KiB one way, to bare sockets, p50", BUS, "bus_to_bare_p50", 2.0, least=False),
    Aim("messages/s, to bare sockets", BUS, "bus_to_bare_messages_per_s", 0.4),
    Aim("two batches in flight, to one process", "overhead-cpu", "ratio_in_flight_2", 1.0),
    Aim("goodput at twice the load", "load-cpu", "goodput_of_capacity", 0.9, shape="{:.4f}"),
    Aim("requests lost or doubled by faults", "chaos", _lost, 0, least=False, shape=COUNT),
    Aim("answers made wrong by faults", "chaos", _wrong, 0, least=False, shape=COUNT),
    Aim("messages of a soak", "soak-cpu", "messages", 1_000_000, shape=COUNT),
    Aim("messages lost in it", "soak-cpu", "lost", 0, least=False, shape=COUNT),
)


def section(records: Records, aims: tuple[Aim, ...] = AIMS) -> str:
    """Every goal whose record is there, beside what was measured; "" without any.

    Raises:
        KeyError: a record lacks the figure that a goal is about.
    """
    rows = [_row(aim, records[aim.record]["figures"]) for aim in aims if aim.record in records]
    if not rows:
        return ""
    says = (
        "Those for accuracy stand in its chapter. On GPUs: the 8B and 7B shapes with **random "
        "weights**. Which models, machine and command a figure is of stands beside its record."
    )
    head = ["what", "goal", "measured", "", "record"]
    return "\n\n".join(["## Goals of speed and endurance", says, table(head, rows)])


def _row(aim: Aim, figures: Figures) -> list[str]:
    value = aim.value(figures)
    bound = f"{'at least' if aim.least else 'at most'} {aim.shape.format(aim.goal)}"
    verdict = "reached" if aim.reached(value) else "**missed**"
    return [aim.what, bound, aim.shape.format(value), verdict, aim.record]
