"""Runs a gateway: starts the runtime and the HTTP server, and stops both cleanly."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentwire.errors import InputError
from agentwire.gateway.app import Gateway
from agentwire.gateway.connections import HttpServer, connection_limit
from agentwire.gateway.health import Health
from agentwire.gateway.keys import ApiKeys
from agentwire.gateway.limits import GatewayLimits
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.ledger import Admission
from agentwire.runtime.reply import ProgressEvent
from agentwire.runtime.runtime import Runtime
from agentwire.scenario.resolve import Resolved

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    host: str = "127.0.0.1"
    port: int = 8000  # 0 picks a free port
    keys: dict[str, str] = field(default_factory=dict)
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    open_to_all: bool = False  # other machines may connect without an API key
    run_folder: Path | None = None
    drain_s: float = 10.0  # for open requests to be answered after a signal to stop


def check(options: ServeOptions) -> None:
    """Raises InputError if other machines could use the agents without an API key."""
    if options.keys or options.open_to_all or _is_loopback(options.host):
        return
    raise InputError(
        f"{options.host} can be reached from other machines, but no API keys are set.",
        hint="Give --keys FILE, or --open to let everyone use these agents.",
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def serve(
    what: Resolved | Deployment,
    options: ServeOptions,
    *,
    progress: Callable[[ProgressEvent], None] = lambda event: None,
    ready: Callable[[str, list[str]], None] = lambda url, models: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish open requests (``drain_s``) and stop the agents.

    Requests that are open after that, and those that come in the meantime, end with 503. A second
    signal ends the wait.

    Args:
        progress: receives the runtime's progress events.
        ready: receives the base URL (ending in ``/v1``) and the models when the gateway is ready.

    Raises:
        InputError: an agent cannot start, or the address is in use.
    """
    check(options)
    deployment = what if isinstance(what, Deployment) else Deployment.of(what)
    health = Health(list(deployment.processes), progress)
    listener = _listen(options.host, options.port)
    try:
        admission = Admission(rows=4 * options.limits.requests + 256)
        runtime = Runtime(what, run_folder=options.run_folder, progress=health, admission=admission)
        async with runtime:
            most = connection_limit(options.limits.requests)
            limits = replace(options.limits, requests=min(options.limits.requests, most * 3 // 4))
            if limits.requests < options.limits.requests:
                log.warning("`ulimit -n` allows only %d requests at a time", limits.requests)
            gateway = Gateway(runtime, deployment, ApiKeys(options.keys), limits, health)
            server = HttpServer(gateway.app, listener, most=most, client_s=limits.client_s)
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            try:
                server.start()
                ready(f"http://{shown}:{port}/v1", gateway.models)
                await _serve_until_stopped(gateway, options.drain_s)
            finally:
                try:
                    await runtime.aclose()  # requests that are still open end with 503
                finally:
                    await server.close()
    finally:
        listener.close()


async def _serve_until_stopped(gateway: Gateway, drain_s: float) -> None:
    """Returns after a signal, when the open requests have ended or the time is up."""
    loop, signals = asyncio.get_running_loop(), asyncio.Semaphore(0)
    kinds = (signal.SIGINT, signal.SIGTERM)
    for kind in kinds:
        loop.add_signal_handler(kind, signals.release)
    try:
        await signals.acquire()
        waits = {
            asyncio.create_task(gateway.drain(drain_s)),
            asyncio.ensure_future(signals.acquire()),
        }
        _, late = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in late:
            wait.cancel()
    finally:
        for kind in kinds:
            loop.remove_signal_handler(kind)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only for sockets with the protocol given explicitly.
    # With it on, an answer waits 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)  # early connections wait here until the agents are ready
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror or error}.",
            hint="Choose another --host or --port.",
        ) from None
    return listener
