"""Launches agents as Ray actors: Ray places them by their needs and restarts them on any node.

An actor is a small process that Ray watches. The agent is its child, started as on one machine, and
joins the bus over tcp with a CURVE key made for this run and held in memory only. When the child
dies its actor exits, and Ray starts another. Payloads cross the bus, never Ray; the broker stays
with the runner.

Every node needs the same environment (agentwire and its extras). Weights are read from the runner's
path or else by name from the node's own cache. Bridges travel with the actor. Anyone who can reach
Ray's head can run code on every node, so Ray's network must be trusted; the bus's need not be.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError

from agentwire.agent.launching.failure import ExitCode
from agentwire.agent.launching.placement import Remote
from agentwire.agent.launching.run_keys import RunKeys
from agentwire.errors import AgentwireError, InputError, first_line
from agentwire.spec.agent import AgentBootstrap, AgentSpec

log = logging.getLogger(__name__)
CONNECT_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 3.0
Files = Mapping[str, Mapping[str, bytes]]
"""Bridge folder -> file name -> content."""


def check_reachable(address: str) -> None:
    """Raises ``OSError`` if nothing listens at ``host:port``. Other addresses are left to Ray."""
    # Ray itself would retry for minutes and then end the process.
    host, colon, port = address.rpartition(":")
    if colon and host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()


class RayLauncher:
    """Starts the agents of one run on a Ray cluster. Raises an InputError if there is none.

    Args:
        address: as for ``ray.init``; ``auto``: the cluster of this machine; ``local``: a new one.
    """

    def __init__(self, address: str = "auto") -> None:
        self._joined = not ray.is_initialized()
        if self._joined:
            try:
                check_reachable(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError, SystemExit) as error:
                first = first_line(error)
                raise InputError(
                    f"There is no Ray cluster at {address!r}: {first}",
                    hint="Start one (`ray start --head`) or use --address local.",
                ) from None
        self._keys = RunKeys()
        self._actors: dict[str, Any] = {}
        self._ended: dict[str, Any] = {}
        self._lock = threading.Lock()

    def place(self, agents: Collection[str]) -> Remote:
        host = ray.util.get_node_ip_address()
        return Remote(self._keys.access(f"tcp://{host}:*"), frozenset(agents), self)

    def close(self) -> None:
        """Disconnects from the cluster, unless the caller had connected before."""
        if self._joined and ray.is_initialized():
            ray.shutdown()

    # -- Launcher ---------------------------------------------------------------------------

    def launch(self, spec: AgentSpec, endpoint: str, restarts: int) -> None:
        bootstrap = self._keys.bootstrap(spec_on_node(spec), endpoint)
        try:
            actor = (
                ray.remote(AgentActor)
                .options(
                    **ray_options(spec),
                    max_restarts=restarts,
                    max_task_retries=-1,
                    max_concurrency=2,  # one call blocks until the agent ends
                )
                .remote(bootstrap.model_dump_json(), files_of(spec))
            )
        except (RayError, ValueError) as error:
            raise AgentwireError(f"Ray cannot place the agent {spec.name}: {error}") from error
        with self._lock:
            self._actors[spec.name] = actor

    def wait(self, name: str) -> str:
        with self._lock:
            ended = self._ended[name] = self._actors[name].ended.remote()
        try:
            return str(ray.get(ended))
        except RayActorError as error:
            first = (str(error).strip().splitlines() or ["it died"])[0]
            return f"Ray does not restart it: {first}"
        except RayError as error:
            return f"Ray lost it: {error}"

    def pending_reason(self, name: str) -> str:
        free = ray.available_resources()
        shown = {k: v for k, v in free.items() if k in ("CPU", "GPU")}
        return f"free in the cluster: {shown}; `ray status` shows pending actors"

    def restart(self, name: str) -> None:
        ray.kill(self._actors[name], no_restart=False)

    def stop(self, name: str) -> None:
        with self._lock:
            actor = self._actors.pop(name, None)
            ended = self._ended.pop(name, None)
        if actor is None:
            return
        stopping = [actor.stop.remote(), *([ended] if ended is not None else [])]
        # An actor that was never placed or has lost its node does not answer.
        ray.wait(stopping, num_returns=len(stopping), timeout=STOP_TIMEOUT_S + 1)
        ray.kill(actor, no_restart=True)


def ray_options(spec: AgentSpec) -> dict[str, Any]:
    """The resources that Ray reserves: the agent's ``place``, or defaults by its device."""
    place = spec.place
    gpu = spec.device.startswith("cuda")
    options: dict[str, Any] = {
        "num_cpus": place.cpus if place.cpus is not None else (spec.threads or 1),
        "num_gpus": place.gpus if place.gpus is not None else float(gpu),
    }
    if place.resources:
        options["resources"] = dict(place.resources)
    if place.labels:
        # In `in(a, b)` Ray's parser would keep the space and compare with " b".
        options["label_selector"] = {k: "".join(v.split()) for k, v in place.labels.items()}
    return options


