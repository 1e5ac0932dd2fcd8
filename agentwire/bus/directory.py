"""Which peers are connected, and which may connect. No IO."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from agentwire.bus.transport import PeerId
from agentwire.errors import NackCode
from agentwire.wire.messages import Hello, Role


@dataclass(slots=True)
class Peer:
    """One admitted incarnation.

    Attributes:
        ready: an agent that has loaded its model.
        busy_ms: as last reported.
        keyed: its own key identified it, in place of the run's token.
    """

    id: PeerId
    name: str
    role: Role
    epoch: int
    ready: bool = False
    busy_ms: int = 0
    keyed: bool = False


class Directory:
    """The peers, one incarnation for each name.

    Args:
        agents: names that belong to agents.
        token: the token that every Hello must carry.
        max_clients: how many clients may be connected at once.

    Attributes:
        by_id: every connected peer.
        by_name: the same peers.
        clients: connected clients, by name.
        ready_agents: connected agents that can work, by name.
    """

    def __init__(self, agents: frozenset[str], token: str, max_clients: int) -> None:
        self._agents = agents
        self._token = token.encode()
        self._max_clients = max_clients
        self._expected: dict[str, int] = {}
        self._remote: dict[str, int] = {}  # name -> epoch of its latest incarnation
        self.by_id: dict[PeerId, Peer] = {}
        self.by_name: dict[str, Peer] = {}
        self.clients: dict[str, Peer] = {}
        self.ready_agents: dict[str, Peer] = {}

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
        live = self.by_name.get(hello.name)
        known = max(-1 if expected is None else expected, -1 if live is None else live.epoch)
        if epoch < known or (live is not None and epoch == live.epoch):
            if hello.role is Role.CLIENT and expected is None:
                return _stale(hello.name, epoch, known)
            return NackCode.STALE_EPOCH, f"epoch {epoch} of {hello.name!r} has ended"
        if expected is None and hello.role is Role.AGENT:
            return NackCode.STALE_EPOCH, f"{hello.name!r} is not expected"
        if expected is not None and epoch != expected:
            return NackCode.UNAUTHORIZED, f"epoch {epoch} of {hello.name!r} is not expected"
        clients = len(self.clients)
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
            return _stale(hello.name, epoch, latest)
        return None

    def knows_token(self, hello: Hello) -> bool:
        """Whether the Hello carries the run's token; compares in constant time."""
        return hmac.compare_digest(hello.token.encode(errors="replace"), self._token)

    def add(self, peer: Peer) -> None:
        self.by_id[peer.id] = self.by_name[peer.name] = peer
        if peer.role is Role.CLIENT:
            self.clients[peer.name] = peer
        if peer.name in self._remote:
            self._remote[peer.name] = peer.epoch

    def set_ready(self, agent: Peer) -> None:
        agent.ready = True
        self.ready_agents[agent.name] = agent

    def remove(self, peer: Peer) -> None:
        """Removes an incarnation; an agent's incarnation may not connect again."""
        self.by_id.pop(peer.id, None)
        for peers in (self.by_name, self.clients, self.ready_agents):
            if peers.get(peer.name) is peer:
                del peers[peer.name]
        if peer.role is Role.AGENT:
            self.unexpect(peer.name, peer.epoch)


def _stale(name: str, epoch: int, latest: int) -> tuple[NackCode, str]:
    ended = f"epoch {epoch} of {name!r} has ended"
    return NackCode.STALE_EPOCH, f"{ended}; the next must be above {latest}"


def epoch_to_exceed(reason: str) -> int | None:
    """The epoch that the reason of a ``stale_epoch`` names; None if it names none."""
    named = re.search(r"must be above (\d{1,19})$", reason)
    return int(named[1]) if named else None
