"""Which cells are measured, and in which order, so that drift of the machine hits all alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from agentwire.spec.scenario import BenchMethod, BenchPlan

Kind = Literal["latency", "throughput"]
Benchmark = Literal["latency", "throughput", "all"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure to measure: a method at one batch size and text length.

    Attributes:
        kind: ``latency``: one message at a time; ``throughput``: several in flight.
        batch_size: rows of one message.
        text_tokens: of each text, in the sender's tokens.
    """

    kind: Kind
    method: BenchMethod
    batch_size: int
    text_tokens: int


def cells_of(plan: BenchPlan, benchmark: Benchmark) -> list[list[Cell]]:
    """Groups of cells: the methods of one kind, batch size and length, which are compared.

    Latency is measured for single rows at every text length; throughput at every batch size for
    the first length, and at ``length_batch`` for the others (without text relay and the reference
    in one process, whose comparison the first length makes).
    """
    first, *longer = dict.fromkeys(plan.text_tokens)
    groups: list[list[Cell]] = []
    if benchmark in ("latency", "all"):
        groups.append([Cell("latency", m, 1, first) for m in plan.methods])
        groups += [[Cell("latency", m, 1, t) for m in _at_lengths(plan.methods)] for t in longer]
    if benchmark in ("throughput", "all"):
        for size in sorted(set(plan.batch_sizes)):
            methods = [m for m in plan.methods if _is_measured(m, size, plan)]
            groups.append([Cell("throughput", m, size, first) for m in methods])
        for tokens in longer:
            methods = _at_lengths(plan.methods)
            groups.append([Cell("throughput", m, plan.length_batch, tokens) for m in methods])
    return [group for group in groups if group]


def _is_measured(method: BenchMethod, size: int, plan: BenchPlan) -> bool:
    return (
        method != "text_relay" or plan.relay_batch_sizes is None or size in plan.relay_batch_sizes
    )


def _at_lengths(methods: Sequence[BenchMethod]) -> list[BenchMethod]:
    return [m for m in methods if m not in ("text_relay", "in_process")]


def turns(groups: Sequence[Sequence[Cell]], rounds: int) -> Iterator[tuple[int, Cell]]:
    """(round, cell): every cell once a round; who begins a group changes from round to round."""
    for number in range(rounds):
        for group in groups:
            start = number % len(group)
            for cell in [*group[start:], *group[:start]]:
                yield number, cell
