"""Runs a gateway: starts the runtime and the HTTP server, and stops both cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from agentwire.errors import InputError
from agentwire.gateway.app import Gateway
from agentwire.gateway.health import Health
from agentwire.gateway.keys import ApiKeys
from agentwire.gateway.limits import GatewayLimits
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.ledger import Admission
from agentwire.runtime.reply import ProgressEvent
from agentwire.runtime.runtime import Runtime
from agentwire.scenario.resolve import Resolved

GRACE_S = 10


@dataclass(frozen=True, slots=True)
class ServeOptions:
    host: str = "127.0.0.1"
    port: int = 8000  # 0 picks a free port
    keys: dict[str, str] = field(default_factory=dict)
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    open_to_all: bool = False  # other machines may connect without an API key
    run_folder: Path | None = None


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
    """Serve until SIGINT or SIGTERM, then finish open requests (``GRACE_S``) and stop the agents.

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
            keys = ApiKeys(options.keys)
            gateway = Gateway(runtime, deployment, keys, options.limits, health)
            config = uvicorn.Config(
                gateway.app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=GRACE_S,
                h11_max_incomplete_event_size=64 * 1024,
            )
            server = _Server(config)
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{port}/v1", gateway.models)
            await _serve_until_stopped(server, listener)
    finally:
        listener.close()


async def _serve_until_stopped(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until a signal. Cancelling this waits until all connections are closed."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise


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


class _Server(uvicorn.Server):
    """Returns after a signal instead of raising it again, so that the agents can be stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        kinds = (signal.SIGINT, signal.SIGTERM)
        for kind in kinds:
            loop.add_signal_handler(kind, self.handle_exit, kind, None)
        try:
            yield
        finally:
            for kind in kinds:
                loop.remove_signal_handler(kind)
