"""The HTTP application: routes, authentication, limits and streams, on Starlette."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Final, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agentwire.chat.errors import ChatError, ErrorKind
from agentwire.chat.service import ChatCall, ChatReply, ChatService
from agentwire.errors import AgentwireError
from agentwire.gateway.bodies import Body, ChatBody, CompletionBody, parse_body, read_body
from agentwire.gateway.errors import error_body, error_response, status_of
from agentwire.gateway.health import Health
from agentwire.gateway.keys import ApiKeys
from agentwire.gateway.limits import BodyBuffer, ConcurrencyLimiter, GatewayLimits
from agentwire.gateway.metrics import GatewayMetrics
from agentwire.gateway.responses import DONE, ResponseFormat, sse
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.runtime import Runtime

log = logging.getLogger(__name__)
CLIENT_DISCONNECTED: Final = 499
T = TypeVar("T")


class Gateway:
    """The ASGI application ``app`` over a runtime, which must be started before it."""

    def __init__(
        self,
        runtime: Runtime,
        deployment: Deployment,
        keys: ApiKeys,
        limits: GatewayLimits,
        health: Health,
    ) -> None:
        self._runtime = runtime
        self._keys = keys
        self._limits = limits
        self._health = health
        self._limiter = ConcurrencyLimiter(limits)
        self._buffer = BodyBuffer(limits)
        self._chat = ChatService(
            runtime, deployment, timeout_s=limits.timeout_s, handle_ttl_s=limits.handle_ttl_s
        )
        self._metrics = GatewayMetrics(runtime.registry, lambda: len(self._chat.handles))
        self._metrics.in_flight.set_function(lambda: self._limiter.in_flight)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", partial(self._complete, ChatBody), methods=["POST"]),
                Route("/v1/completions", partial(self._complete, CompletionBody), methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/healthz", self._healthz),
                Route("/metrics", self._exposition),
            ],
            exception_handlers={
                kind: _on_error for kind in (AgentwireError, HTTPException, Exception)
            },
        )

    @property
    def models(self) -> list[str]:
        return self._chat.catalog.names

    async def drain(self, seconds: float) -> None:
        """Refuses new requests, and waits until those in flight end or the time is up."""
        self._health.stopping = True
        await self._limiter.drain(seconds)

    # -- routes -----------------------------------------------------------------------------

    async def _models(self, http: Request) -> Response:
        self._owner(http)
        cards = [self._chat.catalog.card(name) for name in self.models]
        return JSONResponse({"object": "list", "data": cards})

    async def _model(self, http: Request) -> Response:
        self._owner(http)
        return JSONResponse(self._chat.catalog.card(http.path_params["model"]))

    async def _healthz(self, http: Request) -> Response:
        status, able, processes = self._health.report(self._runtime.agents)
        return JSONResponse({"status": status, "agents": processes}, 200 if able else 503)

    async def _exposition(self, http: Request) -> Response:
        return Response(generate_latest(self._runtime.registry), media_type=CONTENT_TYPE_LATEST)

    def _owner(self, http: Request) -> str:
        """The name of the request's API key. Raises ChatError without a valid key."""
        owner = self._keys.owner(http.headers.get("authorization"))
        if owner is None:
            raise ChatError(
                ErrorKind.AUTH, "The API key is missing or incorrect.", code="invalid_api_key"
            )
        return owner

    # -- completions ------------------------------------------------------------------------

    async def _complete(self, kind: type[Body], http: Request) -> Response:
        began = time.monotonic()
        model, status = "", 500
        try:
            owner = self._owner(http)
            body = parse_body(kind, await read_body(http, self._limits, self._buffer))
            began = time.monotonic()
            model = self._chat.catalog.find(body.model).model
            plain = isinstance(body, CompletionBody)
            calls = [
                self._chat.call(body, messages, owner, plain=plain)
                for messages in body.conversations
            ]
            async with AsyncExitStack() as stack:
                stack.enter_context(self._limiter.enter(owner))
                if body.stream:
                    response = await self._streamed(http, body, calls[0], stack)
                else:
                    response = await self._whole(http, body, calls)
            status = response.status_code
            return response
        except AgentwireError as error:
            status = status_of(error)
            raise
        finally:
            self._metrics.ended(http.url.path, model, status, time.monotonic() - began)

    async def _whole(self, http: Request, body: Body, calls: Sequence[ChatCall]) -> Response:
        work = [asyncio.ensure_future(self._chat.reply(call)) for call in calls]
        try:
            replies = await _unless_disconnected(http, asyncio.gather(*work))
        finally:
            for task in work:  # gather does not end the others when one fails
                task.cancel()
        if replies is None:
            return Response(status_code=CLIENT_DISCONNECTED)
        for reply in replies:
            self._metrics.answered(body.model, reply)
        response = _format(body, replies[0].request_id).whole(replies)
        return JSONResponse(response, headers=_headers(replies[0]))

    async def _streamed(
        self, http: Request, body: Body, call: ChatCall, stack: AsyncExitStack
    ) -> Response:
        pieces = self._chat.stream(call)
        stack.push_async_callback(pieces.aclose)
        # Until the first piece is there, an error can still set the HTTP status.
        first = await _unless_disconnected(http, anext(pieces))
        if first is None:
            return Response(status_code=CLIENT_DISCONNECTED)
        return EventStreamResponse(self._events(body, first, pieces), stack.pop_all())

    async def _events(
        self, body: Body, first: str | ChatReply, pieces: AsyncGenerator[str | ChatReply]
    ) -> AsyncIterator[bytes]:
        chunks = _format(body, f"{time.time_ns():x}")
        if isinstance(first, str):
            yield sse(chunks.piece(first, first=True))
        reply = first if isinstance(first, ChatReply) else None
        try:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield sse(chunks.piece(piece, first=False))
                else:
                    reply = piece
        except AgentwireError as error:
            yield sse(error_body(error))
            return
        if reply is not None:
            self._metrics.answered(body.model, reply)
            yield sse(chunks.last(reply))
            if body.stream_options is not None and body.stream_options.include_usage:
                yield sse(chunks.usage(reply))
        yield DONE


class EventStreamResponse(StreamingResponse):
    """Server-sent events. ``resources`` are closed at the end, or if the client disconnects."""

    def __init__(self, events: AsyncIterator[bytes], resources: AsyncExitStack) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
        self._events = events
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources, aclosing(self._events):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)


async def _unless_disconnected(http: Request, work: Awaitable[T]) -> T | None:
    """The result of the work; None if the client disconnected, which cancels the work."""
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for pending in (task, disconnected):
            pending.cancel()
        await asyncio.gather(task, disconnected, return_exceptions=True)


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _format(body: Body, id: str) -> ResponseFormat:
    return ResponseFormat(id, body.model, int(time.time()), chat=isinstance(body, ChatBody))


def _headers(reply: ChatReply) -> dict[str, str]:
    headers = {"x-agentwire-channel": reply.details["channel"]}
    if reply.details["reason"]:
        headers["x-agentwire-reason"] = reply.details["reason"]
    return headers


async def _on_error(http: Request, error: Exception) -> Response:
    if isinstance(error, AgentwireError):
        return error_response(error)
    if isinstance(error, HTTPException):  # unknown path or method
        message = f"{http.method} {http.url.path}: {error.detail}."
        unknown = ChatError(ErrorKind.INVALID, message, code="unknown_url")
        response = error_response(unknown, error.status_code)
        response.headers.update(error.headers or {})
        return response
    log.exception("unexpected error", exc_info=error)
    return error_response(ChatError(ErrorKind.SERVER, "An unexpected error occurred.", code="bug"))
