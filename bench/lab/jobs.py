"""The list of jobs, in the order in which they matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

TASKS = ("sst2", "trec", "banking77", "ag_news")
DIRECTIONS = ("forward", "reverse")
SEEDS = (0, 1, 2)
BASE_LAYER = {"forward": 15, "reverse": 10}
LAYERS = {"forward": (10, 15, 20, 25), "reverse": (6, 10, 13, 16)}
ALL_LAYERS = {"forward": (1, 5, 10, 15, 20, 25, 30), "reverse": (1, 4, 7, 10, 13, 16, 18)}
EARLY = (("sst2", "forward"), ("trec", "forward"))
Pair = tuple[str, str, str]
"""Task, direction, and the two as a name."""
SOFT_TOKENS = (2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work.

    Attributes:
        name: unique; the name of its files.
        kind: which function does it (``kinds.KINDS``).
        task, direction: of what.
        after: names of jobs whose results it needs.
        light: bound by the host rather than by the device: may run beside another worker.
        limit_s: it is given up after so many seconds.
        train_s: its trainings end, with what they have, after so many.
        options: for the function.
    """

    name: str
    kind: str
    task: str = ""
    direction: str = "forward"
    after: tuple[str, ...] = ()
    light: bool = False
    limit_s: int = 420
    train_s: float = 300.0
    options: dict[str, Any] = field(default_factory=dict)


def every_job(prefer: str = "forward") -> list[Job]:
    """All jobs, most important first; bridges and probes of one direction before the other."""
    pairs = sorted(_pairs(), key=lambda pair: pair[1] != prefer)
    return [*_bridges(pairs), *_probes(pairs), *_controls(), *_rest()]


def _pairs() -> Iterator[Pair]:
    for task in TASKS:
        for direction in DIRECTIONS:
            yield task, direction, f"{task}.{direction}"


def _bridges(pairs: Iterable[Pair]) -> Iterator[Job]:
    for task, direction, pair in pairs:
        yield Job(f"bridge.{pair}", "bridge", task, direction, limit_s=180, train_s=110)
    yield Job("bridge.movie_snippets.forward", "bridge", "movie_snippets", limit_s=120, train_s=60)


def _probes(pairs: Iterable[Pair]) -> Iterator[Job]:
    for task, direction, pair in pairs:
        yield Job(f"probe.{pair}", "probe", task, direction, (f"bridge.{pair}",), light=True)


def _controls() -> Iterator[Job]:
    for task, direction, pair in _pairs():
        yield Job(f"blind.{pair}", "blind", task, direction)
    for task, direction, pair in _pairs():
        if task in ("sst2", "trec"):
            yield _random(task, direction, pair)
    for kind in ("lora", "prompt_tuning"):
        yield Job(f"{kind}.sst2.forward", kind, "sst2", "forward", train_s=100)
    yield Job("universal", "universal", train_s=60)
    for m in (16, 128):
        yield _soft_tokens(m)
    for kind in ("lora", "prompt_tuning"):
        yield Job(f"{kind}.trec.forward", kind, "trec", "forward", train_s=100)
    yield Job("passkey.16", "passkey", options={"soft_tokens": 16}, train_s=60)


def _random(task: str, direction: str, pair: str) -> Job:
    return Job(f"random.{pair}", "random_sender", task, direction, (f"bridge.{pair}",))


def _soft_tokens(m: int) -> Job:
    after = ("bridge.banking77.forward",)
    return Job(f"soft_tokens.{m}", "soft_tokens", "banking77", after=after,
               options={"soft_tokens": m}, train_s=100)  # fmt: skip


def _rest() -> Iterator[Job]:
    """What is left; names that stood further up are skipped."""
    for task, direction, pair in _pairs():
        if task not in ("sst2", "trec"):
            yield _random(task, direction, pair)
    for task in TASKS:
        yield Job(f"encoder.{task}", "encoder", task, light=True, limit_s=2000)
    for task, direction, pair in _pairs():
        yield Job(f"direct.{pair}", "direct", task, direction, light=True)
    for task, direction, pair in _pairs():
        yield Job(f"relay.{pair}", "relay", task, direction, light=True)
    for kind in ("lora", "prompt_tuning", "lora_relay"):
        for task, direction, pair in _pairs():
            if kind == "lora_relay" or (task, direction) not in EARLY:
                after = (f"relay.{pair}",) if kind == "lora_relay" else ()
                yield Job(f"{kind}.{pair}", kind, task, direction, after)
    for m in SOFT_TOKENS:
        if m not in (16, 128):
            yield _soft_tokens(m)
    yield Job("ablation", "ablation", "sst2", "reverse")
    yield Job("passkey.128", "passkey", options={"soft_tokens": 128})
    yield Job("sensitivity", "sensitivity", "sst2")
    yield Job("sensitivity.trec", "sensitivity", "trec")
    for direction in DIRECTIONS:
        yield Job(f"layers.{direction}", "layers", "sst2", direction)
    yield from _sweeps()


def _sweeps() -> Iterator[Job]:
    for task, direction, pair in _pairs():
        yield Job(f"sweep.{pair}", "sweep", task, direction)
