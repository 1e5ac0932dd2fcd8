"""Responses in the format of OpenAI's API, whole or as a stream of chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from agentwire.chat.service import ChatReply

DONE: Final = b"data: [DONE]\n\n"


def sse(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


class ResponseFormat:
    """The response to one chat request (``chat``) or completion request."""

    def __init__(self, id: str, model: str, created: int, *, chat: bool) -> None:
        prefix = "chatcmpl" if chat else "cmpl"
        self._head = {"id": f"{prefix}-{id}", "created": created, "model": model}
        self._chat = chat

    def whole(self, replies: Sequence[ChatReply]) -> dict[str, Any]:
        details = [reply.details for reply in replies]
        choices = []
        for index, reply in enumerate(replies):
            message = {"role": "assistant", "content": reply.text, "refusal": None}
            content: dict[str, Any] = {"message": message} if self._chat else {"text": reply.text}
            choices.append(_choice(content, index, reply.finish_reason))
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": choices,
            "usage": {name: sum(r.usage[name] for r in replies) for name in replies[0].usage},
            "agentwire": details[0] if len(details) == 1 else details,
        }

    def piece(self, text: str, *, first: bool) -> dict[str, Any]:
        delta = {"content": text, **({"role": "assistant"} if first else {})}
        content: dict[str, Any] = {"delta": delta} if self._chat else {"text": text}
        return self._chunk(_choice(content, 0, None))

    def last(self, reply: ChatReply) -> dict[str, Any]:
        content: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        chunk = self._chunk(_choice(content, 0, reply.finish_reason))
        return {**chunk, "agentwire": reply.details}

    def usage(self, reply: ChatReply) -> dict[str, Any]:
        return {**self._chunk(), "usage": reply.usage}

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices}


def _choice(content: dict[str, Any], index: int, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}
