"""Messages of the agentwire protocol and the values they carry: frozen, no IO, no encoding.

One message is one multipart ZeroMQ message (see ``codec``) with a *batch* of rows. Each row keeps
its 16-byte request id from client to result; dedup, cancel and retry go by it. Time on the wire is
never absolute: deadlines are milliseconds left, stage times are durations.

The path of a request on a wire ``sender -> receiver``::

    client --Encode--> sender --Soft | Text--> receiver --Piece* Result | Nack--> client

A wire whose name starts with ``@`` is *direct* (client -> one agent): the client sends ``Text``,
and the agent answers it. docs/protocol.md describes every field.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Literal, NamedTuple, TypeAlias

from agentwire.errors import NackCode

PROTOCOL_VERSION = 2
DIRECT_PREFIX = "@"
FREE_TEXT = "free_text"
QUESTION = "{question}"


def direct_wire(agent: str) -> str:
    """Name of the direct wire from the client to ``agent``."""
    return DIRECT_PREFIX + agent


# -- values ---------------------------------------------------------------------------------


class Channel(StrEnum):
    """How a message crossed from sender to receiver."""

    SOFT = "soft"
    TEXT = "text"


class Mode(StrEnum):
    """What a sender does with a row's soft tokens."""

    FORWARD = "forward"  # encode the row's text and send the soft tokens to the receiver
    KEEP = "keep"  # encode, and keep them at the sender under the request id
    KEPT = "kept"  # the row's text is the hex id of a kept payload: send that to the receiver


class Role(StrEnum):
    AGENT = "agent"
    CLIENT = "client"
    BROKER = "broker"


class Row(NamedTuple):
    """One request in a batch.

    Attributes:
        request_id: 16 bytes, unique for each request; the same over retries and incarnations.
        ms_left: milliseconds until the deadline, measured when the message was sent; None: none.
        trace_id: 16 bytes for logs; all zero if none.
        size: bytes of this row's part of a text body (UTF-8); 0 if the body is not text.
        question: replaces ``{question}`` in the task's prompts. Only Encode, Soft and Text carry
            it; in other messages it is empty.
    """

    request_id: bytes
    ms_left: int | None = None
    trace_id: bytes = bytes(16)
    size: int = 0
    question: str = ""


class Payload(NamedTuple):
    """A batch of soft tokens: little-endian fp16, C order, shape [n, M, d], as bytes."""

    data: bytes | memoryview
    n: int
    soft_tokens: int
    width: int
    dtype: Literal["float16"] = "float16"


Stages: TypeAlias = Mapping[str, float]
"""Milliseconds spent in each stage so far: tokenize, encode, bridge, generate, queue, decode."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model that a peer runs."""

    name: str  # in the registry or on the hub
    fingerprint: str  # hex sha256 over the source files as published
    width: int  # of the embedding space, d
    layers: int
    embedding_rms: float  # of the model's own scaled input embeddings
    dtype: str  # of the weights in memory, e.g. float32
    device: str  # e.g. cuda:0


@dataclass(frozen=True, slots=True)
class BridgeIdentity:
    """What both ends must agree on before the first payload.

    Attributes:
        prompts: hashes of the prompts it was trained for (``TaskSpec.prompt_hash``), or
            ``any`` (every prompt with labels), or ``free_text`` (every prompt with a generated
            answer).
        sizes: the values of M that it makes; empty: only ``soft_tokens``, the largest.
        width: of one soft token as it travels: d of the receiver, or of a reader bridge's latents.
        receiver_half: whether the receiver needs its own half of the bridge to read the payload.
    """

    name: str  # of the bridge's folder
    fingerprint: str  # hex sha256 of weights.safetensors
    sender: str  # fingerprint of the sender's model
    receiver: str  # fingerprint of the receiver's model
    layer: int  # hidden states are read after this many layers of the sender
    soft_tokens: int  # M
    width: int
    prompts: tuple[str, ...]
    rms_range: tuple[float, float]  # lowest and highest RMS of one soft token
    sizes: tuple[int, ...] = ()
    receiver_half: bool = False


