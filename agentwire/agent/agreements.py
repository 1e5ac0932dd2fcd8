"""The bridges that an agent uses or accepts, wire by wire."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agentwire.agent.fallback import BridgeState, knows_prompt
from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.wire.messages import Accept, BridgeIdentity, ModelIdentity, Nack, Offer, TaskSpec


class Agreements:
    """What was offered, accepted and refused, on both ends of this agent's wires.

    Args:
        model: what this agent runs.
        outgoing: wire -> bridge, for wires on which it sends; None: no bridge.
        incoming: wires on which it receives.
    """

    def __init__(
        self,
        model: ModelIdentity,
        outgoing: Mapping[str, BridgeIdentity | None],
        incoming: Collection[str],
    ) -> None:
        self._model = model
        self._outgoing = dict(outgoing)
        self._incoming = frozenset(incoming)
        self._states = {
            wire: BridgeState.OFFERED if bridge else BridgeState.NONE
            for wire, bridge in outgoing.items()
        }
        self._accepted: dict[str, BridgeIdentity] = {}

    def offers(self) -> list[Offer]:
        """What this agent offers as a sender."""
        return [Offer(wire, bridge) for wire, bridge in self._outgoing.items() if bridge]

    # -- as the sender ----------------------------------------------------------------------

    def sends_on(self, wire: str) -> bool:
        return wire in self._outgoing

    def state(self, wire: str) -> BridgeState:
        return self._states[wire]

    def bridge(self, wire: str) -> BridgeIdentity | None:
        """The bridge that this agent sends through on ``wire``."""
        return self._outgoing[wire]

    def answered(self, answer: Accept | Nack) -> None:
        """The receiver's answer to an offer; an answer to anything else changes nothing."""
        bridge = self._outgoing.get(answer.wire)
        if bridge is None:
            return
        if isinstance(answer, Nack):
            self._states[answer.wire] = BridgeState.REFUSED
        elif answer.bridge == bridge.fingerprint:
            self._states[answer.wire] = BridgeState.ACCEPTED

    # -- as the receiver --------------------------------------------------------------------

    def receives_on(self, wire: str) -> bool:
        return wire in self._incoming

    def consider(self, offer: Offer) -> Accept | Nack:
        """The answer to an offer: payloads of this bridge must fit this very model."""
        bridge, model = offer.bridge, self._model
        if not self.receives_on(offer.wire):
            return Nack(NackCode.UNKNOWN_WIRE, f"not the receiver of {offer.wire}", offer.wire)
        self._accepted.pop(offer.wire, None)
        reason = ""
        if bridge.receiver != model.fingerprint:
            reason = f"it was trained for another receiver than {model.name}"
        elif bridge.width != model.width:
            reason = f"its soft tokens have width {bridge.width}, {model.name} has {model.width}"
        if reason:
            code = NackCode.BRIDGE_MISMATCH
            return Nack(code, f"bridge {bridge.name}: {reason}", offer.wire)
        self._accepted[offer.wire] = bridge
        return Accept(offer.wire, bridge.fingerprint)

    def check(
        self, wire: str, fingerprint: str, shape: tuple[int, int], task: TaskSpec
    ) -> BridgeIdentity:
        """The agreed bridge of a payload of ``shape`` (M, d).

        Raises:
            RemoteProtocolError: the payload is not what was agreed on, or not for this task.
        """
        bridge = self._accepted.get(wire)
        if bridge is None or bridge.fingerprint != fingerprint:
            raise RemoteProtocolError(
                NackCode.BRIDGE_MISMATCH, f"bridge {fingerprint[:12]} was not agreed on"
            )
        if shape != (bridge.soft_tokens, bridge.width):
            raise RemoteProtocolError(
                NackCode.BAD_PAYLOAD,
                f"{shape[0]} x {shape[1]} values a row; {bridge.soft_tokens} x {bridge.width} "
                "were agreed on",
            )
        if not knows_prompt(bridge, task):
            if not task.labels:
                raise RemoteProtocolError(NackCode.UNSUPPORTED, no_free_text(bridge))
            raise RemoteProtocolError(
                NackCode.PROMPT_MISMATCH, f"bridge {bridge.name} is not trained for {task.name}"
            )
        return bridge


def no_free_text(bridge: BridgeIdentity) -> str:
    """Why a bridge's soft tokens are not answered with generated text, in words."""
    return (
        f"bridge {bridge.name} was trained for answers in label words; "
        "text generated from its soft tokens would mean nothing"
    )
