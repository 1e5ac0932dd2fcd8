"""Which agents can work, from the news that the runtime gives of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentwire.runtime.reply import AgentInfo, ProgressEvent
from agentwire.spec.routes import agent_of


class Health:
    """Listens to a runtime's progress.

    Args:
        processes: names of all agents' processes: an agent works while one of them does.
        then: told the same news.
    """

    def __init__(
        self, processes: list[str], then: Callable[[ProgressEvent], None] = lambda event: None
    ) -> None:
        self._states = {name: "starting" for name in processes}
        self._then = then

    def __call__(self, event: ProgressEvent) -> None:
        """News of an agent (or of a model's weights, which is nobody's state)."""
        if event.agent in self._states:
            known = {"ready": "ready", "lost": "restarting", "down": "down"}
            self._states[event.agent] = known.get(event.stage, "starting")
        self._then(event)

    def report(self, infos: Mapping[str, AgentInfo]) -> tuple[str, bool, dict[str, Any]]:
        """``ok``, or ``degraded`` where a process cannot work; whether every agent has one that
        can; and the state of each process.
        """
        agents: dict[str, Any] = {}
        for name, state in self._states.items():
            info = infos.get(name)
            agents[name] = {"state": state}
            if info is not None:
                starts = info.restarts + 1
                agents[name] |= {"model": info.model, "device": info.device, "starts": starts}
        up = {name for name, state in self._states.items() if state == "ready"}
        able = {agent_of(name) for name in up} == {agent_of(name) for name in self._states}
        return "ok" if len(up) == len(self._states) else "degraded", able, agents
