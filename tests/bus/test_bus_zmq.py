"""The real transport: ipc and tcp sockets, and the bus over them."""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bus_messages import TASK, WIDE, WIRE, encode, hello, result, rows
from bus_rig import FOREVER, PATIENCE, Peer, Rig

from agentwire.bus import events as e
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.security import ipc_endpoint, make_run_folder
from agentwire.bus.transport import Sent
from agentwire.bus.zmq import HIGH_WATER, KEPT_FRAMES, Wakeup, ZmqLink, ZmqListener, ZmqTransport
from agentwire.errors import InputError
from agentwire.spec.agent import BusAddress
from agentwire.wire import messages as m

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = make_run_folder()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.fixture
def listener(folder: Path) -> Iterator[ZmqListener]:
    listener = ZmqTransport().listen(ipc_endpoint(folder))
    yield listener
    listener.close(0)


@pytest.fixture
def link(listener: ZmqListener) -> Iterator[ZmqLink]:
    link = ZmqTransport().connect(listener.endpoint)
    yield link
    link.close(0)


def until(take: Callable[[], object], wait: Callable[[float], None]) -> object:
    """Calls ``take`` until it returns something."""
    deadline = time.monotonic() + PATIENCE
    while (taken := take()) is None:
        assert time.monotonic() < deadline
        wait(0.1)
    return taken


def arrived(listener: ZmqListener) -> tuple[bytes, list[bytes]]:
    return until(listener.receive, listener.wait)  # type: ignore[return-value]


def say(link: ZmqLink, *frames: bytes) -> None:
    until(
        lambda: True if link.send(frames) is Sent.TAKEN else None,
        lambda seconds: link.wait(seconds, writable=True),
    )


def test_messages_cross_whole_in_both_directions(listener: ZmqListener, link: ZmqLink) -> None:
    frames = [b"header", b"", b"x" * 65536]
    say(link, *frames)
    peer, got = arrived(listener)
    assert got == frames
    assert peer[0] == 0  # an identity that no peer can choose for itself
    assert listener.send(peer, [memoryview(frame) for frame in frames]) is Sent.TAKEN
    assert until(link.receive, link.wait) == frames


def test_no_arrival_is_missed_after_any_use_of_the_socket(
    listener: ZmqListener, link: ZmqLink
) -> None:
    """Who waits asks the socket only where it may have changed: sends and empty reads change it."""
    dice = random.Random(7)

    def take(receive: Callable[[], object], wait: Callable[[float], None]) -> object:
        deadline = time.monotonic() + PATIENCE
        while True:
            wait(PATIENCE)  # a missed arrival ends only this
            assert time.monotonic() < deadline
            taken = receive()
            if taken is not None:
                return taken

    say(link, b"first")
    peer, _ = arrived(listener)
    for number in range(300):
        content = [str(number).encode()]
        for _ in range(dice.randrange(3)):
            assert listener.receive() is None
            assert link.receive() is None
        for _ in range(dice.randrange(2)):
            listener.wait(0)
            link.wait(0)
        up, down = dice.random() < 0.6, dice.random() < 0.6
        if up:
            assert link.send(content) is Sent.TAKEN
        if down:
            assert listener.send(peer, content) is Sent.TAKEN
        if up:
            assert take(listener.receive, listener.wait) == (peer, content)
        if down:
            assert take(link.receive, link.wait) == content


def test_a_buffer_may_change_as_soon_as_it_was_sent(listener: ZmqListener, link: ZmqLink) -> None:
    for size in (100, 64 * 1024, 2 * 1024 * 1024):
        buffer = bytearray(b"a" * size)
        say(link, b"", b"", memoryview(buffer))  # type: ignore[arg-type]
        buffer[:] = b"b" * size
        assert arrived(listener)[1][2] == b"a" * size


def test_a_message_to_an_unknown_peer_is_not_dropped_silently(listener: ZmqListener) -> None:
    assert listener.send(b"\0nobody", [b"a", b"b", b"c"]) is Sent.GONE


