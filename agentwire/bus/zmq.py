"""The ZeroMQ transport: a ROUTER for the broker, a DEALER for each peer.

Each socket has its own context with one IO thread, so closing one bus cannot hang on the sockets of
another; links from the broker's own process share its context (``inproc``). Sent frames are copied
and large received ones are not. docs/design/bus.md has the reasons. A message is sent whole or not
at all: with NOBLOCK, ZeroMQ refuses at the first frame only.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import zmq

from agentwire.bus.curve import CurveAuthenticator, guard, present
from agentwire.bus.gate import Gate, cut_connection, is_supported
from agentwire.bus.security import check_endpoint, check_ipc_path
from agentwire.bus.transport import (
    IN_PROCESS,
    Frame,
    Frames,
    PeerId,
    PeerKeys,
    RemoteAccess,
    Sent,
)
from agentwire.errors import InputError
from agentwire.wire.limits import LIMITS

INPROC = "inproc://bus"  # in the listener's own context, so unique to each bus
HIGH_WATER = 64  # messages for each peer; a backstop behind credit
HANDSHAKE_MS = 5_000
CLOSING_S = 0.005
LAST_READ_S = 0.05  # for peers to read the last messages
COPIED_BYTES = 4096  # a received frame up to this size becomes bytes, a larger one a view
KEPT_FRAMES = 4  # one more than a message has: enough for the codec to refuse it
# Plain integers: operators of pyzmq's enumerations are Python code, which is slow when cold.
READABLE, WRITABLE, EVENTS = int(zmq.POLLIN), int(zmq.POLLOUT), int(zmq.EVENTS)
NOW, MORE_NOW = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)


Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"


def libzmq_version() -> str:
    return str(zmq.zmq_version())


class Wakeup:
    """A file descriptor that other threads make readable. ``set`` is cheap when already set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a closed descriptor's number may be reused by another file
        self._is_set = False
        self._closed = False
        if hasattr(os, "eventfd"):
            self._reader = self._writer = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:  # macOS
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        return self._reader

    def set(self) -> None:
        with self._lock:
            if not (self._is_set or self._closed):
                self._is_set = True
                os.write(self._writer, (1).to_bytes(8, "little"))

    def clear(self) -> None:
        with self._lock:
            if self._is_set:
                self._is_set = False
                os.read(self._reader, 8)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._reader)
                if self._writer != self._reader:
                    os.close(self._writer)


