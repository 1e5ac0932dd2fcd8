"""The registry of transports by URL scheme."""

from __future__ import annotations

from pathlib import Path

import pytest
from bus_messages import TOKEN, WIRES, hello
from bus_rig import RUN, Kept, Peer

from agentwire.bus import transport
from agentwire.bus.broker import Broker
from agentwire.bus.memory import MemoryTransport
from agentwire.bus.zmq import ZmqTransport
from agentwire.errors import ScenarioError
from agentwire.spec.agent import BusAddress
from agentwire.wire import messages as m


def test_a_registered_scheme_selects_its_transport(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = MemoryTransport()
    monkeypatch.setitem(transport.TRANSPORTS._loaded, "memory", lambda **keys: bus)
    broker = Broker(
        run=RUN,
        folder=tmp_path,
        wires=WIRES,
        token=TOKEN,
        on_event=Kept().add,
        listen="memory://bus",
    )
    broker.start()
    address = BusAddress(endpoint="memory://bus", run=RUN.hex(), epoch=1, token=TOKEN)
    client = Peer(address, hello("client"), None)
    client.inbox.wait_for(m.Credit)
    client.endpoint.close()
    broker.stop()


def test_built_in_schemes_and_unknown_ones() -> None:
    assert isinstance(transport.transport_for("ipc:///tmp/x"), ZmqTransport)
    assert isinstance(transport.transport_for("tcp://127.0.0.1:1"), ZmqTransport)
    with pytest.raises(ScenarioError, match="'udp'"):
        transport.transport_for("udp://127.0.0.1:1")
