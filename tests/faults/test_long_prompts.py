"""A prompt is read within the receiver's context window, and on a CPU in bounded time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from agentwire.errors import NackCode, RemoteProtocolError, RequestError
from agentwire.model.transformers import TransformersBackend
from agentwire.runtime import Runtime
from agentwire.runtime.deployment import Deployment
from agentwire.spec.agent import OutgoingBridge
from agentwire.spec.scenario import WireSpec
from agentwire.wire.messages import TaskSpec

pytestmark = pytest.mark.integration

WINDOW = 16_384
LONG = "cold " * 3_000
ENDLESS = "cold " * 6_000  # within the window, and more than one row may have on a CPU
TOO_LONG = "a film " * 1_000  # above the 1,024 tokens of the other model, and of no other limit


def deployment(folder: Path, llama: Path, gemma: Path) -> Deployment:
    """``ada`` (a window of 1,024) and ``long`` (a long one), with a bridge to each."""
    wide = folder / "wide"
    wide.mkdir()
    for file in llama.iterdir():
        (wide / file.name).symlink_to(file)
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").unlink()
    (wide / "config.json").write_text(json.dumps(config | {"max_position_embeddings": WINDOW}))
    models = {"bob": gemma, "ada": llama, "long": wide}
    specs = {name: tiny.spec(name, model) for name, model in models.items()}
    known = {n: TransformersBackend.load(s, lambda *step: None).identity for n, s in specs.items()}
    bridges = []
    for to in ("ada", "long"):
        card = tiny.make_card(known["bob"], known[to], 2, prompts=("any",))
        tiny.write_bridge(folder / to, card)
        bridges.append(OutgoingBridge(wire=f"bob->{to}", receiver=to, folder=str(folder / to)))
    specs["bob"] = tiny.spec("bob", gemma, bridges=tuple(bridges))
    wires = [
        WireSpec.model_validate({"from": "bob", "to": to, "fallback": "error"})
        for to in ("ada", "long")
    ]
    return Deployment.of_specs(specs, wires)


def test_a_prompt_above_the_window_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_gemma: Path
) -> None:
    calls: list[dict[str, Any]] = [
        {"labels": ["yes", "no"]},
        {"labels": ["yes", "no"], "channel": "text"},
        {"generate": 3, "channel": "text"},
    ]

    async def go() -> None:
        async with Runtime(deployment(tmp_path, tiny_llama, tiny_gemma)) as wire:
            for call in calls:
                with pytest.raises(RequestError, match="limit of 1024 tokens") as refused:
                    await wire.send("bob", "ada", "a film", prompt=TOO_LONG, **call)
                assert refused.value.code is NackCode.TOO_LARGE, call
                short = await wire.send("bob", "ada", "a film", prompt="Good?", **call)
                assert short.channel == call.get("channel", "soft")
            assert wire.agents["ada"].restarts == 0

    asyncio.run(go())


def test_soft_tokens_before_a_long_prompt_are_refused(tiny_llama: Path) -> None:
    backend = TransformersBackend.load(tiny.spec("ada", tiny_llama), lambda *step: None)
    payload = np.zeros((1, 4, backend.identity.width), dtype=np.float16)
    for labels in ((), ("yes", "no")):
        task = TaskSpec("t", TOO_LONG, "{text}", labels, max_new_tokens=3)
        with pytest.raises(RemoteProtocolError, match="limit of 1024 tokens"):
            (backend.score_soft if labels else backend.generate_soft)(payload, task)


def test_a_long_pass_ends_nobody_and_a_longer_one_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_gemma: Path
) -> None:
    labels = ["yes", "no"]
    chat = json.dumps([{"role": "user", "content": ENDLESS}])

    async def go() -> None:
        async with Runtime(deployment(tmp_path, tiny_llama, tiny_gemma)) as wire:
            asked = asyncio.create_task(
                wire.send("bob", "long", "a film", prompt=LONG, labels=labels)
            )
            other = await wire.direct("long", "a film", prompt="Good?", labels=labels)
            assert (await asked).prompt_tokens > 3_000 and other.label is not None
            for call in (
                wire.send("bob", "long", "a film", prompt=ENDLESS, labels=labels),
                wire.direct("long", "a film", prompt=ENDLESS, labels=labels),
                wire.direct("long", "a film", prompt=ENDLESS, generate=2),
                wire.direct("long", ENDLESS, prompt="", generate=2, form="plain"),
                wire.direct("long", chat, prompt="", generate=2, form="chat"),
            ):
                with pytest.raises(RequestError, match="limit of 4096 tokens") as refused:
                    await call
                assert refused.value.code is NackCode.TOO_LARGE
            assert wire.agents["long"].restarts == 0

    asyncio.run(go())
