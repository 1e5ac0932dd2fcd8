"""What the broker decides, as a state machine without IO: session events in, instructions out.

The rules:

* A peer needs the run's token or a registered key. An agent is admitted only as the incarnation
  that is expected. A newer incarnation replaces the older one; a lost one cannot come back.
* Each message type may come from one role only, and a wire's messages only from the wire's own
  ends. Anything else is refused with UNAUTHORIZED and counted.
* The broker fills in ``origin`` of what a client sends. What an agent sends goes to a connected
  client or is dropped.
* A task belongs to the client that defined it, and is dropped with it. Agents are sent a bounded
  number of definitions ahead of work; the others go just before the first work that needs them.
* Work waits in bounded queues (``flow``) until its consumer grants credit. Everything else is
  forwarded at once, and so overtakes queued work.
* When an agent's incarnation is lost, the work queued to it or by it is dropped. PeerLost or
  PeerLeft tells the client, which keeps the ledger and sends outstanding rows again. Work that
  arrives later waits for the next incarnation.
* Deadlines run while a message is queued: rows are forwarded with the time they have left, and a
  message whose rows have all expired is answered with DEADLINE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from agentwire.bus.directory import Directory, Peer, same_secret
from agentwire.bus.events import PeerConnected, PeerProgress, PeerReady
from agentwire.bus.flow import Flow, RoutingLimits, WireTable
from agentwire.bus.instructions import Admit, Command, Disconnect, Emit, Instruction, Reject, Send
from agentwire.bus.offers import Offers
from agentwire.bus.transport import PeerId
from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.wire.codec import Sealed
from agentwire.wire.events import (
    Event,
    HelloReceived,
    MessageReceived,
    MessageRefused,
    PeerBusy,
    PeerLeft,
    PeerLost,
)
from agentwire.wire.messages import (
    Accept,
    Cancel,
    Credit,
    Define,
    Encode,
    Hello,
    Message,
    Nack,
    Offer,
    Piece,
    Ping,
    Progress,
    Result,
    Role,
    Soft,
    TaskSpec,
    Text,
)


class Router:
    """The broker's decisions. Pass events in order, and carry out what it returns in order.

    Args:
        wires: wire name -> (sender, receiver).
        token: the token that every Hello must carry.
        agents: agents on no wire; only their direct wires reach them.
        limits: how much is held.
        reserved: names of clients that only this process may use.

    Attributes:
        counters: ``forwarded``, ``results``, ``pieces``, ``refused.<code>``, ``dropped.<why>``.
    """

    def __init__(
        self,
        *,
        wires: Mapping[str, tuple[str, str]],
        token: str,
        agents: Iterable[str] = (),
        limits: RoutingLimits | None = None,
        reserved: Iterable[str] = (),
    ) -> None:
        self._limits = limits or RoutingLimits()
        self._wires = WireTable(wires, agents)
        self.counters: Counter[str] = Counter()
        self._peers = Directory(
            self._wires.agents, token, self._limits.clients, frozenset(reserved)
        )
        self._flow = Flow(self._wires, self._peers, self._limits, self.counters)
        self._number = 0  # of the message at hand
        self._offers = Offers(self._wires, self._peers, self.counters)

    def gauges(self) -> dict[str, int]:
        """What is held now."""
        return {
            "peers": len(self._peers.by_id),
            "tasks": sum(len(client.tasks) for client in self._peers.clients.values()),
            "queued_messages": self._flow.queued_messages,
            "queued_bytes": self._flow.queued_bytes,
        }

    def handle(
        self,
        id: PeerId,
        event: Event,
        now: float,
        key_name: str | None = None,
        in_process: bool = False,
    ) -> list[Instruction]:
        """What to do about an event of a peer's session, at ``now`` (monotonic seconds).

        Args:
            key_name: for HelloReceived, the name of the connection's key; None if it uses no key.
            in_process: for HelloReceived, whether the peer is in this process.
        """
        peer = self._peers.by_id.get(id)
        if isinstance(event, MessageReceived) and peer is not None:  # the usual case
            self._number = event.envelope.seq
            return self._receive(peer, event.message, event.sealed, now)
        if isinstance(event, HelloReceived):
            return self._connect(id, event, key_name, in_process)
        if peer is None:
            self.counters["dropped.unknown_peer"] += 1
            return []
        match event:
            case MessageRefused():
                return self._end_refused_rows(peer, event)
            case PeerBusy():
                return self._busy(peer, event)
            case PeerLeft() | PeerLost():
                return self._remove(peer, event)
        return []

    def disconnect(self, id: PeerId, reason: str) -> list[Instruction]:
        """The connection of this peer broke, or is to be closed."""
        peer = self._peers.by_id.get(id)
        if peer is None:
            self.counters["dropped.unknown_peer"] += 1
            return []
        return self._remove(peer, PeerLost(peer.name, peer.epoch, reason))

    def command(self, command: Command) -> list[Instruction]:
        """What the owner asks for."""
        action, name, epoch, token = command
        match action:
            case "expect":
                self._peers.expect(name, epoch, token)
            case "expect_remote":
                self._peers.expect_remote(name)
            case "disconnect":
                self._peers.unexpect(name, epoch)
                peer = self._peers.by_name.get(name)
                if peer is not None and peer.epoch == epoch:
                    return self._remove(peer, PeerLost(name, epoch, "the process ended"))
        return []

    def sweep(self, now: float) -> list[Instruction]:
        """Answers expired messages; to be called about twice a second."""
        return self._flow.sweep(now)

    # -- peers ------------------------------------------------------------------------------

    def _connect(
        self, id: PeerId, event: HelloReceived, key_name: str | None, in_process: bool
    ) -> list[Instruction]:
        hello, epoch = event.hello, event.epoch
        refusal = self._peers.refusal(hello, epoch, key_name, in_process)
        older = self._peers.by_name.get(hello.name)
        out: list[Instruction] = []
        if refusal is not None:
            code, reason = refusal
            self.counters[f"refused.{code}"] += 1
            if older is not None:  # a connection that has broken is found out by writing to it
                out.append(Send(older.id, Ping()))
            return [Reject(id, code, reason), *out]
        keyed = key_name is not None
        peer = Peer(id, hello.name, hello.role, epoch, keyed=keyed, token=hello.token)
        if older is not None:
            peer.tasks, peer.task_bytes = older.tasks, older.task_bytes
            reason = f"replaced by epoch {epoch}"
            out.append(Send(older.id, Nack(NackCode.STALE_EPOCH, reason)))
            out += self._remove(older, PeerLost(older.name, older.epoch, reason))
        self._peers.add(peer)
        out += [Admit(peer.id), Emit(PeerConnected(peer.name, peer.epoch))]
        if peer.role is Role.CLIENT:
            return out + self._flow.connect(peer)
        return out + (self._set_ready(peer, hello) if hello.model is not None else [])

    def _set_ready(self, peer: Peer, hello: Hello) -> list[Instruction]:
        """An agent has loaded its model: sends it the tasks, offers and credit so far."""
        if hello.model is None or peer.role is not Role.AGENT:
            return self._refuse(peer, NackCode.MALFORMED, "a second Hello must name the model")
        if not (peer.keyed or same_secret(hello.token, peer.token)):
            return self._refuse(peer, NackCode.UNAUTHORIZED, "wrong token for this run")
        if peer.ready:
            return self._refuse(peer, NackCode.UNAUTHORIZED, "an agent cannot change its model")
        self._peers.set_ready(peer)
        out: list[Instruction] = [Emit(PeerReady(peer.name, peer.epoch, hello.model))]
        for client in self._peers.clients.values():
            for task in client.tasks.values():
                out += self._flow.define(peer, task)
        out += self._offers.for_receiver(peer)
        return out + self._flow.connect(peer)

    def _remove(self, peer: Peer, event: PeerLeft | PeerLost) -> list[Instruction]:
        self._peers.remove(peer)
        self._offers.drop_sender(peer)
        return [Disconnect(peer.id), *self._flow.disconnect(peer), Emit(event)]

    def _busy(self, peer: Peer, event: PeerBusy) -> list[Instruction]:
        if not event.busy_ms and not peer.busy_ms:
            return []
        peer.busy_ms = event.busy_ms
        return [Emit(event)]

    # -- messages ---------------------------------------------------------------------------

    def _receive(
        self, peer: Peer, message: Message, sealed: Sealed | None, now: float
    ) -> list[Instruction]:
        wire = getattr(message, "wire", "")
        if wire and wire not in self._wires.receivers:
            return self._refuse_message(
                peer, NackCode.UNKNOWN_WIRE, f"there is no wire {wire!r}", message
            )
        out: list[Instruction] | None = None
        match message, peer.role:
            case Encode() | Soft() | Text(), _:
                out = self._work(peer, message, now, sealed)
            case Credit(), Role.AGENT:
                out = self._credit(peer, message, now)
            case Result() | Piece(), Role.AGENT:
                out = self._result(peer, message, sealed)
            case Nack(), Role.AGENT:
                out = self._nack(peer, message)
            case Offer(), Role.AGENT:
                out = self._offers.offer(peer, message)
            case Accept(), Role.AGENT:
                out = self._offers.answer(peer, message)
            case Progress(), Role.AGENT:
                event = PeerProgress(peer.name, peer.epoch, message.stage, message.fraction)
                out = [Emit(event)]
            case Hello(), Role.AGENT:
                out = self._set_ready(peer, message)
            case Define(), Role.CLIENT:
                out = self._define(peer, message.task)
            case Cancel(), Role.CLIENT:
                out = self._cancel(peer, message)
            case Nack(), Role.CLIENT:
                self.counters["dropped.client_nack"] += 1  # nobody can act on it
                out = []
        if out is None:
            reason = f"{peer.name!r} may not send {type(message).__name__}"
            return self._refuse_message(
                peer, NackCode.UNAUTHORIZED, f"{reason} on {wire!r}" if wire else reason, message
            )
        return out

    def _work(
        self, peer: Peer, work: Encode | Soft | Text, now: float, sealed: Sealed | None
    ) -> list[Instruction] | None:
        hop = self._flow.hop_for(peer, work)
        if hop is None:
            return None
        client: Peer | None = peer
        if peer.role is not Role.CLIENT:
            client = self._peers.clients.get(work.origin)
        elif work.origin != peer.name:
            work = replace(work, origin=peer.name)
        if client is None:
            return self._flow.drop_orphan(peer, hop, work)
        if work.task not in client.tasks and not self._adopt(client, work.task):
            reason = "the task is not defined, or its definition was dropped"
            return self._flow.reject(peer, hop, work, NackCode.UNKNOWN_TASK, reason)
        client.tasks.move_to_end(work.task)
        return self._flow.admit(peer, hop, work, now, sealed)

    def _result(
        self, peer: Peer, result: Result | Piece, sealed: Sealed | None
    ) -> list[Instruction] | None:
        receives = self._wires.receivers.get(result.wire) == peer.name
        keeps = self._wires.senders.get(result.wire) == peer.name and is_kept_note(result)
        if not peer.ready or not (receives or keeps):
            return None
        client = self._peers.clients.get(result.origin)
        if client is None:
            self.counters["dropped.orphan"] += 1
            return []
        peer.unasked = 0
        self.counters["results" if isinstance(result, Result) else "pieces"] += 1
        return [Send(client.id, result, sealed)]

    def _nack(self, peer: Peer, nack: Nack) -> list[Instruction] | None:
        if not self._is_end_of(nack.wire, peer):
            self.counters["dropped.agent_nack"] += 1  # a Nack is never answered
            return []
        if not nack.rows:
            return self._offers.answer(peer, nack) or []
        return self._nack_client(nack)

    def _nack_client(self, nack: Nack) -> list[Instruction]:
        client = self._peers.clients.get(nack.origin)
        if client is None:
            self.counters["dropped.orphan"] += 1
            return []
        self.counters[f"nacked.{nack.code}"] += 1
        return [Send(client.id, nack)]

    def _end_refused_rows(self, peer: Peer, refused: MessageRefused) -> list[Instruction]:
        """An agent's refused message still ends its rows, if it is known whose they are."""
        self.counters[f"refused.{refused.code}"] += 1
        wire, rows = refused.wire, refused.rows
        if peer.role is not Role.AGENT or not rows or not self._is_end_of(wire, peer):
            return []
        nack = Nack(refused.code, refused.reason, wire, rows, origin=refused.origin)
        return self._nack_client(nack)

    def _is_end_of(self, wire: str, peer: Peer) -> bool:
        return peer.name in (self._wires.senders.get(wire), self._wires.receivers.get(wire))

    # -- control ----------------------------------------------------------------------------

    def _credit(self, peer: Peer, credit: Credit, now: float) -> list[Instruction] | None:
        try:
            return self._flow.credit(peer, credit, now)
        except RemoteProtocolError as error:
            return self._refuse(peer, error.code, str(error))

    def _define(self, client: Peer, task: TaskSpec) -> list[Instruction]:
        self._keep_task(client, task)
        agents = self._peers.ready_agents.values()
        return [instruction for a in agents for instruction in self._flow.define(a, task)]

    def _keep_task(self, client: Peer, task: TaskSpec) -> None:
        tasks, task_id = client.tasks, task.task_id
        if task_id not in tasks:
            client.task_bytes += size_of(task)
        tasks[task_id] = task
        tasks.move_to_end(task_id)
        while len(tasks) > self._limits.tasks or client.task_bytes > self._limits.task_bytes:
            client.task_bytes -= size_of(tasks.popitem(last=False)[1])

    def _adopt(self, client: Peer, task_id: str) -> bool:
        """Takes over a task that another client has defined; the id stands for its content."""
        for other in self._peers.clients.values():
            if task_id in other.tasks:
                self._keep_task(client, other.tasks[task_id])
                return True
        return False

    def _cancel(self, peer: Peer, cancel: Cancel) -> list[Instruction]:
        out = self._flow.cancel(peer, cancel.wire, frozenset(cancel.request_ids))
        for name in (self._wires.senders.get(cancel.wire), self._wires.receivers.get(cancel.wire)):
            agent = self._peers.ready_agents.get(name) if name else None
            if agent is not None and self._flow.may_send_unasked(agent):
                out.append(Send(agent.id, replace(cancel, origin=peer.name)))
        return out

    # -- refusals ---------------------------------------------------------------------------

    def _refuse(self, peer: Peer, code: NackCode, reason: str) -> list[Instruction]:
        self.counters[f"refused.{code}"] += 1
        return [Send(peer.id, Nack(code, f"message {self._number}: {reason}"))]

    def _refuse_message(
        self, peer: Peer, code: NackCode, reason: str, message: Message
    ) -> list[Instruction]:
        """Tells the peer itself, not the client that it names: the name could be forged."""
        self.counters[f"refused.{code}"] += 1
        if isinstance(message, Nack):
            return []  # a Nack is never answered by a Nack
        wire, rows = getattr(message, "wire", ""), getattr(message, "rows", ())
        if not rows:
            reason = f"message {self._number}: {reason}"
        return [Send(peer.id, Nack(code, reason, wire, rows))]


def size_of(task: TaskSpec) -> int:
    """Bytes of a task's texts, roughly: characters."""
    texts = (task.name, task.prompt, task.text_prompt, task.relay.template)
    return sum(map(len, (*texts, *task.labels, *task.decoding.stop)))


def is_kept_note(result: Result | Piece) -> bool:
    """Whether it only says that a payload was kept: the one Result that a sender may send."""
    return isinstance(result, Result) and not result.labels and not any(result.texts)
