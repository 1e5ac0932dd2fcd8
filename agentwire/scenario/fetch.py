"""Getting what a resolved scenario needs and what is not on this machine yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agentwire.agent.spec import AgentSpec
from agentwire.scenario.inventory import Inventory, Site
from agentwire.scenario.resolve import Resolved

FetchProgress = Callable[[str, str, float], None]
"""(what, stage, fraction 0..1), called while models are fetched and converted."""


def fetch(
    resolved: Resolved,
    *,
    inventory: Inventory | None = None,
    progress: FetchProgress | None = None,
) -> Resolved:
    """Downloads and converts the models that the agents need and that are not here yet.

    Raises:
        DownloadError, CacheError, ModelError: a model cannot be had.
    """
    inventory = inventory or Inventory.here()
    agents: dict[str, AgentSpec] = dict(resolved.agents)
    sites: dict[str, Site] = dict(resolved.sites)
    for name, site in resolved.sites.items():
        if site.needed and site.folder is None:
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
