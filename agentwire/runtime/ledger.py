"""The client's ledger of outstanding requests: what to send when, without IO, clock or futures.

The rules:

* A request ends once: the first ``settle`` hands it out, every later one gets None.
* It is sent only while every agent of its wire is ready, and as far as credit goes.
* A wire to or from an agent with replicas has several routes (``replicas``). A request takes the
  route with the least in flight when it is sent, and may take another when it is sent again.
* When an agent dies, each request that was in flight through it is a *suspect*. Suspects are sent
  again one at a time, alone (``solo``), with nothing else in flight through their agents; nobody
  else is sent through those agents until the suspects have ended. So whoever is in flight when the
  agent dies again is the culprit: a second death ends a request as a dead letter. Of an agent with
  replicas one is kept for the suspects, the others work on; deaths of its replicas add up.
* A refused request goes again, later or on the other channel, ahead of those that wait.
* Where an agent is gone for good, requests of a wire that has a detour take it, as text; all
  others through that agent have ended.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from agentwire.errors import NackCode
from agentwire.runtime.request_errors import down_error, full_error
from agentwire.spec.routes import Load, Routes, agent_of, apart, choose
from agentwire.wire.messages import Channel, Mode

DEATHS: Final = 2
"""A request that was in flight at so many deaths of one agent is not sent again."""
MESSAGE_ROWS: Final = 256
MESSAGE_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Admission:
    """What may be outstanding at once; more is refused as overloaded.

    Attributes:
        rows: requests.
        bytes: UTF-8 bytes of all their texts.
    """

    rows: int = 16_384
    bytes: int = 256 * 1024 * 1024


@dataclass(eq=False, slots=True)
class Request:
    """One row, from admission to its outcome. Times are monotonic seconds.

    Attributes:
        task: ``TaskSpec.task_id``.
        via: it may only go through this process, or by this route; "": by any.
        route: which it was last sent on; "": it never was.
        channel, reason: of the next attempt.
        in_flight: it was sent and not answered, by an incarnation that still lives.
        attempts: how often it was sent.
        deaths: agent -> how many of its deaths it was in flight at.
        not_before: it is not sent earlier.
        mode: what the sender does with the soft tokens.
        trace_id: 16 bytes that logs on every side name; those of one call share it.
    """

    request_id: bytes
    wire: str
    task: str
    text: str
    channel: Channel
    fallback: Literal["text", "error"]
    admitted: float
    deadline: float = math.inf
    reason: str = ""
    in_flight: bool = False
    attempts: int = 0
    deaths: dict[str, int] = field(default_factory=dict)
    not_before: float = -math.inf
    mode: Mode = Mode.FORWARD
    trace_id: bytes = bytes(16)
    via: str = ""
    route: str = ""

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return len(self.text.encode())


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Requests to send now, as one message; ``wire`` is the route that they take."""

    wire: str
    requests: tuple[Request, ...]
    solo: bool

    @property
    def head(self) -> Request:
        """Any of them: wire, task, channel, fallback and reason are the same for all."""
        return self.requests[0]


@dataclass(frozen=True, slots=True)
class Death:
    """What an agent's death does.

    Attributes:
        dead_letters: requests that have ended.
        recalled: requests that were in flight through it and go again: their copies that still
            travel are to be cancelled.
    """

    dead_letters: tuple[Request, ...]
    recalled: tuple[Request, ...]


