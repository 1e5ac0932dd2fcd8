"""Getting what a resolved scenario needs and what is not on this machine yet."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from agentwire.scenario.inventory import Inventory, Site
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
    """Downloads and converts the models that the agents need and that are not here yet.

    Args:
        elsewhere: processes of other machines, which get their weights themselves.

    Raises:
        DownloadError, CacheError, ModelError: a model cannot be had.
    """
    inventory = inventory or Inventory.here()
    agents: dict[str, AgentSpec] = dict(resolved.agents)
    sites: dict[str, Site] = dict(resolved.sites)
    for name, site in resolved.sites.items():
        processes = processes_of(name, len(resolved.devices.get(name, ("",))))
        if site.needed and site.folder is None and not set(processes) <= set(elsewhere):
            model = resolved.choices[name].model
            report = None
            if progress is not None:
                report = _named(progress, model)
            folder = inventory.fetch(model, report)
            sites[name] = replace(site, folder=folder)
            agents[name] = agents[name].model_copy(update={"folder": str(folder)})
    return replace(resolved, agents=agents, sites=sites)


def _named(progress: FetchProgress, what: str) -> Callable[[str, float], None]:
    return lambda stage, fraction: progress(what, stage, fraction)
