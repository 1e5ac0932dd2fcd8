"""What is measured, and in which order: methods take turns, so that drift affects all alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from agentwire.spec.scenario import BenchMethod, BenchPlan

Kind = Literal["latency", "throughput"]
Benchmark = Literal["latency", "throughput", "all"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One method at one batch size and text length.

    Attributes:
        kind: ``latency``: one message at a time; ``throughput``: several in flight.
        batch_size: rows of one message.
        text_tokens: length of each text in the sender's tokens.
    """

    kind: Kind
    method: BenchMethod
    batch_size: int
    text_tokens: int


def measurements_of(plan: BenchPlan, benchmark: Benchmark) -> list[list[Measurement]]:
    """Groups of measurements that are compared: one kind, batch size and text length each.

    Latency is measured for single rows at every text length, throughput at every batch size for
    the first length and at ``length_batch`` for the others. Text relay and the models in one
    process are measured at the first length only.
    """
    first, *longer = dict.fromkeys(plan.text_tokens)
    groups: list[list[Measurement]] = []
    if benchmark in ("latency", "all"):
        groups.append([Measurement("latency", m, 1, first) for m in plan.methods])
        groups += [
            [Measurement("latency", m, 1, t) for m in _at_lengths(plan.methods)] for t in longer
        ]
    if benchmark in ("throughput", "all"):
        for size in sorted(set(plan.batch_sizes)):
            methods = [m for m in plan.methods if _is_measured(m, size, plan)]
            groups.append([Measurement("throughput", m, size, first) for m in methods])
        for tokens in longer:
            methods = _at_lengths(plan.methods)
            groups.append(
                [Measurement("throughput", m, plan.length_batch, tokens) for m in methods]
            )
    return [group for group in groups if group]


def _is_measured(method: BenchMethod, size: int, plan: BenchPlan) -> bool:
    return (
        method != "text_relay" or plan.relay_batch_sizes is None or size in plan.relay_batch_sizes
    )


def _at_lengths(methods: Sequence[BenchMethod]) -> list[BenchMethod]:
    return [m for m in methods if m not in ("text_relay", "in_process")]


def turns(
    groups: Sequence[Sequence[Measurement]], rounds: int
) -> Iterator[tuple[int, Measurement]]:
    """(round, measurement): each once a round; the first of a group changes every round."""
    for number in range(rounds):
        for group in groups:
            start = number % len(group)
            for one in [*group[start:], *group[:start]]:
                yield number, one
