"""Answers chat requests through a runtime."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agentwire.chat.catalog import KEEP, Catalog, Target
from agentwire.chat.conversation import Conversation, parse_conversation
from agentwire.chat.errors import invalid
from agentwire.chat.handles import Handle, HandleStore, wrong_wire
from agentwire.chat.requests import ChatMessage, ChatOptions, WireExtension
from agentwire.errors import NackCode, RequestError
from agentwire.runtime.call_options import CallOptions, GenerationOptions, KeepOptions, WireOptions
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.reply import KeptPayload, Reply
from agentwire.runtime.runtime import Runtime
from agentwire.wire.messages import Channel

FP16_BYTES: Final = 2
SenderInput = str | KeptPayload | tuple[str | KeptPayload, ...]
"""The input of one agent, or of each sender of a joint wire."""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """One call of the runtime."""

    target: Target
    text: SenderInput
    options: WireOptions
    owner: str  # name of the API key
    handles: tuple[Handle, ...] = ()
    unread: tuple[str, ...] = ()  # parts of the conversation that no agent reads

    @property
    def max_tokens(self) -> int | None:
        """The longest possible answer in tokens; None for a label."""
        generate = self.options.get("generate")
        return generate.max_new_tokens if isinstance(generate, GenerationOptions) else None


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The reply to one call.

    Attributes:
        text: free text, a label, or a handle.
        request_id: 32 hex digits.
        finish_reason: ``stop`` or ``length``.
        usage: token counts as OpenAI names them; ``soft_tokens`` are included in the prompt's.
        details: the field ``agentwire`` of a response: channel, reason, scores, times, bytes.
    """

    text: str
    request_id: str
    finish_reason: str
    usage: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)


