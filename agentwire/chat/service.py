"""Answers chat requests through a runtime."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agentwire.chat.catalog import KEEP, Catalog, Target
from agentwire.chat.conversation import Conversation, parse_conversation
from agentwire.chat.documents import Documents
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
    document: str = ""  # key of the text in ``Documents``, if it is kept for further questions

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
        self.documents = Documents(runtime, timeout_s=timeout_s, ttl_s=handle_ttl_s)

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
        document = ""
        if isinstance(text, str) and "generate" in answer and self._reader(target):
            wire, fallback = (str(target.sender), target.receiver), answer.get("fallback")
            if not target.keeps and answer.get("channel") != "text":
                document = self.documents.key(owner, *wire, text, fallback)
        return ChatCall(target, text, answer, owner, handles, tuple(unread), document)

    def _reader(self, target: Target) -> bool:
        """Whether the model's bridge answers any question."""
        return not target.joint_wires and self._deployment.reader(target.wire or "") is not None

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
        text = chat.sender_text
        answer["prompt"] = extension.prompt
        given = extension.labels is not None or extension.prompt is not None
        if extension.labels or (not given and task is not None and task.labels):
            answer["labels"] = extension.labels
            unread = chat.unread(with_handle=bool(handles))
        else:
            answer["generate"] = options.generation()
            if extension.prompt is None and self._reader(target) and not target.keeps:
                text, answer["prompt"], unread = chat.asked(with_handle=bool(handles))
            elif extension.prompt is None:
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
        return handles[0].kept if handles else text, unread

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
        if call.target.keeps:
            return await self._keep(call)
        try:
            return await self._answer(call)
        except RequestError as error:
            if not self._lost_document(call, error):
                raise
        return await self._answer(call)

    async def _answer(self, call: ChatCall) -> ChatReply:
        target = call.target
        content, options, kept, read_ms = await self._content(call)
        if isinstance(content, tuple):
            senders = [wire.sender for wire in target.joint_wires]
            texts = dict(zip(senders, content, strict=True))
            reply = await self._runtime.fan_in(texts, target.receiver, **options)
        elif target.sender is None:
            reply = await self._runtime.direct(
                target.receiver, str(content), **_only(options, CallOptions)
            )
        else:
            reply = await self._runtime.send(target.sender, target.receiver, content, **options)
        return self._chat_reply(call, reply, kept, read_ms)

    async def stream(self, call: ChatCall) -> AsyncGenerator[str | ChatReply]:
        """Yields pieces of the text, then the reply. Errors as ``reply``."""
        if call.target.keeps or isinstance(call.text, tuple):  # these come in one piece
            whole = await self.reply(call)
            yield whole.text
            yield whole
            return
        for retried in (False, True):
            started = False
            try:
                async with aclosing(self._pieces(call)) as pieces:
                    async for piece in pieces:
                        started = True
                        yield piece
                return
            except RequestError as error:
                if not self._lost_document(call, error) or started or retried:
                    raise

    async def _pieces(self, call: ChatCall) -> AsyncGenerator[str | ChatReply]:
        target = call.target
        content, options, kept, read_ms = await self._content(call)
        assert not isinstance(content, tuple)
        pieces: AsyncIterator[str | Reply]
        if target.sender is None:
            pieces = self._runtime.direct_stream(
                target.receiver, str(content), **_only(options, CallOptions)
            )
        else:
            pieces = self._runtime.stream(target.sender, target.receiver, content, **options)
        async with aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                if isinstance(piece, str):
                    yield piece
                    continue
                if piece.label is not None:
                    yield piece.label
                yield self._chat_reply(call, piece, kept, read_ms)

    async def _content(self, call: ChatCall) -> tuple[SenderInput, WireOptions, str, float]:
        """The input of the call and its options; of a document also whether its sender ``read`` it
        now or had ``kept`` it, and the milliseconds that this took."""
        if not call.document:
            return call.text, call.options, "", 0.0
        wire, deadline = (str(call.target.sender), call.target.receiver), call.options["deadline"]
        start, text, fallback = time.monotonic(), str(call.text), call.options.get("fallback")
        assert deadline is not None
        try:
            content, known = await self.documents.read(
                call.document, call.owner, wire, text, fallback, deadline
            )
        except RequestError as error:
            if error.code is not NackCode.AGENT_DOWN:
                raise
            return text, call.options, "", 0.0  # the wire says what becomes of a text
        took = time.monotonic() - start
        options: WireOptions = {**call.options, "deadline": max(0.001, deadline - took)}
        return content, options, "kept" if known else "read", 0.0 if known else took * 1000

    async def _keep(self, call: ChatCall) -> ChatReply:
        sender, receiver = call.target.sender, call.target.receiver
        assert sender is not None and isinstance(call.text, str)
        kept = await self._runtime.keep(
            sender, receiver, call.text, owner=call.owner, **_only(call.options, KeepOptions)
        )
        wire = f"{sender}->{receiver}"
        bridge = self._deployment.bridges.get(wire) if kept.channel is Channel.SOFT else None
        handle = self.handles.add(call.owner, replace(kept, text=None))  # it may be large
        count = self._soft_tokens(kept, receiver)
        details = {**_details(kept, wire), "bridge": bridge, "handle": handle.text}
        return ChatReply(handle.text, kept.request_id, "stop", _usage(0, count, count), details)

    def _lost_document(self, call: ChatCall, error: RequestError) -> bool:
        """Whether the call failed because its document is gone, and reading it again may help.
        Forgets payloads that are gone before they expire; of several, the error names none."""
        if error.code is NackCode.EXPIRED and len(call.handles) == 1:
            self.handles.drop(call.handles[0].token)
        lost = bool(call.document) and error.code in (NackCode.EXPIRED, NackCode.AGENT_DOWN)
        if lost:
            self.documents.drop(call.document)
        return lost

    def _chat_reply(
        self, call: ChatCall, reply: Reply, document: str = "", read_ms: float = 0.0
    ) -> ChatReply:
        details = _details(reply, call.target.wire)
        details["latency_ms"] = round(reply.latency_ms + read_ms, 3)
        if document:
            details["document"] = document
        details["stages_ms"] = {stage: round(ms, 3) for stage, ms in reply.stages.items()}
        cut = False
        if reply.label is not None:
            details["label"] = reply.label
            details["scores"] = dict(reply.scores)
        elif call.max_tokens is not None:
            cut = reply.completion_tokens >= call.max_tokens
        if reply.confidence is not None:
            details["confidence"] = round(reply.confidence, 4)
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
