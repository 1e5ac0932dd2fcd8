"""Results of a batch, the messages that carry them, and the cache of recent replies. No IO."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from agentwire.agent.batching import Kind, WorkItem
from agentwire.errors import LocalProtocolError, NackCode
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

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


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
    confidence: float | None = None  # of a generated answer, if computed

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
    has its own. Results are grouped by reason and incoming message, whose stages they add to.

    Args:
        pairs: rows of one group with their replies.
        stages: milliseconds that this agent spent on them.
        now: monotonic seconds; remaining deadlines count from here.
    """
    if type is Result:
        groups: dict[tuple[int, str], list[tuple[WorkItem, RowReply]]] = {}
        for pair in pairs:
            groups.setdefault((id(pair[0].message), pair[1].reason), []).append(pair)
        sent: list[Message] = []
        for group in groups.values():
            sent.append(_result(group, stages, now))
        return sent
    make = _soft if type is Soft else _text
    sent = []
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
    rows, parts = [], []
    for item, reply in pairs:
        rows.append(row_of(item, now))
        parts.append(reply.payload or b"")
    return Soft(
        group.wire,
        group.task,
        first.bridge,
        tuple(rows),
        Payload(parts[0] if len(parts) == 1 else b"".join(parts), len(parts), *first.shape),
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
    rows: list[Row] = []
    scores, texts, tokens, counted = bytearray(), [], bytearray(), True
    judged = all(reply.tokens and reply.confidence is not None for _, reply in pairs)
    for item, reply in pairs:
        rows.append(row_of(item, now))
        scores += reply.scores or b""
        texts.append(reply.text or "")
        counted = counted and reply.tokens is not None
        tokens += struct.pack("<2I", *(reply.tokens or (0, 0)))
        if judged:
            tokens += struct.pack("<f", reply.confidence)
    # Of a kept payload, the channel is the one that it will take.
    soft = first.payload is not None if group.mode == Mode.KEEP else group.kind is Kind.SOFT
    return Result(
        group.wire,
        group.task,
        tuple(rows),
        Channel.SOFT if soft else Channel.TEXT,
        bytes(scores),
        len(first.scores or b"") // 4,
        tuple(texts) if first.scores is None else (),
        first.payload_bytes,
        first.reason,
        total,
        group.origin,
        bytes(tokens) if counted else b"",
    )


def row_of(item: WorkItem, now: float) -> Row:
    """The row as it is sent on: the same request with less time left."""
    left = None
    if item.deadline != math.inf:
        left = max(0, int((item.deadline - now) * 1000))
    return Row(item.row.request_id, left, item.row.trace_id, question=item.row.question)


class Seen(StrEnum):
    NEW = "new"  # now noted as in progress: compute it, then finish() or forget() it
    IN_PROGRESS = "in_progress"  # its answer will come: do nothing
    DONE = "done"  # send the kept reply
    FULL = "full"  # too many in progress: refuse it as overloaded


class Lookup(NamedTuple, Generic[T]):
    """What is known of a request; ``reply`` if it is done."""

    seen: Seen
    reply: T | None = None


class Dedup(Generic[K, T]):
    """A bounded memory of requests: those in progress, and the latest replies. It makes delivery
    at least once safe to retry.

    A key must hold everything that changes the answer. The request id alone is not enough: after a
    refused payload, the same request comes as text.

    Args:
        in_progress: most requests in progress; they are never dropped to make room.
        replies: most replies kept; the least recently used goes first.
        reply_bytes: most bytes of replies kept, by the sizes given to ``finish``.
    """

    def __init__(
        self, *, in_progress: int = 4096, replies: int = 4096, reply_bytes: int = 256 * 1024 * 1024
    ) -> None:
        self._max_in_progress = in_progress
        self._max_replies = replies
        self._max_bytes = reply_bytes
        self._in_progress: set[K] = set()
        self._replies: OrderedDict[K, tuple[T, int]] = OrderedDict()
        self.reply_bytes = 0

    def begin(self, key: K) -> Lookup[T]:
        """What is known of a request that has arrived; a new one is noted as in progress."""
        kept = self._replies.get(key)
        if kept is not None:
            self._replies.move_to_end(key)
            return Lookup(Seen.DONE, kept[0])
        if key in self._in_progress:
            return Lookup(Seen.IN_PROGRESS)
        if len(self._in_progress) >= self._max_in_progress:
            return Lookup(Seen.FULL)
        self._in_progress.add(key)
        return Lookup(Seen.NEW)

    def finish(self, key: K, reply: T, size: int = 0) -> None:
        """Keeps the reply of a request in progress; ``size`` is its bytes. Raises a
        LocalProtocolError if it is not in progress: a bug on this side."""
        if key not in self._in_progress:
            raise LocalProtocolError(
                "A request was finished that is not in progress.", hint="Call begin() first."
            )
        self._in_progress.discard(key)
        self._replies[key] = (reply, size)
        self.reply_bytes += size
        while len(self._replies) > self._max_replies or self.reply_bytes > self._max_bytes:
            _, (_, dropped) = self._replies.popitem(last=False)
            self.reply_bytes -= dropped

    def forget(self, key: K) -> None:
        """Forgets a request that ended without a reply worth keeping."""
        self._in_progress.discard(key)
        _, size = self._replies.pop(key, (None, 0))
        self.reply_bytes -= size

    @property
    def in_progress(self) -> int:
        return len(self._in_progress)

    def __len__(self) -> int:
        """How many replies are kept."""
        return len(self._replies)
