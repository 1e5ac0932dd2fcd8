"""The load of the bus benchmark, the same for the bus and for bare sockets: marks and phases.

Every message carries 16 bytes that say which phase it belongs to and when it was sent. Sender and
receiver are processes of one machine, which has one monotonic clock.
"""

from __future__ import annotations

import statistics
import struct
import threading
import time
from collections.abc import Callable

WARM_UP = 50
PAUSE_S = 0.002  # between messages of the latency phase: the pipe is empty again
MARK = struct.Struct("<qd")
WARM, LATENCY, RATE = range(3)


def mark(phase: int) -> bytes:
    """What a message of this phase carries, now."""
    return MARK.pack(phase, time.monotonic())


class Arrivals:
    """The receiver's figures.

    Attributes:
        done: set when every message of the last phase has come.
    """

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._latencies_us: list[float] = []
        self._arrivals: list[float] = []
        self.done = threading.Event()

    def add(self, mark: bytes) -> None:
        """Counts a message that is in its owner's hands now."""
        now = time.monotonic()
        phase, sent = MARK.unpack(mark)
        if phase == LATENCY:
            self._latencies_us.append((now - sent) * 1e6)
        elif phase == RATE:
            self._arrivals.append(now)
            if len(self._arrivals) == self._messages:
                self.done.set()

    def figures(self) -> dict[str, float]:
        """p50 and p99 in microseconds one way, and messages a second."""
        cuts = statistics.quantiles(self._latencies_us, n=100)
        span = self._arrivals[-1] - self._arrivals[0]
        return {
            "p50_us": cuts[49],
            "p99_us": cuts[98],
            "messages_per_s": (len(self._arrivals) - 1) / span,
        }


def run_phases(send: Callable[[bytes], None], messages: int) -> None:
    """What a sender does: warm up, one message at a time, then all at once."""
    for _ in range(WARM_UP):
        send(mark(WARM))
        time.sleep(PAUSE_S)
    for _ in range(messages):
        send(mark(LATENCY))
        time.sleep(PAUSE_S)
    for _ in range(messages):
        send(mark(RATE))
