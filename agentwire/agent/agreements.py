"""Agreements with other agents on bridges, and what to do where soft tokens cannot be used.

Soft tokens cross a wire only if the receiver accepted the bridge, the bridge was trained for the
prompt, and the payload is valid. Otherwise the text is relayed or the request fails; a Nack code
gives the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, TypeAlias

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

Policy: TypeAlias = Literal["text", "error"]
ANY_PROMPT: Final = "any"
FREE_TEXT: Final = "free_text"


class BridgeState(StrEnum):
    """What the sender knows about the bridge of one wire."""

    NONE = "none"  # no bridge is configured
    OFFERED = "offered"  # the receiver has not answered yet
    ACCEPTED = "accepted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class UseSoft:
    """Send soft tokens."""


@dataclass(frozen=True, slots=True)
class UseText:
    """Relay the text, because of ``reason``."""

    reason: NackCode


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with a Nack."""

    code: NackCode


@dataclass(frozen=True, slots=True)
class AwaitReceiver:
    """Wait until the receiver answers the offer."""


Decision: TypeAlias = UseSoft | UseText | Refuse | AwaitReceiver


def knows_prompt(bridge: BridgeIdentity, task: TaskSpec) -> bool:
    """Whether the bridge was trained for the task's prompt and labels.

    A task that asks nothing is known to every bridge: the later request is checked instead.
    """
    return task.asks_nothing or covers_prompt(bridge.prompts, task)


def covers_prompt(prompts: Collection[str], task: TaskSpec) -> bool:
    """Whether a task is covered by ``BridgeIdentity.prompts``.

    ``any`` promises answers in label words only; generated text needs ``free_text``.
    """
    universal = ANY_PROMPT if task.labels else FREE_TEXT
    return universal in prompts or task.prompt_hash in prompts


def decide(
    state: BridgeState,
    *,
    prompt_known: bool,
    generates: bool,
    policy: Policy,
) -> Decision:
    """The sender's decision for rows that ask for the soft channel, before they are encoded.

    Args:
        state: of the wire's bridge.
        prompt_known: whether the bridge was trained for the task's prompt.
        generates: whether the task asks for generated text.
        policy: fallback of the rows.
    """
    if state is BridgeState.NONE:
        return _fall_back(policy, NackCode.NO_BRIDGE)
    if state is BridgeState.REFUSED:
        return _fall_back(policy, NackCode.BRIDGE_MISMATCH)
    if not prompt_known:
        code = NackCode.UNSUPPORTED if generates else NackCode.PROMPT_MISMATCH
        return _fall_back(policy, code)
    if state is BridgeState.OFFERED:
        return AwaitReceiver()
    return UseSoft()


def _fall_back(policy: Policy, code: NackCode) -> Decision:
    return UseText(code) if policy == "text" else Refuse(code)


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
        self._states = {
            wire: BridgeState.OFFERED if bridge else BridgeState.NONE
            for wire, bridge in outgoing.items()
        }
        self._accepted: dict[str, BridgeIdentity] = {}

    # -- as the sender ----------------------------------------------------------------------

    def offers(self) -> list[Offer]:
        return [Offer(wire, bridge) for wire, bridge in self._outgoing.items() if bridge]

    def sends_on(self, wire: str) -> bool:
        return wire in self._outgoing

    def state(self, wire: str) -> BridgeState:
        return self._states[wire]

    def bridge(self, wire: str) -> BridgeIdentity | None:
        """The bridge that this agent sends through on ``wire``."""
        return self._outgoing[wire]

    def decide(self, wire: str, task: TaskSpec, mode: str, fallback: str) -> Decision:
        """The decision for rows on ``wire``; ``mode`` and ``fallback`` as in their Encode."""
        bridge = self._outgoing[wire]
        # A kept payload is for a later request, whose prompt is checked then.
        known = bridge is not None and (mode == Mode.KEEP or knows_prompt(bridge, task))
        return decide(
            self._states[wire],
            prompt_known=known,
            generates=not task.labels,
            policy="error" if fallback == "error" else "text",
        )

    def handle_answer(self, answer: Accept | Nack) -> None:
        """Handles the receiver's answer to an offer; ignores answers to anything else."""
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
        if not knows_prompt(bridge, task):
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
