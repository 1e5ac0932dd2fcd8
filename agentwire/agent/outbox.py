"""What an agent has to send: at once, or when the broker has granted credit for it. No IO."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from agentwire.wire.credit import CreditGate
from agentwire.wire.messages import Credit, Message, Soft, Text, body_bytes


class Outbox:
    """Holds Soft and Text messages back until their wire has credit; everything else goes at once.

    It stays small because the worker computes nothing for a wire that ``is_blocked``.

    Args:
        send: hands a message to the bus.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._gate = CreditGate()
        self._waiting: dict[str, deque[Soft | Text]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def is_blocked(self, wire: str) -> bool:
        """Whether a message of this wire still waits for credit."""
        return wire in self._waiting

    def send(self, message: Message) -> None:
        """Sends or queues one message. The rows of a Text carry their sizes already."""
        if not isinstance(message, Soft | Text):
            self._send(message)
            return
        self._waiting.setdefault(message.wire, deque()).append(message)
        self._flush(message.wire)

    def grant(self, credit: Credit) -> None:
        """The broker takes so much more on one wire.

        Raises:
            RemoteProtocolError: more credit than anybody needs.
        """
        self._gate.add(credit.wire, credit.messages, credit.bytes)
        self._flush(credit.wire)

    def _flush(self, wire: str) -> None:
        queue = self._waiting.get(wire)
        while queue and self._gate.take(wire, body_bytes(queue[0])):
            self._send(queue.popleft())
        if not queue:
            self._waiting.pop(wire, None)
