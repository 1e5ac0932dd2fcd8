"""Validates incoming messages and turns their rows into work items or Nacks. No IO.

The values of a payload are checked by ``compute``, before a model sees them.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from typing import Final

import numpy as np
import numpy.typing as npt

from agentwire.agent.agreements import Agreements
from agentwire.agent.batching import BatchGroup, Inbound, Kind, WorkItem
from agentwire.agent.kept import JointReader, KeptKey, KeptPayloads, KeptRow
from agentwire.errors import InputError, NackCode, RemoteProtocolError
from agentwire.model.backend import Backend
from agentwire.spec.agent import AgentSpec
from agentwire.wire.credit import body_bytes
from agentwire.wire.messages import (
    Channel,
    Encode,
    Mode,
    Nack,
    Row,
    Soft,
    TaskSpec,
    Text,
    direct_wire,
)
from agentwire.wire.tensors import from_payload

MAX_TASKS: Final = 1024


class Validator:
    """Validates messages; ``tasks`` holds the tasks that they name, by id."""

    def __init__(
        self, spec: AgentSpec, backend: Backend, agreements: Agreements, kept: KeptPayloads
    ) -> None:
        self._spec = spec
        self._direct_wire = direct_wire(spec.name)
        self._kept = kept
        self._backend = backend
        self._agreements = agreements
        self.tasks: OrderedDict[str, TaskSpec] = OrderedDict()
        self._unusable: dict[str, str] = {}  # task id -> why the model cannot answer it
        self._message_numbers = itertools.count(1)
        self._joint = JointReader(spec.joint)

    def define(self, task: TaskSpec) -> None:
        """Stores a task. The least recently used one is dropped when there are too many."""
        try:
            self._backend.prepare(task)
            self._unusable.pop(task.task_id, None)
        except InputError as error:
            # A sender may relay texts for a task that it cannot answer. A request gets a Nack.
            self._unusable[task.task_id] = str(error)
        self.tasks[task.task_id] = task
        self.tasks.move_to_end(task.task_id)
        if len(self.tasks) > MAX_TASKS:
            oldest, _ = self.tasks.popitem(last=False)
            self._unusable.pop(oldest, None)

    def validate(
        self, message: Encode | Soft | Text, arrival: float, *, closing: bool
    ) -> tuple[Inbound, list[WorkItem], list[Nack]]:
        """The rows of a message to compute, and Nacks for the others.

        Args:
            arrival: monotonic seconds; deadlines count from here.
            closing: this agent accepts nothing more.
        """
        inbound = _inbound(message, arrival)
        payload: npt.NDArray[np.float16] | None = None
        rms_range: tuple[float, float] | None = None
        try:
            group, task = self._group(message, closing)
            if isinstance(message, Soft):
                payload = from_payload(message.payload)
                shape = (message.payload.soft_tokens, message.payload.width)
                bridge = self._agreements.check_payload(message.wire, message.bridge, shape, task)
                rms_range = bridge.rms_range
        except RemoteProtocolError as error:
            return inbound, [], [_nack(error, message, message.rows)]
        joint = group.kind is Kind.TEXT and task.form == "kept"
        items: list[WorkItem] = []
        nacks: list[Nack] = []
        for i, row in enumerate(message.rows):
            deadline = math.inf if row.ms_left is None else arrival + row.ms_left / 1000
            key = (row.request_id, *group[:5])
            item = WorkItem(row, group, key, inbound, deadline, message.solo)
            if isinstance(message, Soft):
                assert payload is not None
                item.payload, item.rms_range = payload[i], rms_range
            else:
                item.text = message.texts[i]
            try:
                if joint:
                    self._join(item)
                elif group.mode == Mode.KEPT:
                    self._find_text(item)
            except RemoteProtocolError as error:
                nacks.append(_nack(error, message, (row,)))
                continue
            items.append(item)
        return inbound, items, nacks

    def _group(self, message: Encode | Soft | Text, closing: bool) -> tuple[BatchGroup, TaskSpec]:
        """The group of the message's rows, and their task.

        Raises:
            RemoteProtocolError: this agent cannot do what they ask for.
        """
        name, wire, task_id = self._spec.name, message.wire, message.task
        if closing:
            raise RemoteProtocolError(NackCode.CLOSING, f"{name} is shutting down")
        if isinstance(message, Encode):
            accepted = self._agreements.sends_on(wire)
        else:
            direct = isinstance(message, Text) and wire == self._direct_wire
            accepted = direct or self._agreements.receives_on(wire)
        if not accepted:
            raise RemoteProtocolError(NackCode.UNKNOWN_WIRE, f"{name} is not an end of {wire}")
        task = self.tasks.get(task_id)
        if task is None:
            raise RemoteProtocolError(NackCode.UNKNOWN_TASK, f"task {task_id[:12]} is not defined")
        self.tasks.move_to_end(task_id)
        if task_id in self._unusable and not isinstance(message, Encode):
            raise RemoteProtocolError(NackCode.UNSUPPORTED, self._unusable[task_id])
        kind, channel, fallback, reason, bridge, mode = Kind.SOFT, Channel.SOFT, "", "", "", ""
        if isinstance(message, Encode):
            kind, channel, fallback = Kind.ENCODE, message.channel, message.fallback
            reason, mode = message.reason, message.mode.value
        elif isinstance(message, Text):
            kind, channel, reason = Kind.TEXT, Channel.TEXT, message.reason
        else:
            bridge = message.bridge
        number = next(self._message_numbers) if self._spec.batch_by == "message" else 0
        group = BatchGroup(
            kind,
            wire,
            task_id,
            message.origin,
            channel.value,
            fallback,
            reason,
            bridge,
            number,
            mode,
        )
        return group, task

    def _join(self, item: WorkItem) -> None:
        """Makes a row that names kept payloads one that reads them together.

        Raises:
            RemoteProtocolError: they are not kept here, or were not trained together.
        """
        group, arrival = item.group, item.message.arrival
        bridge_set, item.payload = self._joint.read(
            item.text,
            self.tasks[group.task],
            lambda request_id: self._kept.get(KeptKey(group.origin, request_id), arrival),
        )
        item.group = group._replace(kind=Kind.SOFT, channel=Channel.SOFT.value, bridge=bridge_set)
        item.key = (item.row.request_id, *item.group[:5])

    def _find_text(self, item: WorkItem) -> None:
        """Replaces the name of a kept payload by its text.

        Raises:
            RemoteProtocolError: it is not kept here.
        """
        kept: KeptRow | None = None
        try:
            key = KeptKey(item.group.origin, bytes.fromhex(item.text))
            kept = self._kept.get(key, item.message.arrival)
        except ValueError:
            pass  # not a name
        if kept is None:
            raise RemoteProtocolError(
                NackCode.EXPIRED, f"{self._spec.name} does not keep this payload"
            )
        item.text, item.kept = kept.text, kept


def _nack(error: RemoteProtocolError, message: Encode | Soft | Text, rows: tuple[Row, ...]) -> Nack:
    return Nack(error.code, error.message, message.wire, rows, origin=message.origin)


def _inbound(message: Encode | Soft | Text, arrival: float) -> Inbound:
    size = body_bytes(message)
    rows = len(message.rows)
    if isinstance(message, Soft):
        row_bytes = message.payload.soft_tokens * message.payload.width * 2
    else:
        row_bytes = round(size / rows)
    stages = {} if isinstance(message, Encode) else message.stages
    return Inbound(message.wire, size, rows, arrival, stages, row_bytes)
