"""Peers that break the protocol, against the real broker over real sockets.

Each is answered with a Nack, or dropped and counted. After each the broker still serves others.
"""

from __future__ import annotations

import dataclasses
import random
import time
import zlib
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest
from bus_messages import TASK, TOKEN, WIRE, bridge, encode, hello, result, rows, soft
from bus_rig import RUN, Rig
from raw_peer import RawPeer, memory_mb

from agentwire.agent.compute import check_rows
from agentwire.agent.validation import Agreements, from_payload
from agentwire.bus.events import PeerLost
from agentwire.bus.security import make_run_folder
from agentwire.bus.zmq import ZmqTransport
from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.wire import messages as m

pytestmark = pytest.mark.integration


@pytest.fixture
def rig() -> Iterator[Rig]:
    folder = make_run_folder()
    with Rig(folder) as rig:
        yield rig
    rig.broker.stop(0.1)
    folder.rmdir()


def check_that_it_serves(rig: Rig, number: int = 99) -> None:
    """An honest client is answered through honest agents."""
    epoch = 1 + sum(peer.name == "llama" for peer in rig.peers)
    llama, mistral, client = (
        rig.agent("llama", epoch),
        rig.agent("mistral", epoch),
        rig.client("client-honest"),
    )
    client.send(encode(number))
    work = llama.inbox.wait_for(m.Encode, lambda w: w.rows == rows(number, size=1))
    llama.send(soft(number, origin=work.origin))
    mistral.inbox.wait_for(m.Soft, lambda w: w.rows == rows(number))
    mistral.send(result(number, origin=work.origin))
    client.inbox.wait_for(m.Result)


def refused(message: m.Message, code: NackCode) -> None:
    assert isinstance(message, m.Nack) and message.code is code, message


# -- before a session -----------------------------------------------------------------------


def repacked(frames: list[bytes], **changes: object) -> list[bytes]:
    """The frames with other values in the header."""
    header = msgpack.unpackb(frames[0]) | changes
    return [msgpack.packb(header), *frames[1:]]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"v": 1}, NackCode.VERSION),
        ({"v": 99}, NackCode.VERSION),
        ({"r": bytes(16)}, NackCode.UNAUTHORIZED),
        ({"t": 99}, NackCode.MALFORMED),
        ({"s": -1}, NackCode.MALFORMED),
        ({"versions": [99]}, NackCode.VERSION),
        ({"role": "broker"}, NackCode.MALFORMED),
        ({"token": "00"}, NackCode.UNAUTHORIZED),
        ({"token": "x" * 4000}, NackCode.TOO_LARGE),
        ({"extra": 1}, NackCode.MALFORMED),
        ({"c": 0}, NackCode.CHECKSUM),
    ],
)
def test_a_wrong_hello_is_rejected(rig: Rig, changes: dict[str, object], code: NackCode) -> None:
    with RawPeer(rig.broker.endpoint) as peer:
        peer.send(repacked(peer.frames(hello("client")), **changes))
        refused(peer.hear(m.Nack), code)
        assert rig.broker.metrics()["peers"] == 0
    check_that_it_serves(rig)


def test_a_peer_that_sends_no_hello_is_rejected_and_not_stored(rig: Rig) -> None:
    rng = random.Random(5)
    with RawPeer(rig.broker.endpoint) as peer:
        for frames in (
            [b""],
            [b"", b"", b""],
            [b"x" * 5000, b"", b""],
            [rng.randbytes(64), rng.randbytes(64), rng.randbytes(64)],
            [b"a"] * 40,
            peer.frames(m.Ping()),
        ):
            peer.send(frames)
            assert isinstance(peer.hear(m.Nack), m.Nack)
        assert rig.broker.metrics()["dropped.stranger"] == 6
        assert rig.broker.metrics()["peers"] == 0
    check_that_it_serves(rig)


