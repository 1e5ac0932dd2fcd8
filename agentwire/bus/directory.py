"""Which peers are connected, and which may connect. No IO."""

from __future__ import annotations

import hmac
import re
from collections import OrderedDict
from dataclasses import dataclass, field

from agentwire.bus.transport import PeerId
from agentwire.errors import NackCode
from agentwire.wire.messages import Hello, Role, TaskSpec


@dataclass(slots=True)
class Peer:
    """One admitted incarnation.

    Attributes:
        ready: an agent that has loaded its model.
        busy_ms: as last reported.
        keyed: its own key identified it, in place of a token.
        token: what its Hello carried.
        tasks: of a client: what it has defined. Of an agent: what it was sent. Both by id, the
            most recently used last.
        task_bytes: of a client's tasks.
        unasked: Defines and Cancels sent to an agent since its last sign of work.
    """

    id: PeerId
    name: str
    role: Role
    epoch: int
    ready: bool = False
    busy_ms: int = 0
    keyed: bool = False
    token: str = ""
    tasks: OrderedDict[str, TaskSpec] = field(default_factory=OrderedDict)
    task_bytes: int = 0
    unasked: int = 0


class Directory:
    """The peers, one incarnation for each name.

    Args:
        agents: names that belong to agents.
        token: the token that a Hello must carry unless its incarnation has one of its own.
        max_clients: how many clients may be connected at once.
        reserved: names of clients that only this process may use.

    Attributes:
        by_id: every connected peer.
        by_name: the same peers.
        clients: connected clients, by name.
        ready_agents: connected agents that can work, by name.
    """

    def __init__(
        self,
        agents: frozenset[str],
        token: str,
        max_clients: int,
        reserved: frozenset[str] = frozenset(),
    ) -> None:
        self._agents = agents
        self._token = token
        self._max_clients = max_clients
        self._reserved = reserved
        self._expected: dict[str, tuple[int, str]] = {}  # name -> epoch and token
        self._remote: dict[str, int] = {}  # name -> epoch of its latest incarnation
        self.by_id: dict[PeerId, Peer] = {}
        self.by_name: dict[str, Peer] = {}
        self.clients: dict[str, Peer] = {}
        self.ready_agents: dict[str, Peer] = {}

    def expect(self, name: str, epoch: int, token: str = "") -> None:
        """Only this incarnation may connect as ``name``, with its own token if it has one."""
        self._expected[name] = epoch, token or self._token

    def expect_remote(self, name: str) -> None:
        """Every new incarnation of this agent may connect with its key."""
        self._remote.setdefault(name, -1)

    def unexpect(self, name: str, epoch: int) -> None:
        """This incarnation may not connect (again)."""
        if self._expected.get(name, (None, ""))[0] == epoch:
            del self._expected[name]

    def refusal(
        self, hello: Hello, epoch: int, key_name: str | None = None, in_process: bool = False
    ) -> tuple[NackCode, str] | None:
        """Why this Hello is refused; None if it is admitted.

        The token is checked first: without it a peer learns nothing about who is expected. A key
        takes the token's place and is valid for the name ``key_name`` only.

        A live client gives way to a newer incarnation only if that shows the same key, comes from
        this process, or is expected. A token is no such proof: every client has it.
        """
        if key_name is not None:
            return self._keyed_refusal(hello, epoch, key_name)
        expected, token = self._expected.get(hello.name, (None, self._token))
        if not same_secret(hello.token, token):
            return NackCode.UNAUTHORIZED, "wrong token for this run"
        if (hello.role is Role.AGENT) != (hello.name in self._agents):
            return NackCode.UNAUTHORIZED, f"{hello.name!r} is not an {hello.role} of this run"
        if hello.role not in (Role.AGENT, Role.CLIENT):
            return NackCode.UNAUTHORIZED, "only agents and clients may connect"
        client = hello.role is Role.CLIENT
        if client and hello.name in self._reserved and not in_process:
            return NackCode.UNAUTHORIZED, f"the name {hello.name!r} is reserved; choose another"
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
        if live is not None and expected is None and not in_process:
            return _in_use(hello.name)
        return self._no_room(hello)

    def _no_room(self, hello: Hello) -> tuple[NackCode, str] | None:
        clients = len(self.clients)
        known = hello.role is Role.AGENT or hello.name in self.clients
        if known or clients < self._max_clients:
            return None
        return NackCode.OVERLOADED, f"{clients} clients are connected already"

    def _keyed_refusal(
        self, hello: Hello, epoch: int, key_name: str
    ) -> tuple[NackCode, str] | None:
        if hello.name != key_name:
            return NackCode.UNAUTHORIZED, f"this key is registered for {key_name!r}"
        agent = hello.role is Role.AGENT
        expected = hello.name in self._remote if agent else hello.name not in self._reserved
        if not expected or agent != (hello.name in self._agents):
            return NackCode.UNAUTHORIZED, f"{hello.name!r} is not expected from another machine"
        latest = self._remote.get(hello.name, -1)
        if epoch <= latest:
            return _stale(hello.name, epoch, latest)
        live = self.by_name.get(hello.name)
        if live is not None and not live.keyed:
            return _in_use(hello.name)
        return self._no_room(hello)

    def add(self, peer: Peer) -> None:
        self.by_id[peer.id] = self.by_name[peer.name] = peer
        if peer.role is Role.CLIENT:
            self.clients[peer.name] = peer
        if peer.keyed:
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


def same_secret(shown: str, secret: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(shown.encode(errors="replace"), secret.encode())


def _in_use(name: str) -> tuple[NackCode, str]:
    return NackCode.UNAUTHORIZED, (
        f"the name {name!r} is in use by another connection; choose another, or try again in a "
        "second if that connection was yours and has ended"
    )