def test_a_closed_peer_is_gone(listener: ZmqListener) -> None:
    link = ZmqTransport().connect(listener.endpoint)
    say(link, b"hi")
    peer, _ = arrived(listener)
    link.close(0)

    def gone() -> bool | None:
        return listener.send(peer, [b"a"]) is Sent.GONE or None

    assert until(gone, listener.wait)


def test_a_peer_that_does_not_read_is_full_and_nothing_is_lost(
    listener: ZmqListener, link: ZmqLink
) -> None:
    say(link, b"hi")
    peer, _ = arrived(listener)
    body = b"x" * 100_000  # so that the kernel's own buffers fill up too
    taken = 0
    while listener.send(peer, [str(taken).encode(), b"", body]) is Sent.TAKEN:
        taken += 1
        assert taken < 100 * HIGH_WATER
    got = [until(link.receive, link.wait)[0] for _ in range(taken)]  # type: ignore[index]
    assert got == [str(i).encode() for i in range(taken)]


def test_frames_beyond_the_limit_are_dropped(listener: ZmqListener, link: ZmqLink) -> None:
    say(link, *[b"x"] * 1000)
    say(link, b"next")
    assert len(arrived(listener)[1]) == KEPT_FRAMES
    assert arrived(listener)[1] == [b"next"]


def test_a_frame_over_the_limit_disconnects_its_peer(folder: Path) -> None:
    transport = ZmqTransport(frame_bytes=1000)
    listener = transport.listen(ipc_endpoint(folder))
    link, good = transport.connect(listener.endpoint), transport.connect(listener.endpoint)
    try:
        say(link, b"x" * 1001)
        say(good, b"x" * 1000)
        assert arrived(listener)[1] == [b"x" * 1000]
        listener.wait(0.05)
        assert listener.receive() is None
    finally:
        for each in (link, good, listener):
            each.close(0)


def test_wait_ends_by_wake_from_another_thread_and_wakes_add_up_to_one() -> None:
    wakeup = Wakeup()
    for _ in range(100_000):
        wakeup.set()
    wakeup.clear()
    wakeup.clear()
    wakeup.close()
    wakeup.close()
    wakeup.set()


def test_a_large_frame_is_forwarded_without_a_copy(listener: ZmqListener, folder: Path) -> None:
    """What a broker hands on is neither copied nor changed, and lives as long as it is needed."""
    first, second = (ZmqTransport().connect(listener.endpoint) for _ in range(2))
    try:
        say(second, b"hi")
        there, _ = arrived(listener)
        bodies = [bytes([n]) * (4096 + n) for n in range(8)]
        kept = []
        for body in bodies:
            say(first, b"h", b"", body)
            _, frames = arrived(listener)
            assert listener.send(there, frames) is Sent.TAKEN
            assert listener.send(there, [b"h", b"", memoryview(frames[2])[1:]]) is Sent.TAKEN
            kept.append(frames[2])
        for body in bodies:
            assert until(second.receive, second.wait) == [b"h", b"", body]
            assert until(second.receive, second.wait) == [b"h", b"", body[1:]]  # a part is a part
        assert [bytes(view) for view in kept] == bodies
        assert all(view.readonly for view in kept if isinstance(view, memoryview))
    finally:
        first.close(0)
        second.close(0)


def test_a_sender_that_sees_an_arrival_wakes_the_one_who_waits(
    listener: ZmqListener, link: ZmqLink
) -> None:
    """Whoever looks at the socket takes the signal off its descriptor: it must be passed on."""
    say(link, b"hi")
    peer, _ = arrived(listener)

    def woken() -> bool:
        return bool(select.select([link._wakeup], [], [], 0)[0])

    assert link.send([b"nothing has come"]) is Sent.TAKEN
    assert not woken()
    assert listener.send(peer, [b"down"]) is Sent.TAKEN
    deadline = time.monotonic() + PATIENCE
    while not woken():
        link.send([b"up"])  # nobody reads here: on a slow machine the queue may be full
        time.sleep(0.001)
        assert time.monotonic() < deadline
        while listener.receive() is not None:
            pass
    link.wait(PATIENCE)
    assert link.receive() == [b"down"]