class _Socket:
    """A socket and a wake-up descriptor. All methods but ``wake`` belong to one thread, unless
    others hold the lock.

    The socket's descriptor only says that something *may* have happened since the socket was last
    used. So ``wait`` first asks for the events, unless the socket was not used since they were last
    asked for, and it may return without a reason.
    """

    def __init__(self, kind: int, frame_bytes: int, shared: Context | None = None) -> None:
        self._owns_context = shared is None
        self._context: Context = shared or zmq.Context(io_threads=1)
        self._wakeup = Wakeup()
        self._lock = threading.RLock()
        self._closed = False
        self._socket = self._context.socket(kind)
        # Without the layer that pyzmq puts above them for other kinds of sockets.
        plain: Any = super(zmq.Socket, self._socket)
        self._get, self._send_one, self._recv_one = plain.get, plain.send, plain.recv
        self._kept_frames = KEPT_FRAMES
        self._on_first_frame: Callable[[zmq.Frame], None] | None = None  # of each message
        self._first_frame: zmq.Frame | None = None  # of the last message
        self._known_empty = False  # nothing had arrived, and the socket was not used since
        self._likely_readable = False
        self._socket.set(zmq.SNDHWM, HIGH_WATER)
        self._socket.set(zmq.RCVHWM, HIGH_WATER)
        self._socket.set(zmq.MAXMSGSIZE, frame_bytes)  # for each frame; ZeroMQ disconnects the peer
        self._socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._socket.set(zmq.LINGER, 0)  # until close() says otherwise
        self._files = (self._socket.fileno(), self._wakeup.fileno())
        self._descriptors = select.poll()
        for file in self._files:
            self._descriptors.register(file, select.POLLIN)

    def wait(self, seconds: float, *, writable: bool = False) -> None:
        if writable:
            if self._ready(READABLE | WRITABLE):
                return
        elif not self._known_empty and self._ready(READABLE):
            self._likely_readable = True
            return
        for ready, _ in self._descriptors.poll(max(0, round(seconds * 1000))):
            self._known_empty = False
            if ready == self._files[0]:
                self._likely_readable = True
            else:
                self._wakeup.clear()

    def _ready(self, wanted: int) -> bool:
        """Whether the socket is now in one of the wanted states."""
        with self._lock:
            if self._closed:
                return False
            events: int = self._get(EVENTS)
            self._known_empty = not events & READABLE
            return bool(events & wanted)

    def wake(self) -> None:
        self._wakeup.set()

    def close(self, linger: float) -> None:
        if not self._socket.closed:
            self._wakeup.close()
            self._socket.close(linger=max(0, round(linger * 1000)))
            if self._owns_context:
                self._context.term()  # returns within the linger: it has no other socket

    def _receive_all(self) -> list[Frame] | None:
        """The frames of the next message; those that no message has are dropped."""
        with self._lock:
            if self._closed:
                return None
            if self._likely_readable:
                self._likely_readable = False
            elif not self._ready(READABLE):
                return None  # cheaper than an exception
            self._known_empty = False
            try:
                received = self._recv_one(NOW, copy=False)
            except zmq.Again:
                return None
            self._first_frame = received
            if self._on_first_frame is not None:
                self._on_first_frame(received)
            frames: list[Frame] = []
            while True:
                if len(frames) < self._kept_frames:
                    small = len(received) <= COPIED_BYTES
                    frames.append(received.bytes if small else received.buffer.toreadonly())
                if not received.more:
                    return frames
                received = self._recv_one(NOW, copy=False)  # all parts arrive together

    def _send_all(self, frames: Sequence[Frame]) -> None:
        """Sends one message whole, or raises ``zmq.Again`` and sends nothing."""
        self._known_empty = False
        send, last = self._send_one, len(frames) - 1
        for number, frame in enumerate(frames):
            flags = MORE_NOW if number < last else NOW
            source = frame.obj if type(frame) is memoryview else None
            if isinstance(source, zmq.Frame) and len(source) == len(frame) and frame.c_contiguous:
                send(source, flags, copy=False)
            else:
                send(frame, flags)


