"""Results of the runtime: replies, kept payloads, facts about agents, progress events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentwire.errors import InputError
from agentwire.wire.messages import Channel


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request.

    Attributes:
        request_id: 32 hex digits; sending the same id again returns the same reply.
        label: the label with the highest score; None for free text.
        label_index: its index in the task's labels.
        scores: label -> natural log of its probability among the task's labels.
        text: the generated answer; None for a classification.
        channel: how the message reached the receiver.
        reason: why it went as text although soft tokens were asked for (a ``NackCode``, or
            ``too_long`` for a text that its reader cannot read as a whole, ``unsure`` for an answer
            from soft tokens below the wire's ``fallback_below``); else "".
        stages: milliseconds of tokenize, encode, bridge, generate, queue, decode, and wire (all the
            rest). They add up to ``latency_ms``.
        latency_ms: from admission to answer.
        payload_bytes: M * d * 2 for soft tokens; UTF-8 bytes, mean of the message, for text.
        soft_tokens: M of the payload; 0 for text, or if the bridge has no card.
        prompt_tokens: tokens read by the receiver, soft ones included; 0 if it does not count them.
        completion_tokens: tokens it generated, without the one that ended the answer (an end token,
            or the one that completed a stop string); 1 for a label. Equal to the limit: cut there.
        unread: tokens at the end of the text that its reader did not read; ``reason`` is then set.
        confidence: mean natural log of the probabilities of the answer's tokens, if it was
            generated from the soft tokens of a reader bridge.
        passage: the kept text that the call asked about, which ``expand`` returns.
        route: the wire that the message took, with the replica that served it (``a->b.2``).
    """

    request_id: str
    label: str | None
    label_index: int | None
    scores: Mapping[str, float]
    text: str | None
    channel: Channel
    reason: str
    stages: Mapping[str, float]
    latency_ms: float
    payload_bytes: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    route: str = ""
    unread: int = 0
    soft_tokens: int = 0
    confidence: float | None = None
    passage: str | None = field(default=None, repr=False)

    def expand(self) -> str:
        """The text of the kept passage that was asked about. Raises an InputError if the call gave
        a text, which its caller has."""
        if self.passage is None:
            raise InputError(
                "This reply is not about a kept passage.", hint="Call `keep`, and send its result."
            )
        return self.passage


@dataclass(frozen=True, slots=True)
class KeptPayload:
    """A reference to soft tokens that a sender keeps for later calls (``Runtime.keep``).

    The payload stays in the sender's process. The reference is valid for this runtime and this
    wire only. The payload is dropped after an hour, when newer ones need the memory, or when the
    sender dies; a request for it then ends with the code EXPIRED.

    Attributes:
        request_id: 32 hex digits that identify the payload in the sender.
        channel: ``text`` if no soft tokens could be made; then the text is kept and relayed.
        reason: why it is text (a ``NackCode``), or "".
        payload_bytes: M * d * 2.
        soft_tokens: M; 0 for text, or if the bridge has no card.
        latency_ms: from admission until the payload was kept.
        process: the process of the sender that keeps it (one of its replicas).
        text: what the sender read.
    """

    sender: str
    receiver: str
    request_id: str
    channel: Channel
    reason: str
    payload_bytes: int
    latency_ms: float
    process: str = ""
    soft_tokens: int = 0
    text: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """The current incarnation of one agent.

    Attributes:
        epoch: of the incarnation, higher than every earlier one; from 1 if started by this process.
        restarts: how often the agent was started again.
        width: d, the width of the model's embedding space.
    """

    pid: int
    model: str
    device: str
    fingerprint: str
    epoch: int
    restarts: int
    width: int = 0


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """Progress of an agent that starts, dies or starts again.

    Attributes:
        agent: its name, or the model's name while its weights are fetched.
        stage: ``start``, a stage of loading, ``ready``, ``lost`` (it died and will be started
            again) or ``down`` (it died and will not).
        fraction: completed part of the stage, 0 to 1.
        detail: the reason, for ``lost`` and ``down``.
    """

    agent: str
    stage: str
    fraction: float
    detail: str = ""
