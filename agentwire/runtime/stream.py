"""Streams an answer while it is generated.

Pieces of an answer can arrive twice, because an agent that died generates again. Within one
incarnation they arrive in order. Pieces that were yielded cannot be taken back, so a second answer
that differs from them ends the stream with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeAlias

from agentwire.errors import NackCode, RequestError
from agentwire.runtime.pending import Outcome, replies_of
from agentwire.runtime.reply import Reply

OnPiece: TypeAlias = Callable[[int, str], None]
"""Called with the offset of a piece in the answer, in bytes, and the piece."""


class AnswerStream:
    """The part of an answer that was yielded; raises a RequestError if the rest contradicts it."""

    def __init__(self) -> None:
        self._data = b""

    def add(self, offset: int, piece: str) -> str:
        """The new part of a piece that starts ``offset`` bytes into the answer; may be empty."""
        data = piece.encode()
        known = len(self._data) - offset
        if known < 0:
            return ""  # a piece in between was lost; the result brings the whole answer
        if self._data[offset : offset + len(data)] != data[:known]:
            raise _diverged()
        new = data[known:]
        self._data += new
        return new.decode(errors="replace")

    def finish(self, answer: str) -> str:
        """The rest of the answer."""
        if len(answer.encode()) < len(self._data):
            raise _diverged()
        return self.add(0, answer)


def _diverged() -> RequestError:
    return RequestError(
        NackCode.MODEL_ERROR,
        "The answer was generated again and differs from the text already streamed.",
        hint="Send the request again. With temperature 0 or a seed, an agent repeats its answer.",
    )


async def stream_answer(
    submit: Callable[[OnPiece], Awaitable[list[Outcome]]],
) -> AsyncGenerator[str | Reply]:
    """Yields the new part of each piece, then the reply. ``submit`` sends the request; closing the
    iterator early cancels it.

    Raises:
        RequestError: the request failed, or its answer contradicts the text already streamed.
    """
    answer = AnswerStream()
    pieces: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()
    request = asyncio.ensure_future(
        submit(lambda offset, piece: pieces.put_nowait((offset, piece)))
    )
    request.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            if new := answer.add(*piece):
                yield new
        reply = replies_of(await request)[0]
        if rest := answer.finish(reply.text or ""):
            yield rest
        yield reply
    finally:
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
