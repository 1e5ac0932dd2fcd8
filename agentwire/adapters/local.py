"""A scenario's agents for frameworks that know nothing of it: models by name, calls from anywhere.

The runtime lives in a thread with an event loop of its own, so it can be called from synchronous
code and from any event loop. Models, conversations and handles are those of the gateway
(docs/embedding/gateway.md), without HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import ValidationError

from agentwire.chat.answers import Answer, Answers, Job
from agentwire.chat.catalog import Catalog
from agentwire.chat.conversation import conversation
from agentwire.chat.errors import HttpError
from agentwire.chat.handles import TTL_S, HandleStore
from agentwire.chat.requests import ChatRequest
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
    """The agents of a scenario; a context manager, or ``start`` and ``close`` it.

    Args:
        scenario: a YAML file, or a wiring built by hand.
        run_folder: for the journal and the agents' logs.
        timeout_s: longest time that an answer may take.
        handle_ttl_s: how long a latent handle is good.

    Raises:
        InputError: the scenario is wrong, or cannot run here.
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
        handles = HandleStore(time.monotonic, handle_ttl_s)
        self._catalog = Catalog(deployment, int(time.time()))
        self._answers = Answers(self._runtime, deployment, handles, timeout_s)

    @property
    def models(self) -> list[str]:
        """Each agent, each wire, and ``<wire>:keep``."""
        return self._catalog.names

    # -- life -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Returns when every agent has loaded its model. Errors as ``Runtime.start``."""
        self._thread.start()
        try:
            self._submit(self._runtime.start()).result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends what is outstanding, then the agents. Safe to call twice."""
        if self._thread.is_alive():
            self._submit(self._runtime.aclose()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if not self._loop.is_closed():
            self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._thread.is_alive():
            work.close()
            raise AgentwireError("These agents do not run.", hint="Use them in `with`, or start().")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # -- calls ------------------------------------------------------------------------------

    def ask(self, model: str, turns: Sequence[Turn], **fields: Any) -> Answer:
        """The answer of a model to a conversation.

        Args:
            fields: as in a body of ``/v1/chat/completions``: ``max_tokens``, ``temperature``,
                ``top_p``, ``seed``, ``stop``, and ``agentwire`` with ``labels``, ``prompt``, ….

        Raises:
            InputError: no such model, or a field that is not possible.
            RequestError: the request has no answer; EXPIRED: its handle is no longer good.
        """
        return self._submit(self._ask(model, turns, fields)).result()

    async def aask(self, model: str, turns: Sequence[Turn], **fields: Any) -> Answer:
        """As ``ask``, from any event loop. Cancelling it cancels the request."""
        return await asyncio.wrap_future(self._submit(self._ask(model, turns, fields)))

    def stream(self, model: str, turns: Sequence[Turn], **fields: Any) -> Iterator[str | Answer]:
        """As ``ask``: yields pieces as they come, then the answer."""
        pieces = self._stream(model, turns, fields)
        try:
            while (piece := self._submit(_next(pieces)).result()) is not None:
                yield piece
        finally:
            self._submit(pieces.aclose()).result()

    async def astream(
        self, model: str, turns: Sequence[Turn], **fields: Any
    ) -> AsyncGenerator[str | Answer]:
        """As ``stream``, from any event loop."""
        pieces = self._stream(model, turns, fields)
        try:
            while (piece := await asyncio.wrap_future(self._submit(_next(pieces)))) is not None:
                yield piece
        finally:
            await asyncio.wrap_future(self._submit(pieces.aclose()))

    async def _ask(self, model: str, turns: Sequence[Turn], fields: dict[str, Any]) -> Answer:
        with _plain_errors():
            return await self._answers.answer(self._job(model, turns, fields))

    async def _stream(
        self, model: str, turns: Sequence[Turn], fields: dict[str, Any]
    ) -> AsyncGenerator[str | Answer]:
        with _plain_errors():
            async with contextlib.aclosing(
                self._answers.stream(self._job(model, turns, fields))
            ) as pieces:
                async for piece in pieces:
                    yield piece

    def _job(self, model: str, turns: Sequence[Turn], fields: dict[str, Any]) -> Job:
        messages = [{"role": role, "content": text} for role, text in turns]
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            request = ChatRequest.model_validate({**given, "model": model, "messages": messages})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(
                f"{where or 'request'}: {first['msg']}.", hint="See docs/embedding/gateway.md."
            ) from None
        target = self._catalog.find(request.model)
        said = conversation(request.messages)
        return self._answers.chat(request, target, said, OWNER, plain=False)


async def _next(pieces: AsyncGenerator[str | Answer]) -> str | Answer | None:
    return await anext(pieces, None)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of the gateway's shape as those of the Python API."""
    try:
        yield
    except HttpError as error:
        if isinstance(error.__cause__, AgentwireError):
            raise error.__cause__ from None
        if error.status == 404 and error.code == "handle_not_found":
            raise RequestError(NackCode.EXPIRED, error.message) from None
        raise InputError(error.message) from None
