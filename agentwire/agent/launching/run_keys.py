"""CURVE keys of one run, for launchers."""

from __future__ import annotations

from agentwire.bus.curve import new_pair
from agentwire.bus.transport import RemoteAccess
from agentwire.spec.agent import AgentBootstrap, AgentSpec, BusAddress, CurveKeys
from agentwire.wire.session import UNKNOWN_RUN


class RunKeys:
    """The keys of the bus and of each agent that a launcher starts; in memory only."""

    def __init__(self) -> None:
        self._public, self._secret = new_pair()
        self._names: dict[str, str] = {}  # agents by public key

    def access(self, endpoint: str) -> RemoteAccess:
        """For a bus that listens at ``endpoint`` (``tcp://host:*`` for any port)."""
        return RemoteAccess(endpoint, self._secret, self)

    def bootstrap(self, spec: AgentSpec, endpoint: str) -> AgentBootstrap:
        """The first line on stdin of ``python -m agentwire.agent.process``, with new keys."""
        public, secret = new_pair()
        self._names[public] = spec.name
        return AgentBootstrap(
            agent=spec,
            bus=BusAddress(endpoint=endpoint, run=UNKNOWN_RUN.hex(), epoch=0, token=""),
            keys=CurveKeys(public=public, secret=secret, server=self._public),
        )

    def name_of(self, key: str) -> str | None:
        return self._names.get(key)
