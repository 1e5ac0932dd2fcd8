"""What a caller of the runtime gets: replies, agent facts, and news while agents start."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.runtime.ledger import Request
from agentwire.wire.messages import Channel, Result, TaskSpec
from agentwire.wire.tensors import from_scores


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request.

    Attributes:
        request_id: 32 hex digits; the same id asked again gets the same reply.
        label: the label with the highest score; None where the answer is free text.
        label_index: its place in the task's labels.
        scores: label -> natural log of its probability among the task's labels.
        text: the generated answer; None for a classification.
        channel: how the message reached the agent that answered.
        reason: why it went as text although soft tokens were asked for (a ``NackCode``); else "".
        stages: milliseconds of tokenize, encode, bridge, generate, queue, decode (those that
            happened), and wire: all the rest. They add up to ``latency_ms``.
        latency_ms: from admission to answer.
        payload_bytes: bytes of this row's payload on the bus: M * d * 2 for soft tokens, UTF-8
            (mean over the rows of its message) for text.
        prompt_tokens: tokens that the agent which answered read, soft tokens among them; 0 where
            its engine does not count them.
        completion_tokens: tokens that it wrote; 1 for a label.
        route: the wire that it came over; of agents with replicas, between which (``a->b.2``).
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


@dataclass(frozen=True, slots=True)
class KeptPayload:
    """Soft tokens that a sender keeps for a later question (``Runtime.keep``).

    The payload itself stays in the sender's process; this names it, for this runtime and this
    wire alone. It is gone after an hour, when newer ones need the room, and when the sender dies:
    asking about it then ends with the code EXPIRED.

    Attributes:
        request_id: 32 hex digits; what the sender knows it by.
        channel: ``text`` where no soft tokens could be made: then the text is kept, and relayed.
        reason: why (a ``NackCode``), or "".
        payload_bytes: M * d * 2.
        latency_ms: from admission until it was kept.
        process: of the sender, which keeps it: a replica, where it has several.
    """

    sender: str
    receiver: str
    request_id: str
    channel: Channel
    reason: str
    payload_bytes: int
    latency_ms: float
    process: str = ""


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """One agent's living incarnation.

    Attributes:
        epoch: of this incarnation, higher than every earlier one; a count from 1 only where this
            program starts it.
        restarts: how often it was started again.
        width: of the model's embedding space, d.
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
    """News of an agent while it starts, dies and starts again.

    Attributes:
        agent: its name; the model's name while its weights are fetched.
        stage: what goes on: ``start``, a stage of loading, ``ready``, ``lost`` (it died and will
            be started again) or ``down`` (it will not).
        fraction: how much of the stage is done, 0..1.
        detail: the reason, for ``lost`` and ``down``.
    """

    agent: str
    stage: str
    fraction: float
    detail: str = ""


def answers_of(result: Result, task: TaskSpec) -> list[dict[str, float]] | list[str]:
    """Each row's scores by label, or its generated text.

    Raises:
        RemoteProtocolError: the result does not fit the task or its own rows.
    """
    if not task.labels:
        if len(result.texts) != len(result.rows):
            raise RemoteProtocolError(NackCode.MALFORMED, "a result without its texts")
        return list(result.texts)
    if result.labels != len(task.labels):
        raise RemoteProtocolError(
            NackCode.MALFORMED, f"{result.labels} scores a row for {len(task.labels)} labels"
        )
    scores = from_scores(result.scores, len(result.rows), result.labels)
    return [dict(zip(task.labels, row, strict=True)) for row in scores]


def reply_of(
    request: Request, result: Result, row: int, answer: dict[str, float] | str, arrival: float
) -> Reply:
    """The reply to one row of a result that came in at ``arrival`` (monotonic seconds)."""
    read, written = struct.unpack_from("<2I", result.tokens, 8 * row) if result.tokens else (0, 0)
    latency_ms = (arrival - request.admitted) * 1000
    stages = dict(result.stages)
    stages["wire"] = latency_ms - sum(stages.values())
    label = text = index = None
    scores: Mapping[str, float] = {}
    if isinstance(answer, str):
        text = answer
    else:
        scores = answer
        index, label = max(enumerate(answer), key=lambda entry: answer[entry[1]])
    return Reply(
        request_id=request.request_id.hex(),
        label=label,
        label_index=index,
        scores=scores,
        text=text,
        channel=result.channel,
        reason=result.reason,
        stages=stages,
        latency_ms=latency_ms,
        payload_bytes=result.payload_bytes,
        prompt_tokens=read,
        completion_tokens=written,
        route=result.wire,
    )
