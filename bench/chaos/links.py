"""Proxies between peers and broker that disturb their connections, with real sockets.

``MessageLink`` speaks ZeroMQ and can drop, duplicate and reorder single messages. ``ByteLink``
forwards bytes: it cuts and delays connections and captures the traffic.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from pathlib import Path
from typing import Any

import zmq

from agentwire.wire.codec import decode
from agentwire.wire.messages import MessageType

POLL_MS = 20
HANDSHAKE = {int(MessageType.HELLO), int(MessageType.WELCOME), int(MessageType.GOODBYE)}


class LinkFault(Enum):
    """What happens to a message."""

    DROP = auto()
    DUPLICATE = auto()
    REORDER = auto()  # swapped with the next one in the same direction


class MessageLink:
    """A ZeroMQ proxy with a socket to the broker for each peer.

    Args:
        target: address of the broker.
        address: where peers connect instead.
        rng: picks the messages that are affected.
    """

    def __init__(self, target: str, address: str, rng: random.Random) -> None:
        self.address = address
        self.affected = 0
        self._target = target
        self._rng = rng
        self._lock = threading.Lock()
        self._plan: tuple[LinkFault, float, int] | None = None  # fault, chance, times left
        self._swapped: dict[tuple[bytes, bool], list[bytes]] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.bind(address)
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def inject(self, fault: LinkFault, *, chance: float, times: int) -> None:
        """Applies the fault to each message but handshakes with this chance, ``times`` at most."""
        with self._lock:
            self._plan = (fault, chance, times)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        for socket in (self._front, *self._backs.values()):
            socket.close(linger=0)
        self._context.term()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        while not self._closing.is_set():
            for socket, _ in poller.poll(POLL_MS):
                if socket is self._front:
                    identity, *frames = self._front.recv_multipart()
                    back = self._backs.get(identity)
                    if back is None:
                        back = self._backs[identity] = self._context.socket(zmq.DEALER)
                        back.connect(self._target)
                        poller.register(back, zmq.POLLIN)
                    self._pass(identity, True, frames, back.send_multipart)
                else:
                    identity = next(i for i, back in self._backs.items() if back is socket)
                    frames = socket.recv_multipart()

                    def to_peer(frames: list[bytes], identity: bytes = identity) -> None:
                        self._front.send_multipart([identity, *frames])

                    self._pass(identity, False, frames, to_peer)

    def _pass(
        self, identity: bytes, up: bool, frames: list[bytes], send: Callable[[list[bytes]], Any]
    ) -> None:
        fault = self._next_fault(frames)
        held = self._swapped.pop((identity, up), None)
        if fault is LinkFault.REORDER and held is None:
            self._swapped[identity, up] = frames
            return
        if fault is not LinkFault.DROP:
            send(frames)
        if fault is LinkFault.DUPLICATE:
            send(frames)
        if held is not None:
            send(held)

    def _next_fault(self, frames: list[bytes]) -> LinkFault | None:
        with self._lock:
            if self._plan is None:
                return None
            fault, chance, left = self._plan
            if left < 1 or self._rng.random() >= chance or is_handshake(frames):
                return None
            self._plan = (fault, chance, left - 1)
            self.affected += 1
            return fault


def is_handshake(frames: list[bytes]) -> bool:
    """Whether this message begins or ends a session."""
    _, message = decode(frames)
    return type(message).__name__.upper() in {MessageType(n).name for n in HANDSHAKE}


class ByteLink:
    """A proxy of byte streams (unix sockets or tcp) in its own thread.

    Args:
        target: ``ipc://…`` or ``tcp://host:port`` of the broker.
        listen: where peers connect instead; tcp port 0 picks a free one.
        delay_s: delay of each piece of data.

    Attributes:
        address: where peers connect.
        captured: all traffic in both directions.
    """

    def __init__(self, target: str, listen: str, *, delay_s: float = 0.0) -> None:
        self.address = listen
        self.captured = bytearray()
        self._target = target
        self._delay = delay_s
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._refusing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(self._serve(listen))

    def connections(self) -> int:
        """Number of open connections, which are indexed in order of arrival."""
        return len(self._pairs)

    def cut(self, index: int | None = None) -> None:
        """Cuts one connection, or all."""
        self._call(self._cut(index))

    def refuse(self, refusing: bool) -> None:
        """Simulates a network that is down while ``refusing``."""
        self._refusing = refusing
        if refusing:
            self.cut()

    def close(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _serve(self, listen: str) -> asyncio.Server:
        scheme, _, rest = listen.partition("://")
        if scheme == "ipc":
            return await asyncio.start_unix_server(self._join, rest)
        host, _, port = rest.rpartition(":")
        server = await asyncio.start_server(self._join, host, int(port))
        self.address = f"tcp://{host}:{server.sockets[0].getsockname()[1]}"
        return server

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        scheme, _, rest = self._target.partition("://")
        try:
            if self._refusing:
                raise ConnectionRefusedError
            if scheme == "ipc":
                far_reader, far_writer = await asyncio.open_unix_connection(rest)
            else:
                host, _, port = rest.rpartition(":")
                far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._pairs.append(pair)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        with contextlib.suppress(ValueError):
            self._pairs.remove(pair)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._delay:
                    await asyncio.sleep(self._delay)
                self.captured += data
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _cut(self, index: int | None) -> None:
        pairs = list(self._pairs) if index is None else self._pairs[index : index + 1]
        for pair in pairs:
            for writer in pair:
                writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await self._cut(None)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def beside(endpoint: str, name: str) -> str:
    """Another ipc address in the same folder."""
    return f"ipc://{Path(endpoint.removeprefix('ipc://')).with_name(name)}"
