"""Which requests were seen before: makes at-least-once delivery safe to retry.

A key must hold everything that changes the answer. The request id alone is not enough if a request
may come again in another way: after a refused payload, the same request comes as text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

from agentwire.errors import LocalProtocolError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Seen(StrEnum):
    NEW = "new"  # now noted as in progress: compute it, then finish() or forget() it
    IN_PROGRESS = "in_progress"  # its answer will come: do nothing
    DONE = "done"  # send the kept reply
    FULL = "full"  # too many in progress: refuse it as overloaded


class Lookup(NamedTuple, Generic[T]):
    """What is known of a request; ``reply`` if it is done."""

    seen: Seen
    reply: T | None = None


class Dedup(Generic[K, T]):
    """A bounded memory of requests: those in progress, and the latest replies.

    Args:
        in_progress: most requests in progress; they are never dropped to make room.
        replies: most replies kept; the least recently used goes first.
        reply_bytes: most bytes of replies kept, by the sizes given to ``finish``.
    """

    def __init__(
        self, *, in_progress: int = 4096, replies: int = 4096, reply_bytes: int = 256 * 1024 * 1024
    ) -> None:
        self._max_in_progress = in_progress
        self._max_replies = replies
        self._max_bytes = reply_bytes
        self._in_progress: set[K] = set()
        self._replies: OrderedDict[K, tuple[T, int]] = OrderedDict()
        self.reply_bytes = 0

    def begin(self, key: K) -> Lookup[T]:
        """What is known of a request that has arrived; a new one is noted as in progress."""
        kept = self._replies.get(key)
        if kept is not None:
            self._replies.move_to_end(key)
            return Lookup(Seen.DONE, kept[0])
        if key in self._in_progress:
            return Lookup(Seen.IN_PROGRESS)
        if len(self._in_progress) >= self._max_in_progress:
            return Lookup(Seen.FULL)
        self._in_progress.add(key)
        return Lookup(Seen.NEW)

    def finish(self, key: K, reply: T, size: int = 0) -> None:
        """Keeps the reply of a request in progress; ``size`` is its bytes.

        Raises:
            LocalProtocolError: the request is not in progress: a bug on this side.
        """
        if key not in self._in_progress:
            raise LocalProtocolError(
                "A request was finished that is not in progress.", hint="Call begin() first."
            )
        self._in_progress.discard(key)
        self._replies[key] = (reply, size)
        self.reply_bytes += size
        while len(self._replies) > self._max_replies or self.reply_bytes > self._max_bytes:
            _, (_, dropped) = self._replies.popitem(last=False)
            self.reply_bytes -= dropped

    def forget(self, key: K) -> None:
        """Forgets a request that ended without a reply worth keeping."""
        self._in_progress.discard(key)
        _, size = self._replies.pop(key, (None, 0))
        self.reply_bytes -= size

    @property
    def in_progress(self) -> int:
        return len(self._in_progress)

    def __len__(self) -> int:
        """How many replies are kept."""
        return len(self._replies)
