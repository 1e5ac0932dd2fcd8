"""Work on its way through the broker: bounded queues, credit on both sides, deadlines. No IO.

A *hop* is the part of a wire that ends at one consumer, an agent. Each of its producers (a client,
or the wire's sender) has a bounded queue::

    producer --CreditWindow--> [queue] --\\
    producer --CreditWindow--> [queue] ---> hop --CreditGate--> consumer

A producer is granted exactly the room of its queue (``wire.credit`` has the rules), so granted
work is never refused for lack of room.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final

from agentwire.bus.directory import Directory, Peer
from agentwire.bus.instructions import Instruction, Send
from agentwire.errors import LocalProtocolError, NackCode, RemoteProtocolError
from agentwire.wire.codec import Sealed
from agentwire.wire.credit import CreditGate, CreditWindow, Grant, body_bytes
from agentwire.wire.messages import (
    DIRECT_PREFIX,
    Credit,
    Define,
    Encode,
    Nack,
    Role,
    Soft,
    TaskSpec,
    Text,
    WorkMessage,
    direct_wire,
)

_MS_LEFT = attrgetter("ms_left")
AGENT_TASKS: Final = 512
"""Definitions that an agent is assumed to hold, the most recently used; it keeps more than these.
"""
UNASKED: Final = 256
"""Defines and Cancels that an agent is sent between two signs of work. They cost no credit, and an
agent that computes a long batch must be able to hold them."""


@dataclass(frozen=True, slots=True)
class RoutingLimits:
    """How much the broker holds.

    Attributes:
        queue_messages, queue_bytes: queued work of one producer on one hop.
        total_bytes: all queued work; above it everything is refused as overloaded.
        clients: connected at once.
        tasks, task_bytes: definitions kept for one client; the least recently used is dropped
            first.
        retry_after_ms: what an overloaded Nack tells the client.
    """

    queue_messages: int = 16
    queue_bytes: int = 32 * 1024 * 1024
    total_bytes: int = 512 * 1024 * 1024
    clients: int = 64
    tasks: int = 1024
    task_bytes: int = 8 * 1024 * 1024
    retry_after_ms: int = 200


@dataclass(slots=True)
class Queued:
    """A message that waits for its consumer's credit; ``arrived`` in seconds."""

    work: WorkMessage
    size: int
    arrived: float
    sealed: Sealed | None = None


class ProducerQueue:
    """The bounded queue of one producer on one hop."""

    def __init__(self, messages: int, bytes: int) -> None:
        self._window = CreditWindow(messages, bytes)
        self.items: deque[Queued] = deque()
        self._due: Grant | None = self._window.open()

    def push(self, item: Queued) -> None:
        """Appends a message; raises RemoteProtocolError if the producer had no credit for it."""
        self._window.arrived(item.size)
        self.items.append(item)

    def pass_through(self, size: int) -> Grant | None:
        """Counts a message that is forwarded at once, and returns what to grant the producer now.
        Raises as ``push``.
        """
        self._window.arrived(size)
        return self._window.consumed(size)

    def refund(self, size: int) -> None:
        """Returns the credit of a message that was refused for another reason."""
        try:
            self._window.arrived(size)
        except RemoteProtocolError:
            return  # there was no credit to return
        self._release(size)

    def pop(self) -> Queued:
        item = self.items.popleft()
        self._release(item.size)
        return item

    def remove(self, unwanted: Callable[[Queued], bool]) -> list[Queued]:
        """Removes and returns the messages for which ``unwanted`` holds."""
        removed: list[Queued] = []
        kept: deque[Queued] = deque()
        for item in self.items:
            (removed if unwanted(item) else kept).append(item)
        self.items = kept
        for item in removed:
            self._release(item.size)
        return removed

    def take_grant(self) -> Grant | None:
        """What to grant the producer now; None if nothing."""
        due, self._due = self._due, None
        return due

    def _release(self, size: int) -> None:
        grant = self._window.consumed(size)
        if grant is not None:
            due = self._due or Grant(0, 0)
            self._due = Grant(due.messages + grant.messages, due.bytes + grant.bytes)


