"""The ledger of outstanding requests: decides what to send when, without IO, clock or futures.

The rules:

* A request ends once. The first ``settle`` returns it, every later one returns None.
* A request is sent only while every agent of its wire is ready and the wire has credit.
* A wire to or from an agent with replicas has several routes. A request takes the route with the
  least in flight when it is sent, and may take another one when it is sent again.
* When an agent dies, each request that was in flight through it becomes a *suspect*. Suspects are
  sent again one at a time, alone (``solo``), with nothing else in flight through their agents.
  Nothing else is sent through those agents until the suspects have ended, so a request that is in
  flight when the agent dies again is the culprit: a second death ends it as a dead letter. If the
  agent has replicas, one of them is reserved for the suspects and the others keep working; deaths
  of all replicas count together.
* A refused request is sent again, later or on the other channel, ahead of the waiting requests.
* When an agent is down for good, requests on a wire with a fallback wire take that one, as text.
  All other requests through the agent end.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Literal

from agentwire.errors import NackCode
from agentwire.runtime.request_errors import down_error, overloaded_error
from agentwire.spec.routes import Load, Routes, agent_of, apart, choose
from agentwire.wire.messages import DIRECT_PREFIX, Cancel, Channel, Encode, Mode, Row, Text

MAX_DEATHS: Final = 2
"""A request that was in flight at this many deaths of one agent is not sent again."""
MESSAGE_ROWS: Final = 256
MESSAGE_BYTES: Final = 8 * 1024 * 1024
MAX_MS: Final = 2**31 - 1
MAX_CANCELS: Final = 256  # request ids in one Cancel
_REQUEST_ID, _TEXT = attrgetter("request_id"), attrgetter("text")
_NOT_BEFORE, _SIZE = attrgetter("not_before"), attrgetter("size")


@dataclass(frozen=True, slots=True)
class Admission:
    """Limits on outstanding requests; requests beyond them are refused as overloaded."""

    rows: int = 16_384
    bytes: int = 256 * 1024 * 1024  # UTF-8 bytes of all their texts


@dataclass(eq=False, slots=True)
class Request:
    """One row, from admission to its outcome. Times are monotonic seconds.

    Attributes:
        task: ``TaskSpec.task_id``.
        via: the only process, or the only route, that it may take; "" for any.
        route: the route of the latest attempt; "" before the first.
        channel, reason: of the next attempt.
        in_flight: sent and not answered, by an incarnation that is still alive.
        attempts: how often it was sent.
        deaths: agent -> number of its deaths during which this request was in flight.
        not_before: earliest time of the next attempt.
        mode: what the sender does with the soft tokens.
        trace_id: 16 bytes that appear in the logs of every process; shared by one call's requests.
        question: as in ``messages.Row``.
        size: bytes of the text.
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
    question: str = ""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.text.encode())


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests to send now as one message. They differ only in id, text, question
    and deadline."""

    route: str
    requests: tuple[Request, ...]
    solo: bool

    def to_message(self, now: float) -> Encode | Text:
        """The message, with the time that each row has left at ``now``."""
        first = self.requests[0]
        entries: list[Row] = []
        for r in self.requests:
            ms_left = None
            if r.deadline != math.inf:
                ms_left = min(MAX_MS, max(0, int((r.deadline - now) * 1000)))
            entries.append(Row(r.request_id, ms_left, r.trace_id, r.size, r.question))
        rows, texts = tuple(entries), tuple(map(_TEXT, self.requests))
        if self.route.startswith(DIRECT_PREFIX):
            return Text(self.route, first.task, rows, texts, first.reason, solo=self.solo)
        return Encode(
            self.route,
            first.task,
            first.channel,
            first.fallback,
            rows,
            texts,
            first.reason,
            self.solo,
            mode=first.mode,
        )


@dataclass(frozen=True, slots=True)
class Requeued:
    """The requests that were in flight through an agent when it died."""

    dead_letters: tuple[Request, ...]  # have ended
    again: tuple[Request, ...]  # will be sent again; their earlier copies must be cancelled


class Ledger:
    """Outstanding requests and the agents that they go through. Times are monotonic seconds.

    Args:
        wires: wire -> its agents, direct wires included.
        fallback_wires: wire -> the direct wire that its texts take once one of its agents is down.
        routes: wire -> its routes, for wires with several.

    Attributes:
        requests: the outstanding requests, by id.
    """

    def __init__(
        self,
        wires: Mapping[str, Sequence[str]],
        admission: Admission | None = None,
        fallback_wires: Mapping[str, str] | None = None,
        routes: Mapping[str, Routes] | None = None,
    ) -> None:
        several = routes or {}
        self._routes: dict[str, Routes] = {
            wire: several.get(wire) or {wire: tuple(agents)} for wire, agents in wires.items()
        }
        self._processes = {
            route: processes
            for routes in self._routes.values()
            for route, processes in routes.items()
        }
        # Route -> those of its processes that other routes of the wire avoid: they set its load.
        self._own = {r: p for routes in self._routes.values() for r, p in apart(routes).items()}
        self._sent: Counter[str] = Counter()  # messages, by route
        self._admission = admission or Admission()
        self._fallback_wires = dict(fallback_wires or {})
        self.requests: dict[bytes, Request] = {}
        self._bytes = 0  # of the texts of all requests
        # By (wire, via).
        self._waiting: defaultdict[tuple[str, str], deque[tuple[Request, ...]]] = defaultdict(deque)
        self._suspects: dict[bytes, Request] = {}  # in the order of their first death
        processes = {process for ends in self._processes.values() for process in ends}
        self._in_flight: dict[str, dict[bytes, Request]] = {process: {} for process in processes}
        self._ready: set[str] = set()
        self._down: dict[str, str] = {}

    @property
    def routes(self) -> Collection[str]:
        """Every route of every wire; a wire without replicas is its own route."""
        return self._processes.keys()

    def outstanding(self) -> tuple[Request, ...]:
        return tuple(self.requests.values())

    # -- requests ---------------------------------------------------------------------------

    def is_full(self, rows: int) -> bool:
        """Whether ``rows`` new requests would be refused as too many, whatever they contain."""
        return not self._down and len(self.requests) + rows > self._admission.rows

    def admit(self, messages: Sequence[Sequence[Request]]) -> None:
        """Admits the requests of one call, grouped into messages.

        Raises:
            RequestError: an agent of the wire is down, or too many requests are outstanding.
        """
        fallback_wire = self._detour(messages) if self._down else None
        rows = size = 0
        for message in messages:
            rows += len(message)
            size += sum(map(_SIZE, message))
        if (
            len(self.requests) + rows > self._admission.rows
            or self._bytes + size > self._admission.bytes
        ):
            raise overloaded_error(len(self.requests))
        self._bytes += size
        for message in messages:
            for request in message:
                self.requests[request.request_id] = request
            if fallback_wire is not None:
                _move(message, fallback_wire)
            self._waiting[message[0].wire, message[0].via].append(tuple(message))

    def _detour(self, messages: Sequence[Sequence[Request]]) -> str | None:
        """The fallback wire that new messages must take; None if their own wire works.

        Raises:
            RequestError: it does not work, and there is no fallback wire for them.
        """
        first = messages[0][0]
        down = self._down_process(first.wire, {message[0].via for message in messages})
        if down is None:
            return None
        fallback_wire = self._fallback_wire_for(first)
        if fallback_wire is None:
            raise down_error(down, self._down[down])
        return fallback_wire

    def _down_process(self, wire: str, vias: Iterable[str] = ("",)) -> str | None:
        """A process that is down and leaves one of ``vias`` without any route."""
        if not self._down:
            return None
        for via in vias:
            routes = self._allowed_routes(wire, via)
            down = [next((p for p in self._processes[r] if p in self._down), None) for r in routes]
            if down and all(down):
                return down[0]
        return None

    def _allowed_routes(self, wire: str, via: str = "") -> list[str]:
        routes = self._routes[wire]
        return [r for r in routes if via == r or via in routes[r]] if via else list(routes)

    def fallback_wire(self, wire: str) -> str | None:
        """The direct wire that texts of ``wire`` may take; None if there is none that works."""
        fallback_wire = self._fallback_wires.get(wire)
        if fallback_wire is None or self._down_process(fallback_wire) is not None:
            return None
        return fallback_wire

    def _fallback_wire_for(self, request: Request) -> str | None:
        # Only the sender has the payload of a request about a kept one: text cannot replace it.
        if request.fallback == "error" or request.mode is not Mode.FORWARD:
            return None
        return self.fallback_wire(request.wire)

    def settle(self, request_id: bytes) -> Request | None:
        """Ends a request; None if it has already ended or was never admitted."""
        request = self.requests.pop(request_id, None)
        if request is not None:
            self._bytes -= request.size
            self._clear_in_flight(request)
            self._suspects.pop(request_id, None)
        return request

    def retry(
        self, requests: Iterable[Request], *, now: float, after: float = 0.0, as_text: str = ""
    ) -> None:
        """Queues refused requests again, to be sent after ``after`` seconds. ``as_text`` is the
        reason for switching to the text channel; "" keeps the channel.
        """
        again: list[Request] = []
        for request in requests:
            if self.requests.get(request.request_id) is not request:
                continue
            self._clear_in_flight(request)
            request.not_before = now + after
            if as_text:
                request.channel, request.reason = Channel.TEXT, as_text
            if request.request_id not in self._suspects:
                again.append(request)
        for message in reversed(_group(again)):
            self._waiting[message[0].wire, message[0].via].appendleft(message)

    # -- agents -----------------------------------------------------------------------------

    def is_ready(self, wire: str) -> bool:
        """Whether every process of one of the wire's routes is ready."""
        return any(self._is_open(route) for route in self._routes[wire])

    def _is_open(self, route: str) -> bool:
        return self._ready.issuperset(self._processes[route])

    def ready(self, agent: str) -> None:
        """An incarnation of the agent is ready to work."""
        self._ready.add(agent)
        self._down.pop(agent, None)

    def died(self, agent: str, *, now: float = -math.inf, crashed: bool = True) -> Requeued:
        """The agent's incarnation is gone; another may follow. If it shut down in good order (not
        ``crashed``), no request becomes a suspect.
        """
        self._ready.discard(agent)
        in_flight = tuple(self._in_flight.get(agent, {}).values())
        if not crashed:
            self.retry(in_flight, now=now)
            return Requeued((), in_flight)
        dead: list[Request] = []
        again: list[Request] = []
        name = agent_of(agent)
        for request in in_flight:
            request.deaths[name] = request.deaths.get(name, 0) + 1
            if request.deaths[name] >= MAX_DEATHS:
                self.settle(request.request_id)
                dead.append(request)
            else:
                self._clear_in_flight(request)
                self._suspects[request.request_id] = request
                again.append(request)
        return Requeued(tuple(dead), tuple(again))

    def down(self, agent: str, reason: str) -> tuple[Request, ...]:
        """The agent is down: its requests move to a fallback wire, or end. Returns those
        that have ended.
        """
        self._ready.discard(agent)
        self._down[agent] = reason
        lost = {wire for wire in self._routes if self._down_process(wire) is not None}
        affected = [
            request
            for request in self.requests.values()
            if (request.wire in lost and self._uses(request.wire, agent))
            or (request.via and self._down_process(request.wire, [request.via]) is not None)
        ]
        ended: list[Request] = []
        moved: list[Request] = []
        for request in affected:
            fallback_wire = self._fallback_wire_for(request)
            if fallback_wire is None:
                self.settle(request.request_id)
                ended.append(request)
                continue
            self._clear_in_flight(request)
            self._suspects.pop(request.request_id, None)
            _move([request], fallback_wire)
            moved.append(request)
        for (wire, _), waiting in self._waiting.items():
            if wire in lost:
                waiting.clear()
        for message in _group(moved):
            self._waiting[message[0].wire, message[0].via].append(message)
        self.retry(list(self._in_flight.get(agent, {}).values()), now=-math.inf)
        return tuple(ended)

    def _uses(self, wire: str, agent: str) -> bool:
        return any(agent in processes for processes in self._routes[wire].values())

    # -- sending ----------------------------------------------------------------------------

    def next(self, now: float, may_send: Callable[[str], bool]) -> Batch | None:
        """The next batch to send, which counts as in flight from now on; None if there is none.
        ``may_send`` tells whether a route has credit for one more message.
        """
        probes, reserved = self._probes() if self._suspects else ([], set())
        for request, route in probes:
            if request.not_before <= now and self._is_clear(request, route) and may_send(route):
                return self._mark_sent((request,), route, solo=True)
        for (wire, via), waiting in self._waiting.items():
            while waiting:
                ids = map(_REQUEST_ID, waiting[0])
                requests = tuple(filter(None, map(self.requests.get, ids)))  # not ended
                best: str | None = None
                if requests and max(map(_NOT_BEFORE, requests)) <= now:
                    best = self._best_route(wire, via, len(requests), reserved, may_send)
                if requests and best is None:
                    break
                waiting.popleft()
                if best is not None:
                    return self._mark_sent(requests, best, solo=False)
        return None

    def _best_route(
        self, wire: str, via: str, rows: int, reserved: set[str], may_send: Callable[[str], bool]
    ) -> str | None:
        """The route for a message of ``rows`` rows; None if it must wait."""
        routes: list[str] = []
        for route in self._allowed_routes(wire, via):
            free = self._is_open(route) and reserved.isdisjoint(self._processes[route])
            if free and may_send(route):
                routes.append(route)
        if len(self._routes[wire]) == 1:
            return routes[0] if routes else None
        loads = [
            Load(route, tuple(len(self._in_flight[p]) for p in self._own[route]), self._sent[route])
            for route in routes
        ]
        return choose(loads, rows)

    def _probes(self) -> tuple[list[tuple[Request, str]], set[str]]:
        """Suspects that are to be sent, each with its route; processes reserved for suspects."""
        reserved: set[str] = set()
        for request in self._suspects.values():
            if request.in_flight:
                reserved.update(self._suspected_processes(request, request.route))
        probes: list[tuple[Request, str]] = []
        for request in self._suspects.values():
            if not request.in_flight:
                route = self._probe_route(request, reserved)
                reserved.update(self._suspected_processes(request, route))
                probes.append((request, route))
        return probes, reserved

    def _probe_route(self, request: Request, reserved: set[str]) -> str:
        """Prefers an open route, then one already reserved for suspects, then an idle one."""

        def key(route: str) -> tuple[bool, bool, int]:
            processes = self._suspected_processes(request, route)
            busy = sum(len(self._in_flight[process]) for process in processes)
            return not self._is_open(route), not reserved.issuperset(processes), busy

        return min(self._allowed_routes(request.wire, request.via), key=key)

    def _suspected_processes(self, request: Request, route: str) -> tuple[str, ...]:
        """The processes of a route that a suspect must have to itself."""
        processes = self._processes[route]
        if len(self._routes[request.wire]) == 1:
            return processes
        return tuple(process for process in processes if agent_of(process) in request.deaths)

    def _is_clear(self, request: Request, route: str) -> bool:
        return self._is_open(route) and not any(
            self._in_flight[process] for process in self._suspected_processes(request, route)
        )

    def next_event(self, now: float) -> float:
        """The end of the first pause after ``now``; ``math.inf`` if there is none."""
        if not self._suspects and not any(self._waiting.values()):
            return math.inf
        pauses = [r.not_before for r in self._suspects.values() if not r.in_flight]
        for waiting in self._waiting.values():
            if waiting:
                pauses.append(max(map(_NOT_BEFORE, waiting[0])))
        return min((pause for pause in pauses if pause > now), default=math.inf)

    def _mark_sent(self, requests: tuple[Request, ...], route: str, *, solo: bool) -> Batch:
        for request in requests:
            request.in_flight = True
            request.route = route
            request.attempts += 1
            for process in self._processes[route]:
                self._in_flight[process][request.request_id] = request
        self._sent[route] += 1
        return Batch(route, requests, solo)

    def _clear_in_flight(self, request: Request) -> None:
        request.in_flight = False
        for process in self._processes.get(request.route, ()):
            self._in_flight[process].pop(request.request_id, None)


