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
Pair = tuple[str, str, str]
"""Task, direction, and the two as a name."""
SOFT_TOKENS = ((2, 8, 16), (128,), (4, 32, 64))
"""Ms that are trained side by side."""
PASSKEYS: tuple[tuple[int, list[tuple[float, int]], dict[str, Any]], ...] = (
    (16, [(1e-3, seed) for seed in SEEDS] + [(5e-4, 0), (2e-3, 0)], {}),
    (128, [(5e-4, seed) for seed in SEEDS], {"steps": 1000, "evaluate_every": 125}),
)
"""M, (learning rate, seed) of each training, changes. A step of M = 128 takes five times as long:
its rate is the one that learned soonest at M = 16 on held-out rows, and it has fewer steps."""
NEEDED = {"lora_relay": ("relay",), "lora_reads_relay": ("relay", "lora")}
"""Kinds of jobs of the same task and direction whose results a reader needs."""
LATER_SEEDS = (("", SEEDS[:1]), ("_more", SEEDS[1:]))


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
        yield _reader(kind, "sst2", "forward", "sst2.forward")


def _random(task: str, direction: str, pair: str) -> Job:
    return Job(f"random.{pair}", "random_sender", task, direction, (f"bridge.{pair}",),
               limit_s=180, train_s=120)  # fmt: skip


def _reader(kind: str, task: str, direction: str, pair: str) -> Job:
    after = tuple(f"{name}.{pair}" for name in NEEDED.get(kind, ()))
    return Job(f"{kind}.{pair}", kind, task, direction, after, limit_s=260, train_s=150)


def _soft_tokens() -> Iterator[Job]:
    """The Ms that matter most first; of the others one seed, and two more if there is time."""
    for group in SOFT_TOKENS:
        names = "-".join(map(str, group))
        options = {"soft_tokens": group}
        yield Job(f"soft_tokens_papers.{names}", "soft_tokens_papers", "banking77",
                  options=options, limit_s=170, train_s=130)  # fmt: skip
        yield Job(f"soft_tokens_rates.{names}", "soft_tokens_rates", "banking77",
                  options=options, limit_s=160, train_s=110)  # fmt: skip
        for part, seeds in (("", SEEDS),) if group != SOFT_TOKENS[-1] else LATER_SEEDS:
            yield Job(f"soft_tokens{part}.{names}", "soft_tokens", "banking77",
                      after=(f"soft_tokens_rates.{names}",),
                      options=options | {"seeds": seeds}, limit_s=300, train_s=220)  # fmt: skip


def _rest() -> Iterator[Job]:
    yield Job("universal", "universal", limit_s=400, train_s=280)
    yield from _soft_tokens()
    for m, runs, recipe in PASSKEYS:
        yield Job(f"passkey.{m}", "passkey", limit_s=480, train_s=270,
                  options={"soft_tokens": m, "runs": runs, "recipe": recipe})  # fmt: skip
    for task, direction, pair in _pairs():
        yield Job(f"relay.{pair}", "relay", task, direction, light=True, limit_s=260)
    for kind in ("lora", "prompt_tuning", "lora_relay"):
        for task, direction, pair in _pairs():
            if kind == "lora_relay" or (task, direction) != ("sst2", "forward"):
                yield _reader(kind, task, direction, pair)
    for task in ("sst2", "banking77", "ag_news"):  # their adapters were trained before the relay
        yield _reader("lora_reads_relay", task, "forward", f"{task}.forward")
    for kind in ("ablation", "first_try"):
        yield Job(kind, kind, "sst2", "reverse", limit_s=280, train_s=200,
                  options={"seeds": SEEDS[:2]})  # fmt: skip
    yield Job("first_try.rougher", "first_try", "sst2", "reverse", limit_s=280, train_s=200,
              options={"seeds": SEEDS[:2], "rougher": True})  # fmt: skip
    for task, direction, pair in _pairs():
        if task not in ("sst2", "trec"):
            yield _random(task, direction, pair)
    for direction in DIRECTIONS:
        yield Job(f"layers.{direction}", "layers", "sst2", direction, limit_s=220, train_s=140)
    yield Job("sensitivity", "sensitivity", "sst2", limit_s=220, train_s=150)
    yield Job("sensitivity.trec", "sensitivity", "trec", limit_s=220, train_s=150)
    for task in TASKS:
        yield Job(f"encoder.{task}", "encoder", task, light=True, limit_s=300)
    for task, direction, pair in _pairs():
        yield Job(f"direct.{pair}", "direct", task, direction, light=True)
    yield from _sweeps()


def planned(jobs: Iterable[Job], names: Iterable[str]) -> list[Job]:
    """The named jobs, in the order of the names.

    Raises:
        ValueError: no job has one of the names.
    """
    known = {job.name: job for job in jobs}
    wanted = list(names)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no such job: {', '.join(unknown)}")
    return [known[name] for name in wanted]


def _sweeps() -> Iterator[Job]:
    for task, direction, pair in _pairs():
        yield Job(f"sweep.{pair}", "sweep", task, direction)
    for task, direction in (("trec", "forward"), ("sst2", "forward"), ("sst2", "reverse")):
        yield Job(f"search.{task}.{direction}", "search", task, direction,
                  limit_s=420, train_s=300)  # fmt: skip
