"""One request through the runtime: what is asked of whom, and what came back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agentwire.chat.catalog import KEEP, Target
from agentwire.chat.conversation import Conversation
from agentwire.chat.errors import INVALID, HttpError, http_error
from agentwire.chat.handles import Handle, HandleStore, wrong_wire
from agentwire.chat.requests import Extension, Request
from agentwire.errors import NackCode, RequestError
from agentwire.runtime.call_options import GenerationOptions, KeepOptions, WireOptions
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.reply import KeptPayload, Reply
from agentwire.runtime.runtime import Runtime
from agentwire.wire.messages import Channel

FP16_BYTES: Final = 2
Said = str | KeptPayload | tuple[str | KeptPayload, ...]
"""What is read: by one agent, or, a tuple, by each of several senders."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of whom.

    Attributes:
        text: what the sender (or the agent itself) reads; what its sender keeps; or what each of
            the target's senders reads, or keeps.
        question: as ``Runtime.send`` takes it.
        owner: name of the API key.
        handles: that the text was named by.
        unread: parts of the conversation that nobody reads; told to the client.
    """

    target: Target
    text: Said
    question: WireOptions
    owner: str
    handles: tuple[Handle, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def most_tokens(self) -> int | None:
        """The longest answer; None where it is a label."""
        options = self.question.get("generate")
        return options.max_new_tokens if isinstance(options, GenerationOptions) else None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        text: the answer, a label, or a handle.
        request_id: 32 hex digits.
        finish: ``stop`` or ``length``.
        usage: tokens, as OpenAI counts them; soft tokens are among those read.
        facts: ``agentwire`` of the response: channel and reason, scores, times, bytes.
    """

    text: str
    request_id: str
    finish: str
    usage: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


