"""Which agents can work, from the news that the runtime gives of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentwire.reply import AgentInfo, ProgressEvent


class Health:
    """Listens to a runtime's progress.

    Args:
        agents: names of all agents.
        then: told the same news.
    """

    def __init__(
        self, agents: list[str], then: Callable[[ProgressEvent], None] = lambda event: None
    ) -> None:
        self._states = {name: "starting" for name in agents}
        self._then = then

    def __call__(self, event: ProgressEvent) -> None:
        """News of an agent (or of a model's weights, which is nobody's state)."""
        if event.agent in self._states:
            known = {"ready": "ready", "lost": "restarting", "down": "down"}
            self._states[event.agent] = known.get(event.stage, "starting")
        self._then(event)

    def report(self, infos: Mapping[str, AgentInfo]) -> tuple[bool, dict[str, Any]]:
        """Whether all can work, and the state of each."""
        agents: dict[str, Any] = {}
        for name, state in self._states.items():
            info = infos.get(name)
            agents[name] = {"state": state}
            if info is not None:
                agents[name] |= {"model": info.model, "device": info.device, "starts": info.epoch}
        return all(state == "ready" for state in self._states.values()), agents