def split_into_messages(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Groups that fit one message each, of requests that differ only in id, text and ``via``."""
    message: list[Request] = []
    size = 0
    for request in requests:
        full = len(message) == MESSAGE_ROWS or size + request.size > MESSAGE_BYTES
        if message and (full or request.via != message[0].via):
            yield message
            message, size = [], 0
        message.append(request)
        size += request.size
    if message:
        yield message


def cancels_for(requests: Iterable[Request]) -> Iterator[Cancel]:
    """Messages that cancel every request that was sent."""
    routes: dict[str, list[bytes]] = {}
    for request in requests:
        if request.attempts:
            routes.setdefault(request.route, []).append(request.request_id)
    for route, ids in routes.items():
        for start in range(0, len(ids), MAX_CANCELS):
            yield Cancel(route, tuple(ids[start : start + MAX_CANCELS]))


def _group(requests: Collection[Request]) -> list[tuple[Request, ...]]:
    """Groups that can share a message and fit into it."""
    groups: dict[tuple[str, ...], list[Request]] = {}
    for r in requests:
        key = (r.wire, r.task, r.channel, r.fallback, r.reason, r.mode, r.via)
        groups.setdefault(key, []).append(r)
    return [tuple(m) for group in groups.values() for m in split_into_messages(group)]


def _move(requests: Iterable[Request], fallback_wire: str) -> None:
    for request in requests:
        request.wire, request.channel = fallback_wire, Channel.TEXT
        request.reason = NackCode.AGENT_DOWN.value
        request.via = ""
