"""How often an agent may die: a pure policy, asked by the supervisor."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The budget of restarts.

    Attributes:
        restarts: restarts within one window; the next death is final.
        window_s: length of the sliding window, in seconds.
        backoff_s: wait before the first, second, ... restart of the window; the last one repeats.
    """

    restarts: int = 3
    window_s: float = 60.0
    backoff_s: tuple[float, ...] = (0.2, 1.0, 5.0)


class RestartBudget:
    """Counts the deaths of one agent."""

    def __init__(self, policy: RestartPolicy | None = None) -> None:
        self._policy = policy or RestartPolicy()
        self._restarts: deque[float] = deque()

    def died(self, now: float) -> float | None:
        """Records a death.

        Args:
            now: monotonic seconds.

        Returns:
            Seconds to wait before the restart; None: the budget is spent, do not restart.
        """
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
