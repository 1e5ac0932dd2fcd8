"""CURVE: encrypted tcp, and the check of public keys against a list.

ZeroMQ asks a handler at a fixed in-process address (ZAP, RFC 27) about each key. A key that is not
listed gets no answer: the handshake fails before the broker reads a frame. Without a handler ZeroMQ
would accept every key, so the domain is enforced: no handler, no connection.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

import zmq
from zmq.utils import z85

from agentwire.bus.transport import AllowedKeys, PeerKeys

log = logging.getLogger(__name__)

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
    """Makes every later ``bind`` of this socket require a listed key."""
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, secret.encode())
    socket.set(zmq.ZAP_DOMAIN, DOMAIN)
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)


def present(socket: zmq.Socket[bytes], keys: PeerKeys) -> None:
    """Makes a later ``connect`` present these keys and check the server's key."""
    socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
    socket.set(zmq.CURVE_SERVERKEY, keys.server.encode())


class CurveAuthenticator:
    """Answers ZeroMQ's key checks, in a thread of its own.

    Args:
        context: of the guarded socket.
        allowed: the keys that may connect; looked up for every connection, so that a revocation
            takes effect at once.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: AllowedKeys) -> None:
        self._allowed = allowed
        self._socket = context.socket(zmq.REP)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(ZAP_ADDRESS)
        self._closing = threading.Event()
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
        try:
            if key and self._allowed.name_of(key) is not None:
                return [ZAP_VERSION, request, b"200", b"OK", key.encode(), b""]
        except Exception:  # without this thread nobody could connect
            log.exception("a key could not be checked and is refused")
        return [ZAP_VERSION, request, b"400", b"unknown key", b"", b""]
