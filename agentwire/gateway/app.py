"""The HTTP side: routes, authentication, limits, streams. Starlette underneath."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Final, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agentwire.chat.answers import Answer, Answers, Job
from agentwire.chat.catalog import Catalog, Target
from agentwire.chat.conversation import conversation
from agentwire.chat.errors import AUTH, INVALID, SERVER, HttpError, http_error
from agentwire.chat.handles import HandleStore
from agentwire.chat.requests import ChatRequest, CompletionRequest, Message, Request
from agentwire.errors import AgentwireError
from agentwire.gateway.health import Health
from agentwire.gateway.keys import ApiKeys
from agentwire.gateway.limits import Gate, GatewayLimits, parse, read_body
from agentwire.gateway.metrics import GatewayMetrics
from agentwire.gateway.responses import DONE, Chat, Completion, sse
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.runtime import Runtime
from agentwire.telemetry.prometheus import CONTENT_TYPE, exposition

log = logging.getLogger(__name__)
CLIENT_LEFT: Final = 499
T = TypeVar("T")
Shape = Chat | Completion


class Gateway:
    """One gateway over one runtime.

    Args:
        runtime: started before the first request comes.
        wiring: of the runtime.
        keys: who may ask.
        limits: how much is taken on.
        handle_ttl_s: how long a latent handle is good.
        health: told how the agents are.

    Attributes:
        app: the ASGI application.
    """

    def __init__(
        self,
        runtime: Runtime,
        deployment: Deployment,
        *,
        keys: ApiKeys,
        limits: GatewayLimits,
        handle_ttl_s: float,
        health: Health,
    ) -> None:
        self._runtime = runtime
        self._keys = keys
        self._limits = limits
        self._health = health
        self._gate = Gate(limits)
        self._handles = HandleStore(time.monotonic, handle_ttl_s)
        self._catalog = Catalog(deployment, int(time.time()))
        self._answers = Answers(runtime, deployment, self._handles, limits.timeout_s)
        self._metrics = GatewayMetrics(runtime.metrics, lambda: len(self._handles))
        self._metrics.in_flight.set_function(lambda: self._gate.inside)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/healthz", self._healthz),
                Route("/metrics", self._exposition),
            ],
            exception_handlers={
                HttpError: _refuse,
                HTTPException: _refuse_http,
                Exception: _refuse_unexpected,
            },
        )

    @property
    def models(self) -> list[str]:
        """What can be asked."""
        return self._catalog.names

    # -- routes -----------------------------------------------------------------------------

    async def _chat(self, http: HttpRequest) -> Response:
        return await self._complete(http, ChatRequest, Chat)

    async def _completions(self, http: HttpRequest) -> Response:
        return await self._complete(http, CompletionRequest, Completion)

    async def _models(self, http: HttpRequest) -> Response:
        self._owner(http)
        cards = [self._catalog.card(name) for name in self._catalog.names]
        return JSONResponse({"object": "list", "data": cards})

    async def _model(self, http: HttpRequest) -> Response:
        self._owner(http)
        return JSONResponse(self._catalog.card(http.path_params["model"]))

    async def _healthz(self, http: HttpRequest) -> Response:
        state, able, agents = self._health.report(self._runtime.agents)
        return JSONResponse({"status": state, "agents": agents}, 200 if able else 503)

    async def _exposition(self, http: HttpRequest) -> Response:
        return Response(exposition(self._metrics.registry), media_type=CONTENT_TYPE)

    def _owner(self, http: HttpRequest) -> str:
        """Whose key the request bears.

        Raises:
            HttpError: 401.
        """
        owner = self._keys.owner(http.headers.get("authorization"))
        if owner is None:
            raise HttpError(401, AUTH, "Incorrect or missing API key.", code="invalid_api_key")
        return owner

    # -- completions ------------------------------------------------------------------------

    async def _complete(
        self, http: HttpRequest, kind: type[Request], shape: Callable[[str, str, int], Shape]
    ) -> Response:
        began = time.monotonic()
        route, model, status = http.url.path, "", 500
        try:
            owner = self._owner(http)
            request = parse(kind, await read_body(http, self._limits))
            began = time.monotonic()
            target = self._catalog.find(request.model)
            model = target.model
            jobs = self._jobs(request, target, owner)
            async with AsyncExitStack() as stack:
                stack.enter_context(self._gate.enter(owner))
                if request.stream:
                    response = await self._streamed(request, jobs[0], shape, stack)
                else:
                    response = await self._whole(http, request, jobs, shape)
            status = response.status_code
            return response
        except AgentwireError as error:
            refused = http_error(error)
            status = refused.status
            raise refused from error
        except HttpError as error:
            status = error.status
            raise
        finally:
            self._metrics.ended(route, model, status, time.monotonic() - began)

    def _jobs(self, request: Request, target: Target, owner: str) -> list[Job]:
        if isinstance(request, ChatRequest):
            said = conversation(request.messages)
            return [self._answers.chat(request, target, said, owner, plain=False)]
        assert isinstance(request, CompletionRequest)
        return [
            self._answers.chat(
                request,
                target,
                conversation([Message(role="user", content=prompt)]),
                owner,
                plain=True,
            )
            for prompt in request.prompts
        ]

    async def _whole(
        self,
        http: HttpRequest,
        request: Request,
        jobs: Sequence[Job],
        shape: Callable[[str, str, int], Shape],
    ) -> Response:
        answers = await _while_connected(
            http, asyncio.gather(*(self._answers.answer(job) for job in jobs))
        )
        if answers is None:
            return Response(status_code=CLIENT_LEFT)
        for answer in answers:
            self._metrics.answered(request.model, answer)
        body = shape(answers[0].request_id, request.model, int(time.time())).whole(answers)
        return JSONResponse(body, headers=_headers(answers[0]))

    async def _streamed(
        self,
        request: Request,
        job: Job,
        shape: Callable[[str, str, int], Shape],
        stack: AsyncExitStack,
    ) -> Response:
        pieces = self._answers.stream(job)
        stack.push_async_callback(pieces.aclose)
        # What fails before the first piece is an error with a status of its own.
        first = await anext(pieces)
        form = shape(_stream_id(), request.model, int(time.time()))
        events = self._events(request, form, first, pieces)
        return Stream(events, stack.pop_all())

    async def _events(
        self,
        request: Request,
        form: Shape,
        first: str | Answer,
        pieces: AsyncGenerator[str | Answer],
    ) -> AsyncIterator[bytes]:
        if isinstance(first, str):
            yield sse(form.piece(first, first=True))
        try:
            answer = first if isinstance(first, Answer) else None
            async for piece in pieces:
                if isinstance(piece, str):
                    yield sse(form.piece(piece, first=False))
                else:
                    answer = piece
        except AgentwireError as error:
            yield sse(http_error(error).body())
            return
        except HttpError as error:
            yield sse(error.body())
            return
        if answer is not None:
            self._metrics.answered(request.model, answer)
            yield sse(form.last(answer))
            if request.stream_options is not None and request.stream_options.include_usage:
                yield sse(form.usage(answer))
        yield DONE


class Stream(StreamingResponse):
    """Server-sent events; whatever happens, what they hold on to is let go.

    Args:
        events: encoded.
        holds: let go at the end, or when the client leaves.
    """

    def __init__(self, events: AsyncIterator[bytes], holds: AsyncExitStack) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
        self._events = events
        self._holds = holds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._holds, aclosing(self._events):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)


async def _while_connected(http: HttpRequest, work: Awaitable[T]) -> T | None:
    """What the work gives; None if the client left, and then the work is cancelled."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for pending in (task, left):
            pending.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _stream_id() -> str:
    return f"{time.time_ns():x}"


def _headers(answer: Answer) -> dict[str, str]:
    headers = {"x-agentwire-channel": answer.facts["channel"]}
    if answer.facts["reason"]:
        headers["x-agentwire-reason"] = answer.facts["reason"]
    return headers


async def _refuse(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return _response(error)


def _response(error: HttpError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


async def _refuse_http(http: HttpRequest, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}."
    response = _response(HttpError(error.status_code, INVALID, message, code="unknown_url"))
    response.headers.update(error.headers or {})
    return response


async def _refuse_unexpected(http: HttpRequest, error: Exception) -> Response:
    log.exception("a bug", exc_info=error)
    return _response(HttpError(500, SERVER, "Something unexpected went wrong.", code="bug"))
