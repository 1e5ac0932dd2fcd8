"""Work messages -> rows to compute, or refusals: what a message must pass. No IO.

The values of a payload are looked at by ``compute``, before a model sees them."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from typing import Final

import numpy as np
import numpy.typing as npt

from agentwire.agent.agreements import Agreements
from agentwire.agent.batching import Item, Kind, Lane
from agentwire.agent.compute import Ticket, Work, WorkKey
from agentwire.agent.joint import Joint
from agentwire.agent.kept import Kept, KeptKey, KeptPayloads
from agentwire.errors import InputError, NackCode, RemoteProtocolError
from agentwire.model.backend import Backend
from agentwire.spec.agent import AgentSpec
from agentwire.wire.messages import (
    Channel,
    Encode,
    Mode,
    Nack,
    Soft,
    TaskSpec,
    Text,
    body_bytes,
    direct_wire,
)
from agentwire.wire.tensors import from_payload

MAX_TASKS: Final = 1024


class Validation:
    """What an agent takes in, and what it knows of the tasks that messages name."""

    def __init__(
        self, spec: AgentSpec, backend: Backend, agreements: Agreements, kept: KeptPayloads
    ) -> None:
        self._spec = spec
        self._kept = kept
        self._backend = backend
        self._agreements = agreements
        self._tasks: OrderedDict[str, TaskSpec] = OrderedDict()
        self._unusable: dict[str, str] = {}  # task id -> why the model cannot answer it
        self._messages = itertools.count(1)
        self._joint = Joint(spec.joint)

    def define(self, task: TaskSpec) -> None:
        """Keeps a task; the one not used for longest goes where there are too many."""
        try:
            self._backend.prepare(task)
            self._unusable.pop(task.task_id, None)
        except InputError as error:
            # A sender may relay for a task that it could not answer itself: told when asked.
            self._unusable[task.task_id] = str(error)
        self._tasks[task.task_id] = task
        self._tasks.move_to_end(task.task_id)
        if len(self._tasks) > MAX_TASKS:
            oldest, _ = self._tasks.popitem(last=False)
            self._unusable.pop(oldest, None)

    def task(self, task_id: str) -> TaskSpec | None:
        return self._tasks.get(task_id)

    def read(
        self, message: Encode | Soft | Text, arrival: float, *, closing: bool
    ) -> tuple[Ticket, list[Item[Work]], list[Nack]]:
        """The rows of a message: those to compute, and Nacks for the others.

        Args:
            arrival: monotonic seconds; deadlines count from here.
            closing: this agent takes nothing more in.
        """
        ticket = _ticket(message, arrival)
        try:
            lane = self._lane(message, closing)
            if self._spec.batch_by == "message":
                lane = lane._replace(message=next(self._messages))
            payload, sane = self._payload(message)
        except RemoteProtocolError as error:
            nack = Nack(
                error.code, error.message, message.wire, message.rows, origin=message.origin
            )
            return ticket, [], [nack]
        items: list[Item[Work]] = []
        refusals: list[Nack] = []
        for i, row in enumerate(message.rows):
            key = WorkKey(
                row.request_id, lane.origin, lane.kind, lane.wire, lane.task, lane.channel
            )
            work = Work(row, ticket, key)
            if payload is not None:
                work.payload, work.sane = payload[i], sane
            if not isinstance(message, Soft):
                work.text = message.texts[i]
            if isinstance(message, Text) and self._tasks[lane.task].form == "kept":
                try:
                    items.append(self._together(lane, work, arrival, message.solo))
                except RemoteProtocolError as error:
                    code, why, origin = error.code, error.message, lane.origin
                    refusals.append(Nack(code, why, lane.wire, (row,), origin=origin))
                continue
            if lane.mode == Mode.KEPT:
                kept = self._find_kept(lane, work.text, arrival)
                if kept is None:
                    code, why = NackCode.EXPIRED, f"{self._spec.name} keeps no such payload"
                    refusals.append(Nack(code, why, lane.wire, (row,), origin=lane.origin))
                    continue
                work.text, work.kept = kept.text, kept
            items.append(_item(lane, work, arrival, message.solo))
        return ticket, items, refusals

    def _together(self, lane: Lane, work: Work, arrival: float, solo: bool) -> Item[Work]:
        """A row that asks about several payloads which are held here, read as one.

        Raises:
            RemoteProtocolError: they are not here, or no bridges were trained for that.
        """
        found = self._joint.read(
            work.text,
            self._tasks[lane.task],
            lambda request_id: self._kept.get(KeptKey(lane.origin, request_id), arrival),
        )
        lane = lane._replace(kind=Kind.SOFT, channel=Channel.SOFT.value, bridge=found.name)
        work.key = work.key._replace(kind=lane.kind, channel=lane.channel)
        work.payload = found.payload
        return _item(lane, work, arrival, solo)

    def _lane(self, message: Encode | Soft | Text, closing: bool) -> Lane:
        """What the rows ask for.

        Raises:
            RemoteProtocolError: this agent cannot do that.
        """
        name, wire, task_id, origin = (
            self._spec.name,
            message.wire,
            message.task,
            message.origin,
        )
        if closing:
            raise RemoteProtocolError(NackCode.CLOSING, f"{name} is shutting down")
        if not self._is_mine(message):
            raise RemoteProtocolError(NackCode.UNKNOWN_WIRE, f"{name} is no end of {wire}")
        task = self._tasks.get(task_id)
        if task is None:
            raise RemoteProtocolError(NackCode.UNKNOWN_TASK, f"task {task_id[:12]} is not defined")
        self._tasks.move_to_end(task_id)
        if isinstance(message, Encode):
            channel, fallback, reason = message.channel.value, message.fallback, message.reason
            mode = message.mode.value
            return Lane(Kind.ENCODE, wire, task_id, origin, channel, fallback, reason, mode=mode)
        if task_id in self._unusable:
            raise RemoteProtocolError(NackCode.UNSUPPORTED, self._unusable[task_id])
        if isinstance(message, Text):
            reason = message.reason
            return Lane(Kind.TEXT, wire, task_id, origin, Channel.TEXT.value, reason=reason)
        bridge = message.bridge
        return Lane(Kind.SOFT, wire, task_id, origin, Channel.SOFT.value, bridge=bridge)

    def _find_kept(self, lane: Lane, name: str, now: float) -> Kept | None:
        try:
            request_id = bytes.fromhex(name)
        except ValueError:
            return None
        return self._kept.get(KeptKey(lane.origin, request_id), now)

    def _is_mine(self, message: Encode | Soft | Text) -> bool:
        if isinstance(message, Encode):
            return self._agreements.sends_on(message.wire)
        if isinstance(message, Text) and message.wire == direct_wire(self._spec.name):
            return True
        return self._agreements.receives_on(message.wire)

    def _payload(
        self, message: Encode | Soft | Text
    ) -> tuple[npt.NDArray[np.float16] | None, tuple[float, float] | None]:
        """Payload [n, M, d] of a Soft message, its values unseen, and what their RMS may be.

        Raises:
            RemoteProtocolError: the whole payload is not what was agreed on.
        """
        if not isinstance(message, Soft):
            return None, None
        payload = from_payload(message.payload)
        shape = (message.payload.soft_tokens, message.payload.width)
        task = self._tasks[message.task]
        bridge = self._agreements.check(message.wire, message.bridge, shape, task)
        return payload, bridge.rms_range


def _item(lane: Lane, work: Work, arrival: float, solo: bool) -> Item[Work]:
    row = work.row
    deadline = math.inf if row.ms_left is None else arrival + row.ms_left / 1000
    return Item(row.request_id, lane, arrival, work, deadline, solo)


def _ticket(message: Encode | Soft | Text, arrival: float) -> Ticket:
    size = body_bytes(message)
    rows = len(message.rows)
    if isinstance(message, Soft):
        row_bytes = message.payload.soft_tokens * message.payload.width * 2
    else:
        row_bytes = round(size / rows)
    stages = {} if isinstance(message, Encode) else message.stages
    return Ticket(message.wire, size, rows, arrival, stages, row_bytes)