class Hop:
    """One hop of a wire at the broker.

    Args:
        wire: its wire.
        consumer: name of the agent it leads to.
        producer: the only agent that may feed it; "" if clients do.

    Attributes:
        queues: the queue of each producer, by name.
        credit: what the consumer granted.
    """

    def __init__(self, wire: str, consumer: str, producer: str = "") -> None:
        self.wire = wire
        self.consumer = consumer
        self.producer = producer
        self.queues: dict[str, ProducerQueue] = {}
        self.credit = CreditGate(max_wires=1)

    def next(self) -> Queued | None:
        """The next message, round robin over the producers, if the consumer takes one now."""
        if not self.credit.allows(self.wire):
            return None
        for name, queue in self.queues.items():
            if queue.items:
                self.queues[name] = self.queues.pop(name)  # to the end
                return queue.pop()
        return None

    def clear(self) -> list[Queued]:
        """The consumer's incarnation is gone: voids its credit, and removes all work."""
        self.credit.clear()
        return [item for queue in self.queues.values() for item in queue.remove(lambda item: True)]


class WireTable:
    """Which agents each wire connects; direct wires included.

    Args:
        wires: wire name -> (sender, receiver).
        agents: agents on no wire; only their direct wires reach them.

    Attributes:
        senders: wire -> the agent that encodes; not for direct wires.
        receivers: wire -> the agent that answers.

    Raises:
        LocalProtocolError: a wire from an agent to itself, or one named like a direct wire.
    """

    def __init__(self, wires: Mapping[str, tuple[str, str]], agents: Iterable[str] = ()) -> None:
        for wire, (sender, receiver) in wires.items():
            if wire.startswith(DIRECT_PREFIX) or sender == receiver:
                raise LocalProtocolError(
                    f"Invalid wire {wire!r} from {sender!r} to {receiver!r}.",
                    hint=f"A wire connects two agents; its name must not start with "
                    f"{DIRECT_PREFIX}.",
                )
        self.agents = frozenset(agents) | {agent for ends in wires.values() for agent in ends}
        self.senders = {wire: sender for wire, (sender, _) in wires.items()}
        self.receivers = {direct_wire(agent): agent for agent in sorted(self.agents)}
        self.receivers |= {wire: receiver for wire, (_, receiver) in wires.items()}

    def hops(self) -> list[Hop]:
        """Every hop that ends at an agent."""
        hops: list[Hop] = []
        for wire, receiver in self.receivers.items():
            sender = self.senders.get(wire, "")
            if sender:
                hops.append(Hop(wire, consumer=sender))
            hops.append(Hop(wire, consumer=receiver, producer=sender))
        return hops