class Ledger:
    """Outstanding requests and the agents that they go through.

    Args:
        wires: wire -> agents on it, direct wires included.
        admission: what may be outstanding at once.
        detours: wire -> the direct wire that its texts take where an agent on it is gone for good.
        routes: wire -> its routes, where there are several.
    """

    def __init__(
        self,
        wires: Mapping[str, Sequence[str]],
        admission: Admission | None = None,
        detours: Mapping[str, str] | None = None,
        routes: Mapping[str, Routes] | None = None,
    ) -> None:
        several = routes or {}
        self._routes: dict[str, Routes] = {
            wire: several.get(wire) or {wire: tuple(agents)} for wire, agents in wires.items()
        }
        self._on = {name: agents for ways in self._routes.values() for name, agents in ways.items()}
        self._apart = {way: p for ways in self._routes.values() for way, p in apart(ways).items()}
        self._sent: Counter[str] = Counter()  # messages, by route
        self._admission = admission or Admission()
        self._detours = dict(detours or {})
        self._requests: dict[bytes, Request] = {}
        self._bytes = 0  # of the texts of all requests
        # By wire, and by the only process that they may go through.
        self._waiting: dict[tuple[str, str], deque[tuple[Request, ...]]] = {}
        self._suspects: dict[bytes, Request] = {}  # in the order of their first death
        agents = {agent for ends in self._on.values() for agent in ends}
        self._in_flight: dict[str, dict[bytes, Request]] = {agent: {} for agent in agents}
        self._ready: set[str] = set()
        self._down: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def routes(self) -> Collection[str]:
        """Every route of every wire; a wire without replicas is its own."""
        return self._on.keys()

    def __contains__(self, request_id: bytes) -> bool:
        return request_id in self._requests

    def get(self, request_id: bytes) -> Request | None:
        return self._requests.get(request_id)

    def outstanding(self) -> tuple[Request, ...]:
        return tuple(self._requests.values())

    # -- requests ---------------------------------------------------------------------------

    def is_full(self, rows: int) -> bool:
        """Whether so many new requests would be refused as too many, whatever they ask."""
        return not self._down and len(self._requests) + rows > self._admission.rows

    def admit(self, parcels: Sequence[Sequence[Request]]) -> None:
        """Takes in requests that are alike in all but id and text; each parcel is one message.

        Raises:
            RequestError: an agent of the wire is down, or too much is outstanding.
        """
        wire = parcels[0][0].wire
        vias = {parcel[0].via for parcel in parcels}
        down = next((gone for via in vias if (gone := self._gone(wire, via))), None)
        detour = self._detour_of(parcels[0][0]) if down is not None else None
        if down is not None and detour is None:
            raise down_error(down, self._down[down])
        rows, size = sum(map(len, parcels)), sum(r.size for parcel in parcels for r in parcel)
        if (
            len(self._requests) + rows > self._admission.rows
            or self._bytes + size > self._admission.bytes
        ):
            raise full_error(len(self._requests))
        self._bytes += size
        for parcel in parcels:
            self._requests.update((request.request_id, request) for request in parcel)
            if detour is not None:
                _divert(parcel, detour)
            self._queue(parcel[0]).append(tuple(parcel))

    def _queue(self, request: Request) -> deque[tuple[Request, ...]]:
        return self._waiting.setdefault((request.wire, request.via), deque())

    def _gone(self, wire: str, via: str = "") -> str | None:
        """The process that is gone for good, if therefore no route is left."""
        if not self._down:
            return None
        ways = self._ways(wire, via)
        gone = [next((a for a in self._on[way] if a in self._down), None) for way in ways]
        return next(iter(gone), None) if all(gone) else None

    def _ways(self, wire: str, via: str = "") -> list[str]:
        """The routes that a request may take."""
        return [
            way
            for way, agents in self._routes[wire].items()
            if not via or via == way or via in agents
        ]

    def detour(self, wire: str) -> str | None:
        """The direct wire that texts of ``wire`` may take; None if there is none that works."""
        detour = self._detours.get(wire)
        if detour is None or self._gone(detour) is not None:
            return None
        return detour

    def _detour_of(self, request: Request) -> str | None:
        """Where a request may go whose agent is gone: nowhere if it insists on soft tokens, or if
        it is about what its sender keeps.
        """
        if request.fallback == "error" or request.mode is not Mode.FORWARD:
            return None
        return self.detour(request.wire)

    def settle(self, request_id: bytes) -> Request | None:
        """Ends a request; None if it has ended already or never was."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._bytes -= request.size
            self._land(request)
            self._suspects.pop(request_id, None)
        return request

    def retry(
        self, requests: Iterable[Request], *, now: float, after: float = 0.0, as_text: str = ""
    ) -> None:
        """Sends refused requests again.

        Args:
            after: seconds to wait first.
            as_text: the reason to go on the text channel; "": as before.
        """
        again: list[Request] = []
        for request in requests:
            if self._requests.get(request.request_id) is not request:
                continue
            self._land(request)
            request.not_before = now + after
            if as_text:
                request.channel, request.reason = Channel.TEXT, as_text
            if request.request_id not in self._suspects:
                again.append(request)
        for parcel in reversed(_alike(again)):
            self._queue(parcel[0]).appendleft(parcel)

    # -- agents -----------------------------------------------------------------------------

    def is_ready(self, wire: str) -> bool:
        """Whether every agent of the wire is ready, of one of its routes."""
        return any(self._is_open(way) for way in self._routes[wire])

    def _is_open(self, way: str) -> bool:
        return all(agent in self._ready for agent in self._on[way])

    def ready(self, agent: str) -> None:
        """An incarnation of the agent can work."""
        self._ready.add(agent)

    def died(self, agent: str, *, now: float = -math.inf, crashed: bool = True) -> Death:
        """The agent's incarnation is gone; another may come.

        Args:
            now: monotonic seconds.
            crashed: False if it left in good order: nobody is suspected then.
        """
        self._ready.discard(agent)
        if not crashed:
            returned = tuple(self._in_flight.get(agent, {}).values())
            self.retry(returned, now=now)
            return Death((), returned)
        dead: list[Request] = []
        recalled: list[Request] = []
        for request in list(self._in_flight.get(agent, {}).values()):
            whose = agent_of(agent)
            deaths = request.deaths.get(whose, 0) + 1
            request.deaths[whose] = deaths
            if deaths >= DEATHS:
                self.settle(request.request_id)
                dead.append(request)
            else:
                self._land(request)
                self._suspects[request.request_id] = request
                recalled.append(request)
        return Death(tuple(dead), tuple(recalled))

    def down(self, agent: str, reason: str) -> tuple[Request, ...]:
        """The agent is gone for good: requests through it take a detour, or have ended.

        Returns:
            Those that have ended.
        """
        self._ready.discard(agent)
        self._down[agent] = reason
        lost = {wire for wire in self._routes if self._gone(wire) is not None}
        through = [
            request
            for request in self._requests.values()
            if (request.wire in lost and self._leads_through(request.wire, agent))
            or (request.via and self._gone(request.wire, request.via) is not None)
        ]
        ended = [request for request in through if self._detour_of(request) is None]
        for request in ended:
            self.settle(request.request_id)
        diverted: dict[str, list[Request]] = {}
        for request in through:
            detour = self._detour_of(request)
            if detour is not None:
                self._land(request)
                self._suspects.pop(request.request_id, None)
                _divert([request], detour)
                diverted.setdefault(detour, []).append(request)
        for (wire, _), waiting in self._waiting.items():
            if wire in lost:
                waiting.clear()
        for requests in diverted.values():
            for parcel in _alike(requests):
                self._queue(parcel[0]).append(parcel)
        self.retry(list(self._in_flight.get(agent, {}).values()), now=-math.inf)
        return tuple(ended)

    def _leads_through(self, wire: str, agent: str) -> bool:
        return any(agent in agents for agents in self._routes[wire].values())

    # -- sending ----------------------------------------------------------------------------

    def next(self, now: float, may_send: Callable[[str], bool]) -> Dispatch | None:
        """What to send next; it counts as in flight from here on. None: nothing, for now.

        Args:
            now: monotonic seconds.
            may_send: whether there is credit for one more message on a wire.
        """
        probes, kept = self._probes()
        for request, probe in probes:
            if request.not_before <= now and self._is_clear(request, probe) and may_send(probe):
                return self._launch((request,), probe, solo=True)
        for (wire, via), waiting in self._waiting.items():
            while waiting:
                parcel = tuple(r for r in waiting[0] if r.request_id in self._requests)
                way: str | None = None
                if parcel and _not_before(parcel) <= now:
                    way = self._way(wire, via, len(parcel), kept, may_send)
                if parcel and way is None:
                    break
                waiting.popleft()
                if way is not None:
                    return self._launch(parcel, way, solo=False)
        return None

    def _way(
        self, wire: str, via: str, rows: int, kept: set[str], may_send: Callable[[str], bool]
    ) -> str | None:
        """The route that so many rows take now; None: they wait."""
        ways = [
            way
            for way in self._ways(wire, via)
            if self._is_open(way) and kept.isdisjoint(self._on[way]) and may_send(way)
        ]
        if len(self._routes[wire]) == 1:
            return ways[0] if ways else None
        loads = [
            Load(way, tuple(len(self._in_flight[a]) for a in self._apart[way]), self._sent[way])
            for way in ways
        ]
        return choose(loads, rows)

    def _probes(self) -> tuple[list[tuple[Request, str]], set[str]]:
        """Suspects that are to be sent, each with its route; and the agents kept for suspects."""
        kept: set[str] = set()
        for request in self._suspects.values():
            if request.in_flight:
                kept.update(self._suspected(request, request.route))
        probes: list[tuple[Request, str]] = []
        for request in self._suspects.values():
            if not request.in_flight:
                way = self._probe_way(request, kept)
                kept.update(self._suspected(request, way))
                probes.append((request, way))
        return probes, kept

    def _probe_way(self, request: Request, kept: set[str]) -> str:
        """An open route before others, then one that suspects have already, then an idle one."""

        def key(way: str) -> tuple[bool, bool, int]:
            agents = self._suspected(request, way)
            busy = sum(len(self._in_flight[agent]) for agent in agents)
            return not self._is_open(way), not kept.issuperset(agents), busy

        return min(self._ways(request.wire, request.via), key=key)

    def _suspected(self, request: Request, way: str) -> tuple[str, ...]:
        """Those of its agents through which nobody else is sent beside this suspect."""
        agents = self._on[way]
        if len(self._routes[request.wire]) == 1:
            return agents
        return tuple(agent for agent in agents if agent_of(agent) in request.deaths)

    def _is_clear(self, request: Request, way: str) -> bool:
        return self._is_open(way) and not any(
            self._in_flight[agent] for agent in self._suspected(request, way)
        )

    def next_event(self, now: float) -> float:
        """When a pause ends, after which ``next`` may have something; ``math.inf``: none runs."""
        pauses = [r.not_before for r in self._suspects.values() if not r.in_flight]
        pauses += [_not_before(waiting[0]) for waiting in self._waiting.values() if waiting]
        return min((pause for pause in pauses if pause > now), default=math.inf)

    def _launch(self, requests: tuple[Request, ...], way: str, *, solo: bool) -> Dispatch:
        for request in requests:
            request.in_flight = True
            request.route = way
            request.attempts += 1
            for agent in self._on[way]:
                self._in_flight[agent][request.request_id] = request
        self._sent[way] += 1
        return Dispatch(way, requests, solo)

    def _land(self, request: Request) -> None:
        request.in_flight = False
        for agent in self._on.get(request.route, ()):
            self._in_flight[agent].pop(request.request_id, None)


def parcels_of(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Groups that fit a message each, of requests that differ in nothing but id, text and via."""
    parcel: list[Request] = []
    size = 0
    for request in requests:
        full = len(parcel) == MESSAGE_ROWS or size + request.size > MESSAGE_BYTES
        if parcel and (full or request.via != parcel[0].via):
            yield parcel
            parcel, size = [], 0
        parcel.append(request)
        size += request.size
    if parcel:
        yield parcel


def _alike(requests: Collection[Request]) -> list[tuple[Request, ...]]:
    """Groups that can share a message, and fit one."""
    groups: dict[tuple[str, ...], list[Request]] = {}
    for r in requests:
        alike = (r.wire, r.task, r.channel, r.fallback, r.reason, r.mode, r.via)
        groups.setdefault(alike, []).append(r)
    return [tuple(parcel) for group in groups.values() for parcel in parcels_of(group)]


def _divert(requests: Iterable[Request], detour: str) -> None:
    for request in requests:
        request.wire, request.channel = detour, Channel.TEXT
        request.reason = NackCode.AGENT_DOWN.value
        request.via = ""


def _not_before(parcel: tuple[Request, ...]) -> float:
    return max(request.not_before for request in parcel)