class ChatService:
    """Turns chat requests into calls of a runtime, which must be started before the first call."""

    def __init__(
        self, runtime: Runtime, deployment: Deployment, *, timeout_s: float, handle_ttl_s: float
    ) -> None:
        self._runtime = runtime
        self._deployment = deployment
        self._timeout_s = timeout_s
        self.catalog = Catalog(deployment)
        self.handles = HandleStore(time.monotonic, handle_ttl_s)

    # -- requests ---------------------------------------------------------------------------

    def call(
        self, options: ChatOptions, messages: Sequence[ChatMessage], owner: str, plain: bool = False
    ) -> ChatCall:
        """The call that answers a conversation, or ``plain`` text that is to be continued. Raises a
        ChatError for an unknown model, or a field or handle that the model cannot take."""
        target = self.catalog.find(options.model)
        chat = parse_conversation(messages)
        if options.agentwire.keep:
            target = _keep_target(target)
        if len(chat.tokens) > 1 and not target.joint_wires:
            raise invalid(
                "messages",
                f"{target.model!r} reads one handle at a time, got {len(chat.tokens)}.",
                hint="Use the model of a joint wire, such as `a+b->c`.",
                code="several_handles",
            )
        handles = tuple(self.handles.get(token, owner) for token in chat.tokens)
        if handles and not target.joint_wires:
            target = self._target_of(handles[0], target)
        _check_extension(options.agentwire, target)
        timeout = options.agentwire.timeout or self._timeout_s
        answer = WireOptions(deadline=min(timeout, self._timeout_s))
        if target.joint_wires or target.sender is not None:
            text, unread = self._over_wire(options, target, chat, handles, answer)
        else:
            text, unread = self._direct(options, chat, answer, plain)
        return ChatCall(target, text, answer, owner, handles, tuple(unread))

    def _over_wire(
        self,
        options: ChatOptions,
        target: Target,
        chat: Conversation,
        handles: Sequence[Handle],
        answer: WireOptions,
    ) -> tuple[SenderInput, list[str]]:
        """Sets the options of the answer. Returns the input and what no agent reads."""
        extension, task = options.agentwire, self._deployment.task
        unread: list[str] = []
        answer["prompt"] = extension.prompt
        given = extension.labels is not None or extension.prompt is not None
        if extension.labels or (not given and task is not None and task.labels):
            answer["labels"] = extension.labels
            unread = chat.unread(with_handle=bool(handles))
        else:
            answer["generate"] = options.generation()
            if extension.prompt is None:
                answer["prompt"] = chat.prompt(with_handle=bool(handles))
            else:
                unread = chat.unread(with_handle=bool(handles))
        if target.joint_wires:
            if handles:
                return _payload_of_each(target, handles), unread
            return chat.sender_texts(target.joint_wires), unread
        answer["bridge"] = extension.bridge
        answer["fallback"] = extension.fallback
        answer["channel"] = extension.channel
        return handles[0].kept if handles else chat.sender_text, unread

    def _direct(
        self, options: ChatOptions, chat: Conversation, answer: WireOptions, plain: bool
    ) -> tuple[str, list[str]]:
        """As ``_over_wire``, for an agent that is asked directly."""
        extension = options.agentwire
        if extension.labels:
            answer["labels"], answer["prompt"] = extension.labels, extension.prompt
            return chat.sender_text, chat.unread(with_handle=False)
        answer["generate"] = options.generation()
        if plain:
            answer["prompt"], answer["form"] = extension.prompt or "", "plain"
            return chat.sender_text, []
        answer["prompt"], answer["form"] = "", "chat"
        return chat.chat_json(extension.prompt), []

    def _target_of(self, handle: Handle, target: Target) -> Target:
        """The wire of the handle, if the named model can read it."""
        kept = handle.kept
        wire = self._deployment.wires[f"{kept.sender}->{kept.receiver}"]
        if wire.joint:
            raise wrong_wire(handle, wire.set_name)
        other_sender = target.sender not in (None, kept.sender)
        if target.keeps or target.receiver != kept.receiver or other_sender:
            raise wrong_wire(handle)
        return Target(target.model, kept.receiver, kept.sender)

    # -- replies ----------------------------------------------------------------------------

    async def reply(self, call: ChatCall) -> ChatReply:
        """Answers the call, or raises an AgentwireError."""
        target = call.target
        if target.keeps:
            return await self._keep(call)
        try:
            if isinstance(call.text, tuple):
                senders = [wire.sender for wire in target.joint_wires]
                texts = dict(zip(senders, call.text, strict=True))
                reply = await self._runtime.fan_in(texts, target.receiver, **call.options)
            elif target.sender is None:
                reply = await self._runtime.direct(
                    target.receiver, str(call.text), **_only(call.options, CallOptions)
                )
            else:
                reply = await self._runtime.send(
                    target.sender, target.receiver, call.text, **call.options
                )
        except RequestError as error:
            self._drop_expired(call, error)
            raise
        return self._chat_reply(call, reply)

    async def stream(self, call: ChatCall) -> AsyncGenerator[str | ChatReply]:
        """Yields pieces of the text, then the reply. Errors as ``reply``."""
        target = call.target
        if target.keeps or isinstance(call.text, tuple):  # these come in one piece
            whole = await self.reply(call)
            yield whole.text
            yield whole
            return
        pieces: AsyncIterator[str | Reply]
        if target.sender is None:
            pieces = self._runtime.direct_stream(
                target.receiver, str(call.text), **_only(call.options, CallOptions)
            )
        else:
            pieces = self._runtime.stream(target.sender, target.receiver, call.text, **call.options)
        try:
            async with aclosing(pieces):  # type: ignore[type-var]
                async for piece in pieces:
                    if isinstance(piece, str):
                        yield piece
                        continue
                    if piece.label is not None:
                        yield piece.label
                    yield self._chat_reply(call, piece)
        except RequestError as error:
            self._drop_expired(call, error)
            raise

    async def _keep(self, call: ChatCall) -> ChatReply:
        sender, receiver = call.target.sender, call.target.receiver
        assert sender is not None and isinstance(call.text, str)
        kept = await self._runtime.keep(
            sender, receiver, call.text, owner=call.owner, **_only(call.options, KeepOptions)
        )
        wire = f"{sender}->{receiver}"
        bridge = self._deployment.bridges.get(wire) if kept.channel is Channel.SOFT else None
        handle = self.handles.add(call.owner, kept)
        count = self._soft_tokens(kept, receiver)
        details = {**_details(kept, wire), "bridge": bridge, "handle": handle.text}
        return ChatReply(handle.text, kept.request_id, "stop", _usage(0, count, count), details)

    def _drop_expired(self, call: ChatCall, error: RequestError) -> None:
        """A payload can be gone before its handle expires. Of several, the error names none."""
        if error.code is NackCode.EXPIRED and len(call.handles) == 1:
            self.handles.drop(call.handles[0].token)

    def _chat_reply(self, call: ChatCall, reply: Reply) -> ChatReply:
        details = _details(reply, call.target.wire)
        details["stages_ms"] = {stage: round(ms, 3) for stage, ms in reply.stages.items()}
        cut = False
        if reply.label is not None:
            details["label"] = reply.label
            details["scores"] = dict(reply.scores)
        elif call.max_tokens is not None:
            cut = reply.completion_tokens >= call.max_tokens
        if reply.unread:
            details["unread_tokens"] = reply.unread
        if call.unread:
            details["unread"] = list(call.unread)
        soft_tokens = self._soft_tokens(reply, call.target.receiver)
        return ChatReply(
            reply.label if reply.label is not None else reply.text or "",
            reply.request_id,
            "length" if cut else "stop",
            _usage(reply.prompt_tokens, reply.completion_tokens, soft_tokens),
            details,
        )

    def _soft_tokens(self, reply: Reply | KeptPayload, receiver: str) -> int:
        """The number of soft tokens; without a card, from the receiver's width."""
        if reply.channel is not Channel.SOFT or reply.soft_tokens:
            return reply.soft_tokens
        agents = self._runtime.agents
        processes = self._deployment.processes_of(receiver)
        width = next((agents[name].width for name in processes if name in agents), 0)
        return reply.payload_bytes // (width * FP16_BYTES) if width else 0


