"""The launchers that start a scenario's agents, by the name in ``launcher:`` (docs/scaling.md)."""

from __future__ import annotations

from typing import Annotated, Any

from agentwire.spec.registry import Registry, known_name

LAUNCHERS: Registry[Any] = Registry("agentwire.launchers", "launcher")
"""Factories ``(address) -> agentwire.agent.launching.placement.Cluster``."""
LAUNCHERS.lazy("local", "agentwire.agent.launching.placement:LocalMachine")
LAUNCHERS.lazy("ray", "agentwire.agent.launching.ray:RayLauncher")

LauncherName = Annotated[str, known_name(LAUNCHERS)]