class ZmqListener(_Socket):
    """A bound ROUTER, with ``ROUTER_MANDATORY`` so that nothing is dropped silently."""

    def __init__(self, endpoint: str, frame_bytes: int, remote: RemoteAccess | None = None) -> None:
        super().__init__(zmq.ROUTER, frame_bytes)
        self._kept_frames += 1  # the peer's identity comes first
        self.last_key = ""
        self._endpoint = self.remote_endpoint = ""
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._authenticator: CurveAuthenticator | None = None
        self._gates: list[Gate] = []
        self._admitted: set[int] = set()  # inodes of the connections of peers with a session
        self._connections: dict[PeerId, tuple[int, int]] = {}  # descriptor and inode
        self._inproc: dict[PeerId, ZmqLink] = {}  # by an identity that only this process knows
        self._frame_bytes = frame_bytes
        self._endpoint = self._listen(endpoint)
        self._bind(INPROC)  # before the keys: only this process can reach it
        if remote is not None:
            # Options apply to later binds only: the ipc socket stays without keys.
            self._on_first_frame = self._read_key
            self._authenticator = CurveAuthenticator(self._context, remote.allowed)
            guard(self._socket, remote.secret)
            self.remote_endpoint = self._listen(remote.endpoint)

    def _listen(self, endpoint: str) -> str:
        """Binds behind a gate, where the system supports one; the endpoint to connect to."""
        path = ipc_path(endpoint)
        address = path or self._tcp_address(endpoint)
        if address is None or not is_supported(address):
            return self._bind(endpoint)
        try:
            gate = Gate(address, self._admitted)
        except OSError as error:
            self.close(0)
            raise InputError(
                f"The bus cannot listen on {path or endpoint}: {error.strerror}.",
                hint="Choose another folder for it (TMPDIR), or raise `ulimit -n`."
                if path is not None
                else "Choose another address, or stop the program that uses this one.",
            ) from None
        self._gates.append(gate)
        gate.start()
        self._socket.set(zmq.USE_FD, gate.file)
        self._bind(endpoint)  # ZeroMQ names the idle socket
        self._socket.set(zmq.USE_FD, -1)
        return gate.endpoint

    def _tcp_address(self, endpoint: str) -> tuple[str, int] | None:
        """The numeric address of a tcp endpoint, as ZeroMQ resolves it; None for others."""
        place, _, port = endpoint.rpartition(":")
        if not place.startswith("tcp://") or not (port == "*" or port.isdecimal()):
            return None
        with self._context.socket(zmq.PAIR) as probe:
            try:
                probe.bind(f"{place}:*")
            except zmq.ZMQError:
                return None  # the caller's own bind tells why
            host = probe.get_string(zmq.LAST_ENDPOINT).removeprefix("tcp://").rpartition(":")[0]
        return host.strip("[]"), 0 if port == "*" else int(port)

    def _bind(self, endpoint: str) -> str:
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close(0)
            raise InputError(
                f"The bus cannot listen on {endpoint}: {error.strerror}.",
                hint="Choose another address, or stop the program that uses this one.",
            ) from None
        return self._socket.get_string(zmq.LAST_ENDPOINT)

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def connect(self, endpoint: str) -> ZmqLink:
        """A link from this process by ``inproc``, whatever the endpoint says. Raises an InputError
        if this listener is closed."""
        if self._socket.closed:
            raise InputError("The bus is closed.", hint="Start a new one.")
        identity = b"\1" + os.urandom(16)  # ZeroMQ's own start with 0
        link = ZmqLink(INPROC, self._frame_bytes, shared=self._context, identity=identity)
        self._inproc = {i: known for i, known in self._inproc.items() if not known.closed}
        self._inproc[identity] = link
        return link

    def close(self, linger: float) -> None:
        listened = not self._socket.closed
        if listened:
            end = time.monotonic() + linger
            # A DEALER with IMMEDIATE drops what it has not read when its connection ends.
            time.sleep(max(0.0, min(linger, LAST_READ_S)))
            # The last messages wait in these links' own sockets.
            while not all(link.closed for link in self._inproc.values()) and time.monotonic() < end:
                time.sleep(CLOSING_S)
            for link in self._inproc.values():
                link.cut()  # term() waits for all sockets of the context
            self._wakeup.close()
            for gate in self._gates:
                gate.close()
            self._socket.close(linger=max(0, round(linger * 1000)))
            if self._authenticator is not None:
                self._authenticator.close()
            self._context.term()
        path = ipc_path(self._endpoint) if listened and self._endpoint else None
        if path is not None:
            path.unlink(missing_ok=True)  # ZeroMQ does not remove it

    def admitted(self, peer: PeerId) -> None:
        frame = self._first_frame
        with contextlib.suppress(OSError, zmq.ZMQError, ValueError):  # in process, or gone
            file = -1 if frame is None else int(frame.get(zmq.SRCFD))
            self._connections[peer] = file, os.fstat(file).st_ino
            self._admitted.add(os.fstat(file).st_ino)

    def released(self, peer: PeerId, cut: bool) -> None:
        file, inode = self._connections.pop(peer, (-1, 0))
        self._admitted.discard(inode)
        if cut and file >= 0:
            cut_connection(file, inode)

    def _read_key(self, frame: zmq.Frame) -> None:
        try:
            self.last_key = str(frame.get("User-Id"))
        except zmq.ZMQError:
            self.last_key = ""  # it came by ipc

    def receive(self) -> tuple[PeerId, list[Frame]] | None:
        frames = self._receive_all()
        if frames is None:
            return None
        peer = bytes(frames[0])
        if peer in self._inproc:
            self.last_key = IN_PROCESS
        elif self._on_first_frame is None:
            self.last_key = ""
        return peer, frames[1:]

    def send(self, peer: PeerId, frames: Frames) -> Sent:
        try:
            self._send_all([peer, *frames])
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return Sent.GONE
            raise
        return Sent.TAKEN


