"""Bridge agreement: what each wire's sender has offered, and what its receiver answered. No IO.

The broker keeps an offer while its sender's incarnation lives, and sends it to each incarnation
of the receiver that becomes ready. Each of them answers anew.
"""

from __future__ import annotations

from collections import Counter

from agentwire.bus.directory import Directory, Peer
from agentwire.bus.events import WireAgreed, WireRefused
from agentwire.bus.flow import WireTable
from agentwire.bus.instructions import Emit, Instruction, Send
from agentwire.wire.messages import Accept, Nack, Offer


class Offers:
    """The offers of all wires.

    Args:
        counters: receives ``dropped.stale_answer``.
    """

    def __init__(self, wires: WireTable, peers: Directory, counters: Counter[str]) -> None:
        self._wires = wires
        self._peers = peers
        self._counters = counters
        self._offers: dict[str, Offer] = {}  # by wire

    def offer(self, peer: Peer, offer: Offer) -> list[Instruction] | None:
        """Stores an offer; None if this peer is not the wire's sender or not ready."""
        if not peer.ready or self._wires.senders.get(offer.wire) != peer.name:
            return None
        self._offers[offer.wire] = offer
        receiver = self._peers.ready_agents.get(self._wires.receivers.get(offer.wire) or "")
        return [Send(receiver.id, offer)] if receiver is not None else []

    def answer(self, peer: Peer, answer: Accept | Nack) -> list[Instruction] | None:
        """Passes the answer to the wire's sender; None if this peer is not its receiver."""
        if not peer.ready or self._wires.receivers.get(answer.wire) != peer.name:
            return None
        offer = self._offers.get(answer.wire)
        if offer is None or (
            isinstance(answer, Accept) and answer.bridge != offer.bridge.fingerprint
        ):
            self._counters["dropped.stale_answer"] += 1  # to an offer that has been replaced
            return []
        event: WireAgreed | WireRefused
        if isinstance(answer, Accept):
            event = WireAgreed(answer.wire, offer.bridge)
        else:
            event = WireRefused(answer.wire, answer.code, answer.reason)
        sender = self._peers.ready_agents.get(self._wires.senders.get(answer.wire) or "")
        sends: list[Instruction] = [] if sender is None else [Send(sender.id, answer)]
        return [*sends, Emit(event)]

    def for_receiver(self, peer: Peer) -> list[Instruction]:
        """The offers that a receiver must answer when it becomes ready."""
        return [
            Send(peer.id, offer)
            for wire, offer in self._offers.items()
            if self._wires.receivers.get(wire) == peer.name
        ]

    def drop_sender(self, peer: Peer) -> None:
        """Forgets the offers of a lost incarnation; the next one offers anew."""
        for wire in [wire for wire in self._offers if self._wires.senders.get(wire) == peer.name]:
            del self._offers[wire]
