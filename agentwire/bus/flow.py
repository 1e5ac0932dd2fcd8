"""Work on its way through the broker: admission, queues, credit, deadlines. No IO.

``lanes`` says how one queue works; this says which queue a message goes through, and turns what
happens to it into instructions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agentwire.bus.directory import Directory, Peer
from agentwire.bus.lanes import Lane, Leg, Queued, Work, body_bytes
from agentwire.bus.stimuli import Instruction, Send
from agentwire.errors import LocalProtocolError, NackCode, RemoteProtocolError
from agentwire.wire.codec import Sealed
from agentwire.wire.messages import (
    DIRECT_PREFIX,
    Credit,
    Encode,
    Nack,
    Role,
    Soft,
    Text,
    direct_wire,
)


@dataclass(frozen=True, slots=True)
class RoutingLimits:
    """How much the broker holds.

    Attributes:
        lane_messages, lane_bytes: queued work of one producer on one hop of one wire.
        total_bytes: queued work altogether; above it everything is refused as overloaded.
        clients: connected at once.
        tasks: definitions kept; the one not named for longest goes first.
        retry_after_ms: what an overloaded Nack tells the client.
    """

    lane_messages: int = 16
    lane_bytes: int = 32 * 1024 * 1024
    total_bytes: int = 512 * 1024 * 1024
    clients: int = 64
    tasks: int = 1024
    retry_after_ms: int = 200


class WireTable:
    """Which agents each wire joins; direct wires included.

    Args:
        wires: wire name -> (sender, receiver).
        agents: agents on no wire, which only their direct wires reach.

    Raises:
        LocalProtocolError: a wire from an agent to itself, or one named like a direct wire.
    """

    def __init__(self, wires: Mapping[str, tuple[str, str]], agents: Iterable[str] = ()) -> None:
        for wire, (sender, receiver) in wires.items():
            if wire.startswith(DIRECT_PREFIX) or sender == receiver:
                raise LocalProtocolError(
                    f"The wire {wire!r} from {sender!r} to {receiver!r} is not possible.",
                    hint=f"Join two agents, by a name that does not begin with {DIRECT_PREFIX}.",
                )
        self._ends = dict(wires)
        self.agents = frozenset(agents) | {agent for ends in wires.values() for agent in ends}
        self._direct = {direct_wire(agent): agent for agent in sorted(self.agents)}

    def __contains__(self, wire: str) -> bool:
        return wire in self._ends or wire in self._direct

    def sender(self, wire: str) -> str | None:
        """The agent that encodes; None for a direct or unknown wire."""
        ends = self._ends.get(wire)
        return ends[0] if ends else None

    def receiver(self, wire: str) -> str | None:
        """The agent that answers; None for an unknown wire."""
        ends = self._ends.get(wire)
        return ends[1] if ends else self._direct.get(wire)

    def between(self, sender: str) -> list[str]:
        """Wires on which this agent is the sender."""
        return [wire for wire, ends in self._ends.items() if ends[0] == sender]

    def legs(self) -> list[Leg]:
        """Every hop that work takes at the broker."""
        legs = [Leg(wire, consumer=agent) for wire, agent in self._direct.items()]
        for wire, (sender, receiver) in self._ends.items():
            legs.append(Leg(wire, consumer=sender))
            legs.append(Leg(wire, consumer=receiver, producer=sender))
        return legs


class Flow:
    """All queues of the broker.

    Args:
        counters: ``forwarded``, ``refused.<code>`` and ``dropped.<why>`` are counted here.
    """

    def __init__(
        self, wires: WireTable, peers: Directory, limits: RoutingLimits, counters: Counter[str]
    ) -> None:
        self._wires = wires
        self._peers = peers
        self._limits = limits
        self._counters = counters
        self._legs = {(leg.wire, leg.consumer): leg for leg in wires.legs()}
        # What each leg takes, and from whom; "" is any client.
        self._fed: dict[tuple[type[Work], str, str], Leg] = {}
        for leg in self._legs.values():
            encodes = leg.consumer == wires.sender(leg.wire)
            kinds = (Encode,) if encodes else (Soft, Text) if leg.producer else (Text,)
            self._fed |= {(kind, leg.wire, leg.producer): leg for kind in kinds}
        self.queued_messages = 0
        self.queued_bytes = 0

    # -- peers come and go ------------------------------------------------------------------

    def connect(self, peer: Peer) -> list[Instruction]:
        """Opens the lanes that a client or a ready agent feeds, and grants what they hold."""
        feeds = peer.name if peer.role is Role.AGENT else ""
        legs = [leg for leg in self._legs.values() if leg.producer == feeds]
        for leg in legs:
            leg.lanes[peer.name] = Lane(self._limits.lane_messages, self._limits.lane_bytes)
        return self._settle(legs)

    def disconnect(self, peer: Peer) -> list[Instruction]:
        """Drops the work that was queued to or by this incarnation; others get their room back."""
        consumed = []
        for leg in self._legs.values():
            lane = leg.lanes.pop(peer.name, None)
            if lane is not None:
                self._drop(lane.remove(lambda item: True))
            if leg.consumer == peer.name:
                self._drop(leg.clear())
                consumed.append(leg)
        return self._settle(consumed)

    # -- work -------------------------------------------------------------------------------

    def leg_for(self, peer: Peer, work: Work) -> Leg | None:
        """The leg that this message belongs to; None if this peer may not send it there."""
        agent = peer.role is Role.AGENT
        leg = self._fed.get((type(work), work.wire, peer.name if agent else ""))
        return leg if peer.ready or not agent else None

    def admit(
        self, peer: Peer, leg: Leg, work: Work, now: float, sealed: Sealed | None = None
    ) -> list[Instruction]:
        """Queues a message and forwards what credit allows, or refuses it as overloaded."""
        size, lane = body_bytes(work), leg.lanes[peer.name]
        if self.queued_bytes + size > self._limits.total_bytes:
            return self.reject(peer, leg, work, NackCode.OVERLOADED, "the bus is full")
        # Where credit is left nothing waits, and neither need this one. A time that is up already
        # is for the long way.
        consumer = self._peers.ready_agent(leg.consumer) if leg.takes and not lane else None
        try:
            if consumer is not None and all_in_time(work):
                return self._pass_on(peer, consumer, leg, work, size, sealed)
            lane.admit(Queued(work, size, now, sealed))
        except RemoteProtocolError as error:
            return self.refuse(peer, work, error.code, f"{work.wire}: {error}")
        self.queued_messages += 1
        self.queued_bytes += size
        return self._pump([leg], now)

    def _pass_on(
        self,
        producer: Peer,
        consumer: Peer,
        leg: Leg,
        work: Work,
        size: int,
        sealed: Sealed | None,
    ) -> list[Instruction]:
        lane = leg.lanes[producer.name]
        lane.pass_on(size)
        leg.spend(size)
        self._counters["forwarded"] += 1
        out: list[Instruction] = [Send(consumer.id, work, sealed)]
        grant = lane.settle()
        if grant is not None:
            out.append(Send(producer.id, Credit(leg.wire, grant.messages, grant.bytes)))
        return out

    def reject(
        self, peer: Peer, leg: Leg, work: Work, code: NackCode, reason: str
    ) -> list[Instruction]:
        """Refuses a message that the lane had room for: the producer gets its credit back."""
        leg.lanes[peer.name].waive(body_bytes(work))
        return [*self.refuse(peer, work, code, reason), *self._settle([leg])]

    def drop_orphan(self, peer: Peer, leg: Leg, work: Work) -> list[Instruction]:
        """Drops an agent's message whose client has left."""
        self._counters["dropped.orphan"] += 1
        leg.lanes[peer.name].waive(body_bytes(work))
        return self._settle([leg])

    def refuse(self, peer: Peer, work: Work, code: NackCode, reason: str) -> list[Instruction]:
        """Answers the client whose rows these are; an agent's message may be anybody's."""
        self._counters[f"refused.{code}"] += 1
        client = peer if peer.role is Role.CLIENT else self._peers.client(work.origin)
        if client is None:
            self._counters["dropped.orphan"] += 1
            return []
        retry = self._limits.retry_after_ms if code is NackCode.OVERLOADED else 0
        return [Send(client.id, Nack(code, reason, work.wire, work.rows, retry, client.name))]

    def credit(self, peer: Peer, credit: Credit, now: float) -> list[Instruction] | None:
        """The consumer takes more; None if this peer consumes nothing on that wire.

        Raises:
            RemoteProtocolError: (``malformed``) more than anybody can need.
        """
        leg = self._legs.get((credit.wire, peer.name))
        if leg is None or not peer.ready:
            return None
        leg.grant(credit.messages, credit.bytes)
        return self._pump([leg], now)

    def cancel(self, client: Peer, wire: str, ids: frozenset[bytes]) -> list[Instruction]:
        """Drops queued messages of this client of which every row is cancelled."""

        def cancelled(item: Queued) -> bool:
            return item.work.origin == client.name and all(
                row.request_id in ids for row in item.work.rows
            )

        legs = [leg for leg in self._legs.values() if leg.wire == wire]
        for leg in legs:
            for lane in leg.lanes.values():
                self._drop(lane.remove(cancelled), "cancelled")
        return self._settle(legs)

    def sweep(self, now: float) -> list[Instruction]:
        """Answers queued messages that are too late, so that they do not hold a queue shut."""
        out: list[Instruction] = []
        for leg in self._legs.values():
            for lane in leg.lanes.values():
                late = lane.remove(lambda item: aged(item, now) is None)
                self._take_out(late)
                for item in late:
                    out += self._too_late(item)
        return out + self._settle(self._legs.values())

    # -- forwarding -------------------------------------------------------------------------

    def _pump(self, legs: Iterable[Leg], now: float) -> list[Instruction]:
        """Forwards what the consumers' credit allows, one message of each leg in turn."""
        out: list[Instruction] = []
        turn = list(legs)
        waiting = turn
        while waiting:
            waiting = [leg for leg in waiting if self._forward(leg, now, out)]
        return out + self._settle(turn)

    def _forward(self, leg: Leg, now: float, out: list[Instruction]) -> bool:
        consumer = self._peers.ready_agent(leg.consumer)
        item = leg.next() if consumer is not None else None
        if consumer is None or item is None:
            return False
        self._take_out([item])
        work = aged(item, now)
        if work is None:
            out += self._too_late(item)
        else:
            leg.spend(item.size)
            self._counters["forwarded"] += 1
            # With less time left its rows have to be packed anew.
            same = work.rows is item.work.rows
            out.append(Send(consumer.id, work, item.sealed if same else None))
        return True

    def _too_late(self, item: Queued) -> list[Instruction]:
        self._counters[f"refused.{NackCode.DEADLINE}"] += 1
        client = self._peers.client(item.work.origin)
        if client is None:
            return []
        reason = "the time was up while the request waited at the bus"
        work = item.work
        return [
            Send(client.id, Nack(NackCode.DEADLINE, reason, work.wire, work.rows, 0, client.name))
        ]

    def _settle(self, legs: Iterable[Leg]) -> list[Instruction]:
        """Grants producers the room that has become free."""
        out: list[Instruction] = []
        for leg in legs:
            for name, grant in leg.settle():
                producer = self._peers.named(name)
                if producer is not None:
                    credit = Credit(leg.wire, grant.messages, grant.bytes)
                    out.append(Send(producer.id, credit))
        return out

    def _drop(self, items: list[Queued], why: str = "peer_lost") -> None:
        self._take_out(items)
        self._counters[f"dropped.{why}"] += len(items)

    def _take_out(self, items: list[Queued]) -> None:
        self.queued_messages -= len(items)
        self.queued_bytes -= sum(item.size for item in items)


def all_in_time(work: Work) -> bool:
    """Whether every row has time left, as it came."""
    for row in work.rows:
        if row.ms_left == 0:
            return False
    return bool(work.rows)


def aged(item: Queued, now: float) -> Work | None:
    """The message with the time that its rows have left by now; None if all are too late."""
    waited = int((now - item.arrived) * 1000)
    rows = item.work.rows
    if all(row.ms_left is not None and row.ms_left <= waited for row in rows):
        return None
    if waited <= 0 or all(row.ms_left is None for row in rows):
        return item.work
    left = tuple(
        row if row.ms_left is None else row._replace(ms_left=max(0, row.ms_left - waited))
        for row in rows
    )
    return replace(item.work, rows=left)
