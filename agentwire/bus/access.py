"""What a bus needs to let peers of other machines in, and what such a peer needs; plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class Guest(Protocol):
    """Who is let in (``keys.AllowList``)."""

    def name_of(self, key: str) -> str | None:
        """The name that a public key stands for; None: it is not let in. Thread-safe."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteAccess:
    """Where peers of other machines connect, and which.

    Attributes:
        endpoint: ``tcp://…`` to listen on, besides the run's ipc socket.
        secret: the bus's own secret key (Z85).
        guests: the public keys that are let in, by name.
    """

    endpoint: str
    secret: str = field(repr=False)
    guests: Guest


@dataclass(frozen=True, slots=True)
class PeerKeys:
    """What a peer needs to connect to a bus with keys; all in Z85."""

    public: str
    secret: str = field(repr=False)
    server: str
