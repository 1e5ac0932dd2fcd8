"""Computes one batch with the backend: rows in, replies or Nacks out. No IO, no queue.

A bad row never fails its batch. Where the model raises on a batch, each row is tried alone. A row
with an invalid payload is relayed as text or refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from agentwire.agent.batching import BatchGroup, Kind, WorkItem
from agentwire.agent.replies import (
    BatchResults,
    ComputedRows,
    FailedRows,
    ReplyType,
    RowReply,
)
from agentwire.agent.validation import Agreements, no_free_text
from agentwire.errors import AgentwireError, NackCode, RemoteProtocolError
from agentwire.model.backend import (
    TOO_LONG,
    Asked,
    Backend,
    Encoded,
    Generated,
    Job,
    Pipelined,
    Scored,
)
from agentwire.telemetry.logs import TRACES
from agentwire.wire.limits import LIMITS
from agentwire.wire.messages import Channel, Mode, Result, Soft, Stages, TaskSpec, Text

log = logging.getLogger(__name__)
T = TypeVar("T")
Items: TypeAlias = Sequence[WorkItem]
Tokens: TypeAlias = tuple[int, int] | None

NO_LIMIT: Final = 1 << 20  # more rows than any batch has
GROW_AFTER: Final = 32
"""Number of full batches that must fit in memory in a row before the limit is doubled."""
_TEXT, _PAYLOAD = attrgetter("text"), attrgetter("payload")
# Conversion of fp16 bits to fp32; see check_rows.
_SHIFT = 13  # between the places of the exponents
_MAGNITUDE = np.uint32(0x7FFF << _SHIFT)  # all bits but the sign
_BIAS = np.float32(2.0**112)  # between the exponents' biases
_INFINITY = 65536.0  # what fp16 infinity becomes


class Compute:
    """Computes batches; the rows of a batch are of one group.

    Args:
        backend: the model.
        agreements: the bridges of each wire.
        watch: called with each piece of a row's generated answer; returns whether to go on.
        long_text: wire -> what becomes of a text that its bridge cannot read as a whole, where this
            is not the fallback.
        sizes: wire -> M of its payloads, where it does not follow from each text's length.
    """

    def __init__(
        self,
        backend: Backend,
        agreements: Agreements,
        watch: Callable[[WorkItem, str], bool] = lambda item, text: True,
        long_text: Mapping[str, str] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self._backend = backend
        self._pipelined = backend if isinstance(backend, Pipelined) else None
        self._agreements = agreements
        self._max_rows = NO_LIMIT  # rows that fit in the device's memory, as far as is known
        self._full_batches = 0  # batches of that size that have fitted in a row
        self._watch = watch
        self._long_text = long_text or {}
        self._sizes = sizes or {}

    def begin(self, items: Items, task: TaskSpec) -> Job[Any] | None:
        """Starts a batch on the device, for ``run`` to finish.

        None where ``run`` must do everything: the batch cannot run on its own, a payload is
        invalid, or the model refused.
        """
        backend, group = self._pipelined, items[0].group
        if backend is None or len(items) > self._max_rows:
            return None
        if group.kind is not Kind.ENCODE and not task.labels:
            return None  # text is generated token by token and watched
        if group.kind is not Kind.ENCODE and self._asked(items):
            return None  # these have no static shape
        try:
            if group.kind is Kind.SOFT:
                payload = _payload(items)
                if check_rows(payload, items[0].rms_range):
                    return None
                return backend.begin_score_soft(payload, task)
            if group.kind is Kind.TEXT:
                return backend.begin_score_text(_texts(items), task)
            bridge = self._agreements.outgoing[group.wire]
            if group.channel == Channel.TEXT or group.mode == Mode.KEPT or bridge is None:
                return None
            if bridge.sizes:
                return None
            if self._agreements.obstacle(group.wire, task, group.mode) is not None:
                return None
            return backend.begin_encode(_texts(items), bridge.fingerprint)
        except Exception as error:  # ``run`` tries again, row by row if necessary
            log.warning("the model raised when a batch began", exc_info=error)
            return None

    def run(self, items: Items, task: TaskSpec, job: Job[Any] | None = None) -> BatchResults:
        """The results of one batch. Each row is in exactly one of them.

        Args:
            job: what ``begin`` returned for these items.
        """
        group = items[0].group
        if group.kind is Kind.SOFT and job is None:
            invalid = check_rows(_payload(items), items[0].rms_range)
            if invalid:
                return self._without_invalid(items, task, invalid)
        if group.kind is not Kind.ENCODE:
            return self._answer(items, task, job)
        if group.channel == Channel.TEXT:
            return self._relay(items, task, group.reason)
        return self._encode(items, task, group, job)

    # -- as the sender ----------------------------------------------------------------------

    def _encode(
        self, items: Items, task: TaskSpec, group: BatchGroup, job: Job[Any] | None
    ) -> BatchResults:
        bridge = self._agreements.outgoing[group.wire]
        code = self._agreements.obstacle(group.wire, task, group.mode)
        if bridge is None or code is not None:
            reason = f"wire {group.wire}"
            if bridge is not None and code is NackCode.UNSUPPORTED:
                reason = no_free_text(bridge)
            return self._fall_back(code or NackCode.NO_BRIDGE, items, task, reason)
        fingerprint = bridge.fingerprint
        if group.mode == Mode.KEPT:
            return self._forward_kept(items, task, fingerprint)
        size: dict[str, Any] = {}
        if bridge.sizes and self._sizes.get(group.wire):
            size["soft_tokens"] = self._sizes[group.wire]
        return self._attempt(
            items,
            task,
            lambda batch: self._backend.encode(_texts(batch), fingerprint, **size),
            self._encoded,
            job,
        )

    def _encoded(self, batch: Items, encoded: Encoded, task: TaskSpec) -> BatchResults:
        """Replies with the valid payloads; falls back for the others."""
        if any(encoded.unread):
            return self._too_long(batch, encoded, task)
        if encoded.sizes:  # a message holds payloads of one size
            by_size: dict[int, list[int]] = {}
            for i, m in enumerate(encoded.sizes):
                by_size.setdefault(m, []).append(i)
            return [
                result
                for m, rows in by_size.items()
                for result in self._encoded(
                    [batch[i] for i in rows],
                    Encoded(encoded.payload[rows, :m], encoded.stages),
                    task,
                )
            ]
        bridge = self._agreements.outgoing[batch[0].group.wire]
        assert bridge is not None
        if encoded.rms is None:
            invalid = check_rows(encoded.payload, bridge.rms_range)
        else:
            invalid = check_rms(encoded.rms, bridge.rms_range)
        keep = batch[0].group.mode == Mode.KEEP
        valid: list[WorkItem] = []
        replies: list[RowReply] = []
        for i, item in enumerate(batch):
            if i not in invalid:
                data = encoded.payload[i].reshape(-1).view(np.uint8).data
                shape, text = encoded.payload[i].shape, "" if keep else None
                valid.append(item)
                replies.append(
                    RowReply(data, shape, bridge.fingerprint, text, payload_bytes=len(data))
                )
        results: BatchResults = []
        if valid:
            results.append(ComputedRows(Result if keep else Soft, valid, replies, encoded.stages))
        if invalid:
            code, reason = NackCode.BAD_PAYLOAD, next(iter(invalid.values()))
            results += self._fall_back(code, [batch[i] for i in invalid], task, reason)
        return results

    def _too_long(self, batch: Items, encoded: Encoded, task: TaskSpec) -> BatchResults:
        """Falls back for the texts that were not read as a whole."""
        whole = [i for i, unread in enumerate(encoded.unread) if not unread]
        results: BatchResults = []
        if whole:
            rms = None if encoded.rms is None else encoded.rms[whole]
            sizes = [encoded.sizes[i] for i in whole] if encoded.sizes else ()
            read = Encoded(encoded.payload[whole], encoded.stages, rms, sizes=sizes)
            results += self._encoded([batch[i] for i in whole], read, task)
        long = [item for item, unread in zip(batch, encoded.unread, strict=True) if unread]
        group = long[0].group
        if (self._long_text.get(group.wire) or group.fallback) == "error":
            reason = f"the text is {max(encoded.unread)} tokens longer than the bridge reads"
            return [*results, FailedRows(long, NackCode.TOO_LARGE, reason)]
        return results + self._relay(long, task, TOO_LONG)

    def _forward_kept(self, items: Items, task: TaskSpec, fingerprint: str) -> BatchResults:
        """Sends kept soft tokens; where there are none, falls back."""
        results: BatchResults = []
        soft: dict[int, list[tuple[WorkItem, RowReply]]] = {}  # by M
        for item in items:
            kept = item.kept
            if kept is None or kept.payload is None or kept.bridge != fingerprint:
                results += self._fall_back(NackCode.NO_BRIDGE, [item], task, "none are kept")
                continue
            m, d = kept.payload.shape
            reply = RowReply(kept.payload.tobytes(), (m, d), fingerprint)
            soft.setdefault(m, []).append((item, reply))
        for pairs in soft.values():
            rows, replies = [i for i, _ in pairs], [r for _, r in pairs]
            results.append(ComputedRows(Soft, rows, replies, {}))
        return results

    def _fall_back(self, code: NackCode, items: Items, task: TaskSpec, reason: str) -> BatchResults:
        """Relays the texts, or refuses the rows if their fallback is ``error``."""
        if items[0].group.fallback == "error":
            return [FailedRows(items, code, f"no soft tokens: {reason}")]
        return self._relay(items, task, code)

    def _relay(self, items: Items, task: TaskSpec, reason: str) -> BatchResults:
        if items[0].group.mode == Mode.KEEP:
            # Nothing is sent now: the text is kept, and relayed on request.
            kept = RowReply(text="", reason=reason)
            return [ComputedRows(Result, items, [kept] * len(items), {})]

        def reply(batch: Items, relayed: Generated, task: TaskSpec) -> BatchResults:
            replies = [RowReply(text=_characters(t), reason=reason) for t in relayed.texts]
            return _written(Text, batch, replies, relayed.stages)

        return self._attempt(items, task, lambda b: self._backend.relay(_texts(b), task), reply)

    # -- as the receiver --------------------------------------------------------------------

    def _without_invalid(
        self, items: Items, task: TaskSpec, invalid: Mapping[int, str]
    ) -> BatchResults:
        """Refuses the invalid rows and computes the others."""
        results: BatchResults = [
            FailedRows([items[i]], NackCode.BAD_PAYLOAD, reason) for i, reason in invalid.items()
        ]
        valid = [item for i, item in enumerate(items) if i not in invalid]
        return results + (self._answer(valid, task, None) if valid else [])

    def _answer(self, items: Items, task: TaskSpec, job: Job[Any] | None) -> BatchResults:
        """Answers rows from their soft tokens or texts."""
        backend, soft = self._backend, items[0].group.kind is Kind.SOFT
        if soft and task.asks_nothing:
            return [ComputedRows(Result, items, [_held(item) for item in items], {})]
        if not task.labels:

            def generate(batch: Items) -> Generated:
                def watch(row: int, text: str) -> bool:
                    return self._watch(batch[row], text)

                asked = self._asked(batch)
                if soft:
                    return backend.generate_soft(_payload(batch), task, watch, **asked)
                return backend.generate(_texts(batch), task, watch, **asked)

            return self._attempt(items, task, generate, _generated)

        def score(batch: Items) -> Scored:
            asked = self._asked(batch)
            if soft:
                return backend.score_soft(_payload(batch), task, **asked)
            return backend.score_text(_texts(batch), task, **asked)

        return self._attempt(items, task, score, _scored, job)

    def _asked(self, items: Items) -> dict[str, Any]:
        """The argument ``asked`` of a batch, if it has one."""
        group, questions = items[0].group, [item.row.question for item in items]
        from_reader = group.kind is Kind.SOFT and group.bridge in self._agreements.readers
        if not from_reader and not any(questions):
            return {}
        given = questions if any(questions) else ()
        return {"asked": Asked(given, group.bridge if from_reader else "")}

    # -- errors -----------------------------------------------------------------------------

    def _attempt(
        self,
        items: Items,
        task: TaskSpec,
        call: Callable[[Items], T],
        reply: Callable[[Items, T, TaskSpec], BatchResults],
        job: Job[T] | None = None,
    ) -> BatchResults:
        """Calls the model on the batch, or takes the result of its ``job``; if that raises, calls
        the model on each row alone.

        Where the device runs out of memory, each half is tried instead, and so on. Batches keep
        that size until enough have fitted, since one long row may have been the cause.
        """
        size = self._max_rows
        try:
            output = None
            if len(items) <= size:
                output = call(items) if job is None else job.result()
        except Exception as error:  # whatever the model raises becomes a Nack
            if len(items) == 1:
                return [_failed(items, error)]
            size = 1
            if is_out_of_memory(error):
                size = self._max_rows = len(items) // 2
                self._full_batches = 0
                log.warning("out of memory with %d rows; limit is now %d", len(items), size)
            output = None
        if output is not None:
            if self._max_rows < NO_LIMIT and len(items) >= self._max_rows:
                self._grow()
            return reply(items, output, task)
        # Out here the error is gone, and with it the frames that held the batch's tensors.
        parts = [items[i : i + size] for i in range(0, len(items), size)]
        return [rows for part in parts for rows in self._attempt(part, task, call, reply)]

    def _grow(self) -> None:
        self._full_batches += 1
        if self._full_batches >= GROW_AFTER:
            self._max_rows, self._full_batches = 2 * self._max_rows, 0


def check_rows(
    array: npt.NDArray[np.float16], rms_range: tuple[float, float] | None
) -> dict[int, str]:
    """Rows that must not reach a model: row index -> reason. Empty: all are valid.

    A row is valid if every value is finite and the RMS of each of its soft tokens lies within
    ``rms_range`` (ends included).

    Args:
        array: float16 [n, M, d].
        rms_range: lowest and highest RMS of one soft token, from the bridge card; None: the rows
            were checked before.
    """
    if rms_range is None:
        return {}
    # The bits of |x| moved to their fp32 places are x * 2**-112, subnormals included: exact, and
    # five times faster than numpy's conversion. A value that is not finite becomes 2**16 or more.
    # fp32 can hold the sum of 65,536 squares of the largest fp16.
    bits = np.ascontiguousarray(array).view("<u2").astype(np.uint32)
    bits <<= _SHIFT
    bits &= _MAGNITUDE
    values = bits.view(np.float32)
    values *= _BIAS
    finite = values.max(axis=2) < _INFINITY
    squares = np.einsum("nmd,nmd->nm", values, values)
    rms = np.sqrt(squares / array.shape[2])
    if finite.all() and rms.min() >= rms_range[0] and rms.max() <= rms_range[1]:
        return {}
    return _reasons(rms, finite, rms_range)


def check_rms(rms: npt.NDArray[np.float32], rms_range: tuple[float, float]) -> dict[int, str]:
    """Like ``check_rows``, if the RMS [n, M] of each soft token was computed elsewhere."""
    if rms.min() >= rms_range[0] and rms.max() <= rms_range[1]:  # false for NaN
        return {}
    return _reasons(rms, np.isfinite(rms), rms_range)


def _reasons(
    rms: npt.NDArray[np.float32], finite: npt.NDArray[np.bool_], rms_range: tuple[float, float]
) -> dict[int, str]:
    low, high = rms_range
    valid = finite & (rms >= low) & (rms <= high)
    reasons = {}
    for row in np.flatnonzero(~valid.all(axis=1)):
        token = int(np.flatnonzero(~valid[row])[0])
        if not finite[row, token]:
            reasons[int(row)] = f"soft token {token} is not finite"
        else:
            reasons[int(row)] = (
                f"soft token {token} has RMS {rms[row, token]:.4g}, outside [{low:.4g}, {high:.4g}]"
            )
    return reasons


def _texts(items: Items) -> list[str]:
    return list(map(_TEXT, items))


def _payload(items: Items) -> npt.NDArray[np.float16]:
    rows = list(map(_PAYLOAD, items))
    return rows[0][None] if len(rows) == 1 else np.stack(rows)


def _scored(batch: Items, scored: Scored, task: TaskSpec) -> BatchResults:
    scores = np.ascontiguousarray(scored.scores, dtype="<f4")
    counts: Sequence[Tokens] = scored.tokens or [None] * len(batch)
    replies: list[RowReply] = []
    unread = scored.unread or [0] * len(batch)
    for item, row, tokens, left in zip(batch, scores, counts, unread, strict=True):
        size, reason = item.message.payload_bytes, _reason(item, left)
        replies.append(
            RowReply(scores=row.tobytes(), reason=reason, payload_bytes=size, tokens=tokens)
        )
    return [ComputedRows(Result, batch, replies, scored.stages)]


def _generated(batch: Items, generated: Generated, task: TaskSpec) -> BatchResults:
    counts: Sequence[Tokens] = generated.tokens or [None] * len(batch)
    unread = generated.unread or [0] * len(batch)
    sure: Sequence[float | None] = generated.confidence or [None] * len(batch)
    rows = zip(batch, generated.texts, counts, unread, sure, strict=True)
    replies = [
        RowReply(
            text=_characters(text),
            reason=_reason(item, left),
            payload_bytes=item.message.payload_bytes,
            tokens=tokens,
            confidence=confidence,
        )
        for item, text, tokens, left, confidence in rows
    ]
    return _written(Result, batch, replies, generated.stages)


def _reason(item: WorkItem, unread: int) -> str:
    """Why text was used, and after a colon how many of its tokens the model did not read."""
    reason = item.group.reason
    return f"{reason or TOO_LONG}:{unread}" if unread else reason


def _characters(text: str) -> str:
    """The text without halves of surrogate pairs, which cannot be sent."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _written(
    type: ReplyType, batch: Items, replies: Sequence[RowReply], stages: Stages
) -> BatchResults:
    """Replies with texts. One above the wire's limit fails alone, not with its whole message."""
    limit = LIMITS.text_row_bytes
    long = [i for i, reply in enumerate(replies) if reply.size > limit]
    if not long:
        return [ComputedRows(type, batch, replies, stages)]
    reason = f"the model wrote more than {limit:,} bytes"
    failed = FailedRows([batch[i] for i in long], NackCode.TOO_LARGE, reason)
    good = [i for i in range(len(batch)) if i not in long]
    if not good:
        return [failed]
    rows = ComputedRows(type, [batch[i] for i in good], [replies[i] for i in good], stages)
    return [rows, failed]


def _failed(items: Items, error: Exception) -> FailedRows:
    traces = [item.row.trace_id.hex() for item in items]
    if isinstance(error, RemoteProtocolError):  # the row itself is invalid
        return FailedRows(items, error.code, _describe(error))
    log.warning("the model raised", exc_info=error, extra={TRACES: traces})
    return FailedRows(items, NackCode.MODEL_ERROR, _describe(error))


def _held(item: WorkItem) -> RowReply:
    """Confirms that a payload is kept here."""
    payload = _payload([item])[0]
    m, d = payload.shape
    size = item.message.payload_bytes
    return RowReply(payload.tobytes(), (m, d), item.group.bridge, text="", payload_bytes=size)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device or this machine ran out of memory, by how engines report it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in words or "can't allocate memory" in words
    )


def _describe(error: Exception) -> str:
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    return first if isinstance(error, AgentwireError) else f"{type(error).__name__}: {first}"
