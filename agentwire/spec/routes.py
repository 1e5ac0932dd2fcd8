"""Replicas of an agent: names of their processes, and load balancing. No IO.

An agent with several replicas has the processes ``mistral.1``, ``mistral.2``, … (agent names
contain no dot). The bus only knows processes: a wire between agents is one *route* for each pair of
their processes, ``llama->mistral.1``, ``llama->mistral.2``, …, with its own credit. Requests wait
on the wire and get a route when they are sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, TypeAlias

from agentwire.wire.messages import direct_wire

NUMBERED: Final = re.compile(r"(.+)\.\d+")
WINDOW_ROWS: Final = 64
WINDOW_MESSAGES: Final = 4
"""A busy replica gets at most this many rows, or messages of the current size, in advance. The rest
waits on the wire for the first free replica."""

Routes: TypeAlias = Mapping[str, tuple[str, ...]]
"""Route -> its processes, in order."""


def processes_of(agent: str, count: int) -> tuple[str, ...]:
    """Names of an agent's processes; a single process has the agent's name."""
    return (agent,) if count == 1 else tuple(f"{agent}.{i}" for i in range(1, count + 1))


def agent_of(process: str) -> str:
    """The agent that a process belongs to."""
    match = NUMBERED.fullmatch(process)
    return match[1] if match else process


def routes_of(sender: Sequence[str], receiver: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The routes of a wire between agents with these processes."""
    return {f"{a}->{b}": (a, b) for a, b in product(sender, receiver)}


def direct_routes_of(agent: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The routes of the direct wire to an agent with these processes."""
    return {direct_wire(process): (process,) for process in agent}


def apart(routes: Routes) -> dict[str, tuple[str, ...]]:
    """Route -> its processes that are not on every route: those that balancing can choose."""
    common = set.intersection(*(set(processes) for processes in routes.values()))
    return {route: tuple(p for p in ends if p not in common) for route, ends in routes.items()}


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a route that has credit."""

    route: str
    rows: tuple[int, ...]  # in flight through each of its processes that can be chosen
    sent: int  # messages so far


def choose(loads: Iterable[Load], rows: int) -> str | None:
    """The route for a message of ``rows`` rows: the one with the fewest rows in flight, then with
    the fewest messages. None if all replicas have enough work for now.
    """
    limit = max(WINDOW_ROWS, WINDOW_MESSAGES * rows)
    free = [load for load in loads if all(not busy or busy + rows <= limit for busy in load.rows)]
    return min(free, key=lambda load: (sum(load.rows), load.sent)).route if free else None