class Flow:
    """All queues of the broker.

    Args:
        counters: receives ``forwarded``, ``refused.<code>`` and ``dropped.<why>``.
    """

    def __init__(
        self, wires: WireTable, peers: Directory, limits: RoutingLimits, counters: Counter[str]
    ) -> None:
        self._peers = peers
        self._limits = limits
        self._counters = counters
        self._hops = {(hop.wire, hop.consumer): hop for hop in wires.hops()}
        # By message type, wire and producing agent ("" for clients).
        self._fed: dict[tuple[type[WorkMessage], str, str], Hop] = {}
        for hop in self._hops.values():
            encodes = hop.consumer == wires.senders.get(hop.wire)
            kinds = (Encode,) if encodes else (Soft, Text) if hop.producer else (Text,)
            self._fed |= {(kind, hop.wire, hop.producer): hop for kind in kinds}
        self.queued_messages = 0
        self.queued_bytes = 0

    # -- peers ------------------------------------------------------------------------------

    def connect(self, peer: Peer) -> list[Instruction]:
        """Opens the queues of a client or a ready agent, and grants their room."""
        producer = peer.name if peer.role is Role.AGENT else ""
        hops = [hop for hop in self._hops.values() if hop.producer == producer]
        for hop in hops:
            hop.queues[peer.name] = ProducerQueue(
                self._limits.queue_messages, self._limits.queue_bytes
            )
        return self._grant(hops)

    def disconnect(self, peer: Peer) -> list[Instruction]:
        """Drops work queued to or by this incarnation, and grants other producers the room."""
        consumed = []
        for hop in self._hops.values():
            queue = hop.queues.pop(peer.name, None)
            if queue is not None:
                self._drop(queue.remove(lambda item: True))
            if hop.consumer == peer.name:
                self._drop(hop.clear())
                consumed.append(hop)
        return self._grant(consumed)

    # -- definitions ------------------------------------------------------------------------

    def define(self, agent: Peer, task: TaskSpec) -> list[Instruction]:
        """Sends a definition ahead of work; over the bound it goes with the first work instead."""
        if self.may_send_unasked(agent):
            return self._send_definition(agent, task)
        agent.tasks.pop(task.task_id, None)
        return []

    def may_send_unasked(self, agent: Peer) -> bool:
        """Counts a message that costs no credit; False if the agent has had its bound of them."""
        if agent.unasked >= UNASKED:
            self._counters["dropped.unasked"] += 1
            return False
        agent.unasked += 1
        return True

    def _define_for(self, agent: Peer, work: WorkMessage) -> list[Instruction]:
        """The definition that this work needs; none if its client has dropped it meanwhile."""
        client = self._peers.clients.get(work.origin)
        task = client.tasks.get(work.task) if client is not None else None
        return self._send_definition(agent, task) if task is not None else []

    def _send_definition(self, agent: Peer, task: TaskSpec) -> list[Instruction]:
        agent.tasks[task.task_id] = task
        agent.tasks.move_to_end(task.task_id)
        if len(agent.tasks) > AGENT_TASKS:
            agent.tasks.popitem(last=False)
        return [Send(agent.id, Define(task))]

    # -- work -------------------------------------------------------------------------------

    def hop_for(self, peer: Peer, work: WorkMessage) -> Hop | None:
        """The hop this message belongs to; None if this peer may not send it there."""
        agent = peer.role is Role.AGENT
        hop = self._fed.get((type(work), work.wire, peer.name if agent else ""))
        return hop if peer.ready or not agent else None

    def admit(
        self, peer: Peer, hop: Hop, work: WorkMessage, now: float, sealed: Sealed | None = None
    ) -> list[Instruction]:
        """Queues a message and forwards what credit allows, or refuses it as overloaded."""
        size, queue = body_bytes(work), hop.queues[peer.name]
        if self.queued_bytes + size > self._limits.total_bytes:
            return self.reject(peer, hop, work, NackCode.OVERLOADED, "the bus is full")
        consumer = None
        if not queue.items and hop.credit.allows(hop.wire):
            consumer = self._peers.ready_agents.get(hop.consumer)
        try:
            if consumer is not None and 0 not in map(_MS_LEFT, work.rows):
                # While credit is left nothing waits, so the message needs no place in the queue.
                grant = queue.pass_through(size)
                hop.credit.take(hop.wire, size)
                self._counters["forwarded"] += 1
                out: list[Instruction] = [Send(consumer.id, work, sealed)]
                if work.task in consumer.tasks:
                    consumer.tasks.move_to_end(work.task)
                else:
                    out = [*self._define_for(consumer, work), *out]
                if grant is not None:
                    out.append(Send(peer.id, Credit(hop.wire, grant.messages, grant.bytes)))
                return out
            queue.push(Queued(work, size, now, sealed))
        except RemoteProtocolError as error:
            return self.refuse(peer, work, error.code, f"{work.wire}: {error}")
        self.queued_messages += 1
        self.queued_bytes += size
        return self._forward([hop], now)

    def reject(
        self, peer: Peer, hop: Hop, work: WorkMessage, code: NackCode, reason: str
    ) -> list[Instruction]:
        """Refuses a message that its queue had room for: the producer gets its credit back."""
        hop.queues[peer.name].refund(body_bytes(work))
        return [*self.refuse(peer, work, code, reason), *self._grant([hop])]

    def drop_orphan(self, peer: Peer, hop: Hop, work: WorkMessage) -> list[Instruction]:
        """Drops an agent's message whose client has left."""
        self._counters["dropped.orphan"] += 1
        hop.queues[peer.name].refund(body_bytes(work))
        return self._grant([hop])

    def refuse(
        self, peer: Peer, work: WorkMessage, code: NackCode, reason: str
    ) -> list[Instruction]:
        """Sends a Nack to the client that the rows belong to."""
        self._counters[f"refused.{code}"] += 1
        client = peer if peer.role is Role.CLIENT else self._peers.clients.get(work.origin)
        if client is None:
            self._counters["dropped.orphan"] += 1
            return []
        retry = self._limits.retry_after_ms if code is NackCode.OVERLOADED else 0
        return [Send(client.id, Nack(code, reason, work.wire, work.rows, retry, client.name))]

    def credit(self, peer: Peer, credit: Credit, now: float) -> list[Instruction] | None:
        """Adds a consumer's credit; None if this peer consumes nothing on that wire. Raises as
        ``CreditGate.add``."""
        hop = self._hops.get((credit.wire, peer.name))
        if hop is None or not peer.ready:
            return None
        hop.credit.add(hop.wire, credit.messages, credit.bytes)
        peer.unasked = 0
        return self._forward([hop], now)

    def cancel(self, client: Peer, wire: str, ids: frozenset[bytes]) -> list[Instruction]:
        """Drops queued messages of this client if every row is cancelled."""

        def cancelled(item: Queued) -> bool:
            return item.work.origin == client.name and all(
                row.request_id in ids for row in item.work.rows
            )

        hops = [hop for hop in self._hops.values() if hop.wire == wire]
        for hop in hops:
            for queue in hop.queues.values():
                self._drop(queue.remove(cancelled), "cancelled")
        return self._grant(hops)

    def sweep(self, now: float) -> list[Instruction]:
        """Answers expired messages, which would otherwise block a full queue."""
        out: list[Instruction] = []
        for hop in self._hops.values():
            for queue in hop.queues.values():
                expired = queue.remove(lambda item: aged(item, now) is None)
                self._uncount(expired)
                for item in expired:
                    out += self._expire(item)
        return out + self._grant(self._hops.values())

    # -- forwarding -------------------------------------------------------------------------

    def _forward(self, hops: Iterable[Hop], now: float) -> list[Instruction]:
        """Forwards what the consumers' credit allows, one message of each hop in turn."""
        out: list[Instruction] = []
        hops = list(hops)
        active = hops
        while active:
            active = [hop for hop in active if self._forward_one(hop, now, out)]
        return out + self._grant(hops)

    def _forward_one(self, hop: Hop, now: float, out: list[Instruction]) -> bool:
        consumer = self._peers.ready_agents.get(hop.consumer)
        item = hop.next() if consumer is not None else None
        if consumer is None or item is None:
            return False
        self._uncount([item])
        work = aged(item, now)
        if work is None:
            out += self._expire(item)
        else:
            hop.credit.take(hop.wire, item.size)
            self._counters["forwarded"] += 1
            if work.task in consumer.tasks:
                consumer.tasks.move_to_end(work.task)
            else:
                out += self._define_for(consumer, work)
            # Rows with less time left have to be packed anew.
            unchanged = work.rows is item.work.rows
            out.append(Send(consumer.id, work, item.sealed if unchanged else None))
        return True

    def _expire(self, item: Queued) -> list[Instruction]:
        self._counters[f"refused.{NackCode.DEADLINE}"] += 1
        work = item.work
        client = self._peers.clients.get(work.origin)
        if client is None:
            return []
        reason = "the deadline passed while the request was queued at the broker"
        return [
            Send(client.id, Nack(NackCode.DEADLINE, reason, work.wire, work.rows, 0, client.name))
        ]

    def _grant(self, hops: Iterable[Hop]) -> list[Instruction]:
        """Grants producers the room that has become free."""
        out: list[Instruction] = []
        for hop in hops:
            for name, queue in hop.queues.items():
                grant, producer = queue.take_grant(), self._peers.by_name.get(name)
                if grant is not None and producer is not None:
                    credit = Credit(hop.wire, grant.messages, grant.bytes)
                    out.append(Send(producer.id, credit))
        return out

    def _drop(self, items: list[Queued], why: str = "peer_lost") -> None:
        self._uncount(items)
        self._counters[f"dropped.{why}"] += len(items)

    def _uncount(self, items: list[Queued]) -> None:
        self.queued_messages -= len(items)
        self.queued_bytes -= sum(item.size for item in items)


def aged(item: Queued, now: float) -> WorkMessage | None:
    """The message with the time its rows have left by now; None if all have expired."""
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