class ZmqLink(_Socket):
    """A connected DEALER. A lock lets other threads send while one of them waits and receives.

    Any use of the socket may clear the signal on its descriptor that something has arrived, so a
    sender that sees something to receive wakes the thread that waits.
    """

    def __init__(
        self,
        endpoint: str,
        frame_bytes: int,
        keys: PeerKeys | None = None,
        shared: Context | None = None,
        identity: PeerId | None = None,
    ) -> None:
        super().__init__(zmq.DEALER, frame_bytes, shared)
        if identity is not None:
            self._socket.set(zmq.ROUTING_ID, identity)
        if keys is not None:
            present(self._socket, keys)
        # Only an established connection takes messages; the rest waits in our own bounded queue.
        self._socket.set(zmq.IMMEDIATE, 1)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close(0)
            raise InputError(
                f"{endpoint!r} is not an address of a bus: {error.strerror}.",
                hint="Use ipc:///path/to/socket or tcp://host:port.",
            ) from None

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self._files

    @property
    def closed(self) -> bool:
        return self._closed

    def cut(self) -> None:
        """Closes the socket because its listener closes. Safe in another thread."""
        with self._lock:
            self._closed = True
            self._socket.close(linger=0)
        self.wake()

    def close(self, linger: float) -> None:
        with self._lock:
            self._closed = True
            self._wakeup.close()
            super().close(linger)

    receive = _Socket._receive_all

    def send(self, frames: Frames) -> Sent:
        with self._lock:
            if self._closed:
                return Sent.FULL
            try:
                self._send_all(frames)
            except zmq.Again:
                return Sent.FULL
            finally:
                if self._ready(READABLE):
                    self._wakeup.set()
        return Sent.TAKEN


class ZmqTransport:
    """``ipc://`` and ``tcp://`` sockets.

    Args:
        frame_bytes: largest accepted frame; ZeroMQ disconnects a peer that sends a larger one.
        force_plain_tcp: allow unencrypted tcp beyond this machine.
        remote: where peers of other machines connect as well, with keys.
        keys: the keys to present when connecting.
    """

    def __init__(
        self,
        *,
        frame_bytes: int = LIMITS.frame_bytes,
        force_plain_tcp: bool = False,
        remote: RemoteAccess | None = None,
        keys: PeerKeys | None = None,
    ) -> None:
        self._frame_bytes = frame_bytes
        self._force_plain_tcp = force_plain_tcp
        self._remote = remote
        self._keys = keys

    def listen(self, endpoint: str) -> ZmqListener:
        check_endpoint(endpoint, curve=False, force=self._force_plain_tcp)
        path = ipc_path(endpoint)
        if path is not None:
            clear_stale_path(path)
        if self._remote is not None:
            check_endpoint(self._remote.endpoint, curve=True)
        return ZmqListener(endpoint, self._frame_bytes, self._remote)

    def connect(self, endpoint: str) -> ZmqLink:
        return ZmqLink(endpoint, self._frame_bytes, self._keys)


def ipc_path(endpoint: str) -> Path | None:
    """The file of an ``ipc://`` endpoint; None for other transports. Raises as check_ipc_path."""
    scheme, _, path = endpoint.partition("://")
    return check_ipc_path(path) if scheme == "ipc" else None


def clear_stale_path(path: Path) -> None:
    """Removes the socket file of a dead broker; ZeroMQ itself would also replace one in use. Raises
    an InputError if a process listens there, or it is not a socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(mode) and not _is_listening(path):
        path.unlink(missing_ok=True)
        return
    raise InputError(
        f"The bus cannot listen on {path}: it is in use.",
        hint="Give each run its own folder (security.make_run_folder).",
    )


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # full backlog or no permission: a process is there
    return True
