"""An asyncio loop that listens to an endpoint itself: no thread hands over what arrives."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Protocol


class Audible(Protocol):
    """What is listened to (``bus.endpoint.Endpoint``)."""

    @property
    def descriptors(self) -> tuple[int, ...]: ...
    def poll(self, seconds: float) -> bool: ...


class LoopReader:
    """Calls ``poll`` of a started endpoint whenever it has something to do, in the loop's thread.

    Where the loop or the transport cannot do that, the endpoint's own thread goes on listening.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: Audible) -> None:
        self._loop = loop
        self._endpoint = endpoint
        # Copies: the endpoint closes its own when it likes, and their numbers are used again.
        self._files = [os.dup(file) for file in endpoint.descriptors]
        try:
            for file in self._files:
                loop.add_reader(file, self._hear)
        except NotImplementedError:
            self.close()

    def _hear(self) -> None:
        if self._files and self._endpoint.poll(0.0):
            self._loop.call_soon(self._hear)  # of what is left no file tells

    def close(self) -> None:
        """Leaves the rest to the endpoint's thread. Safe to call twice."""
        files, self._files = self._files, []
        for file in files:
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_reader(file)
            os.close(file)
