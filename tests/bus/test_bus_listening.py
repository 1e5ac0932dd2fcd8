"""Endpoints whose owner polls, and links inside the broker's process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bus_messages import TASK, WIDE, encode, hello, result, rows
from bus_rig import FOREVER, PATIENCE, Kept, Rig

from agentwire.bus import endpoint as endpoints
from agentwire.bus import events as e
from agentwire.bus.endpoint import TAKEOVER_S, Endpoint
from agentwire.bus.security import ipc_endpoint, make_run_folder
from agentwire.bus.zmq import ZmqTransport
from agentwire.errors import InputError
from agentwire.runtime.client import LoopReader
from agentwire.wire import messages as m
from agentwire.wire.session import Timing

pytestmark = pytest.mark.integration
QUICK = Timing(ping_ms=50, liveness_ms=400, handshake_ms=10_000)


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = make_run_folder()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


class Listening:
    """An agent that polls in the test's thread."""

    def __init__(self, rig: Rig, name: str) -> None:
        rig.broker.expect(name, 1)
        self.heard: list[m.Message] = []
        self.lost = Kept()
        self.threads: set[int] = set()
        self.endpoint = Endpoint(
            rig.address(), hello(name), on_message=self._hear, on_lost=self.lost.add
        )
        self.endpoint.start()
        self.endpoint.announce(hello(name, ready=True))
        rig.events.wait_for(e.PeerReady, lambda event: event.name == name)
        self.endpoint.send(WIDE)

    def _hear(self, message: m.Message, arrival: float) -> None:
        self.threads.add(threading.get_ident())
        self.heard.append(message)

    def works(self) -> list[m.Encode]:
        return [message for message in self.heard if isinstance(message, m.Encode)]

    def poll_until(self, count: int) -> None:
        """Polls until so many pieces of work have arrived."""
        deadline = time.monotonic() + PATIENCE
        while len(self.works()) < count:
            assert time.monotonic() < deadline
            self.endpoint.poll(0.2)


def test_a_polling_thread_gets_messages_itself_and_in_order(folder: Path) -> None:
    with Rig(folder) as rig:
        rig.agent("mistral")
        llama = Listening(rig, "llama")
        client = rig.client()
        llama.endpoint.poll(0.0)
        llama.threads.clear()
        for i in range(20):
            client.send(encode(i))
            llama.poll_until(i + 1)
            llama.endpoint.send(m.Credit("llama->mistral", 1, 1000))
        assert [work.rows for work in llama.works()] == [rows(i, size=1) for i in range(20)]
        assert threading.get_ident() in llama.threads
        llama.endpoint.close()


def test_the_io_thread_reads_for_an_owner_that_does_not_poll(folder: Path) -> None:
    """Heartbeats and messages go on while an owner that has polled computes."""
    with Rig(folder, timing=QUICK) as rig:
        rig.agent("mistral")
        llama = Listening(rig, "llama")
        client = rig.client()
        llama.endpoint.poll(0.0)
        llama.threads.clear()  # that was here
        client.send(encode(1))
        deadline = time.monotonic() + PATIENCE
        while not llama.works():
            assert time.monotonic() < deadline
            time.sleep(TAKEOVER_S / 5)
        assert threading.get_ident() not in llama.threads
        time.sleep(3 * QUICK.liveness_ms / 1000)
        assert not rig.events.of(e.PeerLost)
        llama.endpoint.close()


