"""The state of each agent process, from the runtime's progress events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentwire.runtime.reply import AgentInfo, ProgressEvent
from agentwire.spec.routes import agent_of


class Health:
    """Follows a runtime's progress events.

    Args:
        processes: names of all agent processes.
        forward: receives every event as well.
    """

    def __init__(
        self, processes: list[str], forward: Callable[[ProgressEvent], None] = lambda event: None
    ) -> None:
        self._states = {name: "starting" for name in processes}
        self._forward = forward
        self.stopping = False  # the gateway answers open requests and takes no new ones

    def __call__(self, event: ProgressEvent) -> None:
        if event.agent in self._states:  # events about model weights name a model instead
            states = {"ready": "ready", "lost": "restarting", "down": "down"}
            self._states[event.agent] = states.get(event.stage, "starting")
        self._forward(event)

    def report(self, infos: Mapping[str, AgentInfo]) -> tuple[str, bool, dict[str, Any]]:
        """``ok``, ``degraded`` or ``stopping``; whether requests can be answered, which takes a
        ready process of each agent; and all states.
        """
        processes: dict[str, Any] = {}
        for name, state in self._states.items():
            info = infos.get(name)
            processes[name] = {"state": state}
            if info is not None:
                starts = info.restarts + 1
                processes[name] |= {"model": info.model, "device": info.device, "starts": starts}
        ready = {name for name, state in self._states.items() if state == "ready"}
        able = {agent_of(name) for name in ready} == {agent_of(name) for name in self._states}
        if self.stopping:
            return "stopping", False, processes
        return "ok" if len(ready) == len(self._states) else "degraded", able, processes
