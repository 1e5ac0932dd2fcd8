"""Request bodies of OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError, model_validator
from starlette.requests import ClientDisconnect, Request

from agentwire.chat.errors import ChatError, invalid
from agentwire.chat.requests import ChatMessage, ChatOptions, ChatRequest, invalid_request
from agentwire.gateway.limits import BodyBuffer, GatewayLimits


class ChatBody(ChatRequest):
    """Body of ``/v1/chat/completions``."""

    @property
    def conversations(self) -> list[Sequence[ChatMessage]]:
        return [self.messages]


class CompletionBody(ChatOptions):
    """Body of ``/v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=256)]

    @model_validator(mode="after")
    def _stream_one_prompt(self) -> CompletionBody:
        if self.stream and len(self.conversations) > 1:
            raise ValueError("stream: only one prompt at a time can be streamed")
        return self

    @property
    def conversations(self) -> list[Sequence[ChatMessage]]:
        """Each prompt as a conversation of one message."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [[ChatMessage(role="user", content=prompt)] for prompt in prompts]


Body = TypeVar("Body", ChatBody, CompletionBody)


def parse_body(kind: type[Body], body: bytes) -> Body:
    """Raises ChatError if the body is not valid; its ``param`` names the field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error) from None


async def read_body(request: Request, limits: GatewayLimits, buffer: BodyBuffer) -> bytes:
    """Raises ChatError if the body is too large or too slow, or the client disconnects."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in request.stream():
                buffer.take(len(chunk))
                body += chunk
                if len(body) > limits.body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        message = f"The request body did not arrive within {limits.body_s:g} s."
        raise invalid(None, message, code="timeout") from None
    except ClientDisconnect:
        raise invalid(None, "The request body is incomplete.") from None
    finally:
        buffer.take(-len(body))
    return bytes(body)


def _too_large(limits: GatewayLimits) -> ChatError:
    message = f"The request body is larger than {limits.body_bytes} bytes."
    return invalid(None, message, code="request_too_large")
