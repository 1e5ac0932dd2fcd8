"""Admission of connections by the descriptors that are left.

libzmq accepts connections in its own thread, without a limit, and ends the process when no
descriptor is left. So it may accept only in short turns: while no new connection can join the
socket's queue, and only after a check that there is room for the whole queue.

libzmq is given a descriptor of an idle socket to listen on and to poll. In a turn the descriptor's
number refers to the public socket, and a connection to the idle socket wakes libzmq. The queue is
closed by hiding the path of an ipc socket, and by a packet filter on a tcp socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import resource
import select
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

from agentwire.bus.security import make_run_folder

log = logging.getLogger(__name__)

Address: TypeAlias = Path | tuple[str, int]

DESCRIPTORS: Final = Path("/proc/self/fd")
BACKLOG: Final = 16  # connections that wait for a turn, at least; the kernel adds one
MOST_BACKLOG: Final = 128
MOST: Final = 1024
"""Connections of one socket, however many descriptors there are; at most a quarter of these."""
HELLO_S: Final = 5.0
"""A connection without an admitted peer is closed after this time if there is no room."""
TURN_S: Final = 0.05
GATHER_S: Final = 0.002  # for tcp connections that come together: one dropped comes again after 1 s
UNPOLLED_S: Final = 5.0
LOG_EVERY_S: Final = 10.0
LARGEST_LIMIT: Final = 65_536

# Linux's constants and a packet filter of one instruction, "keep 0 bytes". Python has no names for
# them. The program must outlive each call.
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
_INSTRUCTION: Final = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)
DROP_ALL: Final = struct.pack("@HP", 1, ctypes.addressof(_INSTRUCTION))

_one_turn: Final = threading.Lock()  # all gates of the process count the same descriptors


def is_supported(address: Address) -> bool:
    """Whether the system lists a process's descriptors, polls them as Linux does, and can close the
    queue of such a socket."""
    return DESCRIPTORS.exists() and (isinstance(address, Path) or _has_filters())


def _has_filters() -> bool:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, DROP_ALL)
        except OSError:  # a sandbox such as gVisor
            return False
    return True


def raise_limit() -> int:
    """Raises the limit of open files as far as the system lets it; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = LARGEST_LIMIT if hard == resource.RLIM_INFINITY else min(hard, LARGEST_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return LARGEST_LIMIT if soft == resource.RLIM_INFINITY else soft


class Gate:
    """Listens on a path or a tcp address, in a thread of its own.

    Args:
        address: a path for an ipc socket, or a numeric host and a port for a tcp socket.
        admitted: inodes of the connections whose peers have a session; the owner keeps it.

    Attributes:
        file: the descriptor for ``zmq.USE_FD``. libzmq closes it.
        name: the public socket's own address, as ``getsockname`` has it.
        refused: connections that were closed for lack of room.

    Raises an OSError if it cannot listen.
    """

    def __init__(self, address: Address, admitted: set[int]) -> None:
        limit = raise_limit()
        self._most, self._reserve = min(MOST, limit // 4), limit // 4
        self._path = address if isinstance(address, Path) else None
        # One that finds a full queue comes again at once by ipc, and after 1 s by tcp.
        self._backlog = BACKLOG if self._path else max(BACKLOG, min(MOST_BACKLOG, limit // 32))
        self._admitted = admitted
        self.refused = 0
        self._logged = 0.0
        self._seen: dict[int, float] = {}  # inode of a connection -> when it was first seen
        with contextlib.ExitStack() as opened:
            self._public = opened.enter_context(_listen(address, self._backlog))
            folder = make_run_folder()
            try:
                self._idle = opened.enter_context(_listen(folder / "idle", 1))
                self._idle_inode = os.open(folder / "idle", os.O_PATH | os.O_CLOEXEC)
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # nobody else can connect to it
            opened.callback(os.close, self._idle_inode)
            self._wake, self._waker = socket.socketpair()
            opened.enter_context(self._wake)
            opened.enter_context(self._waker)
            self.file = os.dup(self._idle.fileno())
            self._opened = opened.pop_all()
        self.name = self._public.getsockname()
        self._thread = threading.Thread(target=self._run, name="agentwire-gate", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stops listening. Call it before libzmq closes ``file``."""
        self._waker.close()
        self._thread.join()
        self._opened.close()
        if self._path is not None:
            for path in (self._hidden, self._path):
                path.unlink(missing_ok=True)

    @property
    def endpoint(self) -> str:
        """As ZeroMQ writes it."""
        if self._path is not None:
            return f"ipc://{self._path}"
        host, port = self.name[:2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    @property
    def _hidden(self) -> Path:
        return Path(f"{self._path}.busy")

    def _run(self) -> None:
        late = time.monotonic() + UNPOLLED_S
        while not _is_polled(self.file) and not _is_readable(self._wake):
            time.sleep(0.001)  # libzmq must see the idle socket first, and the same at the end
            if time.monotonic() > late:
                self._report("cannot accept connections: ZeroMQ does not poll the socket")
        ready = select.poll()
        ready.register(self._public, select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        while not _is_readable(self._wake):
            ready.poll()
            if not _is_readable(self._public):
                continue
            try:
                with _one_turn:
                    self._admit()
            except Exception as error:  # no descriptor, or the folder is gone
                reason = error.strerror if isinstance(error, OSError) else repr(error)
                self._report(f"cannot accept connections: {reason}")
                with contextlib.suppress(OSError):
                    self._refuse()
                time.sleep(0.05)

    def _admit(self) -> None:
        connections = self._connections()
        if self._has_room(connections) or self._evict(connections):
            self._take_turn()
        else:
            self._report(f"{len(connections)} connections are open: closing new ones")
            self._refuse()

    def _has_room(self, connections: dict[int, int]) -> bool:
        free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir(DESCRIPTORS))
        return (
            len(connections) + self._backlog < self._most and free - self._backlog > self._reserve
        )

    def _take_turn(self) -> None:
        """Lets libzmq accept what waits."""
        if self._path is None:
            time.sleep(GATHER_S)
        with self._closed_queue(), socket.socket(socket.AF_UNIX) as poke:
            poke.setblocking(False)
            try:
                os.dup2(self._public.fileno(), self.file, inheritable=False)
                poke.connect(f"/proc/self/fd/{self._idle_inode}")
                end = time.monotonic() + TURN_S
                while _is_readable(self._public) and time.monotonic() < end:
                    time.sleep(0.0002)
            finally:
                poke.close()
                self._drain()
                os.dup2(self._idle.fileno(), self.file, inheritable=False)

    def _drain(self) -> None:
        """Takes the connection that woke libzmq, which would take it for a peer's."""
        while _is_readable(self._idle):
            try:
                self._idle.accept()[0].close()
            except OSError:  # no descriptor: the turn goes on until one is free
                time.sleep(0.001)

    @contextlib.contextmanager
    def _closed_queue(self) -> Iterator[None]:
        """Nobody can join the queue of connections that wait."""
        if self._path is None:
            self._filter(True)
            try:
                yield
            finally:
                self._filter(False)
        else:
            self._path.rename(self._hidden)
            try:
                yield
            finally:
                self._hidden.rename(self._path)

    def _filter(self, on: bool) -> None:
        if on:
            self._public.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, DROP_ALL)
        else:
            self._public.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

    def _connections(self) -> dict[int, int]:
        """The accepted connections: inode -> descriptor."""
        found = {}
        for entry in os.listdir(DESCRIPTORS):
            with contextlib.suppress(OSError):
                inode = os.fstat(int(entry)).st_ino
                other = socket.socket(fileno=int(entry))
                try:
                    listens = other.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    if not listens and self._is_ours(other):
                        found[inode] = int(entry)
                finally:
                    other.detach()
        now = time.monotonic()
        self._seen = {inode: self._seen.get(inode, now) for inode in found}
        return found

    def _is_ours(self, other: socket.socket) -> bool:
        if other.family != self._public.family:
            return False
        name = other.getsockname()
        # A socket that listens on all interfaces has connections with other hosts in their names.
        return bool(name == self.name if self._path is not None else name[1] == self.name[1])

    def _evict(self, connections: dict[int, int]) -> bool:
        """Closes connections that have not said Hello in time; whether there is room then."""
        before = time.monotonic() - HELLO_S
        for inode, file in connections.items():
            if inode not in self._admitted and self._seen[inode] < before:
                cut_connection(file, inode)
        time.sleep(0.01)  # libzmq closes them
        return self._has_room(self._connections())

    def _refuse(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(self._backlog + 1):
                self._public.accept()[0].close()
                self.refused += 1

    def _report(self, what: str) -> None:
        now = time.monotonic()
        if now - self._logged > LOG_EVERY_S:
            self._logged = now
            log.warning("the bus at %s: %s", self.endpoint, what)


def cut_connection(file: int, inode: int) -> None:
    """Ends the connection of a descriptor that libzmq owns, if it is still the same one."""
    with contextlib.suppress(OSError):
        same = os.dup(file)
        try:
            if os.fstat(same).st_ino == inode:
                with socket.socket(fileno=os.dup(same)) as connection:
                    connection.shutdown(socket.SHUT_RDWR)
        finally:
            os.close(same)


def _listen(address: Address, backlog: int) -> socket.socket:
    if isinstance(address, Path):
        listening = socket.socket(socket.AF_UNIX)
    else:
        listening = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        if isinstance(address, Path):
            listening.bind(str(address))
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        listening.listen(backlog)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _is_polled(file: int) -> bool:
    """Whether an epoll of this process watches the descriptor."""
    watched = re.compile(rf"^tfd:\s+{file}\s", re.MULTILINE)
    with contextlib.suppress(OSError):  # no descriptor to look with
        for info in Path("/proc/self/fdinfo").iterdir():
            with contextlib.suppress(OSError):  # it has been closed
                if watched.search(info.read_text()):
                    return True
    return False


def _is_readable(file: socket.socket) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))
