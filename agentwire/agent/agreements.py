"""Agreements with other agents on bridges.

Soft tokens cross a wire only if the receiver accepted the bridge and the bridge was trained for the
prompt. Otherwise the text is relayed or the request fails; a Nack code gives the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.wire.messages import (
    Accept,
    BridgeIdentity,
    Mode,
    ModelIdentity,
    Nack,
    Offer,
    TaskSpec,
)

ANY_PROMPT: Final = "any"
FREE_TEXT: Final = "free_text"


def covers_prompt(prompts: Collection[str], task: TaskSpec) -> bool:
    """Whether a task is covered by ``BridgeIdentity.prompts``.

    ``any`` promises answers in label words only; generated text needs ``free_text``.
    """
    universal = ANY_PROMPT if task.labels else FREE_TEXT
    return universal in prompts or task.prompt_hash in prompts


class Agreements:
    """Bridges offered, accepted and refused on all wires of one agent.

    Args:
        model: the agent's.
        outgoing: wire -> bridge for the wires on which it sends; None: no bridge.
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
        self._answers: dict[str, bool] = {}  # outgoing wire -> whether the bridge was accepted
        self._accepted: dict[str, BridgeIdentity] = {}

    # -- as the sender ----------------------------------------------------------------------

    def offers(self) -> list[Offer]:
        return [Offer(wire, bridge) for wire, bridge in self._outgoing.items() if bridge]

    def sends_on(self, wire: str) -> bool:
        return wire in self._outgoing

    def bridge(self, wire: str) -> BridgeIdentity | None:
        """The bridge that this agent sends through on ``wire``."""
        return self._outgoing[wire]

    def is_accepted(self, wire: str) -> bool:
        """Whether the receiver has accepted the bridge of ``wire``."""
        return self._answers.get(wire, False)

    def obstacle(self, wire: str, task: TaskSpec, mode: str) -> NackCode | None:
        """Why soft tokens cannot be sent on ``wire``; None if they can once it ``is_accepted``."""
        bridge = self._outgoing[wire]
        if bridge is None:
            return NackCode.NO_BRIDGE
        if not self._answers.get(wire, True):
            return NackCode.BRIDGE_MISMATCH
        # A payload that is only kept is for a later request, whose prompt is checked then.
        if mode == Mode.KEEP or task.asks_nothing or covers_prompt(bridge.prompts, task):
            return None
        return NackCode.PROMPT_MISMATCH if task.labels else NackCode.UNSUPPORTED

    def handle_answer(self, answer: Accept | Nack) -> None:
        """Handles the receiver's answer to an offer; ignores answers to anything else."""
        bridge = self._outgoing.get(answer.wire)
        if bridge is None:
            return
        if isinstance(answer, Nack):
            self._answers[answer.wire] = False
        elif answer.bridge == bridge.fingerprint:
            self._answers[answer.wire] = True

    # -- as the receiver --------------------------------------------------------------------

    def receives_on(self, wire: str) -> bool:
        return wire in self._incoming

    def answer_offer(self, offer: Offer) -> Accept | Nack:
        """Accepts a bridge that was trained for this agent's model."""
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

    def check_payload(
        self, wire: str, fingerprint: str, shape: tuple[int, int], task: TaskSpec
    ) -> BridgeIdentity:
        """The accepted bridge of a payload of ``shape`` (M, d).

        Raises:
            RemoteProtocolError: the bridge, shape or task is not what was agreed on.
        """
        bridge = self._accepted.get(wire)
        if bridge is None or bridge.fingerprint != fingerprint:
            raise RemoteProtocolError(
                NackCode.BRIDGE_MISMATCH, f"bridge {fingerprint[:12]} was not agreed on"
            )
        if shape != (bridge.soft_tokens, bridge.width):
            raise RemoteProtocolError(
                NackCode.BAD_PAYLOAD,
                f"payload rows have shape {shape[0]} x {shape[1]}, but {bridge.soft_tokens} x "
                f"{bridge.width} was agreed on",
            )
        if not (task.asks_nothing or covers_prompt(bridge.prompts, task)):
            if not task.labels:
                raise RemoteProtocolError(NackCode.UNSUPPORTED, no_free_text(bridge))
            raise RemoteProtocolError(
                NackCode.PROMPT_MISMATCH, f"bridge {bridge.name} is not trained for {task.name}"
            )
        return bridge


def no_free_text(bridge: BridgeIdentity) -> str:
    """Why text cannot be generated from a bridge's soft tokens, as a sentence."""
    return (
        f"bridge {bridge.name} was trained for answers in label words; "
        "text generated from its soft tokens would mean nothing"
    )