def test_an_identity_cannot_be_stolen(rig: Rig) -> None:
    victim = rig.agent("llama")
    for name, epoch, code in [
        ("llama", 1, NackCode.STALE_EPOCH),  # the incarnation that lives
        ("llama", 0, NackCode.STALE_EPOCH),  # an earlier one
        ("llama", 9, NackCode.UNAUTHORIZED),  # one that nobody has started
        ("nobody", 1, NackCode.UNAUTHORIZED),
    ]:
        with RawPeer(rig.broker.endpoint, epoch) as thief:
            thief.seq = 0
            said = dataclasses.replace(hello(name), role=m.Role.AGENT)
            thief.say(said)
            refused(thief.hear(m.Nack), code)
    # Nor the connection's: those that the broker gives out cannot be asked for.
    with RawPeer(rig.broker.endpoint, ROUTING_ID=b"\1llama") as other:
        assert isinstance(other.join("client"), m.Welcome)
    assert victim.inbox.of(str) == []  # it was never lost
    assert rig.broker.metrics()["peers"] >= 1


# -- within a session -----------------------------------------------------------------------


@pytest.fixture
def peer(rig: Rig) -> Iterator[RawPeer]:
    """A hostile client that was let in."""
    with RawPeer(rig.broker.endpoint) as peer:
        assert isinstance(peer.join(), m.Welcome)
        peer.hear(m.Credit)
        peer.say(m.Define(TASK))
        yield peer


def test_replayed_messages_are_dropped_and_counted(rig: Rig, peer: RawPeer) -> None:
    llama = rig.agent("llama")
    frames = peer.say(encode(1))
    llama.inbox.wait_for(m.Encode)
    for _ in range(50):
        peer.send(frames)
    rig.count("dropped.duplicate", 50)
    assert len(llama.inbox.of(m.Encode)) == 1


def test_reordered_messages_end_the_session(rig: Rig, peer: RawPeer) -> None:
    first, second = peer.frames(encode(1)), peer.frames(encode(2))
    peer.send(second)
    peer.send(first)
    refused(peer.hear(m.Nack), NackCode.UNAUTHORIZED)  # a stranger again
    rig.peers.clear()
    check_that_it_serves(rig)


def test_messages_of_another_incarnation_or_run_are_refused(rig: Rig, peer: RawPeer) -> None:
    peer.epoch = 2
    peer.send(peer.frames(encode(1)))
    refused(peer.hear(m.Nack), NackCode.STALE_EPOCH)
    peer.epoch = 1
    peer.send(peer.frames(encode(1), run=bytes(16)))
    refused(peer.hear(m.Nack), NackCode.UNAUTHORIZED)
    assert rig.broker.metrics().get("forwarded", 0) == 0


