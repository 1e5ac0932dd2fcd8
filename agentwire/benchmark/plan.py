"""What is measured, and in which order: methods take turns, so that drift affects all alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from agentwire.spec.scenario import BenchMethod, BenchPlan

T = TypeVar("T")
Kind = Literal["latency", "throughput"]
Benchmark = Literal["latency", "throughput", "all"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One method at one batch size and text length."""

    kind: Kind  # latency: one message at a time; throughput: several in flight
    method: BenchMethod
    batch_size: int  # rows of one message
    text_tokens: int  # length of each text in the sender's tokens


def measurements_of(plan: BenchPlan, benchmark: Benchmark) -> list[list[Measurement]]:
    """Groups of measurements that are compared: one kind, batch size and text length each.

    Latency is measured for single rows at every text length, throughput at every batch size for
    the first length and at ``length_batch`` for the others. Text relay and the models in one
    process are measured at the first length only.
    """
    first, *longer = dict.fromkeys(plan.text_tokens)
    everywhere = [m for m in plan.methods if m not in ("text_relay", "in_process")]
    groups: list[list[Measurement]] = []
    if benchmark in ("latency", "all"):
        groups.append([Measurement("latency", m, 1, first) for m in plan.methods])
        groups += [[Measurement("latency", m, 1, t) for m in everywhere] for t in longer]
    if benchmark in ("throughput", "all"):
        for size in sorted(set(plan.batch_sizes)):
            with_relay = plan.relay_batch_sizes is None or size in plan.relay_batch_sizes
            methods = [m for m in plan.methods if m != "text_relay" or with_relay]
            groups.append([Measurement("throughput", m, size, first) for m in methods])
        size = plan.length_batch
        groups += [[Measurement("throughput", m, size, t) for m in everywhere] for t in longer]
    return [group for group in groups if group]


def turns(groups: Sequence[Sequence[T]], rounds: int) -> Iterator[tuple[int, T]]:
    """(round, item): each once a round; the first of a group changes every round."""
    for number in range(rounds):
        for group in groups:
            start = number % len(group)
            for item in [*group[start:], *group[:start]]:
                yield number, item
