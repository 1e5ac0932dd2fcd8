"""What the broker decides, without any IO: stimuli in, instructions out, always the same.

The rules:

* Only a peer with the run's token is let in; an agent only as the incarnation that is expected.
  A newer incarnation replaces the older, and one that was lost does not come back.
* Each message type may come from one side only (``_MAY_SEND``), and a wire's messages only from
  the wire's own ends. Anything else is refused with UNAUTHORIZED and counted.
* The broker fills in ``origin`` of what a client sends; what agents send goes to a live client
  or is dropped.
* Work waits in bounded lanes (``lanes``) until its consumer gives credit. Everything else goes
  at once and so overtakes queued work.
* When an agent's incarnation is lost, all work that is queued to it or was queued by it is
  dropped. The client keeps the ledger of outstanding rows and sends them again: it learns of the
  loss by PeerLost or PeerGone. What clients send after that waits for the next incarnation.
* Deadlines go on while a message is queued: its rows are forwarded with the time that is left,
  and a message of which every row is too late is answered with DEADLINE.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from agentwire.bus.directory import Directory, Peer
from agentwire.bus.events import (
    PeerBusy,
    PeerConnected,
    PeerGone,
    PeerLost,
    PeerProgress,
    PeerReady,
)
from agentwire.bus.flow import Flow, RoutingLimits, WireTable
from agentwire.bus.offers import Offers
from agentwire.bus.stimuli import (
    Admit,
    Arrived,
    Departed,
    Dismiss,
    Emit,
    Expect,
    Forget,
    Garbled,
    Instruction,
    Invite,
    PeerId,
    Reject,
    Reported,
    Said,
    Send,
    Stimulus,
    Tick,
)
from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.wire.codec import Sealed
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
    Progress,
    Result,
    Role,
    Soft,
    TaskSpec,
    Text,
)


class Router:
    """The broker's decisions. Feed it stimuli in order and carry out what it returns in order.

    Args:
        wires: wire name -> (sender, receiver).
        token: what every Hello must carry.
        agents: agents on no wire, which only their direct wires reach.
        limits: how much is held.

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
    ) -> None:
        self._limits = limits or RoutingLimits()
        self._wires = WireTable(wires, agents)
        self.counters: Counter[str] = Counter()
        self._peers = Directory(self._wires.agents, token, self._limits.clients)
        self._flow = Flow(self._wires, self._peers, self._limits, self.counters)
        self._tasks: OrderedDict[str, TaskSpec] = OrderedDict()
        self._offers = Offers(self._wires, self._peers, self.counters)

    def gauges(self) -> dict[str, int]:
        """What is held now."""
        return {
            "peers": len(self._peers),
            "tasks": len(self._tasks),
            "queued_messages": self._flow.queued_messages,
            "queued_bytes": self._flow.queued_bytes,
        }

    def handle(self, stimulus: Stimulus, now: float) -> list[Instruction]:
        """What to do about it. ``now``: seconds of any monotonic clock."""
        if isinstance(stimulus, Said):  # as nearly always
            talker = self._peers.get(stimulus.peer)
            if talker is not None:
                return self._hear(talker, stimulus, now)
        match stimulus:
            case Arrived():
                return self._arrive(stimulus)
            case Said(id):
                return self._with_peer(id, lambda peer: self._hear(peer, stimulus, now))
            case Garbled():
                return self._with_peer(stimulus.peer, lambda peer: self._garbled(peer, stimulus))
            case Reported(id, busy_ms):
                return self._with_peer(id, lambda peer: self._busy(peer, busy_ms))
            case Departed(id, reason, goodbye, silent):
                return self._with_peer(id, lambda peer: self._lose(peer, reason, goodbye, silent))
            case Expect(name, epoch):
                self._peers.expect(name, epoch)
                return []
            case Invite(name):
                self._peers.invite(name)
                return []
            case Forget(name, epoch):
                return self._forget(name, epoch)
            case Tick():
                return self._flow.sweep(now)

    def _with_peer(self, id: PeerId, act: Callable[[Peer], list[Instruction]]) -> list[Instruction]:
        peer = self._peers.get(id)
        if peer is None:
            self.counters["dropped.unknown_peer"] += 1
            return []
        return act(peer)

    # -- peers come and go ------------------------------------------------------------------

    def _arrive(self, arrived: Arrived) -> list[Instruction]:
        hello = arrived.hello
        refusal = self._peers.refusal(hello, arrived.epoch, arrived.keyed)
        if refusal is not None:
            code, reason = refusal
            self.counters[f"refused.{code}"] += 1
            return [Reject(arrived.peer, code, reason)]
        out: list[Instruction] = []
        older = self._peers.named(hello.name)
        if older is not None:
            reason = f"replaced by epoch {arrived.epoch}"
            out.append(Send(older.id, Nack(NackCode.STALE_EPOCH, reason)))
            out += self._lose(older, reason)
        keyed = arrived.keyed is not None
        peer = Peer(arrived.peer, hello.name, hello.role, arrived.epoch, keyed=keyed)
        self._peers.add(peer)
        out += [Admit(peer.id), Emit(PeerConnected(peer.name, peer.epoch))]
        if peer.role is Role.CLIENT:
            return out + self._flow.connect(peer)
        return out + (self._ready(peer, hello) if hello.model is not None else [])

    def _ready(self, peer: Peer, hello: Hello) -> list[Instruction]:
        """An agent has loaded its model: it gets all that came before it."""
        if hello.model is None or peer.role is not Role.AGENT:
            return self._refuse(peer, NackCode.MALFORMED, "a second Hello must name the model")
        if not (peer.keyed or self._peers.knows_token(hello)):
            return self._refuse(peer, NackCode.UNAUTHORIZED, "the token is not this run's")
        if peer.ready:
            return self._refuse(peer, NackCode.UNAUTHORIZED, "an agent cannot change its model")
        peer.model = hello.model
        out: list[Instruction] = [Emit(PeerReady(peer.name, peer.epoch, hello.model))]
        out += [Send(peer.id, Define(task)) for task in self._tasks.values()]
        out += self._offers.for_receiver(peer)
        return out + self._flow.connect(peer)

    def _lose(
        self, peer: Peer, reason: str, goodbye: bool = False, silent: bool = False
    ) -> list[Instruction]:
        self._peers.remove(peer)
        self._offers.lost(peer)
        event: PeerGone | PeerLost = PeerLost(peer.name, peer.epoch, reason, silent)
        if goodbye:
            event = PeerGone(peer.name, peer.epoch, reason)
        return [Dismiss(peer.id), *self._flow.disconnect(peer), Emit(event)]

    def _forget(self, name: str, epoch: int) -> list[Instruction]:
        self._peers.unexpect(name, epoch)
        peer = self._peers.named(name)
        if peer is None or peer.epoch != epoch:
            return []
        return self._lose(peer, "the process ended")

    # -- messages ---------------------------------------------------------------------------

    def _hear(self, peer: Peer, said: Said, now: float) -> list[Instruction]:
        message = said.message
        wire = getattr(message, "wire", "")
        if wire and wire not in self._wires:
            return self._refuse_message(
                peer, NackCode.UNKNOWN_WIRE, f"there is no wire {wire!r}", message
            )
        out: list[Instruction] | None = None
        match message, peer.role:
            case Encode() | Soft() | Text(), _:
                out = self._work(peer, message, now, said.sealed)
            case Credit(), Role.AGENT:
                out = self._credit(peer, message, now)
            case Result() | Piece(), Role.AGENT:
                out = self._result(peer, message, said.sealed)
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
                out = self._ready(peer, message)
            case Define(), Role.CLIENT:
                out = self._define(message.task)
            case Cancel(), Role.CLIENT:
                out = self._cancel(peer, message)
            case Nack(), Role.CLIENT:
                self.counters["dropped.client_nack"] += 1  # a complaint; nothing to be done
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
        leg = self._flow.leg_for(peer, work)
        if leg is None:
            return None
        if work.task not in self._tasks:
            reason = "the task was not defined, or too long ago"
            return self._flow.reject(peer, leg, work, NackCode.UNKNOWN_TASK, reason)
        self._tasks.move_to_end(work.task)
        if peer.role is Role.CLIENT:
            if work.origin != peer.name:
                work = replace(work, origin=peer.name)
        elif self._peers.client(work.origin) is None:
            return self._flow.drop_orphan(peer, leg, work)
        return self._flow.admit(peer, leg, work, now, sealed)

    def _result(
        self, peer: Peer, result: Result | Piece, sealed: Sealed | None
    ) -> list[Instruction] | None:
        receives = self._wires.receiver(result.wire) == peer.name
        keeps = self._wires.sender(result.wire) == peer.name and is_kept_note(result)
        if not peer.ready or not (receives or keeps):
            return None
        client = self._peers.client(result.origin)
        if client is None:
            self.counters["dropped.orphan"] += 1
            return []
        self.counters["results" if isinstance(result, Result) else "pieces"] += 1
        return [Send(client.id, result, sealed)]

    def _nack(self, peer: Peer, nack: Nack) -> list[Instruction] | None:
        ends = (self._wires.sender(nack.wire), self._wires.receiver(nack.wire))
        if peer.name not in ends:
            self.counters["dropped.agent_nack"] += 1  # not about a wire of its own; never answered
            return []
        if not nack.rows:
            return self._offers.answer(peer, nack) or []
        return self._nack_client(nack)

    def _nack_client(self, nack: Nack) -> list[Instruction]:
        client = self._peers.client(nack.origin)
        if client is None:
            self.counters["dropped.orphan"] += 1
            return []
        self.counters[f"nacked.{nack.code}"] += 1
        return [Send(client.id, nack)]

    def _garbled(self, peer: Peer, garbled: Garbled) -> list[Instruction]:
        """An agent's broken message still ends its rows, where it is known whose they were."""
        self.counters[f"refused.{garbled.code}"] += 1
        ends = (self._wires.sender(garbled.wire), self._wires.receiver(garbled.wire))
        if peer.role is not Role.AGENT or not garbled.rows or peer.name not in ends:
            return []
        return self._nack_client(
            Nack(garbled.code, garbled.reason, garbled.wire, garbled.rows, 0, garbled.origin)
        )

    # -- control ----------------------------------------------------------------------------

    def _credit(self, peer: Peer, credit: Credit, now: float) -> list[Instruction] | None:
        try:
            return self._flow.credit(peer, credit, now)
        except RemoteProtocolError as error:
            return self._refuse(peer, error.code, str(error))

    def _busy(self, peer: Peer, busy_ms: int) -> list[Instruction]:
        if not busy_ms and not peer.busy_ms:
            return []
        peer.busy_ms = busy_ms
        return [Emit(PeerBusy(peer.name, peer.epoch, busy_ms))]

    def _define(self, task: TaskSpec) -> list[Instruction]:
        self._tasks[task.task_id] = task
        self._tasks.move_to_end(task.task_id)
        if len(self._tasks) > self._limits.tasks:
            self._tasks.popitem(last=False)
        return [Send(peer.id, Define(task)) for peer in self._peers if peer.ready]

    def _cancel(self, peer: Peer, cancel: Cancel) -> list[Instruction]:
        out = self._flow.cancel(peer, cancel.wire, frozenset(cancel.request_ids))
        for name in (self._wires.sender(cancel.wire), self._wires.receiver(cancel.wire)):
            agent = self._peers.ready_agent(name) if name else None
            if agent is not None:
                out.append(Send(agent.id, replace(cancel, origin=peer.name)))
        return out

    # -- refusals ---------------------------------------------------------------------------

    def _refuse(self, peer: Peer, code: NackCode, reason: str) -> list[Instruction]:
        self.counters[f"refused.{code}"] += 1
        return [Send(peer.id, Nack(code, reason))]

    def _refuse_message(
        self, peer: Peer, code: NackCode, reason: str, message: Message
    ) -> list[Instruction]:
        """Tells the peer itself. Not the client that it names: that could be a forgery."""
        self.counters[f"refused.{code}"] += 1
        if isinstance(message, Nack):
            return []  # a Nack is never answered with a Nack
        wire, rows = getattr(message, "wire", ""), getattr(message, "rows", ())
        return [Send(peer.id, Nack(code, reason, wire, rows))]


def is_kept_note(result: Result | Piece) -> bool:
    """Whether it says no more than that something was kept: all that a sender may answer."""
    return isinstance(result, Result) and not result.labels and not any(result.texts)