@dataclass(frozen=True, slots=True)
class RelaySpec:
    """How a sender turns its text into the message of the text channel."""

    template: str = ""  # what the sender is asked, with {text}; empty: the text crosses verbatim
    max_new_tokens: int = 48  # of the sender

    @property
    def verbatim(self) -> bool:
        return not self.template


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a receiver generates text. Integers, so that every language hashes the same task."""

    temperature: int = 0  # in thousandths; 0: greedy
    top_p: int = 1000  # nucleus in thousandths of the probability mass
    seed: int = 0
    stop: tuple[str, ...] = ()  # the answer ends before any of these
    stream: bool = False  # send generated text in Pieces before the Result


@dataclass(frozen=True)  # without slots: its digests are computed once
class TaskSpec:
    """What a receiver is asked. ``Define`` sends it once; messages then name its ``task_id``.

    Attributes:
        prompt: what follows the soft tokens in the receiver's input; may hold ``{question}``.
        text_prompt: what a receiver reads if the message is text; holds ``{text}`` once, and
            ``{question}`` if ``prompt`` does.
        labels: label words, scored at the first answer position. Empty: generated text.
        max_new_tokens: longest generated answer; 0 for classification.
        form: what a text is when the model reads it itself. ``text``: put into ``text_prompt`` and
            into the model's chat template, if it has one; ``plain``: without the template;
            ``chat``: a JSON array of ``{"role", "content"}``, rendered in the template; ``kept``:
            hex ids of payloads that the agent holds, in the order in which it reads them.
    """

    name: str
    prompt: str
    text_prompt: str
    labels: tuple[str, ...] = ()
    relay: RelaySpec = field(default_factory=RelaySpec)
    max_new_tokens: int = 0
    decoding: Decoding = field(default_factory=Decoding)
    form: Literal["text", "plain", "chat", "kept"] = "text"

    @functools.cached_property
    def asks_nothing(self) -> bool:
        """Whether its soft tokens are only held, for a later request."""
        return not self.labels and not self.max_new_tokens

    @functools.cached_property
    def prompt_hash(self) -> str:
        """Hex sha256 of what a bridge is trained for: the prompt and the label words."""
        return _digest({"prompt": self.prompt, "labels": list(self.labels)})

    @functools.cached_property
    def task_id(self) -> str:
        """Hex sha256 of the whole definition."""
        return _task_id(self)


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=1024)  # a call with options makes its task anew
def _task_id(task: TaskSpec) -> str:
    decoding = task.decoding
    return _digest(
        {
            "name": task.name,
            "prompt": task.prompt,
            "text_prompt": task.text_prompt,
            "labels": list(task.labels),
            "relay": [task.relay.template, task.relay.max_new_tokens],
            "max_new_tokens": task.max_new_tokens,
            "decoding": [
                decoding.temperature,
                decoding.top_p,
                decoding.seed,
                list(decoding.stop),
                decoding.stream,
            ],
            "form": task.form,
        }
    )


# -- session messages -----------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of every incarnation of a peer; an agent's second one names its model."""

    name: str
    role: Role
    token: str = ""  # hex secret of the run; "" if CURVE identifies the peer
    model: ModelIdentity | None = None
    versions: tuple[int, ...] = (PROTOCOL_VERSION,)  # newest first


@dataclass(frozen=True, slots=True)
class Welcome:
    """The broker's answer to ``Hello``: version and heartbeats of this session."""

    version: int
    ping_ms: int  # send a Ping after this long without traffic
    liveness_ms: int  # the peer is lost after this long without traffic


@dataclass(frozen=True, slots=True)
class Define:
    """A task definition for agents; the broker keeps it and sends it to new incarnations."""

    task: TaskSpec


@dataclass(frozen=True, slots=True)
class Offer:
    """Sender -> receiver: payloads on this wire will come from this bridge."""

    wire: str
    bridge: BridgeIdentity


@dataclass(frozen=True, slots=True)
class Accept:
    """Receiver -> sender: payloads of this bridge (its fingerprint) are accepted."""

    wire: str
    bridge: str


@dataclass(frozen=True, slots=True)
class Credit:
    """Consumer -> producer: so many more messages and body bytes may be sent on this wire."""

    wire: str
    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Heartbeat, answered by Pong; any traffic counts as an answer."""

    busy_ms: int = 0  # since the sender's compute loop last finished a batch; 0 when idle


@dataclass(frozen=True, slots=True)
class Pong:
    busy_ms: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """What an agent does before it is ready: ``stage`` and a fraction 0..1."""

    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The peer leaves on purpose: nothing more will come from it."""

    reason: str = ""


# -- work messages --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encode:
    """Client -> sender: encode these texts and send them to the receiver of ``wire``.

    Attributes:
        task: ``TaskSpec.task_id``.
        channel: what the client wants; the sender may fall back to text (``fallback``).
        fallback: what to do if soft tokens are not possible.
        texts: n texts, or (mode ``kept``) n ids of kept payloads.
        reason: why the client itself chose the text channel; "" if text was asked for.
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
    """Sender -> receiver (text channel), or client -> agent on a direct wire."""

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
    """Receiver -> client: the answers. From a sender (mode ``keep``): what was kept, without texts.

    Attributes:
        channel: how the message reached the receiver.
        scores: n * L log-probabilities over the task's labels (natural log; each row sums to 1 in
            probability), little-endian fp32, C order; empty for generation.
        labels: L; 0 for generation.
        texts: n generated answers; empty for classification.
        payload_bytes: bytes of one row's payload (soft), or the mean UTF-8 bytes of one text.
        stages: milliseconds in each stage, all agents together.
        tokens: for each row two little-endian uint32: tokens that the model read (soft tokens
            included) and wrote; empty if they were not counted. An fp32 may follow: the
            confidence of the answer (``Reply.confidence``).
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
    """Receiver -> client: text generated so far, ahead of the Result.

    Attributes:
        texts: n pieces, none empty.
        offsets: for each row, bytes of UTF-8 of its answer before the piece. A row that is
            generated again (its agent died) starts from 0.
    """

    wire: str
    task: str
    rows: tuple[Row, ...]
    texts: tuple[str, ...]
    offsets: tuple[int, ...]
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Nack:
    """A refusal of these rows; without rows: of a message or an offer."""

    code: NackCode
    reason: str
    wire: str = ""  # "" if none is concerned
    rows: tuple[Row, ...] = ()
    retry_after_ms: int = 0  # for overloaded
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Client -> all agents on ``wire``: drop these requests if they are not computed yet."""

    wire: str
    request_ids: tuple[bytes, ...]
    origin: str = ""


WorkMessage: TypeAlias = Encode | Soft | Text
SessionMessage: TypeAlias = Hello | Welcome | Ping | Pong | Progress | Goodbye
AgreementMessage: TypeAlias = Define | Offer | Accept | Credit
Message: TypeAlias = (
    SessionMessage | AgreementMessage | WorkMessage | Result | Piece | Nack | Cancel
)


class Envelope(NamedTuple):
    """What every message carries besides itself."""

    run: bytes  # 16-byte id of the run
    seq: int  # of the sender's messages in this incarnation, from 0, no gaps
    epoch: int  # incarnation of the sender; a new process takes a higher one
