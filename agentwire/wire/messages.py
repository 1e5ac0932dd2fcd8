"""Message types of the agentwire protocol: frozen values, no IO, no encoding.

One message is one multipart ZeroMQ message (see ``codec`` for the frames). A message carries a
*batch* of rows; every row keeps its 16-byte request id from client to result, and dedup, cancel
and retry go by it. Time is never absolute on the wire: deadlines are milliseconds left, stage
times are durations.

Legs of one request on a wire ``sender -> receiver``::

    client --Encode--> sender --Soft | Text--> receiver --Piece* Result | Nack--> client

A wire whose name starts with ``@`` is a *direct* wire (client -> one agent): the client sends
``Text`` itself, and the agent answers from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

from agentwire.errors import NackCode
from agentwire.wire.values import (
    DIRECT_PREFIX,
    BridgeIdentity,
    Channel,
    Decoding,
    Mode,
    ModelIdentity,
    Payload,
    RelaySpec,
    Role,
    Row,
    Stages,
    TaskSpec,
    direct_wire,
)

__all__ = [
    "DIRECT_PREFIX",
    "PROTOCOL_VERSION",
    "Accept",
    "BridgeIdentity",
    "Cancel",
    "Channel",
    "Credit",
    "Decoding",
    "Define",
    "Encode",
    "Envelope",
    "Goodbye",
    "Hello",
    "Message",
    "MessageType",
    "Mode",
    "ModelIdentity",
    "Nack",
    "Offer",
    "Payload",
    "Piece",
    "Ping",
    "Pong",
    "Progress",
    "RelaySpec",
    "Result",
    "Role",
    "Row",
    "Soft",
    "Stages",
    "TaskSpec",
    "Text",
    "Welcome",
    "WorkMessage",
    "body_bytes",
    "direct_wire",
    "with_origin",
]

PROTOCOL_VERSION = 2


class MessageType(IntEnum):
    """Numbers of the message types on the wire (field ``t`` of the header)."""

    HELLO = 1
    WELCOME = 2
    DEFINE = 3
    OFFER = 4
    ACCEPT = 5
    ENCODE = 6
    SOFT = 7
    TEXT = 8
    RESULT = 9
    NACK = 10
    CREDIT = 11
    PING = 12
    PONG = 13
    CANCEL = 14
    PROGRESS = 15
    GOODBYE = 16
    PIECE = 17


# -- session messages -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of every incarnation of a peer.

    Attributes:
        name: agent or client name; the broker knows which names to expect.
        role: agent or client.
        token: hex secret of this run (given to the child at spawn); "" where CURVE identifies.
        model: what the agent runs; None for clients.
        versions: protocol versions spoken, newest first.
    """

    name: str
    role: Role
    token: str = ""
    model: ModelIdentity | None = None
    versions: tuple[int, ...] = (PROTOCOL_VERSION,)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The broker's answer to ``Hello``.

    Attributes:
        version: the protocol version of this session.
        ping_ms: send a Ping after this long without traffic.
        liveness_ms: the peer is lost after this long without traffic.
    """

    version: int
    ping_ms: int
    liveness_ms: int


@dataclass(frozen=True, slots=True)
class Define:
    """A task definition for agents; kept by the broker and replayed to new incarnations."""

    task: TaskSpec


@dataclass(frozen=True, slots=True)
class Offer:
    """Sender -> receiver of ``wire``: this is the bridge that payloads will come from."""

    wire: str
    bridge: BridgeIdentity


@dataclass(frozen=True, slots=True)
class Accept:
    """Receiver -> sender of ``wire``: payloads of this bridge are welcome."""

    wire: str
    bridge: str


@dataclass(frozen=True, slots=True)
class Credit:
    """Consumer -> producer: so much more may be sent to me on this wire.

    Attributes:
        wire: the wire.
        messages: additional messages.
        bytes: additional body bytes.
    """

    wire: str
    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Any traffic counts as an answer.

    Attributes:
        busy_ms: how long the sender's compute loop has worked without finishing a batch;
            0 when idle. The progress deadline (a hung model behind a healthy socket) reads it.
    """

    busy_ms: int = 0