def spec_on_node(spec: AgentSpec) -> AgentSpec:
    """The spec for the node: Ray shows an actor its own GPU only, and no CPU threads are shared."""
    device = "cuda:0" if spec.device.startswith("cuda") else spec.device
    return spec.model_copy(update={"device": device, "cpu_shares": {}})


def files_of(spec: AgentSpec) -> dict[str, dict[str, bytes]]:
    folders = [Path(b.folder) for b in spec.bridges if b.folder is not None]
    folders += map(Path, spec.readers)
    return {
        str(folder): {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
        for folder in folders
        if folder.is_dir()
    }


# -- on the node ----------------------------------------------------------------------------


class AgentActor:
    """Runs the agent as a child process and exits when the child dies."""

    def __init__(self, bootstrap: str, files: dict[str, dict[str, bytes]]) -> None:
        made = AgentBootstrap.model_validate_json(bootstrap)
        made = made.model_copy(update={"agent": with_local_files(made.agent, files)})
        self._child = subprocess.Popen(
            [sys.executable, "-m", "agentwire.agent.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdin is not None
        self._child.stdin.write(made.model_dump_json().encode() + b"\n")
        self._child.stdin.flush()  # not closed: the child exits when its stdin ends
        self._stopped = False

    def ended(self) -> str:
        """Blocks until an orderly exit and returns the child's output. A crash ends the actor."""
        assert self._child.stdout is not None
        output = self._child.stdout.read().decode(errors="replace").strip()
        code = self._child.wait()
        if self._stopped or code in (ExitCode.DONE, ExitCode.INPUT):
            return output or "it exited"
        # Ray treats an exiting process as a failure and restarts the actor.
        sys.stderr.flush()
        os._exit(ExitCode.ERROR)

    def stop(self) -> None:
        self._stopped = True
        self._child.terminate()
        try:
            self._child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()


def with_local_files(spec: AgentSpec, files: Files) -> AgentSpec:
    """The spec with folders of this node.

    Missing bridges are written to a temporary folder. Missing weights are looked up by name, and
    downloaded if the registry has them.
    """
    moved: dict[str | None, str] = {}
    for folder, contents in files.items():
        if not Path(folder).is_dir():
            moved[folder] = tempfile.mkdtemp(prefix="agentwire-bridge-")
            for name, content in contents.items():
                (Path(moved[folder]) / Path(name).name).write_bytes(content)
    bridges = tuple(
        b.model_copy(update={"folder": moved.get(b.folder, b.folder)}) for b in spec.bridges
    )
    readers = tuple(moved.get(folder, folder) for folder in spec.readers)
    weights = spec.folder
    if weights is not None and not Path(weights).is_dir():
        from agentwire.config import Config
        from agentwire.model.sources.lookup import fetch

        weights = str(fetch(spec.model, config=Config.from_env(), progress=None))
    return spec.model_copy(update={"bridges": bridges, "readers": readers, "folder": weights})
