"""Credit-based flow control on one hop: the consumer grants, the producer spends.

A message costs one message and its body's bytes. Bytes may be overdrawn by one message: while any
are left, the next message may go, however large it is, or a message larger than the rest would
wait for ever. So a consumer holds at most its window and one message more.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

from agentwire.errors import LocalProtocolError, NackCode, RemoteProtocolError
from agentwire.wire.messages import Soft, WorkMessage

_SIZE = attrgetter("size")


def body_bytes(work: WorkMessage) -> int:
    """What a message costs in byte credit: the bytes of its body."""
    return len(work.payload.data) if isinstance(work, Soft) else sum(map(_SIZE, work.rows))


@dataclass(frozen=True, slots=True)
class Grant:
    """How much more may be sent: the content of a Credit message."""

    messages: int
    bytes: int


NOTHING = (0, 0)


class CreditGate:
    """Producer side: what may still be sent on each wire.

    Args:
        max_messages, max_bytes: more credit than this at once is refused: nobody needs it, and
            endless grants would switch flow control off.
        max_wires: how many wires may hold credit.
    """

    def __init__(
        self, *, max_messages: int = 65_536, max_bytes: int = 2**36, max_wires: int = 1024
    ) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_wires = max_wires
        self._left: dict[str, tuple[int, int]] = {}  # messages, bytes

    def add(self, wire: str, messages: int, bytes: int) -> None:
        """Adds the credit of a Credit message.

        Raises:
            RemoteProtocolError: (``malformed``) a negative grant, or more credit than the bounds;
                the credit stays as it was.
        """
        left_messages, left_bytes = self._left.get(wire, NOTHING)
        all_messages, all_bytes = left_messages + messages, left_bytes + bytes
        if messages < 0 or bytes < 0:
            raise RemoteProtocolError(NackCode.MALFORMED, "credit must not be negative")
        if all_messages > self._max_messages or all_bytes > self._max_bytes:
            raise RemoteProtocolError(
                NackCode.MALFORMED,
                f"credit of {all_messages} messages and {all_bytes} bytes on {wire} is over "
                f"the bound of {self._max_messages} and {self._max_bytes}",
            )
        if wire not in self._left and len(self._left) >= self._max_wires:
            raise RemoteProtocolError(
                NackCode.MALFORMED, f"credit for more than {self._max_wires} wires"
            )
        self._left[wire] = all_messages, all_bytes

    def allows(self, wire: str) -> bool:
        """Whether one more message, of any size, may be sent now."""
        messages, bytes = self._left.get(wire, NOTHING)
        return messages > 0 and bytes > 0

    def take(self, wire: str, size: int) -> bool:
        """Spends credit on a message with ``size`` bytes of body; False: there is none."""
        messages, bytes = self._left.get(wire, NOTHING)
        if messages <= 0 or bytes <= 0:
            return False
        self._left[wire] = messages - 1, bytes - size
        return True

    def left(self, wire: str) -> Grant:
        """The credit left; negative bytes are overdrawn."""
        return Grant(*self._left.get(wire, NOTHING))

    def clear(self) -> None:
        """Drops all credit: the consumer that granted it is gone."""
        self._left.clear()


class CreditWindow:
    """Consumer side of one wire: how much may be on its way or waiting here.

    Always ``waiting + granted + not yet granted back = window``. Credit is granted back in batches
    of half a window, so that not every message causes a Credit message.

    Args:
        messages, bytes: the window; both 1 or more.
    """

    def __init__(self, messages: int, bytes: int) -> None:
        if messages < 1 or bytes < 1:
            raise LocalProtocolError(
                "A credit window must hold a message and a byte.", hint="Raise its limits."
            )
        self._messages, self._bytes = messages, bytes
        self._waiting_messages = self._waiting_bytes = 0  # arrived, not consumed
        self._granted_messages = self._granted_bytes = 0  # granted, not used

    def open(self) -> Grant:
        """The first grant to a producer, or to a new incarnation of it.

        Earlier grants are void: a new producer does not know of them. What still waits here keeps
        its place in the window.
        """
        self._granted_messages = self._granted_bytes = 0
        return self._grant(
            self._messages - self._waiting_messages, self._bytes - self._waiting_bytes
        )

    def arrived(self, size: int) -> None:
        """Counts a message with ``size`` bytes of body.

        Raises:
            RemoteProtocolError: (``overloaded``) the producer sent more than it was granted. The
                message was not counted and must be dropped.
        """
        if self._granted_messages < 1 or self._granted_bytes < 1:
            raise RemoteProtocolError(NackCode.OVERLOADED, "more was sent than was granted")
        self._granted_messages -= 1
        self._granted_bytes -= size
        self._waiting_messages += 1
        self._waiting_bytes += size

    def consumed(self, size: int) -> Grant | None:
        """Counts a message as consumed; returns the grant to send now, if one is due. Raises a
        LocalProtocolError if nothing had arrived: a bug on this side."""
        if self._waiting_messages < 1 or self._waiting_bytes < size:
            raise LocalProtocolError(
                "More was consumed than had arrived.", hint="Call arrived() for each message."
            )
        self._waiting_messages -= 1
        self._waiting_bytes -= size
        messages = self._messages - self._waiting_messages - self._granted_messages
        bytes = self._bytes - self._waiting_bytes - self._granted_bytes
        if 2 * messages >= self._messages or 2 * bytes >= self._bytes:
            return self._grant(messages, bytes)
        return None

    def _grant(self, messages: int, bytes: int) -> Grant:
        # An overdrawn window (one message over) grants nothing until that is consumed.
        grant = Grant(max(0, messages), max(0, bytes))
        self._granted_messages += grant.messages
        self._granted_bytes += grant.bytes
        return grant
