"""A broker and endpoints over any transport; records every event and message."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from bus_messages import TASK, TOKEN, WIDE, WIRES, hello
from patience import EVENT_S, TEST_S

from agentwire.bus.broker import Broker
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.events import PeerReady
from agentwire.bus.flow import RoutingLimits
from agentwire.bus.transport import RemoteAccess, Transport
from agentwire.spec.agent import BusAddress
from agentwire.wire import messages as m
from agentwire.wire.session import Timing

RUN = bytes(range(16))
PATIENCE = EVENT_S
FOREVER = 2 * TEST_S  # the time limit of the test ends what waits so long
T = TypeVar("T")


class Kept:
    """A list of events, with a way to wait for one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.items: list[object] = []

    def add(self, item: object) -> None:
        with self._changed:
            self.items.append(item)
            self._changed.notify_all()

    def of(self, kind: type[T]) -> list[T]:
        with self._changed:
            return [item for item in self.items if isinstance(item, kind)]

    def wait_for(self, kind: type[T], when: Callable[[T], bool] = lambda item: True) -> T:
        """The first item of this kind for which ``when`` holds."""
        found: list[T] = []

        def look() -> bool:
            found[:] = [i for i in self.items if isinstance(i, kind) and when(i)][:1]
            return bool(found)

        with self._changed:
            assert self._changed.wait_for(look, PATIENCE), f"no {kind.__name__} in {self.items}"
        return found[0]


class Peer:
    """An endpoint and the messages it received."""

    def __init__(self, address: BusAddress, said: m.Hello, transport: Transport | None) -> None:
        self.inbox = Kept()
        self.name = said.name
        self.endpoint = Endpoint(
            address,
            said,
            on_message=lambda message, arrival: self.inbox.add(message),
            on_lost=self.inbox.add,
            transport=transport,
        )
        self.endpoint.start()

    def send(self, message: m.Message) -> None:
        self.endpoint.send(message)

    def lost(self) -> str:
        """Why the broker was lost; waits for it."""
        return self.inbox.wait_for(str)


class Rig:
    """A broker and its peers; closes all of them."""

    def __init__(
        self,
        folder: Path,
        transport: Transport | None = None,
        *,
        timing: Timing | None = None,
        limits: RoutingLimits | None = None,
        remote: RemoteAccess | None = None,
    ) -> None:
        self.events = Kept()
        self.transport = transport
        self.peers: list[Peer] = []
        self.broker = Broker(
            run=RUN,
            folder=folder,
            wires=WIRES,
            token=TOKEN,
            on_event=self.events.add,
            transport=transport,
            timing=timing,
            limits=limits,
            remote=remote,
        )
        self.broker.start()

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for peer in self.peers:
            peer.endpoint.close("test over", 1.0)
        self.broker.stop(1.0)

    def address(self, epoch: int = 1, *, token: str = TOKEN, run: bytes = RUN) -> BusAddress:
        return BusAddress(endpoint=self.broker.endpoint, run=run.hex(), epoch=epoch, token=token)

    def connect(self, said: m.Hello, epoch: int = 1, **changes: object) -> Peer:
        peer = Peer(self.address(epoch, **changes), said, self.transport)  # type: ignore[arg-type]
        self.peers.append(peer)
        return peer

    def agent(self, name: str, epoch: int = 1) -> Peer:
        """An agent that is ready and takes a lot."""
        self.broker.expect(name, epoch)
        peer = self.connect(hello(name), epoch)
        peer.endpoint.announce(hello(name, ready=True))
        self.events.wait_for(PeerReady, lambda event: (event.name, event.epoch) == (name, epoch))
        peer.send(WIDE)
        return peer

    def client(self, name: str = "client") -> Peer:
        peer = self.connect(hello(name))
        peer.inbox.wait_for(m.Credit)
        peer.send(m.Define(TASK))
        return peer

    def count(self, what: str, at_least: int = 1) -> None:
        """Waits until a counter of the broker has come so far."""
        deadline = time.monotonic() + PATIENCE
        while self.broker.metrics().get(what, 0) < at_least:
            assert time.monotonic() < deadline, f"{what}: {dict(self.broker.metrics())}"
            time.sleep(0.005)
