"""A gateway over fake agents in real processes, for the integration tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fake_run import TASK
from scenario_files import make_card

from agentwire.bridge.card import CardReader
from agentwire.gateway.limits import GatewayLimits
from agentwire.gateway.server import ServeOptions, serve
from agentwire.model.fake import READER_SIZES
from agentwire.runtime.deployment import Deployment
from agentwire.scenario.resolve import resolve
from agentwire.spec.agent import AgentSpec, FakeModel, OutgoingBridge
from agentwire.spec.scenario import Scenario, WireSpec

ADA, BOB = "ada-" + "a" * 28, "bob-" + "b" * 28
KEYS = {"ada": ADA, "bob": BOB}


def deployment(*, task: bool = True, bridge: str = "any", **fakes: dict[str, Any]) -> Deployment:
    """llama -> mistral, and a writer without a wire. ``fakes`` sets delays and faults by agent."""
    wire = WireSpec.model_validate({"from": "llama", "to": "mistral"})
    out = OutgoingBridge(wire=wire.name, receiver="mistral", folder=f"fake:mistral-model:{bridge}")
    agents = {
        name: AgentSpec(
            name=name,
            backend="fake",
            model=f"{name}-model",
            threads=1,
            bridges=(out,) if name == "llama" else (),
            fake=FakeModel.model_validate(fakes.get(name, {})),
        )
        for name in ("llama", "mistral", "writer")
    }
    return Deployment.of_specs(agents, [wire], task=TASK if task else None)


def reader_deployment(**options: Any) -> Deployment:
    """``deployment`` with a bridge on llama->mistral that answers any question."""
    section = CardReader(layers=(0, 2), sizes=READER_SIZES, prompt=0, where="sender")
    card = make_card(architecture="reader", answers="free", reader=section)
    built = deployment(bridge="reader", **options)
    return replace(built, cards={"llama->mistral": card})


def joint_deployment() -> Deployment:
    """A joint wire: c reads the soft tokens of a and b in one prompt."""
    fake = {"backend": "fake"}
    scenario = Scenario.model_validate(
        {
            "name": "joint",
            "agents": {name: {"model": f"m-{name}", **fake} for name in "abc"},
            "wires": [{"from": ["a", "b"], "to": "c", "reads": "share"}],
        }
    )
    return replace(Deployment.of(resolve(scenario)), task=TASK)


@contextlib.asynccontextmanager
async def gateway(
    what: Deployment | None = None,
    *,
    keys: dict[str, str] | None = None,
    limits: GatewayLimits | None = None,
    **options: Any,
) -> AsyncIterator[str]:
    """A running gateway; yields its base URL."""
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = ServeOptions(
        port=0,
        keys=KEYS if keys is None else keys,
        limits=limits or GatewayLimits(),
        **options,
    )
    task = asyncio.create_task(
        serve(what or deployment(), settings, ready=lambda base, models: url.set_result(base))
    )
    try:
        await asyncio.wait({task, url}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield url.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
