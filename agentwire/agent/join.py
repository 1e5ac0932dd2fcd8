"""An agent of this machine that joins the bus of a run on another machine, again and again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from agentwire.agent.launching.failure import ExitCode
from agentwire.agent.service import Inbox, Service, connect, load
from agentwire.bus.access import PeerKeys
from agentwire.bus.zmq import ZmqTransport
from agentwire.errors import BusClosed, InputError
from agentwire.spec.agent import AgentSpec, BusAddress
from agentwire.wire.session import UNKNOWN_RUN

log = logging.getLogger(__name__)
PAUSE_S: Final = 0.2
"""Wait before an agent joins again; it doubles with each failed attempt, up to LONGEST_PAUSE_S."""
LONGEST_PAUSE_S: Final = 5.0


def new_epoch() -> int:
    """Higher than every one before it, also of processes that are gone: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def join(
    spec: AgentSpec, endpoint: str, keys: PeerKeys, *, on_news: Callable[[str], None]
) -> ExitCode:
    """Is an agent of the bus at ``endpoint``, again and again, until told to leave (SIGTERM).

    Args:
        spec: what it runs.
        endpoint: ``tcp://host:port`` of the bus.
        keys: its own pair, and the public key of the bus.
        on_news: told in words what happens.

    Raises:
        InputError: the model cannot be loaded, or the bus turns this agent away.
    """
    loaded = load(spec, lambda stage, fraction: log.info("%s %.0f %%", stage, 100 * fraction))
    on_news(f"{spec.name} is loaded; joining {endpoint}")
    pause, told = PAUSE_S, threading.Event()
    while True:
        address = BusAddress(endpoint=endpoint, run=UNKNOWN_RUN.hex(), epoch=new_epoch(), token="")
        inbox = Inbox()
        peer = connect(spec.name, address, inbox, ZmqTransport(keys=keys))
        started = time.monotonic()
        service = Service(spec, peer, inbox, told=told)
        try:
            code, reason = service.run(loaded), service.lost
        except BusClosed as error:
            code, reason = ExitCode.BUS_LOST, error.message
        finally:
            peer.close("the agent ends", timeout=1.0)
        if code != ExitCode.BUS_LOST:
            on_news(f"{spec.name} leaves")
            return code
        if "refused (" in reason:
            raise InputError(
                f"The bus turns {spec.name} away: {reason}.",
                hint="Look at `agentwire keys list` there, and at the run's --remote.",
            )
        on_news(f"the bus is lost ({reason}); joining again")
        if told.wait(pause):
            on_news(f"{spec.name} leaves")
            return ExitCode.DONE
        lasted = time.monotonic() - started > LONGEST_PAUSE_S
        pause = PAUSE_S if lasted else min(LONGEST_PAUSE_S, 2 * pause)
