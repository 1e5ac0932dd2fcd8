"""HTTP connections: uvicorn's protocol with deadlines for clients, and a limit on connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import resource
import socket
from email.utils import formatdate
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

ACCEPTS: Final = 16
"""Connections accepted before other work goes on."""
MAX_HEAD_BYTES: Final = 64 * 1024
LINGER_S: Final = 5.0
"""Time to read an answer that came before the request's end. Closing at once could destroy it."""
GRACE_S: Final = 0.1
"""Time for a new connection's request to arrive before another connection may take its place."""
RETRY_S: Final = 0.02
CLOSE_S: Final = 2.0

log = logging.getLogger(__name__)


def connection_limit(requests: int) -> int:
    """Connections for this many requests: at most half of the descriptors that are left, because
    agents that are started again need some too.
    """
    most, limit = 4 * requests + 256, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return most
    return max(8, min(most, (limit - len(os.listdir("/dev/fd"))) // 2))


class HttpServer:
    """Serves an application on a listening socket.

    At the limit of connections, the oldest one that has no request being answered makes room; if
    all are new or busy, others wait. So connections that send nothing keep nobody out.

    Args:
        most: connections open at a time.
        client_s: time for a client to send a request head, or to read what was sent.
    """

    def __init__(
        self, app: ASGIApp, listener: socket.socket, *, most: int, client_s: float
    ) -> None:
        self._config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="error",  # warnings are about what clients sent
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(client_s) + 1,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        self._config.load()
        self._listener = listener
        self._most = most
        self._client_s = client_s
        self._loop = asyncio.get_running_loop()
        self._state = ServerState()
        self._connections: dict[_Connection, asyncio.Task[None]] = {}  # oldest first
        self._date: asyncio.TimerHandle | None = None
        self._listening = False
        self._warned = False
        self._spare: int | None = None  # a descriptor to accept with when there are no others

    def start(self) -> None:
        self._listener.setblocking(False)
        self._listening = True
        self._take_spare()
        self._set_date()
        self._resume()

    async def close(self) -> None:
        """Stop listening, let open answers be sent for a moment, and close all connections."""
        self._listening = False
        self._loop.remove_reader(self._listener)
        if self._date is not None:
            self._date.cancel()
        for connection in list(self._connections):
            connection.finish()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=CLOSE_S)
        for connection in list(self._connections):
            connection.abort()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=CLOSE_S)
        await asyncio.sleep(0)  # the sockets are closed in the loop's next round
        self._drop_spare()

    def forget(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        self._loop.call_soon(self._take_spare)  # then its descriptor is free

    def _take_spare(self) -> None:
        if self._spare is None and self._listening:
            with contextlib.suppress(OSError):
                self._spare = os.dup(self._listener.fileno())

    def _drop_spare(self) -> bool:
        spare, self._spare = self._spare, None
        if spare is not None:
            os.close(spare)
        return spare is not None

    def _set_date(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._date = self._loop.call_later(1.0, self._set_date)

    def _resume(self) -> None:
        if self._listening:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        # asyncio's own accept loop logs a traceback for each failed accept, thousands a second.
        for _ in range(ACCEPTS):
            if len(self._connections) >= self._most and not self._evict():
                self._pause(RETRY_S)
                return
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors or memory
                if not self._warned:
                    self._warned = True
                    log.error("cannot accept connections for now: %s", error)
                self._pause(0.0 if self._evict() or self._drop_spare() else RETRY_S)
                return
            accepted.setblocking(False)
            connection = _Connection(self, self._config, self._state, self._client_s)
            self._connections[connection] = self._loop.create_task(
                self._connect(connection, accepted)
            )

    async def _connect(self, connection: _Connection, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError:  # the client has left already
            accepted.close()
            self.forget(connection)

    def _pause(self, seconds: float) -> None:
        """Accepts nothing for a moment, in which the listener stays readable."""
        self._loop.remove_reader(self._listener)
        self._loop.call_later(seconds, self._resume)

    def _evict(self) -> bool:
        """Closes the oldest connection that no request keeps busy, if there is one."""
        before = self._loop.time() - GRACE_S
        for connection in self._connections:
            if connection.is_idle and connection.waits_since < before:
                connection.abort()
                self.forget(connection)
                return True
        return False


class _Connection(H11Protocol):
    """uvicorn's protocol, closed when its client takes too long to send a head or to read."""

    def __init__(
        self, server: HttpServer, config: uvicorn.Config, state: ServerState, client_s: float
    ) -> None:
        super().__init__(config, state, {})
        self._http_server = server
        self._client_s = client_s
        self._timer = self.loop.call_later(client_s, self.abort)
        self.waits_since = self.loop.time()

    @property
    def is_idle(self) -> bool:
        """Whether it is open and no whole request is being answered."""
        return self.transport is not None and not (self._answering() and not self.cycle.more_body)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def finish(self) -> None:
        """Close now, or after the answer that is being sent."""
        if self.transport is not None and not self.transport.is_closing():
            self.shutdown()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _restart_timer(self, most_s: float = math.inf) -> None:
        self._timer.cancel()
        self._timer = self.loop.call_later(min(most_s, self._client_s), self.abort)

    def _stop_timer_while_answering(self) -> None:
        if self._answering() and not self.flow.write_paused:
            self._timer.cancel()

    def handle_events(self) -> None:
        super().handle_events()
        self._stop_timer_while_answering()
        early = len(self.conn.trailing_data[0])  # bytes of the next request
        if self._answering() and not self.cycle.more_body and early < MAX_HEAD_BYTES:
            self.flow.resume_reading()  # only a connection that is read shows its end

    def on_response_complete(self) -> None:
        self.waits_since = self.loop.time()
        self._restart_timer(LINGER_S if self.cycle.more_body else math.inf)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._restart_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_timer_while_answering()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._timer.cancel()
        self._unset_keepalive_if_required()
        self._http_server.forget(self)
