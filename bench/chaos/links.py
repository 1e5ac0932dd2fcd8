"""What stands between peers and broker to break their connections: real sockets, on purpose.

``MessageLink`` speaks ZeroMQ and can lose, repeat and reorder single messages. ``ByteLink`` knows
bytes only: it cuts connections, delays them, and keeps what crossed (the traffic capture).
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


class Harm(Enum):
    """What happens to a message."""

    LOSE = auto()
    REPEAT = auto()
    SWAP = auto()  # with the next one in the same direction


class MessageLink:
    """A ZeroMQ proxy with a socket to the broker for each peer.

    Args:
        target: address of the broker.
        address: where peers connect instead.
        rng: picks the messages that are harmed.
    """

    def __init__(self, target: str, address: str, rng: random.Random) -> None:
        self.address = address
        self.harmed = 0
        self._target = target
        self._rng = rng
        self._lock = threading.Lock()
        self._plan: tuple[Harm, float, int] | None = None  # what, chance, how often
        self._swapped: dict[tuple[bytes, bool], list[bytes]] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.bind(address)
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def plan(self, harm: Harm, *, chance: float, times: int) -> None:
        """Each message suffers this with this chance, until so many have. Never a handshake."""
        with self._lock:
            self._plan = (harm, chance, times)

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
        harm = self._next_harm(frames)
        held = self._swapped.pop((identity, up), None)
        if harm is Harm.SWAP and held is None:
            self._swapped[identity, up] = frames
            return
        if harm is not Harm.LOSE:
            send(frames)
        if harm is Harm.REPEAT:
            send(frames)
        if held is not None:
            send(held)

    def _next_harm(self, frames: list[bytes]) -> Harm | None:
        with self._lock:
            if self._plan is None:
                return None
            harm, chance, left = self._plan
            if left < 1 or self._rng.random() >= chance or is_handshake(frames):
                return None
            self._plan = (harm, chance, left - 1)
            self.harmed += 1
            return harm


def is_handshake(frames: list[bytes]) -> bool:
    """Whether a session begins or ends with this message."""
    _, message = decode(frames)
    return type(message).__name__.upper() in {MessageType(n).name for n in HANDSHAKE}


class ByteLink:
    """A proxy of byte streams, unix sockets or tcp, in a thread of its own.

    Args:
        target: ``ipc://…`` or ``tcp://host:port`` of the broker.
        listen: where peers connect instead; tcp port 0 picks one.
        delay_s: how long each piece of data waits.

    Attributes:
        address: where peers connect.
        captured: everything that crossed, in both directions.
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
        """How many stand, in the order in which they came."""
        return len(self._pairs)

    def cut(self, index: int | None = None) -> None:
        """Breaks one connection, or all."""
        self._call(self._cut(index))

    def refuse(self, refusing: bool) -> None:
        """While refusing, nobody gets through: the network is down."""
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
        doomed = list(self._pairs) if index is None else self._pairs[index : index + 1]
        for pair in doomed:
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
    """Another ipc address in the folder of this one."""
    return f"ipc://{Path(endpoint.removeprefix('ipc://')).with_name(name)}"
