"""CURVE: encrypted tcp, and a list of the public keys that are let in.

ZeroMQ asks whoever listens at a fixed in-process address (ZAP, RFC 27) about each key. Who is not
on the list gets no answer at all: the handshake fails before a frame of ours is read. Without the
handler ZeroMQ would let every key in, so the domain is enforced: no handler, no connection.
"""

from __future__ import annotations

import threading
from typing import Final

import zmq
from zmq.utils import z85

from agentwire.bus.access import Guest, PeerKeys

ZAP_ADDRESS: Final = "inproc://zeromq.zap.01"
ZAP_VERSION: Final = b"1.0"
DOMAIN: Final = b"agentwire"
POLL_MS: Final = 200


def new_pair() -> tuple[str, str]:
    """A fresh (public, secret) pair in Z85."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def public_of(secret: str) -> str:
    """The public key of a secret one."""
    return zmq.curve_public(secret.encode()).decode()


def guard(socket: zmq.Socket[bytes], secret: str) -> None:
    """Makes every later ``bind`` of this socket ask for a key that is on the list."""
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, secret.encode())
    socket.set(zmq.ZAP_DOMAIN, DOMAIN)
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)


def present(socket: zmq.Socket[bytes], keys: PeerKeys) -> None:
    """Makes a later ``connect`` show these keys, and check the server's."""
    socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
    socket.set(zmq.CURVE_SERVERKEY, keys.server.encode())


class CurveAuthenticator:
    """Answers ZeroMQ's questions about keys, in a thread of its own.

    Args:
        context: of the socket that is guarded.
        guests: who is let in; asked anew for every connection, so a revoked key counts at once.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], guests: Guest) -> None:
        self._guests = guests
        self._socket = context.socket(zmq.REP)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(ZAP_ADDRESS)
        self._closing = threading.Event()
        self.refused = 0
        self._thread = threading.Thread(target=self._run, name="agentwire-keys", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._socket.close(linger=0)

    def _run(self) -> None:
        while not self._closing.is_set():
            if self._socket.poll(POLL_MS):
                frames = self._socket.recv_multipart()
                self._socket.send_multipart(self._answer(frames))

    def _answer(self, frames: list[bytes]) -> list[bytes]:
        request = frames[1] if len(frames) > 1 else b""
        key = ""
        # version, request, domain, address, identity, mechanism, then the public key
        if len(frames) == 7 and frames[0] == ZAP_VERSION and frames[5] == b"CURVE":
            key = z85.encode(frames[6]).decode()
        if key and self._guests.name_of(key) is not None:
            return [ZAP_VERSION, request, b"200", b"OK", key.encode(), b""]
        self.refused += 1
        return [ZAP_VERSION, request, b"400", b"unknown key", b"", b""]
