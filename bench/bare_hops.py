"""One message over bare ZeroMQ sockets: the baseline of ``hops.py``.

The same processes, threads, frames and pauses as for a message between two agents at batch 1, but
messages are forwarded without being decoded. This measures ZeroMQ, the kernel and pyzmq, with CPU
caches that are cold after pauses of a few milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import zmq

from agentwire.agent.process import set_timer_slack

HEADER, ROWS, SMALL = bytes(200), bytes(90), bytes(90)
NEXT = {b"client": b"sender", b"sender": b"receiver", b"receiver": b"client"}
NAP_S = 20e-6


def agent(address: str, name: bytes, pause_ms: float, body: bytes) -> None:
    """Answers each message after a pause; an empty message ends it."""
    set_timer_slack()
    context: Any = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, name)
    socket.connect(address)
    socket.send(b"here")
    while len(socket.recv_multipart(copy=False)) > 1:
        end = time.monotonic() + pause_ms / 1000
        while time.monotonic() < end:
            time.sleep(NAP_S)
        socket.send_multipart([HEADER, ROWS, body])
    socket.close(linger=0)
    context.term()


def broker(router: Any, messages: int) -> None:
    for _ in range(messages):
        sender, *frames = router.recv_multipart(copy=False)
        router.send_multipart([NEXT[sender.bytes], *frames], copy=False)


def bare_round(messages: int, warm_up: int, pauses_ms: Sequence[float], size: int) -> list[float]:
    """Milliseconds of each message without the pauses of sender and receiver.

    Args:
        size: bytes of the message from sender to receiver.
    """
    folder = tempfile.mkdtemp(prefix="agentwire-bare-")
    address = f"ipc://{folder}/socket"
    context: Any = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(address)
    router.bind("inproc://bus")
    start = multiprocessing.get_context("spawn").Process
    agents = [
        start(target=agent, args=(address, name, pause, body), daemon=True)
        for name, pause, body in zip(
            (b"sender", b"receiver"), pauses_ms, (os.urandom(size), SMALL), strict=True
        )
    ]
    client = context.socket(zmq.DEALER)
    try:
        for process in agents:
            process.start()
        for _ in agents:
            router.recv_multipart()
        total = messages + warm_up
        hub = threading.Thread(target=broker, args=(router, len(NEXT) * total), daemon=True)
        hub.start()
        client.setsockopt(zmq.IDENTITY, b"client")
        client.connect("inproc://bus")
        over: list[float] = []
        for _ in range(total):
            begin = time.perf_counter()
            client.send_multipart([HEADER, ROWS, SMALL])
            client.recv_multipart(copy=False)
            over.append((time.perf_counter() - begin) * 1000 - sum(pauses_ms))
        hub.join()
        for name in (b"sender", b"receiver"):
            router.send_multipart([name, b""])
        for process in agents:
            process.join()
    finally:
        client.close(linger=0)
        router.close(linger=0)
        context.term()
        shutil.rmtree(folder, ignore_errors=True)
    return over[warm_up:]
