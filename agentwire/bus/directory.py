"""Which peers are connected, and which may connect. No IO."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass

from agentwire.bus.transport import PeerId
from agentwire.errors import NackCode
from agentwire.wire.messages import Hello, ModelIdentity, Role


@dataclass(slots=True)
class Peer:
    """One admitted incarnation.

    Attributes:
        model: None until an agent is ready; always None for a client.
        busy_ms: as last reported.
        keyed: its own key identified it, in place of the run's token.
    """

    id: PeerId
    name: str
    role: Role
    epoch: int
    model: ModelIdentity | None = None
    busy_ms: int = 0
    keyed: bool = False

    @property
    def ready(self) -> bool:
        return self.model is not None


class Directory:
    """The peers, one incarnation for each name.

    Args:
        agents: names that belong to agents.
        token: the token that every Hello must carry.
        max_clients: how many clients may be connected at once.
    """

    def __init__(self, agents: frozenset[str], token: str, max_clients: int) -> None:
        self._agents = agents
        self._token = token.encode()
        self._max_clients = max_clients
        self._expected: dict[str, int] = {}
        self._remote: dict[str, int] = {}  # name -> epoch of its latest incarnation
        self._peers: dict[PeerId, Peer] = {}
        self._names: dict[str, Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(tuple(self._peers.values()))

    def get(self, peer: PeerId) -> Peer | None:
        return self._peers.get(peer)

    def named(self, name: str) -> Peer | None:
        return self._names.get(name)

    def client(self, name: str) -> Peer | None:
        """The connected client of this name."""
        peer = self._names.get(name)
        return peer if peer is not None and peer.role is Role.CLIENT else None

    def ready_agent(self, name: str) -> Peer | None:
        """The connected agent of this name, if it can work."""
        peer = self._names.get(name)
        return peer if peer is not None and peer.ready else None

    def expect(self, name: str, epoch: int) -> None:
        """Only this incarnation may connect as ``name``."""
        self._expected[name] = epoch

    def expect_remote(self, name: str) -> None:
        """Every new incarnation of this agent may connect with its key."""
        self._remote.setdefault(name, -1)

    def unexpect(self, name: str, epoch: int) -> None:
        """This incarnation may not connect (again)."""
        if self._expected.get(name) == epoch:
            del self._expected[name]

    def refusal(
        self, hello: Hello, epoch: int, key_name: str | None = None
    ) -> tuple[NackCode, str] | None:
        """Why this Hello is refused; None if it is admitted.

        The token is checked first: without it a peer learns nothing about who is expected. A key
        takes the token's place and is valid for the name ``key_name`` only.
        """
        if key_name is not None:
            return self._keyed_refusal(hello, epoch, key_name)
        if not self.knows_token(hello):
            return NackCode.UNAUTHORIZED, "wrong token for this run"
        if (hello.role is Role.AGENT) != (hello.name in self._agents):
            return NackCode.UNAUTHORIZED, f"{hello.name!r} is not an {hello.role} of this run"
        if hello.role not in (Role.AGENT, Role.CLIENT):
            return NackCode.UNAUTHORIZED, "only agents and clients may connect"
        expected = self._expected.get(hello.name)
        live = self._names.get(hello.name)
        known = max(-1 if expected is None else expected, -1 if live is None else live.epoch)
        if epoch < known or (live is not None and epoch == live.epoch):
            return NackCode.STALE_EPOCH, f"epoch {epoch} of {hello.name!r} has ended"
        if expected is None and hello.role is Role.AGENT:
            return NackCode.STALE_EPOCH, f"{hello.name!r} is not expected"
        if expected is not None and epoch != expected:
            return NackCode.UNAUTHORIZED, f"epoch {epoch} of {hello.name!r} is not expected"
        clients = sum(peer.role is Role.CLIENT for peer in self._peers.values())
        if hello.role is Role.CLIENT and live is None and clients >= self._max_clients:
            return NackCode.OVERLOADED, f"{clients} clients are connected already"
        return None

    def _keyed_refusal(
        self, hello: Hello, epoch: int, key_name: str
    ) -> tuple[NackCode, str] | None:
        if hello.name != key_name:
            return NackCode.UNAUTHORIZED, f"this key is registered for {key_name!r}"
        latest = self._remote.get(hello.name)
        if latest is None or hello.role is not Role.AGENT or hello.name not in self._agents:
            return NackCode.UNAUTHORIZED, f"{hello.name!r} is not expected from another machine"
        if epoch <= latest:
            return NackCode.STALE_EPOCH, f"epoch {epoch} of {hello.name!r} has ended"
        return None

    def knows_token(self, hello: Hello) -> bool:
        """Whether the Hello carries the run's token; compares in constant time."""
        return hmac.compare_digest(hello.token.encode(errors="replace"), self._token)

    def add(self, peer: Peer) -> None:
        self._peers[peer.id] = self._names[peer.name] = peer
        if peer.name in self._remote:
            self._remote[peer.name] = peer.epoch

    def remove(self, peer: Peer) -> None:
        """Removes an incarnation; an agent's incarnation may not connect again."""
        self._peers.pop(peer.id, None)
        if self._names.get(peer.name) is peer:
            del self._names[peer.name]
        if peer.role is Role.AGENT:
            self.unexpect(peer.name, peer.epoch)
