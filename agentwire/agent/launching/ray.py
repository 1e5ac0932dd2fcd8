"""Agents as Ray actors: placed where their needs are met, started again by Ray, also elsewhere.

An actor is a small process that Ray watches; the agent is its child, the same process as on one
machine, and joins the bus over tcp with a CURVE key of its own that was made for this run and lives
in memory alone. A child that dies takes its actor along, and Ray starts another, on another node if
that one is gone. Data never passes through Ray: payloads cross the bus; its broker is the runner's.

The nodes need the same environment (agentwire and its extras). Weights are looked for where the
runner has them, then by name in the node's own cache; bridges travel with the actor. Whoever can
talk to Ray's head can run code on every node: Ray's network is trusted, the bus's need not be.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError

from agentwire.agent.launching.failure import ExitCode
from agentwire.agent.launching.placement import Remote
from agentwire.bus.access import RemoteAccess
from agentwire.bus.curve import new_pair
from agentwire.errors import AgentwireError, InputError
from agentwire.spec.agent import AgentBootstrap, AgentSpec, BusAddress, GuestKeys

log = logging.getLogger(__name__)
UNKNOWN_RUN: Final = "00" * 16
KNOCK_S: Final = 10.0
"""How long a cluster's head may take to answer, in seconds."""
LEAVE_S: Final = 3.0
"""How long an agent may take to leave in order, in seconds."""
Files = Mapping[str, Mapping[str, bytes]]
"""Bridge folder -> file name -> content."""


class Guests:
    """The public keys of one run's agents, by name; in memory."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def add(self, name: str, public: str) -> None:
        self._names[public] = name

    def name_of(self, key: str) -> str | None:
        return self._names.get(key)


def knock(address: str) -> None:
    """Whether somebody listens at ``host:port``; other forms of address are Ray's to look up.

    Ray itself tries for minutes, and then ends the process.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.rpartition(":")
    if colon and host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


class RayLauncher:
    """Starts the agents of one run on a Ray cluster.

    Args:
        address: of the cluster, as ``ray.init`` takes it; ``auto``: the one of this machine;
            ``local``: a fresh one on this machine alone.

    Raises:
        InputError: there is no such cluster.
    """

    def __init__(self, address: str = "auto") -> None:
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                knock(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError, SystemExit) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise InputError(
                    f"There is no Ray cluster at {address!r}: {first}",
                    hint="Start one (`ray start --head`), or give --address local.",
                ) from None
        self._guests = Guests()
        self._public, self._secret = new_pair()
        self._actors: dict[str, Any] = {}
        self._endings: dict[str, Any] = {}
        self._lock = threading.Lock()

    def remote(self, agents: Mapping[str, object]) -> Remote:
        """What a runtime needs to take these agents in."""
        host = ray.util.get_node_ip_address()
        access = RemoteAccess(f"tcp://{host}:*", self._secret, self._guests)
        return Remote(access, frozenset(agents), self)

    def close(self) -> None:
        """Leaves the cluster, if this launcher joined it."""
        if self._ours and ray.is_initialized():
            ray.shutdown()

    # -- Launcher ---------------------------------------------------------------------------

    def launch(self, spec: AgentSpec, endpoint: str, restarts: int) -> None:
        """Creates the actor.

        Raises:
            AgentwireError: Ray refuses it.
        """
        public, secret = new_pair()
        self._guests.add(spec.name, public)
        bootstrap = AgentBootstrap(
            agent=on_its_node(spec),
            bus=BusAddress(endpoint=endpoint, run=UNKNOWN_RUN, epoch=0, token=""),
            keys=GuestKeys(public=public, secret=secret, server=self._public),
        )
        try:
            actor = (
                ray.remote(AgentActor)
                .options(
                    **needs(spec),
                    max_restarts=restarts,
                    max_task_retries=-1,
                    max_concurrency=2,  # one call waits for its end all the time
                )
                .remote(bootstrap.model_dump_json(), files_of(spec))
            )
        except (RayError, ValueError) as error:
            raise AgentwireError(f"Ray does not take the agent {spec.name}: {error}") from error
        with self._lock:
            self._actors[spec.name] = actor

    def wait(self, name: str) -> str:
        with self._lock:
            ending = self._endings[name] = self._actors[name].ended.remote()
        try:
            return str(ray.get(ending))
        except RayActorError as error:
            first = (str(error).strip().splitlines() or ["it died"])[0]
            return f"Ray starts it no more: {first}"
        except RayError as error:
            return f"Ray lost it: {error}"

    def where(self, name: str) -> str:
        free = ray.available_resources()
        shown = {k: v for k, v in free.items() if k in ("CPU", "GPU")}
        return f"Ray has free: {shown}; `ray status` shows what waits"

    def restart(self, name: str) -> None:
        ray.kill(self._actors[name], no_restart=False)

    def stop(self, name: str) -> None:
        with self._lock:
            actor = self._actors.pop(name, None)
            ending = self._endings.pop(name, None)
        if actor is None:
            return
        leaving = [actor.dismiss.remote(), *([ending] if ending is not None else [])]
        # An actor that was never placed, or has just lost its node, hears nothing.
        ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_S + 1)
        ray.kill(actor, no_restart=True)