def test_after_hand_over_the_io_thread_reads_until_the_next_poll(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "TAKEOVER_S", 10 * PATIENCE)  # no takeover by time-out
    with Rig(folder) as rig:
        rig.agent("mistral")
        llama = Listening(rig, "llama")
        client = rig.client()
        llama.endpoint.poll(0.0)
        own = threading.get_ident()
        for i in range(20):
            llama.endpoint.hand_over()
            llama.endpoint.hand_over()
            llama.threads.clear()
            client.send(encode(2 * i))
            deadline = time.monotonic() + PATIENCE
            while len(llama.works()) <= 2 * i:
                assert time.monotonic() < deadline
                time.sleep(TAKEOVER_S / 50)
                llama.endpoint.poll(0.0)  # a poll of 0 s does not take over
            assert own not in llama.threads
            llama.endpoint.poll(1e-6)
            llama.threads.clear()
            client.send(encode(2 * i + 1))
            llama.poll_until(2 * i + 2)
            assert llama.threads == {own}
            llama.endpoint.send(m.Credit("llama->mistral", 2, 1000))
        assert [work.rows for work in llama.works()] == [rows(i, size=1) for i in range(40)]
        llama.endpoint.close()


def test_poll_ends_when_done_when_woken_and_with_the_bus(folder: Path) -> None:
    rig = Rig(folder)
    llama = Listening(rig, "llama")
    looks = iter(range(1000))
    while (look := next(looks)) < 5:  # a heartbeat may arrive, which ends it as well
        llama.endpoint.poll(FOREVER, lambda: next(looks) >= 5)
    assert look < 10
    for _ in range(3):
        threading.Timer(0.05, llama.endpoint.wake).start()
        llama.endpoint.poll(FOREVER)
    threading.Timer(0.05, lambda: rig.broker.stop(1.0)).start()
    while not llama.lost.items:
        llama.endpoint.poll(PATIENCE)
    assert "Goodbye" in llama.lost.items[0]
    assert llama.endpoint.poll(PATIENCE) is False
    llama.endpoint.close("", 1.0)


def test_messages_sent_from_on_message_leave_after_earlier_ones(folder: Path) -> None:
    """They wait only until ``on_message`` has returned."""
    with Rig(folder) as rig:
        rig.agent("mistral")
        llama = Listening(rig, "llama")
        client = rig.client()
        heard = llama._hear

        def answer(message: m.Message, arrival: float) -> None:
            heard(message, arrival)
            if isinstance(message, m.Encode):
                llama.endpoint.send(
                    m.Nack(
                        m.NackCode.OVERLOADED,
                        "no",
                        message.wire,
                        message.rows,
                        origin=message.origin,
                    )
                )

        llama.endpoint._on_message = answer
        client.send(encode(1))
        llama.poll_until(1)
        client.inbox.wait_for(m.Nack, lambda nack: nack.rows[0].request_id == rows(1)[0].request_id)
        llama.endpoint.close()


# -- in-process links -----------------------------------------------------------------------


def test_an_in_process_client_is_like_any_other(folder: Path) -> None:
    with Rig(folder) as rig:
        rig.transport = rig.broker.in_process  # type: ignore[assignment]
        client = rig.client()
        rig.transport = None
        llama, mistral = rig.agent("llama"), rig.agent("mistral")
        for i in range(10):
            client.send(encode(i))
            work = llama.inbox.wait_for(m.Encode, lambda w, i=i: w.rows == rows(i, size=1))
            mistral.send(result(i, origin=work.origin))
            client.inbox.wait_for(m.Result, lambda r, i=i: r.rows == rows(i))
            llama.send(m.Credit("llama->mistral", 1, 1000))
        client.endpoint.close("done", 1.0)
        rig.events.wait_for(e.PeerLeft, lambda event: event.name == "client")


def test_a_stopping_broker_closes_its_in_process_links(folder: Path) -> None:
    rig = Rig(folder)
    rig.transport = rig.broker.in_process  # type: ignore[assignment]
    client = rig.client()
    rig.broker.stop(1.0)
    assert "Goodbye" in client.lost()
    assert rig.broker.in_process is None
    client.endpoint.close("", 1.0)


def test_a_broker_with_another_address_offers_no_in_process_link(folder: Path) -> None:
    with Rig(folder) as rig:
        assert rig.broker.in_process is not None
        rig.broker.endpoint = "ipc:///somewhere/else"
        assert rig.broker.in_process is None


