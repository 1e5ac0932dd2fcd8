"""Values that messages carry: who talks, about which rows, models, bridges, tasks and payloads.

Models, bridges and tasks are named by hashes of what they are, so that two ends agree on them
before the first payload crosses. ``messages`` gives all of these names on.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple, TypeAlias

DIRECT_PREFIX = "@"


class Channel(StrEnum):
    """How a message crossed from sender to receiver."""

    SOFT = "soft"
    TEXT = "text"


class Mode(StrEnum):
    """What a sender does with the soft tokens that it makes of a row."""

    FORWARD = "forward"  # the row's text is encoded and handed to the receiver
    KEEP = "keep"  # encoded and kept by the sender, under the request id
    KEPT = "kept"  # the row's text is the hex id of what was kept: that is handed on


class Role(StrEnum):
    AGENT = "agent"
    CLIENT = "client"
    BROKER = "broker"


def direct_wire(agent: str) -> str:
    """Name of the direct wire from the client to ``agent``."""
    return DIRECT_PREFIX + agent


class Row(NamedTuple):
    """One request in a batch.

    Attributes:
        request_id: 16 bytes, unique for each request, kept over retries and incarnations.
        ms_left: milliseconds until the deadline, measured when the message was sent; None: none.
        trace_id: 16 bytes for logs; all zero if none.
        size: bytes of this row's part of a text body (UTF-8); 0 where the body is not text.
    """

    request_id: bytes
    ms_left: int | None = None
    trace_id: bytes = bytes(16)
    size: int = 0


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model a peer runs.

    Attributes:
        name: registry or hub name.
        fingerprint: hex sha256 over the source files as published (docs/protocol.md).
        width: size of the embedding space, d.
        layers: number of transformer layers.
        embedding_rms: RMS of the model's own scaled input embeddings.
        dtype: dtype of the weights in memory, e.g. ``float32``.
        device: where it runs, e.g. ``cuda:0``.
    """

    name: str
    fingerprint: str
    width: int
    layers: int
    embedding_rms: float
    dtype: str
    device: str


@dataclass(frozen=True, slots=True)
class BridgeIdentity:
    """What both ends must agree on before the first payload.

    Attributes:
        name: folder name of the bridge.
        fingerprint: hex sha256 of weights.safetensors.
        sender: fingerprint of the sender's model.
        receiver: fingerprint of the receiver's model.
        layer: hidden states are read after this many layers of the sender.
        soft_tokens: M.
        width: d of the receiver.
        prompts: hashes of the prompts it was trained for (``TaskSpec.prompt_hash``), or
            ``any`` (every prompt with label words) and ``free_text`` (every prompt whose answer is
            generated).
        rms_range: lowest and highest RMS of one soft token that the receiver accepts.
    """

    name: str
    fingerprint: str
    sender: str
    receiver: str
    layer: int
    soft_tokens: int
    width: int
    prompts: tuple[str, ...]
    rms_range: tuple[float, float]

    @property
    def payload_bytes(self) -> int:
        """Bytes of one row's payload: M * d fp16 values."""
        return self.soft_tokens * self.width * 2


@dataclass(frozen=True, slots=True)
class RelaySpec:
    """How a sender turns its text into the message of the text channel.

    Attributes:
        template: what the sender is asked, with ``{text}``; empty: the text crosses verbatim.
        max_new_tokens: longest message, in the sender's tokens.
    """

    template: str = ""
    max_new_tokens: int = 48

    @property
    def verbatim(self) -> bool:
        return not self.template


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a receiver generates text. Integers, so that every language hashes the same task.

    Attributes:
        temperature: in thousandths; 0: greedy.
        top_p: nucleus in thousandths of the probability mass; 1000: everything.
        seed: of the draws, where temperature is above 0.
        stop: the answer ends before any of these; they are not part of it.
        stream: send what is generated in Pieces before the Result.
    """

    temperature: int = 0
    top_p: int = 1000
    seed: int = 0
    stop: tuple[str, ...] = ()
    stream: bool = False


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a receiver is asked, by a hash that every message names.

    Sent once in a ``Define``; messages then carry ``task_id`` alone.

    Attributes:
        name: for people; part of the identity.
        prompt: what follows the soft tokens in the receiver's input.
        text_prompt: what a receiver reads when the message is text; holds ``{text}`` once.
        labels: label words; the answer is scored over them at the first answer position.
            Empty: the receiver generates text.
        relay: how the sender makes a text message.
        max_new_tokens: longest generated answer; 0 for classification.
        decoding: how free text is generated.
        form: what a text is where the model reads it itself: ``text``, put into ``text_prompt``
            and into the model's chat template if it has one; ``plain``, the same without the
            template; ``chat``, a JSON array of ``{"role", "content"}``, rendered in the template;
            ``kept``, the hex ids of payloads that the agent holds, in the order in which it reads
            them.
    """

    name: str
    prompt: str
    text_prompt: str
    labels: tuple[str, ...] = ()
    relay: RelaySpec = field(default_factory=RelaySpec)
    max_new_tokens: int = 0
    decoding: Decoding = field(default_factory=Decoding)
    form: Literal["text", "plain", "chat", "kept"] = "text"

    @property
    def asks_nothing(self) -> bool:
        """Whether soft tokens of it are only held, for a question that comes later."""
        return not self.labels and not self.max_new_tokens

    @property
    def prompt_hash(self) -> str:
        """Hex sha256 of what a bridge is trained for: the prompt and the label words."""
        return _digest({"prompt": self.prompt, "labels": list(self.labels)})

    @property
    def task_id(self) -> str:
        """Hex sha256 of the whole definition."""
        return _task_id(self)


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=1024)  # every call needs it, and nearly all ask the same task
def _task_id(task: TaskSpec) -> str:
    return _digest(
        {
            "name": task.name,
            "prompt": task.prompt,
            "text_prompt": task.text_prompt,
            "labels": list(task.labels),
            "relay": [task.relay.template, task.relay.max_new_tokens],
            "max_new_tokens": task.max_new_tokens,
            "decoding": [
                task.decoding.temperature,
                task.decoding.top_p,
                task.decoding.seed,
                list(task.decoding.stop),
                task.decoding.stream,
            ],
            "form": task.form,
        }
    )


class Payload(NamedTuple):
    """A batch of soft tokens.

    Attributes:
        data: little-endian fp16 values, C order, shape [n, M, d], as bytes.
        n: rows.
        soft_tokens: M.
        width: d.
        dtype: always ``float16`` so far.
    """

    data: bytes | memoryview
    n: int
    soft_tokens: int
    width: int
    dtype: Literal["float16"] = "float16"


Stages: TypeAlias = Mapping[str, float]
"""Milliseconds spent in each stage so far: tokenize, encode, bridge, generate, queue, decode."""
