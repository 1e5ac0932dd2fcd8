"""What an agent accepts: bridges agreed on with other agents, and valid messages. No IO.

Soft tokens cross a wire only if the receiver accepted the bridge and the bridge was trained for the
prompt. Otherwise the text is relayed or the request fails; a Nack code gives the reason. The values
of a payload are checked by ``compute``, before a model sees them.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from agentwire.agent.batching import BatchGroup, Inbound, Kind, WorkItem
from agentwire.agent.kept import KeptKey, KeptPayloads, KeptRow
from agentwire.errors import InputError, NackCode, RemoteProtocolError
from agentwire.model.backend import Backend
from agentwire.spec.agent import AgentSpec, JointBridges
from agentwire.wire.credit import body_bytes
from agentwire.wire.messages import (
    FREE_TEXT,
    Accept,
    BridgeIdentity,
    Channel,
    Encode,
    Mode,
    ModelIdentity,
    Nack,
    Offer,
    Payload,
    Row,
    Soft,
    TaskSpec,
    Text,
    direct_wire,
)

MAX_TASKS: Final = 1024
FP16: Final = np.dtype("<f2")
MAX_JOINT: Final = 16
"""Payloads that one request may read together."""
ANY_PROMPT: Final = "any"


def covers_prompt(prompts: Collection[str], task: TaskSpec) -> bool:
    """Whether a task is covered by ``BridgeIdentity.prompts``.

    ``any`` promises answers in label words only; generated text needs ``free_text``.
    """
    universal = ANY_PROMPT if task.labels else FREE_TEXT
    return universal in prompts or task.prompt_hash in prompts


class Agreements:
    """Bridges offered, accepted and refused on all wires of one agent.

    Args:
        model: the agent's.
        outgoing: wire -> bridge for the wires on which it sends; None: no bridge.
        incoming: wires on which it receives.
        readers: reader bridges whose receiver half is loaded, by fingerprint.

    Attributes:
        accepted: wires on which the receiver has accepted this agent's bridge.
    """

    def __init__(
        self,
        model: ModelIdentity,
        outgoing: Mapping[str, BridgeIdentity | None],
        incoming: Collection[str],
        readers: Mapping[str, BridgeIdentity] | None = None,
    ) -> None:
        self._model = model
        self.readers = dict(readers or {})
        self.outgoing = dict(outgoing)
        self.incoming = frozenset(incoming)
        self.accepted: set[str] = set()
        self._refused: set[str] = set()  # wires on which the receiver refused the bridge
        self._accepted: dict[str, BridgeIdentity] = {}

    # -- as the sender ----------------------------------------------------------------------

    def offers(self) -> list[Offer]:
        return [Offer(wire, bridge) for wire, bridge in self.outgoing.items() if bridge]

    def obstacle(self, wire: str, task: TaskSpec, mode: str) -> NackCode | None:
        """Why soft tokens cannot be sent on ``wire``; None if they can once it is ``accepted``."""
        bridge = self.outgoing[wire]
        if bridge is None:
            return NackCode.NO_BRIDGE
        if wire in self._refused:
            return NackCode.BRIDGE_MISMATCH
        # A payload that is only kept is for a later request, whose prompt is checked then.
        if mode == Mode.KEEP or task.asks_nothing or covers_prompt(bridge.prompts, task):
            return None
        return NackCode.PROMPT_MISMATCH if task.labels else NackCode.UNSUPPORTED

    def handle_answer(self, answer: Accept | Nack) -> None:
        """Handles the receiver's answer to an offer; ignores answers to anything else."""
        bridge = self.outgoing.get(answer.wire)
        if bridge is None:
            return
        if isinstance(answer, Nack):
            self.accepted.discard(answer.wire)
            self._refused.add(answer.wire)
        elif answer.bridge == bridge.fingerprint:
            self.accepted.add(answer.wire)
            self._refused.discard(answer.wire)

    # -- as the receiver --------------------------------------------------------------------

    def answer_offer(self, offer: Offer) -> Accept | Nack:
        """Accepts a bridge that was trained for this agent's model."""
        bridge, model = offer.bridge, self._model
        if offer.wire not in self.incoming:
            return Nack(NackCode.UNKNOWN_WIRE, f"not the receiver of {offer.wire}", offer.wire)
        self._accepted.pop(offer.wire, None)
        reason = ""
        if bridge.receiver != model.fingerprint:
            reason = f"it was trained for another receiver than {model.name}"
        elif bridge.receiver_half:
            if bridge.fingerprint not in self.readers:
                reason = (
                    f"its receiver half ({bridge.fingerprint[:12]}) is not loaded by this agent; "
                    "put the same bridge folder on the receiver's machine and start it again"
                )
            elif self.readers[bridge.fingerprint] != bridge:
                reason = "its card is not that of the receiver half loaded by this agent"
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
        sizes = bridge.sizes or (bridge.soft_tokens,)
        if shape[0] not in sizes or shape[1] != bridge.width:
            raise RemoteProtocolError(
                NackCode.BAD_PAYLOAD,
                f"payload rows have shape {shape[0]} x {shape[1]}, but "
                f"{' or '.join(map(str, sizes))} x {bridge.width} was agreed on",
            )
        if not (task.asks_nothing or covers_prompt(bridge.prompts, task)):
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


