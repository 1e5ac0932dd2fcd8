"""tcp with CURVE: only listed keys are admitted, and the traffic is encrypted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bus_messages import TASK, TOKEN, WIDE, WIRE, encode, hello, rows
from bus_rig import RUN, Peer, Rig
from raw_peer import RawPeer

from agentwire.bus.broker import Broker
from agentwire.bus.events import PeerConnected, PeerLost, PeerReady
from agentwire.bus.keys import AllowList, KeyFolder, KeyPair
from agentwire.bus.security import make_run_folder
from agentwire.bus.transport import PeerKeys, RemoteAccess
from agentwire.bus.zmq import ZmqTransport
from agentwire.errors import InputError, NackCode
from agentwire.spec.agent import BusAddress
from agentwire.wire import messages as m
from agentwire.wire.session import UNKNOWN_RUN

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from chaos.links import ByteLink

pytestmark = pytest.mark.integration


class Site:
    """A broker that listens with keys, and the keys."""

    def __init__(self, folder: Path, keys: KeyFolder) -> None:
        self.keys = keys
        self.server = keys.server()
        access = RemoteAccess("tcp://127.0.0.1:*", self.server.secret, AllowList(keys.allowed))
        self.rig = Rig(folder, remote=access)
        self.rig.broker.expect_remote("llama")
        self.address = self.rig.broker.remote_endpoint

    def pair(self, name: str, *, allowed: bool = True) -> KeyPair:
        pair = self.keys.new(name)
        if allowed:
            self.keys.allow(name, pair.public)
        return pair

    def join(self, pair: KeyPair, *, name: str = "llama", epoch: int = 1, at: str = "") -> Peer:
        """An agent of another machine: it knows neither run nor token."""
        keys = PeerKeys(pair.public, pair.secret, self.server.public)
        address = BusAddress(
            endpoint=at or self.address, run=UNKNOWN_RUN.hex(), epoch=epoch, token=""
        )
        peer = Peer(address, hello(name), ZmqTransport(keys=keys))
        self.rig.peers.append(peer)
        return peer


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = make_run_folder()
    site = Site(folder, KeyFolder(tmp_path / "keys"))
    with site.rig:
        yield site
    folder.rmdir()


def test_an_agent_joins_by_its_key_and_works(site: Site) -> None:
    llama = site.join(site.pair("llama"))
    llama.endpoint.announce(hello("llama", ready=True))
    site.rig.events.wait_for(PeerReady)
    llama.send(WIDE)
    client = site.rig.client()  # by ipc, with the token, as ever
    client.send(encode(1))
    assert llama.inbox.wait_for(m.Encode).rows == rows(1, size=1)


def test_a_client_joins_by_its_key_and_replaces_only_itself(site: Site) -> None:
    pair = site.pair("client-far")
    first = site.join(pair, name="client-far")
    assert first.inbox.wait_for(m.Credit)
    second = site.join(pair, name="client-far", epoch=2)  # the same key
    assert second.inbox.wait_for(m.Credit)
    assert "replaced" in first.lost()
    assert "unauthorized" in site.join(pair, name="client-near").lost()
    with RawPeer(site.rig.broker.endpoint, epoch=9) as thief:  # with the run's token
        answer = thief.join("client-far")
        assert isinstance(answer, m.Nack) and answer.code is NackCode.UNAUTHORIZED


def raw(site: Site, **options: bytes) -> RawPeer:
    return RawPeer(site.address, **options)


def curve(site: Site, pair: KeyPair, server: str = "") -> dict[str, bytes]:
    return {
        "CURVE_PUBLICKEY": pair.public.encode(),
        "CURVE_SECRETKEY": pair.secret.encode(),
        "CURVE_SERVERKEY": (server or site.server.public).encode(),
    }


def test_a_peer_without_a_key_gets_no_answer(site: Site) -> None:
    with raw(site) as peer:
        peer.try_to_say(hello("client", token=TOKEN))  # even with the run's own secret
        peer.try_to_say(hello("llama", token=TOKEN))
        assert peer.silent(0.5)
    assert site.rig.broker.metrics().get("dropped.stranger", 0) == 0  # nothing came through
    assert site.rig.broker.metrics()["peers"] == 0


def test_a_peer_with_an_unknown_key_gets_no_answer(site: Site) -> None:
    with raw(site, **curve(site, site.pair("llama", allowed=False))) as peer:
        peer.try_to_say(hello("llama"))
        assert peer.silent(0.5)
    assert site.rig.broker.metrics()["peers"] == 0


def test_a_revoked_key_is_disconnected_and_not_admitted_again(site: Site) -> None:
    pair = site.pair("llama")
    llama = site.join(pair)
    site.rig.events.wait_for(PeerConnected)
    site.keys.revoke("llama")
    lost = site.rig.events.wait_for(PeerLost)
    assert lost.reason == "its key was revoked"
    site.rig.count("dropped.revoked")
    with raw(site, **curve(site, pair)) as peer:
        peer.try_to_say(hello("llama"))
        assert peer.silent(0.5)
    assert site.rig.broker.metrics()["peers"] == 0
    assert llama.name == "llama"


def test_a_key_is_valid_for_one_name(site: Site) -> None:
    pair = site.pair("llama")
    for name in ("mistral", "client"):
        thief = site.join(pair, name=name)
        assert "registered for" in thief.lost()
    other = site.join(site.pair("stranger"), name="stranger")
    assert "unauthorized" in other.lost()


def test_an_ended_incarnation_is_not_admitted_again(site: Site) -> None:
    pair = site.pair("llama")
    site.join(pair, epoch=5)
    site.rig.events.wait_for(PeerConnected)
    assert "has ended" in site.join(pair, epoch=5).lost()
    site.join(pair, epoch=6)
    site.rig.events.wait_for(PeerConnected, lambda event: event.epoch == 6)


def test_a_false_server_gets_no_message(site: Site, tmp_path: Path) -> None:
    """Who connects checks the bus's key as well."""
    false = KeyFolder(tmp_path / "false").server()
    with raw(site, **curve(site, site.pair("llama"), server=false.public)) as peer:
        peer.try_to_say(hello("llama"))
        assert peer.silent(0.5)


