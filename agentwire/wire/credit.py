"""Credit-based flow control on one hop: the consumer grants, the producer spends.

A message costs one message and its body's bytes. Bytes may be overdrawn by one message: as long as
any are left, the next message may go, however large it is. Otherwise a message larger than what is
left would wait for ever. A consumer therefore holds at most its window and one message more.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentwire.errors import LocalProtocolError, NackCode, RemoteProtocolError


@dataclass(frozen=True, slots=True)
class Grant:
    """How much more may be sent: the content of a Credit message."""

    messages: int
    bytes: int


class CreditGate:
    """Producer side: what may still be sent on each wire.

    Args:
        max_messages, max_bytes: more credit than this at once is refused: nobody needs it, and a
            peer that grants without end would switch flow control off.
        max_wires: how many wires may hold credit.
    """

    def __init__(
        self, *, max_messages: int = 65_536, max_bytes: int = 2**36, max_wires: int = 1024
    ) -> None:
        self._most = Grant(max_messages, max_bytes)
        self._max_wires = max_wires
        self._left: dict[str, Grant] = {}

    def add(self, wire: str, messages: int, bytes: int) -> None:
        """Takes in a Credit message.

        Raises:
            RemoteProtocolError: (``malformed``) a negative grant, or more credit than the bounds;
                what was left stays as it was.
        """
        left = self.left(wire)
        total = Grant(left.messages + messages, left.bytes + bytes)
        if messages < 0 or bytes < 0:
            raise RemoteProtocolError(NackCode.MALFORMED, "credit must not be negative")
        if total.messages > self._most.messages or total.bytes > self._most.bytes:
            raise RemoteProtocolError(
                NackCode.MALFORMED,
                f"credit of {total.messages} messages and {total.bytes} bytes on {wire} is over "
                f"the bound of {self._most.messages} and {self._most.bytes}",
            )
        if wire not in self._left and len(self._left) >= self._max_wires:
            raise RemoteProtocolError(
                NackCode.MALFORMED, f"credit for more than {self._max_wires} wires"
            )
        self._left[wire] = total

    def allows(self, wire: str) -> bool:
        """Whether one more message, of any size, may be sent now."""
        left = self.left(wire)
        return left.messages > 0 and left.bytes > 0

    def take(self, wire: str, size: int) -> bool:
        """Spends credit on a message with ``size`` bytes of body; False: none, so do not send."""
        if not self.allows(wire):
            return False
        left = self._left[wire]
        self._left[wire] = Grant(left.messages - 1, left.bytes - size)
        return True

    def left(self, wire: str) -> Grant:
        """What is left; bytes below 0 are overdrawn."""
        return self._left.get(wire, Grant(0, 0))

    def clear(self, wire: str | None = None) -> None:
        """Drops all credit of a wire, or of all: the consumer that granted it is gone."""
        if wire is None:
            self._left.clear()
        else:
            self._left.pop(wire, None)


class CreditWindow:
    """Consumer side of one wire: how much may be on its way or waiting here.

    At every moment ``waiting + granted + not yet granted back = window``. Credit is granted back in
    batches of half a window, so that a Credit message does not answer every message.

    Args:
        messages, bytes: the window; both 1 or more.
    """

    def __init__(self, messages: int, bytes: int) -> None:
        if messages < 1 or bytes < 1:
            raise LocalProtocolError(
                "A credit window must hold a message and a byte.", hint="Raise its limits."
            )
        self._window = Grant(messages, bytes)
        self._waiting = Grant(0, 0)  # arrived, not consumed
        self._granted = Grant(0, 0)  # granted, not used

    @property
    def waiting(self) -> Grant:
        """What arrived and is not consumed."""
        return self._waiting

    def open(self) -> Grant:
        """The first grant to a producer, also to a new incarnation of it.

        All that was granted before is void: the new producer does not know of it. What still
        waits here keeps its place in the window.
        """
        self._granted = Grant(0, 0)
        return self._grant()

    def arrived(self, size: int) -> None:
        """Counts a message with ``size`` bytes of body.

        Raises:
            RemoteProtocolError: (``overloaded``) the producer sends more than it was granted. The
                message was not counted and must be dropped.
        """
        granted = self._granted
        if granted.messages < 1 or granted.bytes < 1:
            raise RemoteProtocolError(NackCode.OVERLOADED, "more was sent than was granted")
        self._granted = Grant(granted.messages - 1, granted.bytes - size)
        self._waiting = Grant(self._waiting.messages + 1, self._waiting.bytes + size)

    def consumed(self, size: int) -> Grant | None:
        """A message that had arrived is done with; the grant to send now, if it is time for one.

        Raises:
            LocalProtocolError: more was consumed than had arrived: a bug on this side.
        """
        rest = Grant(self._waiting.messages - 1, self._waiting.bytes - size)
        if rest.messages < 0 or rest.bytes < 0:
            raise LocalProtocolError(
                "More was consumed than had arrived.", hint="Call arrived() for each message."
            )
        self._waiting = rest
        due = self._ungranted()
        if 2 * due.messages >= self._window.messages or 2 * due.bytes >= self._window.bytes:
            return self._grant()
        return None

    def _ungranted(self) -> Grant:
        return Grant(
            self._window.messages - self._waiting.messages - self._granted.messages,
            self._window.bytes - self._waiting.bytes - self._granted.bytes,
        )

    def _grant(self) -> Grant:
        due = self._ungranted()
        # An overdrawn window (one message over) has nothing to give until that is consumed.
        grant = Grant(max(0, due.messages), max(0, due.bytes))
        self._granted = Grant(
            self._granted.messages + grant.messages, self._granted.bytes + grant.bytes
        )
        return grant
