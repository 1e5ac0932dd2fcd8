"""The agents of a scenario for any framework: models by name, calls from any thread or event loop.

The runtime runs in a thread with its own event loop. Models, conversations and handles are those
of the gateway (docs/embedding/gateway.md), without HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import ValidationError

from agentwire.chat.errors import ChatError
from agentwire.chat.handles import TTL_S
from agentwire.chat.requests import ChatRequest, invalid_request
from agentwire.chat.service import ChatCall, ChatReply, ChatService
from agentwire.errors import AgentwireError, InputError, NackCode, RequestError
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.runtime import Runtime
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve

OWNER: Final = "local"
T = TypeVar("T")
Turn = tuple[str, str]
"""Role (system, user, assistant, tool) and text."""


class LocalAgents:
    """The agents of a scenario. Use it as a context manager, or call ``start`` and ``close``.

    Args:
        scenario: a YAML file or a deployment.
        run_folder: folder for the journal and the agents' logs.
        timeout_s: time limit for every answer.
        handle_ttl_s: lifetime of a latent handle.

    Raises:
        InputError: the scenario is invalid or cannot run on this machine.
    """

    def __init__(
        self,
        scenario: str | Path | Deployment,
        *,
        run_folder: Path | None = None,
        timeout_s: float = 300.0,
        handle_ttl_s: float = TTL_S,
    ) -> None:
        what: Any = scenario
        if not isinstance(scenario, Deployment):
            what = resolve(load_scenario(scenario), source=Path(scenario))
        deployment = scenario if isinstance(scenario, Deployment) else Deployment.of(what)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="agentwire", daemon=True
        )
        self._runtime = Runtime(what, run_folder=run_folder)
        self._chat = ChatService(
            self._runtime, deployment, timeout_s=timeout_s, handle_ttl_s=handle_ttl_s
        )

    @property
    def models(self) -> list[str]:
        """Each agent, each wire, and ``<wire>:keep``."""
        return self._chat.catalog.names

    # -- lifecycle --------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Return when every agent has loaded its model. Errors as ``Runtime.start``."""
        self._thread.start()
        try:
            self._submit(self._runtime.start()).result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End outstanding requests and stop the agents. Safe to call twice."""
        if self._thread.is_alive():
            self._submit(self._runtime.aclose()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if not self._loop.is_closed():
            self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._thread.is_alive():
            work.close()
            raise AgentwireError(
                "The agents are not running.", hint="Call start(), or use `with LocalAgents(...)`."
            )
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # -- calls ------------------------------------------------------------------------------

    def ask(self, model: str, turns: Sequence[Turn], **fields: Any) -> ChatReply:
        """The reply of a model to a conversation.

        Args:
            fields: as in a body of ``/v1/chat/completions``: ``max_tokens``, ``temperature``,
                ``top_p``, ``seed``, ``stop``, and ``agentwire`` with ``labels``, ``prompt``, ….

        Raises:
            InputError: no such model, or a field is invalid.
            RequestError: the request failed; EXPIRED: its handle is no longer valid.
        """
        return self._submit(self._ask(model, turns, fields)).result()

    async def aask(self, model: str, turns: Sequence[Turn], **fields: Any) -> ChatReply:
        """As ``ask``, from any event loop. Cancelling it cancels the request."""
        return await asyncio.wrap_future(self._submit(self._ask(model, turns, fields)))

    def stream(self, model: str, turns: Sequence[Turn], **fields: Any) -> Iterator[str | ChatReply]:
        """As ``ask``, but yields pieces of the text as they arrive, then the reply."""
        pieces = self._stream(model, turns, fields)
        try:
            while (piece := self._submit(_next(pieces)).result()) is not None:
                yield piece
        finally:
            self._submit(pieces.aclose()).result()

    async def astream(
        self, model: str, turns: Sequence[Turn], **fields: Any
    ) -> AsyncGenerator[str | ChatReply]:
        """As ``stream``, from any event loop."""
        pieces = self._stream(model, turns, fields)
        try:
            while (piece := await asyncio.wrap_future(self._submit(_next(pieces)))) is not None:
                yield piece
        finally:
            await asyncio.wrap_future(self._submit(pieces.aclose()))

    async def _ask(self, model: str, turns: Sequence[Turn], fields: dict[str, Any]) -> ChatReply:
        with _python_errors():
            return await self._chat.reply(self._call(model, turns, fields))

    async def _stream(
        self, model: str, turns: Sequence[Turn], fields: dict[str, Any]
    ) -> AsyncGenerator[str | ChatReply]:
        with _python_errors():
            pieces = self._chat.stream(self._call(model, turns, fields))
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece

    def _call(self, model: str, turns: Sequence[Turn], fields: dict[str, Any]) -> ChatCall:
        messages = [{"role": role, "content": text} for role, text in turns]
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            request = ChatRequest.model_validate({**given, "model": model, "messages": messages})
        except ValidationError as error:
            raise invalid_request(error) from None
        return self._chat.call(request, request.messages, OWNER)


def text_turn(role: str | None, parts: Sequence[Any], kind: str) -> Turn:
    """One turn from a framework's message. Raises InputError if it is not only text."""
    if role is None or not all(isinstance(part, str) for part in parts):
        raise InputError(
            f"agentwire agents read only text, not a {kind} message like this.",
            hint="Leave out images, function calls and other parts.",
        )
    return role, "\n".join(part for part in parts if part)


async def _next(pieces: AsyncGenerator[str | ChatReply]) -> str | ChatReply | None:
    return await anext(pieces, None)


@contextlib.contextmanager
def _python_errors() -> Iterator[None]:
    """Raises chat errors as the errors of the Python API."""
    try:
        yield
    except ChatError as error:
        if error.code == "handle_not_found":
            raise RequestError(NackCode.EXPIRED, error.message, hint=error.hint) from None
        raise InputError(error.message, hint=error.hint) from None
