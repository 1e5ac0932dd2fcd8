"""Documents of conversations, which senders read once and keep for further questions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import replace

from agentwire.chat.handles import HandleStore
from agentwire.errors import NackCode, RequestError
from agentwire.runtime.call_options import Fallback
from agentwire.runtime.reply import KeptPayload
from agentwire.runtime.runtime import Runtime
from agentwire.wire.messages import Channel


class Documents:
    """Kept documents by owner, wire and content, with the limits and lifetime of handles.

    Calls that ask about one document at the same time wait for the same reading. A document that
    can only be relayed as text is not remembered.
    """

    def __init__(self, runtime: Runtime, *, timeout_s: float, ttl_s: float) -> None:
        self._runtime = runtime
        self._timeout_s = timeout_s
        self._store = HandleStore(time.monotonic, ttl_s)
        self._reading: dict[str, asyncio.Task[KeptPayload]] = {}

    def __len__(self) -> int:
        return len(self._store)

    @staticmethod
    def key(owner: str, sender: str, receiver: str, text: str, fallback: Fallback | None) -> str:
        content = json.dumps([owner, sender, receiver, text, fallback])
        return hashlib.sha256(content.encode()).hexdigest()

    async def read(
        self,
        key: str,
        owner: str,
        wire: tuple[str, str],
        text: str,
        fallback: Fallback | None,
        deadline: float,
    ) -> tuple[KeptPayload, bool]:
        """The kept document, and whether it was kept before. Raises as ``Runtime.keep``."""
        handle = self._store.find(key)
        if handle is not None:
            return handle.kept, True
        task = self._reading.get(key)
        if task is None:
            task = asyncio.create_task(self._keep(key, owner, wire, text, fallback))
            self._reading[key] = task
            task.add_done_callback(lambda _: self._reading.pop(key, None))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(task), deadline), False
        except TimeoutError:
            message = f"The document was not read within {deadline:g} s."
            raise RequestError(NackCode.DEADLINE, message) from None

    async def _keep(
        self, key: str, owner: str, wire: tuple[str, str], text: str, fallback: Fallback | None
    ) -> KeptPayload:
        kept = await self._runtime.keep(
            *wire, text, owner=owner, fallback=fallback, deadline=self._timeout_s
        )
        if kept.channel is Channel.SOFT:
            self._store.add(owner, replace(kept, text=None), key)  # it may be large
        return kept

    def drop(self, key: str) -> None:
        """Forget a document that its sender no longer has."""
        self._store.drop(key)