SECRET_TEXT = "a text that nobody else may read"


def asked() -> m.Encode:
    size = len(SECRET_TEXT)
    return m.Encode(WIRE, TASK.task_id, m.Channel.SOFT, "text", rows(1, size=size), (SECRET_TEXT,))


def test_a_capture_of_the_traffic_shows_no_text_with_keys(site: Site) -> None:
    link = ByteLink(site.address, "tcp://127.0.0.1:0")
    try:
        llama = site.join(site.pair("llama"), at=link.address)
        llama.endpoint.announce(hello("llama", ready=True))
        site.rig.events.wait_for(PeerReady)
        llama.send(WIDE)
        client = site.rig.client()
        client.send(asked())
        assert llama.inbox.wait_for(m.Encode).texts == (SECRET_TEXT,)
        assert len(link.captured) > 500
        assert SECRET_TEXT.encode() not in link.captured
        assert b"Good or bad?" not in link.captured  # nor what is asked
    finally:
        link.close()


def test_a_capture_shows_the_text_without_keys(tmp_path: Path) -> None:
    """So the capture sees what there is to see."""
    folder = make_run_folder()
    with Rig(folder) as rig:
        rig.broker.stop(1.0)
        rig.broker = Broker(
            run=RUN,
            folder=folder,
            wires={WIRE: ("llama", "mistral")},
            token=TOKEN,
            on_event=rig.events.add,
            listen="tcp://127.0.0.1:*",
        )
        rig.broker.start()
        link = ByteLink(rig.broker.endpoint, "tcp://127.0.0.1:0")
        rig.broker.endpoint = link.address
        try:
            llama, client = rig.agent("llama"), rig.client()
            client.send(asked())
            llama.inbox.wait_for(m.Encode)
            assert SECRET_TEXT.encode() in link.captured
        finally:
            link.close()
    folder.rmdir()


def test_open_tcp_beyond_this_machine_needs_keys(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="open to the network"):
        ZmqTransport().listen("tcp://0.0.0.0:*")
    keys = KeyFolder(tmp_path / "keys")
    access = RemoteAccess("tcp://0.0.0.0:*", keys.server().secret, AllowList(keys.allowed))
    folder = make_run_folder()
    listener = ZmqTransport(remote=access).listen(f"ipc://{folder}/bus")
    try:
        assert listener.remote_endpoint.startswith("tcp://0.0.0.0:")
        assert access.secret not in repr(access)
    finally:
        listener.close(0)
    folder.rmdir()


def test_a_hello_without_token_and_key_is_rejected(site: Site) -> None:
    with RawPeer(site.rig.broker.endpoint) as peer:
        peer.send(peer.frames(hello("llama", token=""), run=UNKNOWN_RUN))
        nack = peer.hear(m.Nack)
        assert isinstance(nack, m.Nack) and nack.code is NackCode.UNAUTHORIZED
