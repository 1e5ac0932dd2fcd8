"""An agent's or client's place on the bus: one thread around one socket and one session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agentwire.bus.transport import Transport
from agentwire.wire.messages import Hello, Message


class Address(Protocol):
    """Where the bus is and what this incarnation says there (``agent.spec.BusAddress``)."""

    @property
    def endpoint(self) -> str: ...
    @property
    def run(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def token(self) -> str: ...


class Endpoint:
    """A connection to the broker that does its own heartbeats.

    Args:
        address: where the bus is; its token and epoch go into every Hello.
        hello: how this peer introduces itself (its ``token`` is filled in from ``address``).
        on_message: called with each message and the ``time.monotonic()`` of its arrival, for
            every type but Welcome, Ping and Pong. Runs in the IO thread: it must not block.
        on_lost: called once, with the reason, when the broker is lost, said Goodbye, or refused
            this peer; not after ``close``. Runs in the IO thread: it must not block.
        transport: for tests; ZeroMQ by default.

    Attributes:
        busy_since: ``time.monotonic()`` of the start of the batch that is being computed; None
            when idle. Set by the compute loop; every Ping and Pong carries it.
    """

    def __init__(
        self,
        address: Address,
        hello: Hello,
        *,
        on_message: Callable[[Message, float], None],
        on_lost: Callable[[str], None],
        transport: Transport | None = None,
    ) -> None:
        self.busy_since: float | None = None
        raise NotImplementedError

    def start(self) -> None:
        """Connects and says Hello, in a thread of its own; returns at once."""
        raise NotImplementedError

    def send(self, message: Message) -> None:
        """Queues a message; thread-safe. Order is kept for each calling thread.

        Messages queued before the broker's Welcome leave after it. The queue is bounded: where
        it is full (the broker does not read), this blocks until there is room. In the IO thread
        (inside ``on_message``) it never blocks.

        Raises:
            BusClosed: the endpoint is closed, or the broker is lost.
        """
        raise NotImplementedError

    def announce(self, hello: Hello) -> None:
        """Says Hello again, now with the model: this agent is ready.

        Raises:
            BusClosed: as for ``send``.
        """
        raise NotImplementedError

    def close(self, reason: str = "", timeout: float = 2.0) -> None:
        """Sends what is queued and Goodbye, within ``timeout`` seconds, and ends the thread.

        Safe to call twice. Does not call ``on_lost``.
        """
        raise NotImplementedError
