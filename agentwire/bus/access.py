"""Keys of a bus that admits peers of other machines, and of such a peer; plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class AllowedKeys(Protocol):
    """The public keys that may connect (``keys.AllowList``)."""

    def name_of(self, key: str) -> str | None:
        """The name that a public key is registered for; None if it is not. Thread-safe."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteAccess:
    """Where peers of other machines connect, and with which keys.

    Attributes:
        endpoint: ``tcp://…`` to listen on, in addition to the run's ipc socket.
        secret: the bus's own secret key (Z85).
        allowed: the public keys that may connect, by name.
    """

    endpoint: str
    secret: str = field(repr=False)
    allowed: AllowedKeys


@dataclass(frozen=True, slots=True)
class PeerKeys:
    """The keys a peer needs to connect to such a bus; all in Z85."""

    public: str
    secret: str = field(repr=False)
    server: str
