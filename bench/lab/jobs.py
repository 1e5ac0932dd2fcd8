"""The list of jobs, in the order in which they matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TASKS = ("sst2", "ag_news", "trec", "banking77")
DIRECTIONS = ("forward", "reverse")
SEEDS = (0, 1, 2)
BASE_LAYER = {"forward": 15, "reverse": 10}
LAYERS = {"forward": (10, 15, 20, 25), "reverse": (6, 10, 13, 16)}
ALL_LAYERS = {"forward": (1, 5, 10, 15, 20, 25, 30), "reverse": (1, 4, 7, 10, 13, 16, 18)}
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
        options: for the function.
    """

    name: str
    kind: str
    task: str = ""
    direction: str = "forward"
    after: tuple[str, ...] = ()
    light: bool = False
    limit_s: int = 420
    options: dict[str, Any] = field(default_factory=dict)


def every_job() -> list[Job]:
    """All jobs, most important first."""
    return [*_bridges(), *_cheap(), *_controls(), *_readers(), *_studies()]


def _pairs() -> Iterator[tuple[str, str, str]]:
    for direction in DIRECTIONS:
        for task in TASKS:
            yield task, direction, f"{task}.{direction}"


def _bridges() -> Iterator[Job]:
    # Forward and reverse take turns, so that two devices share the work from the start.
    pairs = sorted(_pairs(), key=lambda pair: TASKS.index(pair[0]))
    for task, direction, pair in pairs:
        yield Job(f"sweep.{pair}", "sweep", task, direction)
        yield Job(f"bridge.{pair}", "bridge", task, direction, after=(f"sweep.{pair}",))
    yield Job("bridge.movie_snippets.forward", "bridge", "movie_snippets", "forward",
              after=("sweep.sst2.forward",), options={"sweep": "sst2.forward"})  # fmt: skip


def _cheap() -> Iterator[Job]:
    for task, direction, pair in _pairs():
        yield Job(f"probe.{pair}", "probe", task, direction, (f"sweep.{pair}",), light=True)
    for task, direction, pair in _pairs():
        yield Job(f"direct.{pair}", "direct", task, direction, light=True)
    for task, direction, pair in _pairs():
        yield Job(f"relay.{pair}", "relay", task, direction, light=True)
    for task in TASKS:
        yield Job(f"encoder.{task}", "encoder", task, light=True)


def _controls() -> Iterator[Job]:
    for task, direction, pair in _pairs():
        yield Job(f"random.{pair}", "random_sender", task, direction, (f"bridge.{pair}",))
    for task, direction, pair in _pairs():
        yield Job(f"blind.{pair}", "blind", task, direction)


def _readers() -> Iterator[Job]:
    for kind in ("lora_relay", "lora", "prompt_tuning"):
        for task, direction, pair in _pairs():
            after = (f"relay.{pair}",) if kind.startswith("lora") else ()
            yield Job(f"{kind}.{pair}", kind, task, direction, after)


def _studies() -> Iterator[Job]:
    for m in (16, 128, 2, 64, 32, 8, 4):
        sweep = ("sweep.banking77.forward",)
        options = {"soft_tokens": m}
        yield Job(f"soft_tokens.{m}", "soft_tokens", "banking77", after=sweep, options=options)
    yield Job("ablation", "ablation", "sst2", "reverse", ("sweep.sst2.reverse",))
    yield Job("universal", "universal")
    yield Job("passkey.16", "passkey", options={"soft_tokens": 16})
    yield Job("passkey.128", "passkey", options={"soft_tokens": 128})
    yield Job("sensitivity", "sensitivity", "sst2", after=("sweep.sst2.forward",))
    yield Job("sensitivity.trec", "sensitivity", "trec", after=("sweep.trec.forward",))
    for direction in DIRECTIONS:
        yield Job(f"layers.{direction}", "layers", "sst2", direction)
