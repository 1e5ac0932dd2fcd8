"""Who is on the bus, and who may come in. No IO."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass

from agentwire.bus.stimuli import PeerId
from agentwire.errors import NackCode
from agentwire.wire.messages import Hello, ModelIdentity, Role


@dataclass(slots=True)
class Peer:
    """One incarnation that was let in.

    Attributes:
        model: None until an agent is ready; always None for a client.
        busy_ms: as last reported.
        keyed: it came with a key of its own, in the place of the run's token.
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
        token: what every Hello must carry.
        max_clients: how many clients may be connected at once.
    """

    def __init__(self, agents: frozenset[str], token: str, max_clients: int) -> None:
        self._agents = agents
        self._token = token.encode()
        self._max_clients = max_clients
        self._expected: dict[str, int] = {}
        self._invited: dict[str, int] = {}  # name -> epoch of its latest incarnation
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
        """The live client of this name."""
        peer = self._names.get(name)
        return peer if peer is not None and peer.role is Role.CLIENT else None

    def ready_agent(self, name: str) -> Peer | None:
        """The live agent of this name, if it can work."""
        peer = self._names.get(name)
        return peer if peer is not None and peer.ready else None

    def expect(self, name: str, epoch: int) -> None:
        self._expected[name] = epoch

    def invite(self, name: str) -> None:
        """Every new incarnation of this agent is let in, if its key says that it is one."""
        self._invited.setdefault(name, -1)

    def unexpect(self, name: str, epoch: int) -> None:
        """Nobody of this incarnation may come in (again)."""
        if self._expected.get(name) == epoch:
            del self._expected[name]

    def refusal(
        self, hello: Hello, epoch: int, keyed: str | None = None
    ) -> tuple[NackCode, str] | None:
        """Why this Hello is not let in; None if it is.

        The token comes first, so that without it nothing can be learnt about who is expected. A
        key takes its place, and gives the name that it stands for and no other.
        """
        if keyed is not None:
            return self._keyed_refusal(hello, epoch, keyed)
        if not self.knows_token(hello):
            return NackCode.UNAUTHORIZED, "the token is not this run's"
        if (hello.role is Role.AGENT) != (hello.name in self._agents):
            return NackCode.UNAUTHORIZED, f"{hello.name!r} is no {hello.role} of this run"
        if hello.role not in (Role.AGENT, Role.CLIENT):
            return NackCode.UNAUTHORIZED, "only agents and clients are let in"
        expected = self._expected.get(hello.name)
        live = self._names.get(hello.name)
        known = max(-1 if expected is None else expected, -1 if live is None else live.epoch)
        if epoch < known or (live is not None and epoch == live.epoch):
            return NackCode.STALE_EPOCH, f"epoch {epoch} of {hello.name!r} is over"
        if expected is None and hello.role is Role.AGENT:
            return NackCode.STALE_EPOCH, f"{hello.name!r} is not expected"
        if expected is not None and epoch != expected:
            return NackCode.UNAUTHORIZED, f"epoch {epoch} of {hello.name!r} is not expected"
        clients = sum(peer.role is Role.CLIENT for peer in self._peers.values())
        if hello.role is Role.CLIENT and live is None and clients >= self._max_clients:
            return NackCode.OVERLOADED, f"{clients} clients are connected already"
        return None

    def _keyed_refusal(self, hello: Hello, epoch: int, keyed: str) -> tuple[NackCode, str] | None:
        if hello.name != keyed:
            return NackCode.UNAUTHORIZED, f"this key stands for {keyed!r}"
        latest = self._invited.get(hello.name)
        if latest is None or hello.role is not Role.AGENT or hello.name not in self._agents:
            return NackCode.UNAUTHORIZED, f"{hello.name!r} is not awaited from another machine"
        if epoch <= latest:
            return NackCode.STALE_EPOCH, f"epoch {epoch} of {hello.name!r} is over"
        return None

    def knows_token(self, hello: Hello) -> bool:
        """Whether the Hello carries the run's secret; takes the same time for every wrong one."""
        return hmac.compare_digest(hello.token.encode(errors="replace"), self._token)

    def add(self, peer: Peer) -> None:
        self._peers[peer.id] = self._names[peer.name] = peer
        if peer.name in self._invited:
            self._invited[peer.name] = peer.epoch

    def remove(self, peer: Peer) -> None:
        """Takes an incarnation out; an agent's does not come back."""
        self._peers.pop(peer.id, None)
        if self._names.get(peer.name) is peer:
            del self._names[peer.name]
        if peer.role is Role.AGENT:
            self.unexpect(peer.name, peer.epoch)