def corrupted(frames: list[bytes]) -> Iterator[list[bytes]]:
    """The message, broken in many ways, and none of them right."""
    header, entries, body = frames
    yield [header]
    yield [header, entries]
    yield [header, entries, body, b""]
    yield [header, entries, body[:-1]]
    yield [header, entries, body + b"x"]
    yield [header[: len(header) // 2], entries, body]
    yield [header, b"", body]
    yield [b"", entries, body]
    yield [header, entries[:-1], body]
    yield [b"\xdf\xff\xff\xff\xff", entries, body]  # a map of 2**32 - 1 entries
    yield [b"\xc9\xff\xff\xff\xff\x01", entries, body]  # an extension of 4 GiB
    yield [b"\x91" * 4000, entries, body]  # lists in lists in lists
    yield [header, b"\xdd\xff\xff\xff\xff", body]  # a list of 2**32 - 1 rows
    yield [header, b"\x91" * 16_000, body]
    yield [b"\x00" * 5_000, entries, body]
    yield [header, b"\x90" * 600_000, body]
    many = msgpack.packb([[i.to_bytes(16, "big"), None, bytes(16), 0] for i in range(300)])
    yield [header, many, body]
    bomb = msgpack.packb({**msgpack.unpackb(header), "reason": "x" * 100_000})
    yield [bomb, entries, body]


def test_damaged_messages_are_refused_and_the_session_goes_on(rig: Rig, peer: RawPeer) -> None:
    llama = rig.agent("llama")
    broken = list(corrupted(peer.frames(encode(1), seq=peer.seq)))
    for frames in broken:
        peer.send(frames)
        nack = peer.hear(m.Nack)
        assert isinstance(nack, m.Nack) and nack.code in {
            NackCode.MALFORMED, NackCode.TOO_LARGE, NackCode.CHECKSUM,
        }  # fmt: skip
    peer.say(encode(2))
    assert llama.inbox.wait_for(m.Encode).rows == rows(2, size=1)
    refusals = sum(n for name, n in rig.broker.metrics().items() if name.startswith("refused."))
    assert refusals == len(broken)


def test_an_oversized_question_is_refused_and_one_that_fits_is_passed_on(
    rig: Rig, peer: RawPeer
) -> None:
    llama = rig.agent("llama")
    header, _, body = peer.frames(encode(1), seq=peer.seq)
    entry = [rows(1)[0].request_id, None, bytes(16), 1]
    for question, code in (("q" * 2049, NackCode.TOO_LARGE), (7, NackCode.MALFORMED)):
        entries = msgpack.packb([[*entry, question]])
        checksum = zlib.crc32(body, zlib.crc32(entries))
        peer.send(repacked([header, entries, body], c=checksum, s=peer.seq))
        refused(peer.hear(m.Nack), code)
    asking = rows(2, size=1)[0]._replace(question="q" * 2048)
    peer.say(dataclasses.replace(encode(2), rows=(asking,)))
    assert llama.inbox.wait_for(m.Encode).rows == (asking,)


def test_messages_a_role_may_not_send_are_refused(rig: Rig, peer: RawPeer) -> None:
    for message in (soft(1, origin="client"), result(1), m.Offer(WIRE, bridge())):
        peer.say(message)
        refused(peer.hear(m.Nack), NackCode.UNAUTHORIZED)
    peer.say(encode(1, wire="nobody->nothing"))
    refused(peer.hear(m.Nack), NackCode.UNKNOWN_WIRE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 60_000.0, 0.0])
def test_invalid_soft_tokens_never_reach_a_model(value: float) -> None:
    values = np.full((2, 2, 16), 1.0, dtype=np.float16)
    values[1, 1, 3 if np.isfinite(value) else 0 :] = value
    values[1, 1] = value if not np.isfinite(value) or value == 0 else values[1, 1]
    payload = m.Payload(values.tobytes(), 2, 2, 16)
    assert list(check_rows(from_payload(payload), (0.1, 10.0))) == [1]


def test_a_payload_of_another_shape_or_bridge_is_refused() -> None:
    identity = m.ModelIdentity("m", "f" * 64, 16, 4, 0.5, "float32", "cpu")
    agreements = Agreements(identity, {}, [WIRE])
    agreements.answer_offer(m.Offer(WIRE, bridge()))
    for fingerprint, shape in (("c" * 64, (2, 16)), ("b" * 64, (512, 16)), ("b" * 64, (2, 15))):
        with pytest.raises(RemoteProtocolError):
            agreements.check_payload(WIRE, fingerprint, shape, TASK)


def test_a_false_checksum_of_a_payload_is_refused(rig: Rig) -> None:
    rig.broker.expect("llama", 1)
    with RawPeer(rig.broker.endpoint) as liar:
        liar.join("llama")
        liar.say(hello("llama", ready=True))
        frames = liar.frames(soft(1))
        liar.send([frames[0], frames[1], bytes([1]) + frames[2][1:]])
        refused(liar.hear(m.Nack), NackCode.CHECKSUM)
        honest = zlib.crc32(frames[2], zlib.crc32(frames[1]))
        assert msgpack.unpackb(frames[0])["c"] == honest


# -- size -----------------------------------------------------------------------------------


def test_an_oversized_frame_disconnects_its_sender() -> None:
    folder = make_run_folder()
    with Rig(folder, ZmqTransport(frame_bytes=200_000)) as rig:
        with RawPeer(rig.broker.endpoint) as peer:
            peer.join()
            peer.send([b"", b"", b"x" * 200_001])
        rig.peers.clear()
        check_that_it_serves(rig)
    folder.rmdir()


def test_an_endless_message_is_dropped_with_its_connection(rig: Rig) -> None:
    import zmq

    part = b"x" * 65_536
    before = memory_mb()
    with RawPeer(rig.broker.endpoint) as peer:
        peer.join()
        for _ in range(400):  # 25 MiB of one message
            peer.socket.send(part, zmq.SNDMORE)
        time.sleep(0.3)
        check_that_it_serves(rig)
        assert memory_mb() < before + 400
    for _ in range(3):  # and again: nothing adds up
        with RawPeer(rig.broker.endpoint, epoch=5) as peer:
            for _ in range(400):
                peer.socket.send(part, zmq.SNDMORE)
            time.sleep(0.2)
    time.sleep(0.5)
    assert memory_mb() < before + 120


# -- too much -------------------------------------------------------------------------------


def test_a_flood_without_credit_is_refused_and_stalls_nobody(rig: Rig, peer: RawPeer) -> None:
    before = memory_mb()
    body = "x" * 60_000
    for number in range(1, 400):
        peer.say(
            m.Encode(
                WIRE, TASK.task_id, m.Channel.SOFT, "text",
                rows(number, size=len(body)), (body,),
            )
        )  # fmt: skip
    rig.count(f"refused.{NackCode.OVERLOADED}", 300)
    nack = peer.hear(m.Nack)
    assert isinstance(nack, m.Nack) and nack.code is NackCode.OVERLOADED and nack.retry_after_ms
    metrics = rig.broker.metrics()
    assert metrics["queued_messages"] <= 16 and metrics["queued_bytes"] <= 16 * 60_000
    assert memory_mb() < before + 100
    honest = rig.connect(hello("client-two"))
    honest.inbox.wait_for(m.Credit)
    honest.send(encode(7))
    llama = rig.agent("llama")
    llama.inbox.wait_for(m.Encode, lambda work: work.rows == rows(7, size=1))


def test_a_flood_of_strangers_leaves_nothing_behind(rig: Rig) -> None:
    with RawPeer(rig.broker.endpoint) as stranger:
        for _ in range(3_000):
            stranger.send([b"\x80", b"\x90", b""])
        rig.count("dropped.stranger", 3_000)
    assert rig.broker.metrics()["peers"] == 0
    check_that_it_serves(rig)


def test_a_peer_that_does_not_read_is_disconnected(rig: Rig, peer: RawPeer) -> None:
    """Answers to it wait in a bounded queue; then it is lost, and others never noticed."""
    for number in range(12_000):
        peer.say(m.Ping())
        if number == 6_000:
            check_that_it_serves(rig)
    lost = rig.events.wait_for(PeerLost, lambda event: event.name == "client")
    assert "did not read" in lost.reason


def test_too_many_clients_are_rejected(rig: Rig) -> None:
    limit = 64
    peers = [RawPeer(rig.broker.endpoint) for _ in range(limit + 1)]
    try:
        answers = [peer.join(f"client-{n}") for n, peer in enumerate(peers)]
    finally:
        for peer in peers:
            peer.__exit__(None, None, None)
    assert [type(answer) for answer in answers[:limit]] == [m.Welcome] * limit
    refused(answers[limit], NackCode.OVERLOADED)


def test_the_token_is_in_no_answer(rig: Rig) -> None:
    with RawPeer(rig.broker.endpoint) as peer:
        peer.say(hello("client", token=TOKEN[:-1] + "f"))
        nack = peer.hear(m.Nack)
        assert TOKEN not in repr(nack) and RUN.hex() not in repr(nack)
