"""What the bus is held against: a bare DEALER-ROUTER-DEALER program that moves the same frames.

The simplest program that does the job at all: blocking sockets, three frames of the same sizes, no
checks, no sessions, no credit. The ROUTER is a thread of the runner, as the broker is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import zmq

from agentwire.benchmark.busload import Arrivals, run_phases

HEADER_BYTES = 120
ROWS = bytes(48)


class BareRouter:
    """Forwards everything to the peer named ``receiver``. A context manager.

    Args:
        keys: CURVE (public, secret) of the server; None: no encryption. Any client is let in.
    """

    def __init__(self, endpoint: str, keys: tuple[bytes, bytes] | None = None) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bare-router", daemon=True)

    def __enter__(self) -> BareRouter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            if self._keys is not None:
                router.curve_publickey, router.curve_secretkey = self._keys
                router.curve_server = True
            router.setsockopt(zmq.LINGER, 0)
            router.bind(self._endpoint)
            while not self._stop.is_set():
                if router.poll(50):
                    _, *frames = router.recv_multipart()
                    router.send_multipart([b"receiver", *frames])


def bare_peer(
    role: str,
    endpoint: str,
    messages: int,
    payload: bytes,
    wait_go: Callable[[], None],
    server_key: bytes | None = None,
) -> dict[str, float] | None:
    """One end. The receiver's figures; None at the sender."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        if server_key is not None:
            public, secret = zmq.curve_keypair()
            dealer.curve_publickey, dealer.curve_secretkey = public, secret
            dealer.curve_serverkey = server_key
        dealer.setsockopt(zmq.ROUTING_ID, role.encode())
        dealer.connect(endpoint)
        wait_go()
        if role == "sender":
            padding = bytes(HEADER_BYTES - 16)

            def send(mark: bytes) -> None:
                dealer.send_multipart([mark + padding, ROWS, payload])

            run_phases(send, messages)
            wait_go()  # until the receiver has everything
            return None
        arrivals = Arrivals(messages)
        while not arrivals.done.is_set():
            header, _, _ = dealer.recv_multipart()
            arrivals.add(header[:16])
        return arrivals.figures()


def curve_keys() -> tuple[bytes, bytes]:
    """A fresh (public, secret) pair."""
    return zmq.curve_keypair()
