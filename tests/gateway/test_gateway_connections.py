"""The HTTP server of the gateway, with an application that answers at once."""

import asyncio
import errno
import os
import socket
from typing import Any

import pytest

from agentwire.gateway.connections import HttpServer, connection_limit

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


class Listener(socket.socket):
    """Finds no descriptor for a connection until someone in the process gives one back."""

    free = 0
    refused = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.free:
            self.refused += 1
            raise OSError(errno.EMFILE, "Too many open files")
        accepted = super().accept()
        self.free -= 1
        return accepted


def listen(kind: type[socket.socket]) -> Any:
    listener = kind(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


async def ask(listener: socket.socket, data: bytes = REQUEST) -> bytes:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


async def test_without_descriptors_it_answers_with_the_spare_one_and_logs_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with listen(Listener) as listener:
        close = os.close

        def give_back(descriptor: int) -> None:
            close(descriptor)
            listener.free += 1

        monkeypatch.setattr(os, "close", give_back)
        server = HttpServer(app, listener, most=8, client_s=5)
        server.start()
        for _ in range(3):
            assert (await ask(listener)).endswith(b"ok")
        held = [await asyncio.open_connection(*listener.getsockname()) for _ in range(3)]
        await asyncio.sleep(0.3)
        assert 3 < listener.refused < 60  # it naps and does not spin
        await server.close()
        assert len(caplog.records) == 1
        for _, writer in held:
            writer.close()


async def test_at_the_limit_the_oldest_connection_without_a_request_makes_room() -> None:
    with listen(socket.socket) as listener:
        server = HttpServer(app, listener, most=4, client_s=60)
        server.start()
        silent = [await asyncio.open_connection(*listener.getsockname()) for _ in range(9)]
        assert (await ask(listener)).endswith(b"ok")
        assert await silent[0][0].read() == b""  # closed by the server
        await server.close()
        for _, writer in silent:
            writer.close()


async def test_closing_waits_for_no_silent_client() -> None:
    with listen(socket.socket) as listener:
        server = HttpServer(app, listener, most=4, client_s=60)
        server.start()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(REQUEST[:9])
        await asyncio.sleep(0.1)
        await asyncio.wait_for(server.close(), 1)
        assert await reader.read() == b""
        writer.close()


def test_the_limit_follows_the_requests_and_the_descriptors() -> None:
    assert 8 <= connection_limit(1) <= 260
