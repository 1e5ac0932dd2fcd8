"""Results of a batch, and the messages that carry them. No IO."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from agentwire.agent.batching import Kind, WorkItem
from agentwire.errors import NackCode
from agentwire.wire.messages import (
    Channel,
    Message,
    Mode,
    Payload,
    Result,
    Row,
    Soft,
    Stages,
    Text,
)


@dataclass(frozen=True, slots=True)
class RowReply:
    """The reply to one row, also cached for resends of its request."""

    payload: bytes | memoryview | None = None  # float16 [M, d]; may view the model's output
    shape: tuple[int, int] = (0, 0)  # (M, d) of the payload
    bridge: str = ""  # fingerprint of the bridge that made the payload
    text: str | None = None  # of a Text, or a generated answer
    scores: bytes | None = None  # float32 [L]
    reason: str = ""  # why the text channel was used
    payload_bytes: int = 0
    tokens: tuple[int, int] | None = None  # read and written, if counted

    @property
    def size(self) -> int:
        text = len(self.text.encode()) if self.text else 0
        return len(self.payload or b"") + text + len(self.scores or b"")


@dataclass(frozen=True, slots=True)
class ComputedRows:
    """Rows with their replies, in the same order; ``stages`` in milliseconds."""

    type: ReplyType  # of the message that carries them
    items: Sequence[WorkItem]
    replies: Sequence[RowReply]
    stages: Stages


@dataclass(frozen=True, slots=True)
class FailedRows:
    """Rows that get a Nack."""

    items: Sequence[WorkItem]
    code: NackCode
    reason: str


ReplyType: TypeAlias = type[Soft] | type[Text] | type[Result]
BatchResults: TypeAlias = list[ComputedRows | FailedRows]
Pairs: TypeAlias = Sequence[tuple[WorkItem, RowReply]]


def messages(type: ReplyType, pairs: Pairs, stages: Stages, now: float) -> list[Message]:
    """The messages that carry these replies.

    Soft and Text go to the receiver in one message, which it can compute as one batch; a solo row
    has its own. Results are grouped by the incoming message, whose stages they add to.

    Args:
        pairs: rows of one group with their replies.
        stages: milliseconds that this agent spent on them.
        now: monotonic seconds; remaining deadlines count from here.
    """
    if type is Result:
        groups: dict[int, list[tuple[WorkItem, RowReply]]] = {}
        for pair in pairs:
            groups.setdefault(id(pair[0].message), []).append(pair)
        return [_result(group, stages, now) for group in groups.values()]
    make = _soft if type is Soft else _text
    sent: list[Message] = []
    together = []
    for pair in pairs:
        if pair[0].solo:
            sent.append(make([pair], stages, now))
        else:
            together.append(pair)
    if together:
        sent.append(make(together, stages, now))
    return sent


def type_of(item: WorkItem, reply: RowReply) -> ReplyType:
    """The message type of a cached reply."""
    if item.group.mode == Mode.KEEP or item.group.kind is not Kind.ENCODE:
        return Result
    return Text if reply.payload is None else Soft


def _soft(pairs: Pairs, stages: Stages, now: float) -> Soft:
    group, first = pairs[0][0].group, pairs[0][1]
    soft_tokens, width = first.shape
    parts = [reply.payload or b"" for _, reply in pairs]
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return Soft(
        group.wire,
        group.task,
        first.bridge,
        tuple([row_of(item, now) for item, _ in pairs]),
        Payload(data, len(pairs), soft_tokens, width),
        stages,
        pairs[0][0].solo,
        group.origin,
    )


def _text(pairs: Pairs, stages: Stages, now: float) -> Text:
    group, first = pairs[0][0].group, pairs[0][1]
    texts = tuple(reply.text or "" for _, reply in pairs)
    # The outbox counts bytes by the rows' sizes.
    rows = tuple(
        row_of(item, now)._replace(size=len(text.encode()))
        for (item, _), text in zip(pairs, texts, strict=True)
    )
    solo = pairs[0][0].solo
    return Text(group.wire, group.task, rows, texts, first.reason, stages, solo, group.origin)


def _result(pairs: Pairs, stages: Stages, now: float) -> Result:
    item, first = pairs[0]
    group = item.group
    total = dict(item.message.stages)
    for stage, ms in stages.items():
        total[stage] = total.get(stage, 0.0) + ms
    scores = b"".join([reply.scores or b"" for _, reply in pairs])
    return Result(
        group.wire,
        group.task,
        tuple([row_of(item, now) for item, _ in pairs]),
        _channel(item, first),
        scores,
        len(first.scores or b"") // 4,
        () if first.scores is not None else tuple(reply.text or "" for _, reply in pairs),
        first.payload_bytes,
        first.reason,
        total,
        group.origin,
        _tokens(pairs),
    )


def _channel(item: WorkItem, reply: RowReply) -> Channel:
    """The channel of the message; of a kept payload, the channel that it will take."""
    if item.group.mode == Mode.KEEP:
        return Channel.SOFT if reply.payload is not None else Channel.TEXT
    return Channel.SOFT if item.group.kind is Kind.SOFT else Channel.TEXT


def _tokens(pairs: Pairs) -> bytes:
    packed = b""
    for _, reply in pairs:
        if reply.tokens is None:
            return b""
        packed += struct.pack("<2I", *reply.tokens)
    return packed


def row_of(item: WorkItem, now: float) -> Row:
    """The row as it is sent on: the same request with less time left."""
    left = None
    if item.deadline != math.inf:
        left = max(0, int((item.deadline - now) * 1000))
    return Row(item.row.request_id, left, item.row.trace_id)