@dataclass(frozen=True, slots=True)
class Pong:
    busy_ms: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """An agent tells what it is doing before it is ready: ``stage`` and a fraction 0..1."""

    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The peer leaves on purpose: nothing more will come from it."""

    reason: str = ""


# -- work messages --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encode:
    """Client -> sender: hand these texts to the receiver of ``wire``.

    Attributes:
        wire: the wire.
        task: ``TaskSpec.task_id``.
        channel: what the client wants; the sender may fall back to text (``fallback``).
        fallback: ``text`` or ``error``: what to do where soft tokens cannot be had.
        rows: n rows; ``size`` is the byte length of each text.
        texts: n texts, or (mode ``kept``) n ids of kept payloads.
        mode: hand the soft tokens on, keep them, or hand on what was kept.
        reason: why the client itself chose the text channel ("" if it was asked for).
        solo: compute these rows in a batch of their own (a retry after a crash).
        origin: name of the client; the broker fills it in.
    """

    wire: str
    task: str
    channel: Channel
    fallback: Literal["text", "error"]
    rows: tuple[Row, ...]
    texts: tuple[str, ...]
    reason: str = ""
    solo: bool = False
    origin: str = ""
    mode: Mode = Mode.FORWARD


@dataclass(frozen=True, slots=True)
class Soft:
    """Sender -> receiver: soft tokens for each row."""

    wire: str
    task: str
    bridge: str
    rows: tuple[Row, ...]
    payload: Payload
    stages: Stages = field(default_factory=dict)
    solo: bool = False
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Sender -> receiver (text channel), or client -> agent on a direct wire.

    Attributes:
        reason: why text and not soft tokens; "" where text was asked for.
    """

    wire: str
    task: str
    rows: tuple[Row, ...]
    texts: tuple[str, ...]
    reason: str = ""
    stages: Stages = field(default_factory=dict)
    solo: bool = False
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """Receiver -> client: the answers. Sender -> client: what was kept (mode ``keep``), with empty
    texts.

    Attributes:
        channel: how the message reached the receiver.
        scores: n * L log-probabilities over the task's labels (natural log, they sum to 1
            in probability for each row), little-endian fp32, C order; empty for generation.
        labels: L; 0 for generation.
        texts: n generated answers; empty for classification.
        payload_bytes: bytes of one row's payload on the bus (soft), or the mean UTF-8 bytes
            of one row's text.
        stages: milliseconds in each stage, all agents together.
        tokens: for each row two little-endian uint32: tokens that the model read (soft tokens
            among them) and tokens that it wrote; empty where they were not counted.
    """

    wire: str
    task: str
    rows: tuple[Row, ...]
    channel: Channel
    scores: bytes | memoryview = b""
    labels: int = 0
    texts: tuple[str, ...] = ()
    payload_bytes: int = 0
    reason: str = ""
    stages: Stages = field(default_factory=dict)
    origin: str = ""
    tokens: bytes = b""


@dataclass(frozen=True, slots=True)
class Piece:
    """Receiver -> client: text that was generated meanwhile, ahead of the Result.

    Attributes:
        texts: n pieces, none empty.
        offsets: for each row, bytes of UTF-8 of its answer that stand before the piece. A row that
            is generated anew (its agent died) starts again from 0.
    """

    wire: str
    task: str
    rows: tuple[Row, ...]
    texts: tuple[str, ...]
    offsets: tuple[int, ...]
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Nack:
    """A refusal. With rows: those requests were refused; without: a message or an offer was.

    Attributes:
        wire: the wire; "" where none is concerned.
        retry_after_ms: for ``overloaded``: when to try again.
    """

    code: NackCode
    reason: str
    wire: str = ""
    rows: tuple[Row, ...] = ()
    retry_after_ms: int = 0
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Client -> all agents on ``wire``: drop these requests where they have not been computed."""

    wire: str
    request_ids: tuple[bytes, ...]
    origin: str = ""


Message: TypeAlias = (
    Hello
    | Welcome
    | Define
    | Offer
    | Accept
    | Encode
    | Soft
    | Text
    | Result
    | Piece
    | Nack
    | Credit
    | Ping
    | Pong
    | Cancel
    | Progress
    | Goodbye
)
WorkMessage: TypeAlias = Encode | Soft | Text


class Envelope(NamedTuple):
    """What every message carries besides itself.

    Attributes:
        run: 16-byte id of the run.
        seq: sequence number of this peer's messages in this incarnation, from 0, no gaps.
        epoch: incarnation of the peer that sent it; a new process takes a higher one.
    """

    run: bytes
    seq: int
    epoch: int


def body_bytes(work: WorkMessage) -> int:
    """What a message costs in byte credit: the bytes of its body."""
    if isinstance(work, Soft):
        return len(work.payload.data)
    return sum([row.size for row in work.rows])


def with_origin(message: Message, origin: str) -> Message:
    """The same message, marked as belonging to the client named ``origin``."""
    if isinstance(message, Encode | Soft | Text | Result | Piece | Nack | Cancel):
        return replace(message, origin=origin)
    return message
