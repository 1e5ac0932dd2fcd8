"""Bare ZeroMQ sockets that move frames of the bus's sizes: DEALER-ROUTER-DEALER, nothing else.

The sockets block; there are no checks, sessions or credit. The ROUTER is a thread of the runner, as
the broker is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

HEADER_BYTES = 120
MARK_BYTES = 16
PADDING = bytes(HEADER_BYTES - MARK_BYTES)
ROWS = bytes(48)


@contextmanager
def bare_router(endpoint: str, keys: tuple[str, str] | None) -> Iterator[None]:
    """Forwards everything to the peer named ``receiver``.

    With ``keys`` (CURVE, public and secret, Z85) it encrypts, and accepts any client.
    """
    stop = threading.Event()

    def forward() -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            if keys is not None:
                router.curve_publickey, router.curve_secretkey = (key.encode() for key in keys)
                router.curve_server = True
            router.setsockopt(zmq.LINGER, 0)
            router.bind(endpoint)
            while not stop.is_set():
                if router.poll(50):
                    _, *frames = router.recv_multipart()
                    router.send_multipart([b"receiver", *frames])

    thread = threading.Thread(target=forward, name="bare-router", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class BareSocket:
    """One end: a DEALER. A context manager."""

    def __init__(self, role: str, endpoint: str, server_key: str | None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        if server_key is not None:
            self._dealer.curve_publickey, self._dealer.curve_secretkey = zmq.curve_keypair()
            self._dealer.curve_serverkey = server_key.encode()
        self._dealer.setsockopt(zmq.ROUTING_ID, role.encode())
        self._dealer.connect(endpoint)

    def __enter__(self) -> BareSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._dealer.close()
        self._context.term()

    def send(self, mark: bytes, payload: bytes) -> None:
        self._dealer.send_multipart([mark + PADDING, ROWS, payload])

    def receive(self) -> bytes:
        """The mark of the next message."""
        header, _, _ = self._dealer.recv_multipart()
        return header[:MARK_BYTES]
