"""Broker and endpoints with their threads, over an in-process transport with faults."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bus_messages import TASK, WIRE, encode, hello, result, rows, soft
from bus_rig import PATIENCE, RUN, Peer, Rig
from faulty_transport import Direction, Fault, FaultyTransport

from agentwire.bus import events as e
from agentwire.bus.endpoint import QUEUE_MESSAGES
from agentwire.bus.transport import Frames
from agentwire.errors import BusClosed, InputError, LocalProtocolError, NackCode
from agentwire.wire import messages as m
from agentwire.wire.codec import decode
from agentwire.wire.codec import encode as to_frames
from agentwire.wire.session import Timing

SHORT = Timing(ping_ms=50, liveness_ms=500)  # silence is soon noticed
CHATTY = Timing(ping_ms=20, liveness_ms=20_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def bus() -> FaultyTransport:
    return FaultyTransport()


@pytest.fixture
def rig(folder: Path, bus: FaultyTransport) -> Iterator[Rig]:
    with Rig(folder, bus) as rig:
        yield rig


def is_a(kind: type[m.Message]) -> Callable[[Frames], bool]:
    return lambda frames: isinstance(decode(frames)[1], kind)


def test_one_request_through_threads(rig: Rig) -> None:
    llama, mistral, client = rig.agent("llama"), rig.agent("mistral"), rig.client()
    client.send(encode(1, 2))
    work = llama.inbox.wait_for(m.Encode)
    assert (work.texts, work.origin) == (("1", "2"), "client")
    llama.send(soft(1, 2, origin=work.origin))
    payload = mistral.inbox.wait_for(m.Soft).payload
    assert (len(payload.data), payload.n) == (2 * 2 * 16 * 2, 2)
    mistral.send(result(1, 2))
    assert client.inbox.wait_for(m.Result).rows == rows(1, 2)
    assert rig.broker.metrics()["forwarded"] == 2


def test_messages_sent_before_the_welcome_leave_after_it(rig: Rig) -> None:
    rig.broker.expect("llama", 1)
    llama = rig.connect(hello("llama"))
    for fraction in (0.0, 0.5, 1.0):
        llama.send(m.Progress("load", fraction))
    llama.endpoint.announce(hello("llama", ready=True))
    rig.events.wait_for(e.PeerReady)
    assert [type(event) for event in rig.events.items] == [
        e.PeerConnected,
        e.PeerProgress,
        e.PeerProgress,
        e.PeerProgress,
        e.PeerReady,
    ]


@pytest.mark.parametrize(
    ("said", "changes", "word"),
    [
        (hello("client", token="guess"), {"token": "guess"}, "unauthorized"),
        (hello("nobody"), {}, "unauthorized"),
        (hello("llama"), {}, "stale_epoch"),
    ],
)
def test_a_rejected_peer_gets_the_reason(
    rig: Rig, said: m.Hello, changes: dict[str, object], word: str
) -> None:
    peer = rig.connect(said, **changes)
    assert f"refused ({word})" in peer.lost()
    with pytest.raises(BusClosed, match=word):
        peer.send(m.Progress("load", 0.0))
    assert rig.events.items == []
    assert rig.broker.metrics()["peers"] == 0


def test_a_peer_of_another_run_cannot_accept_the_answer(rig: Rig) -> None:
    peer = rig.connect(hello("client"), run=b"\1" * 16)
    rig.count("dropped.stranger")
    assert peer.inbox.items == []
    assert rig.broker.metrics()["peers"] == 0


def test_a_replaced_incarnation_gets_a_nack(rig: Rig) -> None:
    old = rig.agent("mistral", 1)
    new = rig.agent("mistral", 2)
    assert "replaced by epoch 2" in old.lost()
    assert rig.events.wait_for(e.PeerLost).epoch == 1
    assert new.inbox.of(str) == []


def test_after_disconnect_the_next_incarnation_is_admitted(rig: Rig, bus: FaultyTransport) -> None:
    rig.agent("llama", 1)
    client = rig.client()
    bus.kill(0)
    rig.broker.disconnect("llama", 1)
    lost = rig.events.wait_for(e.PeerLost)
    assert (lost.name, lost.reason) == ("llama", "the process ended")
    client.send(encode(1))
    again = rig.agent("llama", 2)
    assert again.inbox.wait_for(m.Encode).rows == rows(1, size=1)


def test_a_dead_connection_is_noticed_by_a_write(rig: Rig, bus: FaultyTransport) -> None:
    rig.agent("llama")
    client = rig.client()
    bus.kill(0)
    client.send(encode(1))
    assert "closed" in rig.events.wait_for(e.PeerLost).reason


def test_a_silent_peer_is_lost_on_both_sides(folder: Path, bus: FaultyTransport) -> None:
    with Rig(folder, bus, timing=SHORT) as rig:
        llama = rig.agent("llama")
        bus.plan(Fault.DROP, Direction.TO_BROKER, count=10_000)
        bus.plan(Fault.DROP, Direction.TO_PEER, count=10_000)
        assert "silent" in rig.events.wait_for(e.PeerLost).reason
        assert "silent" in llama.lost()


def test_pings_keep_a_quiet_peer_alive_and_report_busy_time(
    folder: Path, bus: FaultyTransport
) -> None:
    with Rig(folder, bus, timing=CHATTY) as rig:
        llama = rig.agent("llama")
        llama.endpoint.busy_since = 0.0  # since the machine started
        busy = rig.events.wait_for(e.PeerBusy)
        assert busy.busy_ms > 0
        llama.endpoint.busy_since = None
        assert rig.events.wait_for(e.PeerBusy, lambda event: event.busy_ms == 0)
        assert rig.events.of(e.PeerLost) == []


def test_a_duplicated_message_is_processed_once(rig: Rig, bus: FaultyTransport) -> None:
    llama, client = rig.agent("llama"), rig.client()
    bus.plan(Fault.DUPLICATE, Direction.TO_BROKER, when=is_a(m.Encode))
    client.send(encode(1))
    client.send(encode(2))
    llama.inbox.wait_for(m.Encode, lambda work: work.texts == ("2",))
    assert len(llama.inbox.of(m.Encode)) == 2
    assert rig.broker.metrics()["dropped.duplicate"] == 1


def test_a_lost_message_ends_the_brokers_session(rig: Rig, bus: FaultyTransport) -> None:
    llama = rig.agent("llama")
    bus.plan(Fault.DROP, Direction.TO_BROKER, when=is_a(m.Progress))
    llama.send(m.Progress("x", 0.1))
    llama.send(m.Progress("x", 0.2))
    assert "1 messages were lost" in rig.events.wait_for(e.PeerLost).reason
    assert rig.events.of(e.PeerProgress) == []


def test_a_lost_message_ends_the_endpoints_session(rig: Rig, bus: FaultyTransport) -> None:
    llama, client = rig.agent("llama"), rig.client()
    bus.plan(Fault.DROP, Direction.TO_PEER, when=is_a(m.Encode))
    client.send(encode(1))
    client.send(encode(2))
    assert "were lost" in llama.lost()


def test_a_delayed_message_ends_the_session(rig: Rig, bus: FaultyTransport) -> None:
    llama, client = rig.agent("llama"), rig.client()
    bus.plan(Fault.HOLD, Direction.TO_BROKER, when=is_a(m.Encode))
    client.send(encode(1))
    client.send(m.Cancel(WIRE, (bytes(16),)))  # overtakes, and shows the gap
    assert rig.events.wait_for(e.PeerLost).name == "client"
    bus.release()
    rig.count("dropped.stranger")
    assert llama.inbox.of(m.Encode) == []


def test_goodbye_is_reported_as_peer_left(rig: Rig) -> None:
    llama = rig.agent("llama")
    llama.endpoint.close("all done")
    gone = rig.events.wait_for(e.PeerLeft)
    assert (gone.name, gone.reason) == ("llama", "all done")
    with pytest.raises(BusClosed, match="closed here"):
        llama.send(m.Progress("x", 0.0))
    assert llama.inbox.of(str) == []  # closing is not losing


def test_close_sends_what_is_queued(rig: Rig) -> None:
    llama, client = rig.agent("llama"), rig.client()
    client.send(encode(0))
    llama.inbox.wait_for(m.Encode)  # so its credit has come to the broker
    for i in range(1, 10):
        client.send(encode(i))
    client.endpoint.close()
    assert rig.events.wait_for(e.PeerLeft).name == "client"
    llama.inbox.wait_for(m.Encode, lambda work: work.texts == ("9",))
    assert [work.texts for work in llama.inbox.of(m.Encode)] == [(str(i),) for i in range(10)]


def test_stop_sends_goodbye_to_every_peer(folder: Path, bus: FaultyTransport) -> None:
    with Rig(folder, bus) as rig:
        llama, client = rig.agent("llama"), rig.client()
        rig.broker.stop()
        rig.broker.stop()
        assert [peer.lost() for peer in (llama, client)] == [
            "it said Goodbye: the run has ended"
        ] * 2


def test_garbage_does_not_stop_the_broker_or_use_memory(rig: Rig, bus: FaultyTransport) -> None:
    link = bus.connect(rig.broker.endpoint)
    garbage: list[list[bytes]] = [[], [b""], [b"x" * 5000] * 3, [b"\x80", b"\x90", b""], [b""] * 9]
    for frames in garbage:
        link.send(frames)
    bad = to_frames(encode(1), m.Envelope(RUN, 0, 1))
    link.send(bad)
    rig.count("dropped.stranger", len(garbage) + 1)
    link.close(0)
    assert rig.broker.metrics()["peers"] == 0
    llama, client = rig.agent("llama"), rig.client()
    client.send(encode(1))
    llama.inbox.wait_for(m.Encode)


def test_a_row_that_does_not_fit_the_wire_is_refused_locally(rig: Rig) -> None:
    llama, client = rig.agent("llama"), rig.client()
    client.send(m.Encode(WIRE, TASK.task_id, m.Channel.SOFT, "text", rows(1), ("\udc80",)))
    nack = client.inbox.wait_for(m.Nack)
    assert (nack.code, nack.rows) == (NackCode.MALFORMED, rows(1))
    client.inbox.wait_for(m.Credit, lambda c: c == m.Credit(WIRE, 1, 0))
    client.send(encode(2))
    work = llama.inbox.wait_for(m.Encode)
    llama.send(m.Text(WIRE, TASK.task_id, rows(2), ("\udc80",), origin=work.origin))
    assert client.inbox.wait_for(m.Nack, lambda n: n.rows != rows(1)).rows == rows(2)


def test_a_full_queue_blocks_its_sender_until_there_is_room(
    folder: Path, bus: FaultyTransport
) -> None:
    with Rig(folder, bus) as rig:
        rig.broker.expect("llama", 1)
        # the Welcome is held, so nothing leaves
        bus.plan(Fault.HOLD, Direction.TO_PEER)
        llama = rig.connect(hello("llama"))
        for i in range(QUEUE_MESSAGES):
            llama.send(m.Progress("x", i / QUEUE_MESSAGES))
        held_up = threading.Thread(target=llama.send, args=(m.Progress("last", 1.0),))
        held_up.start()
        held_up.join(0.05)
        assert held_up.is_alive()
        bus.release()
        held_up.join(PATIENCE)
        assert not held_up.is_alive()
        rig.events.wait_for(e.PeerProgress, lambda p: p.stage == "last")
        assert len(rig.events.of(e.PeerProgress)) == QUEUE_MESSAGES + 1


def test_a_blocked_sender_gets_an_error_if_the_broker_is_lost(
    folder: Path, bus: FaultyTransport
) -> None:
    with Rig(folder, bus) as rig:
        bus.plan(Fault.HOLD, Direction.TO_PEER, count=1000)  # all: one alone would leave a gap
        client = rig.connect(hello("client"))
        for _ in range(QUEUE_MESSAGES):
            client.send(m.Define(TASK))
        failed: list[BaseException] = []

        def send() -> None:
            try:
                client.send(m.Define(TASK))
            except BusClosed as error:
                failed.append(error)

        waiting = threading.Thread(target=send)
        waiting.start()
        client.endpoint.close("", 0.0)
        waiting.join(PATIENCE)
        assert len(failed) == 1


def test_answers_from_on_message_do_not_deadlock(rig: Rig) -> None:
    """An IO thread that waited for its own queue would wait for ever."""
    mistral, client = rig.agent("mistral"), rig.client()
    # echo: answers each message from within the IO thread
    rig.broker.expect("llama", 1)
    peer = Peer.__new__(Peer)

    def answer(message: m.Message, arrival: float) -> None:
        if isinstance(message, m.Encode):
            peer.endpoint.send(soft(int.from_bytes(message.rows[0].request_id, "big")))

    from agentwire.bus.endpoint import Endpoint

    peer.endpoint = Endpoint(
        rig.address(), hello("llama"), on_message=answer, on_lost=print, transport=rig.transport
    )
    rig.peers.append(peer)
    peer.endpoint.start()
    peer.endpoint.announce(hello("llama", ready=True))
    peer.endpoint.send(m.Credit(WIRE, 100, 10_000))
    client.send(encode(3))
    assert mistral.inbox.wait_for(m.Soft).rows == rows(3)


def test_a_bug_in_the_broker_is_raised_by_stop(folder: Path, bus: FaultyTransport) -> None:
    rig = Rig(folder, bus)

    def explode(command: object) -> None:
        raise ZeroDivisionError("a bug")

    rig.broker._core._router.command = explode  # type: ignore[assignment, method-assign]
    rig.broker.expect("llama", 1)
    failed = rig.events.wait_for(e.BrokerFailed)
    assert isinstance(failed.error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        rig.broker.stop()
    rig.broker.stop()


def test_a_broker_and_an_endpoint_start_once(rig: Rig) -> None:
    with pytest.raises(LocalProtocolError, match="started before"):
        rig.broker.start()
    client = rig.client()
    with pytest.raises(LocalProtocolError, match="started before"):
        client.endpoint.start()


def test_the_folder_must_be_private(tmp_path: Path, bus: FaultyTransport) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(InputError, match="not private"):
        Rig(tmp_path, bus)


def test_two_brokers_cannot_share_a_folder(rig: Rig, folder: Path, bus: FaultyTransport) -> None:
    with pytest.raises(InputError, match="in use"):
        Rig(folder, bus)