class Answers:
    """Turns requests into calls of a runtime.

    Args:
        runtime: started.
        wiring: of the runtime.
        handles: of this gateway.
        timeout_s: longest time that a request may take.
    """

    def __init__(
        self, runtime: Runtime, deployment: Deployment, handles: HandleStore, timeout_s: float
    ) -> None:
        self._runtime = runtime
        self._deployment = deployment
        self._handles = handles
        self._timeout = timeout_s

    # -- what is asked ----------------------------------------------------------------------

    def chat(
        self, request: Request, target: Target, said: Conversation, owner: str, *, plain: bool
    ) -> Job:
        """The job of one conversation.

        Args:
            plain: it is a prompt to go on with, not a chat.

        Raises:
            HttpError: its handle cannot be used here.
        """
        extension = request.agentwire
        handles: tuple[Handle, ...] = ()
        if extension.keep:
            target = _keeping(target)
        if target.parts:
            handles = tuple(self._handles.get(token, owner) for token in said.tokens)
        elif said.token is not None:
            handles = (self._handles.get(said.token, owner),)
            target = self._with_handle(target, handles[0])
        question = WireOptions(deadline=min(extension.timeout or self._timeout, self._timeout))
        if target.parts:
            _check_parts(extension)
        elif target.sender is None:
            return self._direct(request, target, said, question, owner, plain)
        else:
            question["bridge"] = extension.bridge
            question["fallback"] = extension.fallback
            question["channel"] = extension.channel
        beside = bool(handles)
        unread: list[str] = []
        if self._wants_label(extension):
            question["labels"] = extension.labels
            question["prompt"] = extension.prompt
            unread = said.unread(beside_handle=beside)
        else:
            question["prompt"] = extension.prompt or said.prompt(beside_handle=beside)
            question["generate"] = request.options()
        text: Said = said.said
        if target.parts:
            text = _kept_by_each(target, handles) if handles else said.for_each(target.parts)
        elif handles:
            text = handles[0].kept
        return Job(target, text, question, owner, handles, tuple(unread))

    def _with_handle(self, target: Target, handle: Handle) -> Target:
        kept = handle.kept
        wire = self._deployment.wires[f"{kept.sender}->{kept.receiver}"]
        if wire.joint:
            raise wrong_wire(handle, wire.set_name)
        if target.keeps or target.receiver != kept.receiver:
            raise wrong_wire(handle)
        if target.sender not in (None, kept.sender):
            raise wrong_wire(handle)
        return Target(target.model, kept.receiver, kept.sender)

    def _wants_label(self, extension: Extension) -> bool:
        if extension.labels is not None:
            return bool(extension.labels)
        task = self._deployment.task
        return task is not None and bool(task.labels)

    def _direct(
        self,
        request: Request,
        target: Target,
        said: Conversation,
        question: WireOptions,
        owner: str,
        plain: bool,
    ) -> Job:
        extension = request.agentwire
        if extension.labels:
            question["labels"], question["prompt"] = extension.labels, extension.prompt
            unread = tuple(said.unread(beside_handle=False))
            return Job(target, said.said, question, owner, unread=unread)
        question["prompt"] = extension.prompt or ""
        question["generate"] = request.options()
        question["form"] = "plain" if plain else "chat"
        return Job(target, said.said if plain else said.as_chat, question, owner)

    # -- what comes back --------------------------------------------------------------------

    async def answer(self, job: Job) -> Answer:
        """
        Raises:
            AgentwireError: the request has no answer.
            HttpError: what its handle stood for is gone.
        """
        target = job.target
        if target.keeps and target.sender is not None and isinstance(job.text, str):
            return await self._keep(job, target.sender, job.text)
        try:
            if isinstance(job.text, tuple):
                senders = [part.sender for part in target.parts]
                reply = await self._runtime.fan_in(
                    dict(zip(senders, job.text, strict=True)), target.receiver, **job.question
                )
            elif target.sender is None:
                reply = await self._runtime.direct(
                    target.receiver, str(job.text), **_asked(job.question)
                )
            else:
                reply = await self._runtime.send(
                    target.sender, target.receiver, job.text, **job.question
                )
        except RequestError as error:
            raise self._lost(job, error) from error
        return self._of(job, reply)

    async def stream(self, job: Job) -> AsyncGenerator[str | Answer]:
        """Pieces, then the answer. Errors as ``answer``."""
        target = job.target
        if target.keeps or isinstance(job.text, tuple):  # it has no pieces
            answer = await self.answer(job)
            yield answer.text
            yield answer
            return
        pieces: AsyncIterator[str | Reply]
        if target.sender is None:
            pieces = self._runtime.direct_stream(
                target.receiver, str(job.text), **_asked(job.question)
            )
        else:
            pieces = self._runtime.stream(target.sender, target.receiver, job.text, **job.question)
        try:
            async with aclosing(pieces):  # type: ignore[type-var]
                async for piece in pieces:
                    if isinstance(piece, Reply):
                        if piece.label is not None:
                            yield piece.label
                        yield self._of(job, piece)
                    else:
                        yield piece
        except RequestError as error:
            raise self._lost(job, error) from error

    async def _keep(self, job: Job, sender: str, text: str) -> Answer:
        question = job.question
        kept = await self._runtime.keep(
            sender,
            job.target.receiver,
            text,
            **KeepOptions(
                bridge=question.get("bridge"),
                fallback=question.get("fallback"),
                channel=question.get("channel"),
                deadline=question.get("deadline"),
            ),
        )
        wire = f"{sender}->{kept.receiver}"
        soft = kept.channel is Channel.SOFT
        bridge = self._deployment.bridges.get(wire) if soft else None
        handle = self._handles.add(job.owner, kept, bridge)
        count = self._soft_tokens(kept.channel, kept.payload_bytes, kept.receiver)
        facts = {
            "channel": kept.channel.value,
            "reason": kept.reason,
            "wire": wire,
            "bridge": bridge,
            "handle": handle.text,
            "payload_bytes": kept.payload_bytes,
            "latency_ms": round(kept.latency_ms, 3),
        }
        return Answer(handle.text, kept.request_id, "stop", usage_of(0, count, count), facts)

    def _lost(self, job: Job, error: RequestError) -> HttpError:
        """What was kept may be gone before its handle is: then so is the handle."""
        if error.code is NackCode.EXPIRED and len(job.handles) == 1:  # of several: which is unknown
            self._handles.drop(job.handles[0].token)
        return http_error(error)

    def _of(self, job: Job, reply: Reply) -> Answer:
        soft = self._soft_tokens(reply.channel, reply.payload_bytes, job.target.receiver)
        most = job.most_tokens
        cut = reply.label is None and most is not None and reply.completion_tokens >= most
        facts: dict[str, Any] = {
            "channel": reply.channel.value,
            "reason": reply.reason,
            "wire": job.target.wire,
            "payload_bytes": reply.payload_bytes,
            "latency_ms": round(reply.latency_ms, 3),
            "stages_ms": {stage: round(ms, 3) for stage, ms in reply.stages.items()},
        }
        if reply.label is not None:
            facts["label"] = reply.label
            facts["scores"] = dict(reply.scores)
        if job.unread:
            facts["unread"] = list(job.unread)
        return Answer(
            reply.label if reply.label is not None else reply.text or "",
            reply.request_id,
            "length" if cut else "stop",
            usage_of(reply.prompt_tokens, reply.completion_tokens, soft),
            facts,
        )

    def _soft_tokens(self, channel: Channel, payload_bytes: int, receiver: str) -> int:
        """M, from the bytes of a payload and the width of who reads it."""
        processes = self._deployment.processes_of(receiver)
        infos = (self._runtime.agents.get(process) for process in processes)
        info = next((info for info in infos if info is not None), None)
        if channel is not Channel.SOFT or info is None or not info.width:
            return 0
        return payload_bytes // (info.width * FP16_BYTES)