class JointReader:
    """Concatenates kept payloads whose bridges were trained together, in the order of training.

    Soft tokens of bridges that were trained apart mean nothing side by side.
    """

    def __init__(self, sets: Sequence[JointBridges]) -> None:
        self._sets = {one.bridges: one for one in sets}

    def read(
        self, names: str, task: TaskSpec, find: Callable[[bytes], KeptRow | None]
    ) -> tuple[str, npt.NDArray[np.float16]]:
        """The bridge set and the payloads (float16 [sum of M, d]) of these names.

        Args:
            names: request ids in hex, separated by spaces.

        Raises:
            RemoteProtocolError: the names are malformed, a payload is missing, or the bridges were
                not trained together for this task.
        """
        bridges: list[str] = []
        parts: list[npt.NDArray[np.float16]] = []
        for name in _parse_names(names):
            kept = find(name)
            if kept is None or kept.payload is None:
                raise RemoteProtocolError(
                    NackCode.EXPIRED, "a payload is not kept here or has expired"
                )
            bridges.append(kept.bridge)
            parts.append(kept.payload)
        found = self._sets.get(tuple(bridges))
        if found is None:
            raise RemoteProtocolError(
                NackCode.BRIDGE_MISMATCH,
                f"no bridges of this agent were trained to have these {len(parts)} payloads read "
                "together in this order: `agentwire train` a scenario whose wire says "
                "`from: [...]`",
            )
        if not covers_prompt(found.prompts, task):
            code = NackCode.PROMPT_MISMATCH if task.labels else NackCode.UNSUPPORTED
            raise RemoteProtocolError(
                code, f"the bridges {found.name} are not trained for {task.name}"
            )
        return found.name, np.concatenate(parts)


def _parse_names(names: str) -> list[bytes]:
    try:
        ids = [bytes.fromhex(name) for name in names.split(" ")]
    except ValueError:
        ids = []
    if not 0 < len(ids) <= MAX_JOINT:
        raise RemoteProtocolError(NackCode.MALFORMED, "invalid payload names")
    return ids


def from_payload(payload: Payload) -> npt.NDArray[np.float16]:
    """float16 [n, M, d]: a read-only view of the payload's bytes.

    Raises:
        RemoteProtocolError: (``bad_payload``) a dtype that is not allowed, or not exactly
            n * M * d values.
    """
    if payload.dtype != "float16":
        raise RemoteProtocolError(NackCode.BAD_PAYLOAD, f"dtype {payload.dtype!r} is not allowed")
    shape = (payload.n, payload.soft_tokens, payload.width)
    if min(shape) < 1:
        raise RemoteProtocolError(NackCode.BAD_PAYLOAD, f"shape {shape} is empty")
    size = memoryview(payload.data).nbytes
    if size != math.prod(shape) * FP16.itemsize:
        raise RemoteProtocolError(
            NackCode.BAD_PAYLOAD, f"{size} bytes are not {shape} {payload.dtype}"
        )
    array = np.frombuffer(payload.data, dtype=FP16).reshape(shape)
    array.flags.writeable = False
    return array


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
            accepted = wire in self._agreements.outgoing
        else:
            direct = isinstance(message, Text) and wire == self._direct_wire
            accepted = direct or wire in self._agreements.incoming
        if not accepted:
            raise RemoteProtocolError(NackCode.UNKNOWN_WIRE, f"{name} is not an end of {wire}")
        task = self.tasks.get(task_id)
        if task is None:
            raise RemoteProtocolError(NackCode.UNKNOWN_TASK, f"task {task_id[:12]} is not defined")
        self.tasks.move_to_end(task_id)
        if task_id in self._unusable and not isinstance(message, Encode):
            raise RemoteProtocolError(NackCode.UNSUPPORTED, self._unusable[task_id])
        kind, channel, fallback, reason, bridge, mode = Kind.SOFT, Channel.SOFT, "", "", "", ""
        soft_tokens = 0
        if isinstance(message, Encode):
            kind, channel, fallback = Kind.ENCODE, message.channel, message.fallback
            reason, mode = message.reason, message.mode.value
        elif isinstance(message, Text):
            kind, channel, reason = Kind.TEXT, Channel.TEXT, message.reason
        else:
            bridge, soft_tokens = message.bridge, message.payload.soft_tokens
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
            soft_tokens,
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