def test_a_thread_that_sends_takes_no_arrival_from_the_one_that_waits(
    listener: ZmqListener, link: ZmqLink
) -> None:
    """With both at work all the time, everything arrives in order."""
    n, stop, taken = 300, threading.Event(), threading.Semaphore()
    say(link, b"hi")
    peer, _ = arrived(listener)

    def flood() -> None:
        while not stop.is_set():
            link.send([b"up"])

    def answer() -> None:
        for number in range(n):
            taken.acquire()  # one at a time: no later arrival makes up for a lost signal
            frames = [str(number).encode()]
            while listener.send(peer, frames) is not Sent.TAKEN:
                listener.wait(0.001)
            while listener.receive() is not None:
                pass

    threads = [threading.Thread(target=flood), threading.Thread(target=answer)]
    for thread in threads:
        thread.start()
    try:
        got: list[int] = []
        while len(got) < n:
            frames = link.receive()
            if frames is not None:
                got.append(int(bytes(frames[0])))
                taken.release()
                continue
            link.wait(FOREVER)
        assert got == list(range(n))
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def test_wake_before_wait_is_not_lost(listener: ZmqListener) -> None:
    listener.wake()
    listener.wait(FOREVER)


def test_a_socket_in_use_is_not_taken_over(listener: ZmqListener) -> None:
    with pytest.raises(InputError, match="in use"):
        ZmqTransport().listen(listener.endpoint)


def test_the_socket_of_a_dead_broker_is_replaced(folder: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(folder / "bus"))
    stale.close()  # leaves the file
    ZmqTransport().listen(ipc_endpoint(folder)).close(0)


def test_a_file_at_the_socket_path_is_kept(folder: Path) -> None:
    (folder / "bus").write_text("mine")
    with pytest.raises(InputError, match="in use"):
        ZmqTransport().listen(ipc_endpoint(folder))
    assert (folder / "bus").read_text() == "mine"


@pytest.mark.parametrize("endpoint", ["tcp://*:0", "tcp://0.0.0.0:0", "udp://127.0.0.1:1"])
def test_open_addresses_are_not_listened_on(endpoint: str) -> None:
    with pytest.raises(InputError):
        ZmqTransport().listen(endpoint)


def test_a_port_in_use_is_an_input_error() -> None:
    listener = ZmqTransport().listen("tcp://127.0.0.1:*")
    try:
        with pytest.raises(InputError, match="cannot listen"):
            ZmqTransport().listen(listener.endpoint)
    finally:
        listener.close(0)


def test_an_impossible_address_is_an_input_error() -> None:
    with pytest.raises(InputError, match="not an address"):
        ZmqTransport().connect("nonsense")


# -- the bus over it ------------------------------------------------------------------------


def wait_for_credit(client: Peer, sent: int) -> None:
    """Flow control as a client does it: returns when one message more may be sent."""
    deadline = time.monotonic() + PATIENCE
    while sum(c.messages for c in client.inbox.of(m.Credit) if c.wire == WIRE) <= sent:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_many_requests_cross_the_bus(folder: Path) -> None:
    n = 200
    with Rig(folder) as rig:
        llama, mistral, client = rig.agent("llama"), rig.agent("mistral"), rig.client()
        wide = m.Payload(bytes(65536), n=1, soft_tokens=8, width=4096)
        for i in range(n):
            wait_for_credit(client, sent=i)
            client.send(encode(i))
            work = llama.inbox.wait_for(m.Encode, lambda w, i=i: w.rows == rows(i, size=1))
            llama.send(m.Soft(WIRE, TASK.task_id, "b" * 64, rows(i), wide, origin=work.origin))
            mistral.inbox.wait_for(m.Soft, lambda w, i=i: w.rows == rows(i))
            mistral.send(result(i, origin=work.origin))
        client.inbox.wait_for(m.Result, lambda r: r.rows == rows(n - 1))
        assert [r.rows for r in client.inbox.of(m.Result)] == [rows(i) for i in range(n)]
        assert rig.broker.metrics()["forwarded"] == 2 * n


