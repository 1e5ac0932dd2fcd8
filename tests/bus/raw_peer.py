"""A peer on a bare ZeroMQ socket: it can send what an endpoint would not."""

from __future__ import annotations

import os
import time
from types import TracebackType

import psutil
import zmq
from bus_messages import TOKEN, hello
from bus_rig import RUN
from patience import EVENT_S

from agentwire.wire import messages as m
from agentwire.wire.codec import decode, encode


class RawPeer:
    """A DEALER with a hand to write its frames."""

    def __init__(self, endpoint: str, epoch: int = 1, **options: int | bytes) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.SNDHWM, 10_000)
        for name, value in options.items():
            self.socket.set(getattr(zmq, name), value)
        self.socket.connect(endpoint)
        self.epoch = epoch
        self.seq = 0

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close(linger=0)
        self._context.term()

    def frames(self, message: m.Message, seq: int | None = None, run: bytes = RUN) -> list[bytes]:
        """As an honest peer would pack it; ``seq``: instead of the next number."""
        if seq is None:
            seq, self.seq = self.seq, self.seq + 1
        return [bytes(frame) for frame in encode(message, m.Envelope(run, seq, self.epoch))]

    def say(self, message: m.Message, seq: int | None = None) -> list[bytes]:
        """Sends a message; gives its frames, to be sent again."""
        frames = self.frames(message, seq)
        self.send(frames)
        return frames

    def try_to_say(self, message: m.Message) -> None:
        """Sends a message where there is a connection to send it over, at the latest in 0.3 s."""
        if self.socket.poll(300, zmq.POLLOUT):
            self.socket.send_multipart(self.frames(message, 0), zmq.NOBLOCK)

    def send(self, frames: list[bytes]) -> None:
        self.socket.send_multipart(frames)

    def join(self, name: str = "client", token: str = TOKEN) -> m.Message:
        """Says Hello; gives the answer."""
        self.say(hello(name, token=token))
        return self.hear(m.Welcome, m.Nack)

    def hear(self, *kinds: type[m.Message]) -> m.Message:
        """The next message of one of these kinds."""
        deadline = time.monotonic() + EVENT_S
        while time.monotonic() < deadline:
            if self.socket.poll(100):
                _, message = decode(self.socket.recv_multipart())
                if isinstance(message, kinds):
                    return message
        raise AssertionError(f"none of {[kind.__name__ for kind in kinds]} came")

    def silent(self, seconds: float = 0.3) -> bool:
        """Whether nothing at all comes for so long."""
        return not self.socket.poll(round(seconds * 1000))


def memory_mb() -> float:
    return float(psutil.Process(os.getpid()).memory_info().rss) / 2**20
