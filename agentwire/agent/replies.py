"""Replies -> messages: which rows share a message, and what it says about time. No IO."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from agentwire.agent.batching import Item, Kind
from agentwire.agent.compute import CachedReply, Form, Work
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

Pairs = Sequence[tuple[Item[Work], CachedReply]]


def messages(form: Form, pairs: Pairs, stages: Stages, now: float) -> list[Message]:
    """The messages that carry these replies.

    Soft and Text go on to the receiver in one message, so that it can compute them together; a
    solo row has its own. Results are grouped by the message that asked, because their stages
    hold what happened before.

    Args:
        form: the message type.
        pairs: rows of one lane with their replies.
        stages: milliseconds that this agent spent on them.
        now: monotonic seconds; what is left of each deadline is counted from here.
    """
    if form is Form.RESULT:
        groups: dict[int, list[tuple[Item[Work], CachedReply]]] = {}
        for pair in pairs:
            groups.setdefault(id(pair[0].content.ticket), []).append(pair)
        return [_result(group, stages, now) for group in groups.values()]
    make = _soft if form is Form.SOFT else _text
    together = [pair for pair in pairs if not pair[0].solo]
    alone = [[pair] for pair in pairs if pair[0].solo]
    return [make(group, stages, now) for group in [*alone, together] if group]


def form_of(item: Item[Work], reply: CachedReply) -> Form:
    """Which message carries a cached reply."""
    if item.lane.mode == Mode.KEEP or item.lane.kind is not Kind.ENCODE:
        return Form.RESULT
    return Form.TEXT if reply.payload is None else Form.SOFT


def _soft(pairs: Pairs, stages: Stages, now: float) -> Soft:
    lane, first = pairs[0][0].lane, pairs[0][1]
    soft_tokens, width = first.shape
    parts = [reply.payload or b"" for _, reply in pairs]
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return Soft(
        lane.wire,
        lane.task,
        first.bridge,
        tuple(row_of(item, now) for item, _ in pairs),
        Payload(data, len(pairs), soft_tokens, width),
        stages,
        pairs[0][0].solo,
        lane.origin,
    )


def _text(pairs: Pairs, stages: Stages, now: float) -> Text:
    lane, first = pairs[0][0].lane, pairs[0][1]
    texts = tuple(reply.text or "" for _, reply in pairs)
    # The outbox counts bytes by the rows' sizes.
    rows = tuple(
        row_of(item, now)._replace(size=len(text.encode()))
        for (item, _), text in zip(pairs, texts, strict=True)
    )
    solo = pairs[0][0].solo
    return Text(lane.wire, lane.task, rows, texts, first.reason, stages, solo, lane.origin)


def _result(pairs: Pairs, stages: Stages, now: float) -> Result:
    item, first = pairs[0]
    lane = item.lane
    total = dict(item.content.ticket.stages)
    for stage, ms in stages.items():
        total[stage] = total.get(stage, 0.0) + ms
    scores = b"".join(reply.scores or b"" for _, reply in pairs)
    return Result(
        lane.wire,
        lane.task,
        tuple(row_of(item, now) for item, _ in pairs),
        _channel(item, first),
        scores,
        len(first.scores or b"") // 4,
        () if first.scores is not None else tuple(reply.text or "" for _, reply in pairs),
        first.payload_bytes,
        first.reason,
        total,
        lane.origin,
        _tokens(pairs),
    )


def _channel(item: Item[Work], reply: CachedReply) -> Channel:
    """How the message reached whoever answers; of what is kept, how it will."""
    if item.lane.mode == Mode.KEEP:
        return Channel.SOFT if reply.payload is not None else Channel.TEXT
    return Channel.SOFT if item.lane.kind is Kind.SOFT else Channel.TEXT


def _tokens(pairs: Pairs) -> bytes:
    counts = [reply.tokens for _, reply in pairs]
    if None in counts:
        return b""
    return b"".join(struct.pack("<2I", *count) for count in counts if count is not None)


def row_of(item: Item[Work], now: float) -> Row:
    """The row as it goes on: same request, less time."""
    left = None
    if item.deadline != math.inf:
        left = max(0, int((item.deadline - now) * 1000))
    return Row(item.request_id, left, item.content.row.trace_id)
