"""The broker: one thread, one ROUTER socket, a session for each peer, around ``routing``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from agentwire.bus.events import BrokerEvent
from agentwire.bus.transport import Transport


class Broker:
    """The hub of a run's bus.

    Args:
        run: 16-byte id of the run; messages of any other run are refused.
        folder: private folder (0700) for the ipc socket; see ``security.make_run_folder``.
        wires: wire name -> (sender, receiver). Direct wires (``@agent``) exist by themselves.
        token: hex secret that every Hello must carry.
        on_event: called in the broker's thread with each event; it must not block.
        transport: for tests; ZeroMQ by default.

    Attributes:
        endpoint: where peers connect (``ipc://…``); known after ``start``.
    """

    def __init__(
        self,
        *,
        run: bytes,
        folder: Path,
        wires: Mapping[str, tuple[str, str]],
        token: str,
        on_event: Callable[[BrokerEvent], None],
        transport: Transport | None = None,
    ) -> None:
        self.endpoint = ""
        raise NotImplementedError

    def start(self) -> None:
        """Binds the socket and starts the thread.

        Raises:
            InputError: the socket cannot be bound there.
        """
        raise NotImplementedError

    def stop(self, timeout: float = 2.0) -> None:
        """Says Goodbye to every peer, closes within ``timeout`` seconds, ends the thread.

        Safe to call twice.

        Raises:
            BaseException: the error that ended the thread before, if a bug did.
        """
        raise NotImplementedError

    def expect(self, name: str, epoch: int) -> None:
        """From now on only this incarnation is let in as ``name``. Thread-safe.

        An agent (an end of a wire) that nobody expects is never let in. A client is, with any
        name that is not an agent's, unless an incarnation of that name is expected.
        """
        raise NotImplementedError

    def forget(self, name: str, epoch: int) -> None:
        """The process of this incarnation is dead: drops its session now. Thread-safe.

        Emits PeerLost if the incarnation was connected.
        """
        raise NotImplementedError

    def metrics(self) -> Mapping[str, int]:
        """Counters since the start, and gauges (``queued_messages``, ``queued_bytes``, ``peers``).

        ``forwarded``, ``refused.<code>``, ``dropped.<why>``. Thread-safe; a snapshot.
        """
        raise NotImplementedError