def _keep_target(target: Target) -> Target:
    """The same wire, with its payload kept."""
    if target.joint_wires:
        raise invalid(
            "agentwire.keep",
            f"{target.model!r} joins several senders, and each keeps its own payload.",
            hint=f"Use the model {target.joint_wires[0].name + KEEP!r}.",
        )
    if target.sender is None:
        raise invalid(
            "agentwire.keep",
            f"{target.model!r} is an agent; only a wire has a payload to keep.",
            hint="Use a model such as `a->b`.",
        )
    return replace(target, keeps=True)


def _payload_of_each(target: Target, handles: Sequence[Handle]) -> tuple[KeptPayload, ...]:
    """One payload per sender of a joint wire, in the wire's order."""
    names = {wire.name for wire in target.joint_wires}
    for handle in handles:
        if f"{handle.kept.sender}->{handle.kept.receiver}" not in names:
            raise wrong_wire(handle)
    by_sender = {handle.kept.sender: handle.kept for handle in handles}
    if len(by_sender) < len(names) or len(handles) > len(names):
        senders = ", ".join(wire.sender for wire in target.joint_wires)
        raise invalid(
            "messages",
            f"{len(handles)} handles from {', '.join(by_sender)}.",
            hint=f"Give one handle of each of {senders}.",
        )
    return tuple(by_sender[wire.sender] for wire in target.joint_wires)


def _check_extension(extension: WireExtension, target: Target) -> None:
    """Refuses options that the model cannot follow: an agent that is asked directly has no soft
    tokens; a joint wire has one set of bridges, trained together, and never falls back to text.
    """
    joint = bool(target.joint_wires)
    if target.sender is not None:
        return
    refused = {
        "agentwire.bridge": extension.bridge is not None,
        "agentwire.channel": extension.channel == ("text" if joint else "soft"),
        "agentwire.fallback": joint and extension.fallback == "text",
    }
    kind = "a joint wire" if joint else "an agent"
    for param, given in refused.items():
        if given:
            raise invalid(
                param, f"{param} cannot be set on {target.model!r}, {kind}.", hint="Leave it out."
            )


def _only(options: WireOptions, kind: Any) -> Any:
    """The options that a narrower call accepts: ``CallOptions`` or ``KeepOptions``."""
    return {name: value for name, value in options.items() if name in kind.__optional_keys__}


def _details(reply: Reply | KeptPayload, wire: str | None) -> dict[str, Any]:
    return {
        "channel": reply.channel.value,
        "reason": reply.reason,
        "wire": wire,
        "payload_bytes": reply.payload_bytes,
        "latency_ms": round(reply.latency_ms, 3),
    }


def _usage(prompt_tokens: int, completion_tokens: int, soft_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "soft_tokens": soft_tokens,
    }