def test_a_closed_listener_refuses_links_and_closes_existing_ones(folder: Path) -> None:
    listener = ZmqTransport().listen(ipc_endpoint(folder))
    link = listener.connect("")
    other = ZmqTransport().listen("tcp://127.0.0.1:0")
    assert other.connect("") is not link  # each bus has an inside of its own
    listener.close(0)
    assert link.closed
    assert link.receive() is None
    link.close(0)
    with pytest.raises(InputError, match="closed"):
        listener.connect("")
    other.close(0)


# -- an asyncio loop that reads -------------------------------------------------------------


async def test_an_event_loop_reads_in_its_own_thread(folder: Path) -> None:
    loop = asyncio.get_running_loop()
    with Rig(folder) as rig:
        llama, mistral = rig.agent("llama"), rig.agent("mistral")
        threads: list[int] = []
        results: asyncio.Queue[m.Result] = asyncio.Queue()
        credit = asyncio.Event()

        def hear(message: m.Message, arrival: float) -> None:
            threads.append(threading.get_ident())
            if isinstance(message, m.Result):
                loop.call_soon_threadsafe(results.put_nowait, message)
            if isinstance(message, m.Credit):
                loop.call_soon_threadsafe(credit.set)

        client = Endpoint(
            rig.address(),
            hello("client"),
            on_message=hear,
            on_lost=lambda reason: None,
            transport=rig.broker.in_process,
        )
        client.start()
        reader = LoopReader(loop, client)
        await asyncio.wait_for(credit.wait(), PATIENCE)
        client.send(m.Define(TASK))
        threads.clear()
        for i in range(50):
            client.send(encode(i))
            work = await asyncio.to_thread(
                llama.inbox.wait_for, m.Encode, lambda w, i=i: w.rows == rows(i, size=1)
            )
            llama.send(m.Credit("llama->mistral", 1, 1000))
            mistral.send(result(i, origin=work.origin))
            assert (await asyncio.wait_for(results.get(), PATIENCE)).rows == rows(i)
        assert threading.get_ident() in threads
        reader.close()
        reader.close()
        client.send(encode(50))  # from now on its own thread listens
        work = await asyncio.to_thread(
            llama.inbox.wait_for, m.Encode, lambda w: w.rows == rows(50, size=1)
        )
        mistral.send(result(50, origin=work.origin))
        assert (await asyncio.wait_for(results.get(), PATIENCE)).rows == rows(50)
        await asyncio.to_thread(client.close)


async def test_a_blocked_event_loop_does_not_lose_the_bus(folder: Path) -> None:
    with Rig(folder, timing=QUICK) as rig:
        lost = Kept()
        client = Endpoint(
            rig.address(), hello("client"), on_message=lambda m, at: None, on_lost=lost.add
        )
        client.start()
        reader = LoopReader(asyncio.get_running_loop(), client)
        await asyncio.sleep(0.1)
        time.sleep(3 * QUICK.liveness_ms / 1000)  # noqa: ASYNC251  # that is what is tested
        await asyncio.sleep(0.1)
        assert not lost.items
        assert not rig.events.of(e.PeerLost)
        reader.close()
        client.close()


class NoReaders(asyncio.SelectorEventLoop):
    """A loop that cannot watch files, as the proactor loop of Windows."""

    def add_reader(self, fd: object, callback: object, *args: object) -> None:  # type: ignore[override]
        raise NotImplementedError


def test_the_io_thread_reads_if_the_loop_cannot_watch_files(folder: Path) -> None:
    loop = NoReaders()
    with Rig(folder) as rig:
        heard = Kept()
        client = Endpoint(
            rig.address(),
            hello("client"),
            on_message=lambda message, at: heard.add(message),
            on_lost=lambda reason: None,
        )
        client.start()
        LoopReader(loop, client)
        heard.wait_for(m.Credit)
        client.close()
    loop.close()
