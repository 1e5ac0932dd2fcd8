"""Admission of ipc connections by the descriptors that are left.

libzmq accepts connections in its own thread, without a limit, and ends the process when no
descriptor is left. So it may accept only in short turns: while the socket's path is hidden, so that
no more than the backlog waits, and only after a check that there is room for all of it.

libzmq is given a descriptor of an idle socket to listen on and to poll. In a turn the descriptor's
number refers to the public socket, and a connection to the idle socket wakes libzmq.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import resource
import select
import socket
import threading
import time
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

DESCRIPTORS: Final = Path("/proc/self/fd")
BACKLOG: Final = 16  # connections that wait for a turn; the kernel adds one
MOST: Final = 1024
"""Connections of one bus, however many descriptors there are; at most a quarter of these."""
HELLO_S: Final = 5.0
"""A connection without an admitted peer is closed after this time if there is no room."""
TURN_S: Final = 0.05
LOG_EVERY_S: Final = 10.0
LARGEST_LIMIT: Final = 65_536


def is_supported() -> bool:
    """Whether the system lists a process's descriptors and polls them as Linux does."""
    return DESCRIPTORS.exists()


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
    """Listens on a path, in a thread of its own.

    Attributes:
        file: the descriptor for ``zmq.USE_FD``. libzmq closes it.
        admitted: inodes of the connections whose peers have a session; the owner keeps it.
        refused: connections that were closed for lack of room.
    """

    def __init__(self, path: Path) -> None:
        limit = raise_limit()
        self._most, self._reserve = min(MOST, limit // 4), limit // 4
        self._path = path
        self._hidden, idle = Path(f"{path}.busy"), Path(f"{path}.idle")
        self.admitted: set[int] = set()
        self.refused = 0
        self._logged = 0.0
        self._seen: dict[int, float] = {}  # inode of a connection -> when it was first seen
        self._public, self._idle = _listen(path, BACKLOG), _listen(idle, 1)
        self._idle_inode = os.open(idle, os.O_PATH | os.O_CLOEXEC)
        idle.unlink()  # nobody else can connect to it
        self._wake, self._waker = socket.socketpair()
        self.file = os.dup(self._idle.fileno())
        self._thread = threading.Thread(target=self._run, name="agentwire-gate", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stops listening. Call it before libzmq closes ``file``."""
        self._waker.close()
        self._thread.join()
        for closed in (self._public, self._idle, self._wake):
            closed.close()
        os.close(self._idle_inode)
        for path in (self._hidden, self._path):
            path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not _is_polled(self.file) and not _is_readable(self._wake):
            time.sleep(0.001)  # libzmq must see the idle socket first, and the same at the end
        ready = select.poll()
        ready.register(self._public, select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        while not _is_readable(self._wake):
            ready.poll()
            if not _is_readable(self._public):
                continue
            try:
                connections = self._connections()
                if self._has_room(connections) or self._evict(connections):
                    self._take_turn()
                else:
                    self._refuse(len(connections))
            except OSError as error:  # no descriptor, or the folder is gone
                self._report(f"cannot accept connections: {error.strerror}")
                time.sleep(0.05)

    def _has_room(self, connections: dict[int, int]) -> bool:
        free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir(DESCRIPTORS))
        return len(connections) + BACKLOG < self._most and free - BACKLOG > self._reserve

    def _take_turn(self) -> None:
        """Lets libzmq accept what waits."""
        self._path.rename(self._hidden)
        end = time.monotonic() + TURN_S
        try:
            with socket.socket(socket.AF_UNIX) as poke:
                os.dup2(self._public.fileno(), self.file, inheritable=False)
                poke.connect(f"/proc/self/fd/{self._idle_inode}")
                while _is_readable(self._public) and time.monotonic() < end:
                    time.sleep(0.0002)
        finally:
            os.dup2(self._idle.fileno(), self.file, inheritable=False)
            with contextlib.suppress(OSError):
                self._idle.accept()[0].close()
            self._hidden.rename(self._path)

    def _connections(self) -> dict[int, int]:
        """The accepted connections: inode -> descriptor."""
        name, found = self._public.getsockname(), {}
        for entry in os.listdir(DESCRIPTORS):
            with contextlib.suppress(OSError):
                inode = os.fstat(int(entry)).st_ino
                other = socket.socket(fileno=int(entry))
                try:
                    listens = other.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    if not listens and other.getsockname() == name:
                        found[inode] = int(entry)
                finally:
                    other.detach()
        now = time.monotonic()
        self._seen = {inode: self._seen.get(inode, now) for inode in found}
        return found

    def _evict(self, connections: dict[int, int]) -> bool:
        """Closes connections that have not said Hello in time; whether there is room then."""
        before = time.monotonic() - HELLO_S
        for inode, file in connections.items():
            if inode not in self.admitted and self._seen[inode] < before:
                cut_connection(file, inode)
        time.sleep(0.01)  # libzmq closes them
        return self._has_room(self._connections())

    def _refuse(self, connections: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._public.accept()[0].close()
                self.refused += 1
                self._report(f"{connections} connections are open: closing new ones")

    def _report(self, what: str) -> None:
        now = time.monotonic()
        if now - self._logged > LOG_EVERY_S:
            self._logged = now
            log.warning("the bus at %s: %s", self._path, what)


def cut_connection(file: int, inode: int) -> None:
    """Ends the connection of a descriptor that libzmq owns, if it is still the same one."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(file)) as same:
        if os.fstat(same.fileno()).st_ino == inode:
            same.shutdown(socket.SHUT_RDWR)


def _listen(path: Path, backlog: int) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        listening.listen(backlog)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _is_polled(file: int) -> bool:
    """Whether an epoll of this process watches the descriptor."""
    watched = re.compile(rf"^tfd:\s+{file}\s", re.MULTILINE)
    for info in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            if watched.search(info.read_text()):
                return True
    return False


def _is_readable(file: socket.socket) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))