def _keeping(target: Target) -> Target:
    """The same wire, whose payload is kept.

    Raises:
        HttpError: 400, an agent that is asked directly makes no payload, and several senders none
            together.
    """
    if target.parts:
        raise HttpError(
            400,
            INVALID,
            f"{target.model!r} joins several senders: each keeps its own payload, as "
            f"the model {target.parts[0].name + KEEP!r}.",
            code="invalid_value",
            param="agentwire.keep",
        )
    if target.sender is None:
        raise HttpError(
            400,
            INVALID,
            f"{target.model!r} is an agent: only a wire has a payload to keep.",
            code="invalid_value",
            param="agentwire.keep",
        )
    return replace(target, keeps=True)


def _kept_by_each(target: Target, handles: Sequence[Handle]) -> tuple[KeptPayload, ...]:
    """What each of the target's senders keeps, in the wire's order, whatever the handles'.

    Raises:
        HttpError: 403, one was made on another wire; 400, a sender has not exactly one.
    """
    known = {part.name: part for part in target.parts}
    for handle in handles:
        if f"{handle.kept.sender}->{handle.kept.receiver}" not in known:
            raise wrong_wire(handle)
    by_sender = {handle.kept.sender: handle.kept for handle in handles}
    if len(by_sender) < len(known) or len(handles) > len(known):
        senders = ", ".join(part.sender for part in target.parts)
        raise HttpError(
            400,
            INVALID,
            f"{len(handles)} handles, of {', '.join(by_sender)}: give one of each of {senders}.",
            code="invalid_value",
            param="messages",
        )
    return tuple(by_sender[part.sender] for part in target.parts)


def _check_parts(extension: Extension) -> None:
    """
    Raises:
        HttpError: 400, a wish that several senders cannot be asked: they have the bridges that were
            trained together, and never send text.
    """
    wishes = {
        "agentwire.bridge": extension.bridge is not None,
        "agentwire.channel": extension.channel == "text",
        "agentwire.fallback": extension.fallback == "text",
    }
    for param, wished in wishes.items():
        if wished:
            raise HttpError(
                400,
                INVALID,
                f"{param}: what several senders have read goes to the receiver by the bridges that "
                "were trained together, or not at all.",
                code="invalid_value",
                param=param,
            )


def _asked(question: WireOptions) -> Any:
    """What a direct question takes of one over a wire."""
    return {
        name: value
        for name, value in question.items()
        if name in {"prompt", "labels", "generate", "deadline", "form"}
    }


def usage_of(read: int, written: int, soft: int) -> dict[str, Any]:
    """OpenAI's ``usage``; ``soft_tokens`` says how many of them were soft."""
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "soft_tokens": soft,
    }
