"""Connects an agent of this machine to a bus on another machine, and reconnects it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from agentwire.agent.launching.failure import ExitCode
from agentwire.agent.service import Inbox, Service, connect, load
from agentwire.bus.directory import epoch_to_exceed
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.transport import PeerKeys, transport_for
from agentwire.errors import BusClosed, InputError, NackCode
from agentwire.spec.agent import AgentSpec, BusAddress
from agentwire.wire.fields import MAX_I63
from agentwire.wire.session import UNKNOWN_RUN

log = logging.getLogger(__name__)
FIRST_PAUSE_S: Final = 0.2
"""Wait before reconnecting; it doubles with each failure, up to ``LONGEST_PAUSE_S``."""
LONGEST_PAUSE_S: Final = 5.0
SILENCE_S: Final = 10.0
"""Time without an answer until the user is told; it doubles each time. A bus does not answer a key
that it does not know, and to a peer with a false server key there is no bus."""


LEAP: Final = 1_000_000
"""Added to the epoch to exceed, so that connections of an older process (1 each) stay below."""
HINTS: Final = {
    NackCode.UNAUTHORIZED: "Check `agentwire keys list` there, and the run's --remote.",
    NackCode.VERSION: "Install the same version of agentwire on both machines.",
    NackCode.STALE_EPOCH: "Let only one process run this agent.",
}
"""Refusals that end the agent; after any other it connects again."""


def first_epoch() -> int:
    """Milliseconds since 1970. If the clock was set back, the bus names the epoch to exceed."""
    return max(0, time.time_ns() // 1_000_000)


def join(
    spec: AgentSpec, endpoint: str, keys: PeerKeys, *, on_event: Callable[[str], None]
) -> ExitCode:
    """Loads the agent and serves the bus at ``endpoint`` until SIGTERM, reconnecting as needed.

    Args:
        endpoint: ``tcp://host:port`` of the bus.
        keys: the agent's own pair, and the public key of the bus.
        on_event: called with a line for the user when something happens.

    Raises an InputError if the model cannot be loaded, or the bus refuses this agent.
    """
    loaded = load(spec, lambda stage, fraction: log.info("%s %.0f %%", stage, 100 * fraction))
    on_event(f"{spec.name} is loaded; connecting to {endpoint}")
    pause, stop_requested = FIRST_PAUSE_S, threading.Event()
    epoch, admitted = first_epoch(), False
    while True:
        address = BusAddress(endpoint=endpoint, run=UNKNOWN_RUN.hex(), epoch=epoch, token="")
        inbox = Inbox()
        peer = connect(spec.name, address, inbox, transport_for(endpoint, keys=keys))
        started, ended = time.monotonic(), threading.Event()
        watch = (spec.name, peer, keys.public, ended, on_event)
        threading.Thread(target=_watch, args=watch, daemon=True).start()
        service = Service(spec, peer, inbox, stop_requested=stop_requested)
        try:
            code, reason = service.run(loaded), service.lost
        except BusClosed as error:
            code, reason = ExitCode.BUS_LOST, error.message
        finally:
            ended.set()
            peer.close("the agent exits", timeout=1.0)
        if code != ExitCode.BUS_LOST:
            on_event(f"{spec.name} exits")
            return code
        admitted = admitted or peer.admitted
        epoch += 1
        above = epoch_to_exceed(reason) if peer.refusal is NackCode.STALE_EPOCH else None
        if above is not None and not admitted and above + LEAP <= MAX_I63:
            epoch = above + LEAP
        elif peer.refusal in HINTS:
            message = f"The bus refuses the agent {spec.name}: {reason}."
            raise InputError(message, hint=HINTS[peer.refusal])
        on_event(f"connection to the bus lost ({reason}); reconnecting")
        if stop_requested.wait(pause):
            on_event(f"{spec.name} exits")
            return ExitCode.DONE
        lasted = time.monotonic() - started > LONGEST_PAUSE_S
        pause = FIRST_PAUSE_S if lasted else min(LONGEST_PAUSE_S, 2 * pause)


def _watch(
    name: str,
    peer: Endpoint,
    public: str,
    ended: threading.Event,
    on_event: Callable[[str], None],
) -> None:
    """Tells the user while the bus does not answer."""
    pause = SILENCE_S
    while not ended.wait(pause) and not peer.admitted:
        on_event(
            f"no answer from the bus: check --connect and --server, start the run there with "
            f"--remote {name}, and allow this key: agentwire keys allow {name} '{public}'"
        )
        pause *= 2
