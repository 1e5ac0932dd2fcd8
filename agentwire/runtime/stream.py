"""One answer while it is generated: pieces in, only what is new out.

Pieces may come twice (an agent died and generates again) and never out of order within one
incarnation. What was handed out cannot be taken back, so an answer that goes on differently the
second time ends the stream with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeAlias

from agentwire.errors import NackCode, RequestError
from agentwire.runtime.pending import Outcome, answered
from agentwire.runtime.reply import Reply

Asking: TypeAlias = Callable[[Callable[[int, str], None]], Awaitable[list[Outcome]]]
"""Asks one question; what it is given is told the pieces: (offset in bytes, piece)."""


class AnswerStream:
    """What a reader of a stream has got so far.

    Attributes:
        text: everything that was handed out.
    """

    def __init__(self) -> None:
        self._data = b""

    @property
    def text(self) -> str:
        return self._data.decode(errors="ignore")

    def add(self, offset: int, piece: str) -> str:
        """What ``piece``, which stands ``offset`` bytes into the answer, adds; may be nothing.

        Raises:
            RequestError: it contradicts what was handed out.
        """
        data = piece.encode()
        known = len(self._data) - offset
        if known < 0:
            return ""  # something between was lost; the whole answer comes with the result
        if self._data[offset : offset + len(data)] != data[:known]:
            raise diverged()
        new = data[known:]
        self._data += new
        return new.decode(errors="replace")

    def finish(self, answer: str) -> str:
        """What the whole answer adds.

        Raises:
            RequestError: as for ``add``.
        """
        if len(answer.encode()) < len(self._data):
            raise diverged()
        return self.add(0, answer)


def diverged() -> RequestError:
    return RequestError(
        NackCode.MODEL_ERROR,
        "The answer was generated again and went on differently from what was streamed.",
        hint="Ask again; with temperature 0, or a seed, the same agent gives the same answer.",
    )


async def streamed(asking: Asking) -> AsyncGenerator[str | Reply]:
    """What is new of each piece as it comes, then the reply; closed early, it cancels the question.

    Raises:
        RequestError: there is no answer, or it contradicts what was handed out.
    """
    transcript = AnswerStream()
    arrived: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()
    asked = asyncio.ensure_future(asking(lambda offset, piece: arrived.put_nowait((offset, piece))))
    asked.add_done_callback(lambda _: arrived.put_nowait(None))
    try:
        while (piece := await arrived.get()) is not None:
            if new := transcript.add(*piece):
                yield new
        reply = answered(await asked)[0]
        if rest := transcript.finish(reply.text or ""):
            yield rest
        yield reply
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
