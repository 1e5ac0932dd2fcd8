"""Downloads the models that a resolved scenario needs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from agentwire.scenario.inventory import Inventory, WeightsLocation
from agentwire.scenario.resolve import Resolved
from agentwire.spec.agent import AgentSpec
from agentwire.spec.routes import processes_of

FetchProgress = Callable[[str, str, float], None]
"""(what, stage, fraction 0..1), called while models are fetched and converted."""


def fetch(
    resolved: Resolved,
    *,
    inventory: Inventory | None = None,
    progress: FetchProgress | None = None,
    elsewhere: Collection[str] = (),
) -> Resolved:
    """Downloads and converts models that are not here yet.

    Args:
        elsewhere: processes on other machines, which download their own weights.

    Raises:
        DownloadError, CacheError, ModelError: a model cannot be downloaded.
    """
    inventory = inventory or Inventory.here()
    agents: dict[str, AgentSpec] = dict(resolved.agents)
    weights: dict[str, WeightsLocation] = dict(resolved.weights)
    for name, location in resolved.weights.items():
        processes = processes_of(name, len(resolved.devices.get(name, ("",))))
        if location.needed and location.folder is None and not set(processes) <= set(elsewhere):
            model = resolved.choices[name].model
            report = None
            if progress is not None:
                report = _named(progress, model)
            folder = inventory.fetch(model, report)
            weights[name] = replace(location, folder=folder)
            agents[name] = agents[name].model_copy(update={"folder": str(folder)})
    return replace(resolved, agents=agents, weights=weights)


def _named(progress: FetchProgress, what: str) -> Callable[[str, float], None]:
    return lambda stage, fraction: progress(what, stage, fraction)
