"""How long an agent process may take, and how often it is restarted."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The restart budget.

    Attributes:
        restarts: restarts allowed within one window.
        window_s: length of the sliding window, in seconds.
        backoff_s: wait before the first, second, ... restart of a window; the last value repeats.
    """

    restarts: int = 3
    window_s: float = 60.0
    backoff_s: tuple[float, ...] = (0.2, 1.0, 5.0)


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Time limits of an agent, in seconds, and its restart budget."""

    load_s: float = 900.0  # from spawn to ready
    progress_s: float = 120.0  # one batch; an agent that takes longer counts as hung
    stop_s: float = 8.0  # from SIGTERM to SIGKILL
    restarts: RestartPolicy = field(default_factory=RestartPolicy)


class RestartBudget:
    """Counts the restarts of one agent."""

    def __init__(self, policy: RestartPolicy | None = None) -> None:
        self._policy = policy or RestartPolicy()
        self._restarts: deque[float] = deque()

    def take(self, now: float) -> float | None:
        """Takes one restart; returns the wait before it in seconds, or None if none is left."""
        policy = self._policy
        while self._restarts and self._restarts[0] <= now - policy.window_s:
            self._restarts.popleft()
        used = len(self._restarts)
        if used >= policy.restarts:
            return None
        self._restarts.append(now)
        if not policy.backoff_s:
            return 0.0
        return policy.backoff_s[min(used, len(policy.backoff_s) - 1)]