def test_each_threads_messages_keep_their_order(folder: Path) -> None:
    """Some leave in their own thread, some wait for the IO thread: no one overtakes another."""
    threads, each = 4, 150
    with Rig(folder) as rig:
        llama, mistral = rig.agent("llama"), rig.agent("mistral")
        client = rig.client()
        client.send(encode(0))
        origin = llama.inbox.wait_for(m.Encode).origin

        def run(first: int) -> None:
            for i in range(first, first + each):
                mistral.send(result(i, origin=origin))

        runs = [threading.Thread(target=run, args=(n * 1000,)) for n in range(threads)]
        for thread in runs:
            thread.start()
        for thread in runs:
            thread.join(PATIENCE)
        for n in range(threads):
            last = rows(n * 1000 + each - 1)
            client.inbox.wait_for(m.Result, lambda r, last=last: r.rows == last)
        got = [int.from_bytes(r.rows[0].request_id, "big") for r in client.inbox.of(m.Result)]
        for n in range(threads):
            own = [i for i in got if i // 1000 == n]
            assert own == list(range(n * 1000, n * 1000 + each))
        assert not rig.events.of(e.PeerLost)


def test_a_callback_that_waits_for_a_sender_does_not_deadlock(folder: Path) -> None:
    """The owner's own lock, held while it sends and wanted by on_message: no deadlock."""
    own = threading.Lock()
    heard = []

    def hear(message: m.Message, arrival: float) -> None:
        with own:
            heard.append(message)

    with Rig(folder) as rig:
        rig.agent("mistral")
        rig.broker.expect("llama", 1)
        endpoint = Endpoint(
            rig.address(), hello("llama"), on_message=hear, on_lost=lambda reason: None
        )
        endpoint.start()
        endpoint.announce(hello("llama", ready=True))
        rig.events.wait_for(e.PeerReady, lambda event: event.name == "llama")
        endpoint.send(WIDE)
        client = rig.client()
        for i in range(100):
            wait_for_credit(client, sent=i)
            client.send(encode(i))
            with own:
                endpoint.send(m.Credit(WIRE, 1, 1000))
        deadline = time.monotonic() + PATIENCE
        while sum(isinstance(message, m.Encode) for message in heard) < 100:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        endpoint.close()


def test_a_killed_link_is_noticed_and_its_successor_admitted(folder: Path) -> None:
    with Rig(folder) as rig:
        client = rig.client()
        first = rig.agent("llama", 1)
        link = first.endpoint._link
        assert link is not None
        first.endpoint._broken = True  # as if the process had died: no Goodbye
        link.wake()
        client.send(encode(1))
        rig.events.wait_for(e.PeerLost)
        client.send(encode(2))
        second = rig.agent("llama", 2)
        second.inbox.wait_for(m.Encode, lambda work: work.rows == rows(2, size=1))


def test_the_socket_is_gone_after_stop(folder: Path) -> None:
    with Rig(folder) as rig:
        assert (folder / "bus").exists()
        rig.client()
    assert not (folder / "bus").exists()


def test_an_endpoint_without_a_broker_closes_in_time(folder: Path) -> None:
    address = BusAddress(endpoint=ipc_endpoint(folder), run="00" * 16, epoch=1, token="")
    peer = Peer(address, hello("client"), None)
    peer.send(m.Define(TASK))
    peer.endpoint.close("", 0.1)
    assert peer.inbox.items == []
