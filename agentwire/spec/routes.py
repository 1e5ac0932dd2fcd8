"""Replicas of an agent: what their processes are called, and which of them is sent to. No IO.

An agent with two replicas or more is that many processes, ``mistral.1``, ``mistral.2``, … (no
agent's own name holds a dot). The bus knows processes alone: a wire between agents is one *route*
for each pair of their processes, ``llama->mistral.1``, ``llama->mistral.2``, …, with credit of its
own. Requests wait on the wire, and take a route only when they are sent.
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
"""A replica that is not idle takes more only up to so many rows, or messages of the size in hand.
What it cannot work on yet waits on the wire instead, for whichever is free first."""

Routes: TypeAlias = Mapping[str, tuple[str, ...]]
"""Route -> the processes on it, in order."""


def processes_of(agent: str, count: int) -> tuple[str, ...]:
    """Names of an agent's processes: its own where there is one."""
    return (agent,) if count == 1 else tuple(f"{agent}.{i}" for i in range(1, count + 1))


def agent_of(process: str) -> str:
    """The agent that a process is, or is a replica of."""
    match = NUMBERED.fullmatch(process)
    return match[1] if match else process


def routes_of(sender: Sequence[str], receiver: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The routes of a wire between agents of these processes."""
    return {f"{a}->{b}": (a, b) for a, b in product(sender, receiver)}


def direct_routes_of(agent: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The routes of the direct wire to an agent of these processes."""
    return {direct_wire(process): (process,) for process in agent}


def apart(routes: Routes) -> dict[str, tuple[str, ...]]:
    """Of each route the processes that are not on all of them: those that there is a choice of."""
    common = set.intersection(*(set(processes) for processes in routes.values()))
    return {way: tuple(p for p in ends if p not in common) for way, ends in routes.items()}


@dataclass(frozen=True, slots=True)
class Load:
    """What goes on on a route that has credit.

    Attributes:
        rows: in flight through each of its processes that other routes of the wire do without.
        sent: messages so far.
    """

    route: str
    rows: tuple[int, ...]
    sent: int


def choose(loads: Iterable[Load], rows: int) -> str | None:
    """The route for a message of so many rows: the one with the least in flight, and of several
    the one that was sent least. None: all have as much as they can work on for now.
    """
    most = max(WINDOW_ROWS, WINDOW_MESSAGES * rows)
    free = [load for load in loads if all(not busy or busy + rows <= most for busy in load.rows)]
    return min(free, key=lambda load: (sum(load.rows), load.sent)).route if free else None
