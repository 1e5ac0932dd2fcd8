"""One batch through the backend: rows in, replies or refusals out. No IO, no queue.

A bad row never sinks its batch: where the model raises on a batch, each row is tried alone, and
where a payload is not sound, that row alone is relayed as text or refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from agentwire.agent.agreements import Agreements, no_free_text
from agentwire.agent.batching import Item, Kind, Lane
from agentwire.agent.fallback import Decision, Refuse, UseSoft, UseText, decide, knows_prompt
from agentwire.agent.kept import Kept
from agentwire.errors import AgentwireError, NackCode, RemoteProtocolError
from agentwire.model.backend import Backend, Encoded, Generated, Job, Pipelined, Scored, Watch
from agentwire.telemetry.logs import TRACES
from agentwire.wire.messages import BridgeIdentity, Channel, Mode, Row, Stages, TaskSpec
from agentwire.wire.tensors import check_rms, check_rows

log = logging.getLogger(__name__)
T = TypeVar("T")

NO_LIMIT: Final = 1 << 20  # more rows than any batch has
GROW_AFTER: Final = 32
"""Batches that fit in a row after which twice as many rows are tried."""


class WorkKey(NamedTuple):
    """What makes two rows the same work: the request, and what is asked of this agent."""

    request_id: bytes
    origin: str
    kind: Kind
    wire: str
    task: str
    channel: str


@dataclass(frozen=True, slots=True)
class CachedReply:
    """One row of a message to send, kept in case its request comes again.

    Attributes:
        payload: float16 [M, d] as bytes (Soft); a view of what the model made.
        shape: (M, d) of the payload.
        bridge: fingerprint of the bridge (Soft).
        text: of a Text, or a generated answer.
        scores: float32 [L] as bytes (Result).
        reason: why text was used.
        payload_bytes: of a Result.
        tokens: read and written (Result), or nothing.
    """

    payload: bytes | memoryview | None = None
    shape: tuple[int, int] = (0, 0)
    bridge: str = ""
    text: str | None = None
    scores: bytes | None = None
    reason: str = ""
    payload_bytes: int = 0
    tokens: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        text = len(self.text.encode()) if self.text else 0
        return len(self.payload or b"") + text + len(self.scores or b"")


@dataclass(eq=False, slots=True)
class Ticket:
    """One message that came in; its credit is given back when its last row is done.

    Attributes:
        remaining: rows that are not done.
        stages: milliseconds spent before it came here.
        payload_bytes: bytes of one row of it on the bus.
    """

    wire: str
    size: int
    remaining: int
    arrival: float
    stages: Stages
    payload_bytes: int = 0


@dataclass(eq=False, slots=True)
class Work:
    """What the worker keeps with a row: ``text``, or ``payload`` as float16 [M, d].

    Attributes:
        sane: lowest and highest RMS of its soft tokens; None: they were looked at before.
        kept: what its client names instead of a text.
    """

    row: Row
    ticket: Ticket
    key: WorkKey
    text: str = ""
    payload: npt.NDArray[np.float16] | None = None
    sane: tuple[float, float] | None = None
    cancelled: bool = False
    kept: Kept | None = None
    streamed: int = 0  # bytes of its answer that went out in Pieces


class Form(Enum):
    """Which message carries a reply."""

    SOFT = auto()
    TEXT = auto()
    RESULT = auto()


@dataclass(frozen=True, slots=True)
class Done:
    """Rows with their replies, in the same order; ``stages`` in milliseconds."""

    form: Form
    items: Sequence[Item[Work]]
    replies: Sequence[CachedReply]
    stages: Stages


@dataclass(frozen=True, slots=True)
class Failed:
    """Rows that are refused, and why."""

    items: Sequence[Item[Work]]
    code: NackCode
    reason: str


Outcome: TypeAlias = Done | Failed
Items: TypeAlias = Sequence[Item[Work]]


class Compute:
    """Runs batches of one lane.

    Args:
        backend: the model.
        agreements: which bridge to use on which wire.
        watch: told what a row's answer has grown by, while it is generated; whether to go on.
    """

    def __init__(
        self,
        backend: Backend,
        agreements: Agreements,
        watch: Callable[[Item[Work], str], bool] = lambda item, text: True,
    ) -> None:
        self._backend = backend
        self._pipelined = backend if isinstance(backend, Pipelined) else None
        self._agreements = agreements
        self._fits = NO_LIMIT  # rows that the device's memory holds, as far as is known
        self._fitting = 0  # batches of that size in a row that did fit
        self._watch = watch

    def begin(self, items: Items, task: TaskSpec) -> Job[Any] | None:
        """Lets the device start with a batch, for ``run`` to finish.

        None: there is nothing to begin apart, a payload is not sound, or the model refused: ``run``
        does it all.
        """
        backend, lane = self._pipelined, items[0].lane
        if backend is None or len(items) > self._fits:
            return None
        if lane.kind is not Kind.ENCODE and not task.labels:
            return None  # text is generated token by token, watched
        try:
            if lane.kind is Kind.SOFT:
                payload = _payload(items)
                if _unsound(items, payload):
                    return None
                return backend.begin_score_soft(payload, task)
            if lane.kind is Kind.TEXT:
                return backend.begin_score_text(_texts(items), task)
            bridge = self._agreements.bridge(lane.wire)
            if lane.channel == Channel.TEXT or lane.mode == Mode.KEPT or bridge is None:
                return None
            if not isinstance(self._decide(lane, bridge, task), UseSoft):
                return None
            return backend.begin_encode(_texts(items), bridge.fingerprint)
        except Exception as error:  # ``run`` tries again, and row by row if need be
            log.warning("the model raised when it began", exc_info=error)
            return None

    def run(self, items: Items, task: TaskSpec, begun: Job[Any] | None = None) -> list[Outcome]:
        """The outcomes of one batch; each row is in exactly one of them.

        Args:
            begun: what ``begin`` gave for these very items.
        """
        lane = items[0].lane
        if lane.kind is Kind.SOFT:
            bad = {} if begun is not None else _unsound(items, _payload(items))
            return self._sift(items, task, bad) if bad else self._answer_soft(items, task, begun)
        if lane.kind is Kind.TEXT:
            return self._read(items, task, begun)
        if lane.channel == Channel.TEXT:
            return self._relay(items, task, lane.reason)
        return self._encode(items, task, lane, begun)

    # -- as the sender ----------------------------------------------------------------------

    def _decide(self, lane: Lane, bridge: BridgeIdentity | None, task: TaskSpec) -> Decision:
        # What is kept is for a question that comes later, and is looked at then.
        keeps = lane.mode == Mode.KEEP
        return decide(
            self._agreements.state(lane.wire),
            prompt_known=bridge is not None and (keeps or knows_prompt(bridge, task)),
            generates=not task.labels,
            policy="error" if lane.fallback == "error" else "text",
        )

    def _encode(
        self, items: Items, task: TaskSpec, lane: Lane, begun: Job[Any] | None
    ) -> list[Outcome]:
        bridge = self._agreements.bridge(lane.wire)
        keeps = lane.mode == Mode.KEEP
        decision = self._decide(lane, bridge, task)
        if bridge is None or not isinstance(decision, UseSoft):
            reason = f"wire {lane.wire}"
            if bridge is not None and isinstance(decision, Refuse) and not task.labels:
                reason = no_free_text(bridge)
            return self._instead(decision, items, task, reason)
        fingerprint = bridge.fingerprint
        if lane.mode == Mode.KEPT:
            return self._hand_on(items, task, fingerprint)

        def encode(batch: Items) -> Encoded:
            return self._backend.encode(_texts(batch), fingerprint)

        outcomes: list[Outcome] = []
        for batch, encoded in self._attempt(items, _first(items, begun, encode), outcomes):
            if encoded.rms is None:
                bad = check_rows(encoded.payload, bridge.rms_range)
            else:
                bad = check_rms(encoded.rms, bridge.rms_range)
            good = [i for i in range(len(batch)) if i not in bad]
            if good:
                shape = (bridge.soft_tokens, bridge.width)
                replies = [
                    CachedReply(
                        encoded.payload[i].reshape(-1).view(np.uint8).data,
                        shape,
                        fingerprint,
                        text="" if keeps else None,
                        payload_bytes=bridge.payload_bytes,
                    )
                    for i in good
                ]
                form = Form.RESULT if keeps else Form.SOFT
                outcomes.append(Done(form, [batch[i] for i in good], replies, encoded.stages))
            if bad:
                otherwise = decide(
                    self._agreements.state(lane.wire),
                    prompt_known=True,
                    generates=False,
                    policy="error" if lane.fallback == "error" else "text",
                    payload_ok=False,
                )
                reason = next(iter(bad.values()))
                outcomes += self._instead(otherwise, [batch[i] for i in bad], task, reason)
        return outcomes

    def _hand_on(self, items: Items, task: TaskSpec, fingerprint: str) -> list[Outcome]:
        """Rows whose soft tokens were made before; where there are none, the text speaks."""
        policy: Decision = UseText(NackCode.NO_BRIDGE)
        if items[0].lane.fallback == "error":
            policy = Refuse(NackCode.NO_BRIDGE)
        outcomes: list[Outcome] = []
        soft: list[tuple[Item[Work], CachedReply]] = []
        for item in items:
            kept = item.content.kept
            if kept is None or kept.payload is None or kept.bridge != fingerprint:
                outcomes += self._instead(policy, [item], task, "none were kept")
                continue
            m, d = kept.payload.shape
            soft.append((item, CachedReply(kept.payload.tobytes(), (m, d), fingerprint)))
        if soft:
            outcomes.append(Done(Form.SOFT, [i for i, _ in soft], [r for _, r in soft], {}))
        return outcomes

    def _instead(
        self, decision: object, items: Items, task: TaskSpec, reason: str
    ) -> list[Outcome]:
        if isinstance(decision, UseText):
            return self._relay(items, task, decision.reason)
        code = decision.code if isinstance(decision, Refuse) else NackCode.NO_BRIDGE
        return [Failed(items, code, f"no soft tokens: {reason}")]

    def _relay(self, items: Items, task: TaskSpec, reason: str) -> list[Outcome]:
        if items[0].lane.mode == Mode.KEEP:
            # Nothing crosses now: the text is kept, and relayed when it is asked for.
            nothing = CachedReply(text="", reason=reason)
            return [Done(Form.RESULT, items, [nothing] * len(items), {})]

        def relay(batch: Items) -> Generated:
            return self._backend.relay(_texts(batch), task)

        outcomes: list[Outcome] = []
        for batch, relayed in self._attempt(items, relay, outcomes):
            replies = [CachedReply(text=text, reason=reason) for text in relayed.texts]
            outcomes.append(Done(Form.TEXT, batch, replies, relayed.stages))
        return outcomes

    # -- as the receiver --------------------------------------------------------------------

    def _sift(self, items: Items, task: TaskSpec, bad: Mapping[int, str]) -> list[Outcome]:
        """Refuses the rows that are not sound, which no model sees, and computes the others."""
        outcomes: list[Outcome] = [
            Failed([items[i]], NackCode.BAD_PAYLOAD, reason) for i, reason in bad.items()
        ]
        good = [item for i, item in enumerate(items) if i not in bad]
        return outcomes + (self._answer_soft(good, task, None) if good else [])

    def _answer_soft(self, items: Items, task: TaskSpec, begun: Job[Any] | None) -> list[Outcome]:
        if task.asks_nothing:
            return [Done(Form.RESULT, items, [_held(item) for item in items], {})]
        if not task.labels:
            return self._generated(
                items, lambda b, watch: self._backend.generate_soft(_payload(b), task, watch)
            )

        def score(batch: Items) -> Scored:
            return self._backend.score_soft(_payload(batch), task)

        return self._scored(items, _first(items, begun, score))

    def _read(self, items: Items, task: TaskSpec, begun: Job[Any] | None) -> list[Outcome]:
        if task.labels:

            def score(batch: Items) -> Scored:
                return self._backend.score_text(_texts(batch), task)

            return self._scored(items, _first(items, begun, score))

        def generate(batch: Items, watch: Watch) -> Generated:
            return self._backend.generate(_texts(batch), task, watch)

        return self._generated(items, generate)

    def _generated(
        self, items: Items, generate: Callable[[Items, Watch], Generated]
    ) -> list[Outcome]:
        def watched(batch: Items) -> Generated:
            return generate(batch, lambda row, text: self._watch(batch[row], text))

        outcomes: list[Outcome] = []
        for batch, generated in self._attempt(items, watched, outcomes):
            replies = [
                _answer(item, text=text, tokens=tokens)
                for item, text, tokens in zip(
                    batch, generated.texts, _counted(generated.tokens, len(batch)), strict=True
                )
            ]
            outcomes.append(Done(Form.RESULT, batch, replies, generated.stages))
        return outcomes

    def _scored(self, items: Items, score: Callable[[Items], Scored]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for batch, scored in self._attempt(items, score, outcomes):
            scores = np.ascontiguousarray(scored.scores, dtype="<f4")
            replies = [
                _answer(item, scores=row.tobytes(), tokens=tokens)
                for item, row, tokens in zip(
                    batch, scores, _counted(scored.tokens, len(batch)), strict=True
                )
            ]
            outcomes.append(Done(Form.RESULT, batch, replies, scored.stages))
        return outcomes

    def _attempt(
        self, items: Items, call: Callable[[Items], T], outcomes: list[Outcome]
    ) -> list[tuple[Items, T]]:
        """``call`` on the batch; if it raises, on each row alone. Refusals go to ``outcomes``.

        Where the device runs out of memory, on each half instead, and so on. Batches then stay
        as small as that, and grow again after some that fit: one long row may have been to blame.
        """
        if len(items) > self._fits:
            parts = [items[i : i + self._fits] for i in range(0, len(items), self._fits)]
            return [pair for part in parts for pair in self._attempt(part, call, outcomes)]
        try:
            done = call(items)
            self._fitted(len(items))
            return [(items, done)]
        except Exception as error:  # whatever the model raises is the answer to these rows
            if len(items) == 1:
                traces = [item.content.row.trace_id.hex() for item in items]
                log.warning("the model raised", exc_info=error, extra={TRACES: traces})
                code = NackCode.MODEL_ERROR
                if isinstance(error, RemoteProtocolError):
                    code = error.code  # what is wrong with this row
                outcomes.append(Failed(items, code, _describe(error)))
                return []
            full = is_out_of_memory(error)
        # Out here the error is gone, and with it the frames that held the batch's tensors.
        if full:
            self._fits, self._fitting = len(items) // 2, 0
            log.warning("out of memory with %d rows: batches of %d now", len(items), self._fits)
            return self._attempt(items, call, outcomes)
        return [pair for item in items for pair in self._attempt([item], call, outcomes)]

    def _fitted(self, rows: int) -> None:
        if rows < self._fits or self._fits >= NO_LIMIT:
            return
        self._fitting += 1
        if self._fitting >= GROW_AFTER:
            self._fits, self._fitting = 2 * self._fits, 0


def _texts(items: Items) -> list[str]:
    return [item.content.text for item in items]


def _unsound(items: Items, payload: npt.NDArray[np.float16]) -> dict[int, str]:
    """Rows of a lane whose payload must not reach a model, by their place, and why."""
    sane = items[0].content.sane
    return {} if sane is None else check_rows(payload, sane)


def _payload(items: Items) -> npt.NDArray[np.float16]:
    rows = [item.content.payload for item in items if item.content.payload is not None]
    return rows[0][None] if len(rows) == 1 else np.stack(rows)


def _first(items: Items, begun: Job[T] | None, call: Callable[[Items], T]) -> Callable[[Items], T]:
    """``call``, but for ``items`` themselves, the first time, what was begun for them."""
    jobs = [] if begun is None else [begun]

    def result(batch: Items) -> T:
        return jobs.pop().result() if jobs and batch is items else call(batch)

    return result


def _answer(
    item: Item[Work],
    *,
    text: str | None = None,
    scores: bytes | None = None,
    tokens: tuple[int, int] | None = None,
) -> CachedReply:
    size = item.content.ticket.payload_bytes
    return CachedReply(
        text=text, scores=scores, reason=item.lane.reason, payload_bytes=size, tokens=tokens
    )


def _held(item: Item[Work]) -> CachedReply:
    """A note that a payload is held here."""
    payload = _payload([item])[0]
    m, d = payload.shape
    size = item.content.ticket.payload_bytes
    return CachedReply(payload.tobytes(), (m, d), item.lane.bridge, text="", payload_bytes=size)


def _counted(tokens: Sequence[tuple[int, int]], rows: int) -> Sequence[tuple[int, int] | None]:
    return tokens or [None] * rows


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device (or this machine) had too little memory; known by how engines say it."""
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