def needs(spec: AgentSpec) -> dict[str, Any]:
    """What Ray must have free for an agent: its ``place``, or what follows from its device."""
    place = spec.place
    gpu = spec.device.startswith("cuda")
    options: dict[str, Any] = {
        "num_cpus": place.cpus if place.cpus is not None else (spec.threads or 1),
        "num_gpus": place.gpus if place.gpus is not None else float(gpu),
    }
    if place.resources:
        options["resources"] = dict(place.resources)
    if place.labels:
        # Ray takes `in(a, b)` but compares with " b": its parser keeps the space behind a comma.
        options["label_selector"] = {k: "".join(v.split()) for k, v in place.labels.items()}
    return options


def on_its_node(spec: AgentSpec) -> AgentSpec:
    """The spec for the node: Ray shows an actor its own GPU only, and no CPU threads are shared."""
    device = "cuda:0" if spec.device.startswith("cuda") else spec.device
    return spec.model_copy(update={"device": device, "cpu_shares": {}})


def files_of(spec: AgentSpec) -> dict[str, dict[str, bytes]]:
    """The files of the agent's bridges, by folder."""
    folders = [Path(b.folder) for b in spec.bridges if b.folder is not None]
    return {
        str(folder): {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
        for folder in folders
        if folder.is_dir()
    }


# -- on the node ----------------------------------------------------------------------------


class AgentActor:
    """An agent's actor: has the agent as its child, and ends with it.

    Args:
        birth: the child's, as JSON.
        files: of its bridges.
    """

    def __init__(self, bootstrap: str, files: dict[str, dict[str, bytes]]) -> None:
        made = AgentBootstrap.model_validate_json(bootstrap)
        made = made.model_copy(update={"agent": here(made.agent, files)})
        self._child = subprocess.Popen(
            [sys.executable, "-m", "agentwire.agent.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdin is not None
        self._child.stdin.write(made.model_dump_json().encode() + b"\n")
        self._child.stdin.flush()  # it stays open: its end is the child's end
        self._dismissed = False

    def ended(self) -> str:
        """Returns when the child has left in order: its last words. Ends the actor otherwise."""
        assert self._child.stdout is not None
        words = self._child.stdout.read().decode(errors="replace").strip()
        code = self._child.wait()
        if self._dismissed or code in (ExitCode.DONE, ExitCode.INPUT):
            return words or "it left"
        # Ray takes a process that exits for a failure, and starts the actor again.
        sys.stderr.flush()
        leave(ExitCode.ERROR)
        return ""

    def dismiss(self) -> None:
        """Tells the child to leave, and returns when it is gone."""
        self._dismissed = True
        self._child.terminate()
        try:
            self._child.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()


def leave(code: int) -> None:
    import os

    os._exit(code)


def here(spec: AgentSpec, files: Files) -> AgentSpec:
    """The agent with its folders on this node: bridges are written where they are missing.

    Weights that are not where the runner has them are looked for by name (and fetched, if they
    are of the registry).
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
    weights = spec.folder
    if weights is not None and not Path(weights).is_dir():
        from agentwire.config import Config
        from agentwire.model.sources import lookup as sources

        weights = str(sources.fetch(spec.model, config=Config.from_env(), progress=None))
    return spec.model_copy(update={"bridges": bridges, "folder": weights})
