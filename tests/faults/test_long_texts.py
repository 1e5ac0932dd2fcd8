"""Texts that are longer than a bridge or a model reads: never cut in silence."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import tiny

from agentwire.bridge.card import read_card
from agentwire.errors import NackCode, RequestError
from agentwire.evaluation.predictions import record_of
from agentwire.model.transformers import TransformersBackend
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.reply import Reply
from agentwire.runtime.runtime import Runtime
from agentwire.spec.agent import OutgoingBridge
from agentwire.spec.scenario import Scenario, WireSpec
from agentwire.telemetry.row_tally import RowTally
from agentwire.wire.messages import Channel, TaskSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

TASK = TaskSpec("verbatim", "\nSentiment:", "Film review: {text}\nSentiment:", tiny.TASK.labels)
SHORT = "a warm film " * 20
LONG = "a warm film " * 230  # more than 512 tokens, fewer than the models' 1,024
HUGE = "a warm film " * 600
WIRES: dict[str, dict[str, Any]] = {
    "ada->plain": {},
    "ada->strict": {"long_text": "error"},
    "ada->open": {"fallback": "error", "long_text": "text"},
    "ada->closed": {"fallback": "error"},
}


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_gemma: Path
) -> Deployment:
    ada = TransformersBackend.load(tiny.spec("ada", tiny_llama), lambda *step: None).identity
    bob = TransformersBackend.load(tiny.spec("bob", tiny_gemma), lambda *step: None).identity
    folder = tmp_path_factory.mktemp("long") / "bridge"
    tiny.write_bridge(folder, tiny.make_card(ada, bob, 2, prompts=("any",)))
    names = {wire: wire.partition("->")[2] for wire in WIRES}
    bridges = tuple(
        OutgoingBridge(wire=w, receiver=to, folder=str(folder), long_text=WIRES[w].get("long_text"))
        for w, to in names.items()
    )
    agents = {"ada": tiny.spec("ada", tiny_llama, bridges=bridges)}
    agents |= {to: tiny.spec(to, tiny_gemma) for to in names.values()}
    wires = [WireSpec.model_validate({"from": "ada", "to": names[w], **WIRES[w]}) for w in WIRES]
    return Deployment.of_specs(agents, wires, task=TASK)


def test_no_text_is_cut_in_silence(deployment: Deployment) -> None:
    async def go() -> None:
        async with Runtime(deployment) as wire:
            replies = await wire.send_batch("ada", "plain", [SHORT, LONG, SHORT, HUGE])
            short, long, again, huge = (r for r in replies if isinstance(r, Reply))
            assert (short.channel, short.reason, short.unread) == (Channel.SOFT, "", 0)
            assert again.scores == short.scores
            assert (long.channel, long.reason, long.unread) == (Channel.TEXT, "too_long", 0)
            # Beyond what the receiver can read itself, the reply says how much it did not read.
            assert (huge.channel, huge.reason) == (Channel.TEXT, "too_long")
            assert huge.unread > 0 and huge.prompt_tokens == 1023
            ending = await wire.send("ada", "plain", LONG + "dull and messy")
            assert ending.scores != long.scores  # its ending is read

            for receiver in ("strict", "closed"):
                assert (await wire.send("ada", receiver, SHORT)).channel is Channel.SOFT
                with pytest.raises(RequestError, match="longer than the bridge reads") as refused:
                    await wire.send("ada", receiver, LONG)
                assert refused.value.code is NackCode.TOO_LARGE
            relayed = await wire.send("ada", "open", LONG)
            assert (relayed.channel, relayed.reason) == (Channel.TEXT, "too_long")

            kept = await wire.keep("ada", "plain", LONG)
            assert (kept.channel, kept.reason) == (Channel.TEXT, "too_long")
            direct = await wire.direct("plain", LONG)
            assert (direct.reason, direct.unread) == ("", 0)
            assert dict(direct.scores) == pytest.approx(dict(long.scores), abs=1e-4)
            direct = await wire.direct("plain", HUGE)
            assert direct.reason == "too_long" and direct.unread == huge.unread
            written = await wire.direct("plain", HUGE, prompt="Sum up:", generate=3)
            assert written.reason == "too_long" and written.unread > 0
            with pytest.raises(RequestError) as refused:  # a text to be continued as it is
                await wire.direct("plain", HUGE, prompt="", generate=3, form="plain")
            assert refused.value.code is NackCode.TOO_LARGE

    asyncio.run(go())


def test_the_same_over_http(deployment: Deployment) -> None:
    from gateway_run import ADA, gateway

    async def ask(client: httpx.AsyncClient, model: str, text: str, **fields: Any) -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return await client.post("chat/completions", json=body)

    async def go() -> None:
        headers = {"authorization": f"Bearer {ADA}"}
        async with (
            gateway(deployment) as url,
            httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client,
        ):
            found = await ask(client, "ada->plain", LONG)
            assert found.status_code == 200, found.text
            details = found.json()["agentwire"]
            assert (details["channel"], details["reason"]) == ("text", "too_long")
            assert "unread_tokens" not in details
            details = (await ask(client, "ada->plain", HUGE)).json()["agentwire"]
            assert details["reason"] == "too_long" and details["unread_tokens"] > 0
            for model in ("ada->strict", "ada->closed"):
                refused = await ask(client, model, LONG)
                assert refused.status_code == 400
                assert refused.json()["error"]["code"] == "context_length_exceeded"
            refused = await ask(client, "ada", HUGE, max_tokens=2)
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "context_length_exceeded"

    asyncio.run(go())


def test_an_evaluation_counts_long_rows() -> None:
    reply = Reply("0" * 32, "a", 0, {"a": 0.0}, None, Channel.TEXT, "too_long", {}, 1.0, 3)
    tally = RowTally()
    tally.add(record_of("bridge", 0, "a", reply))
    assert tally.reasons == {"too_long": 1}


def test_cards_name_the_length() -> None:
    folders = list((Path(__file__).resolve().parents[2] / "bridges").glob("*/card.yaml"))
    assert len(folders) > 5
    for card in folders:
        assert "text_tokens: 512" in card.read_text()
        assert read_card(card.parent).text_tokens == 512


@pytest.mark.parametrize("wire", [{"long_text": "windows"}, {"long_text": "cut"}])
def test_other_policies_are_refused(wire: dict[str, str]) -> None:
    """Windows of a text have not been measured, so they are not offered."""
    agents = {name: {"model": "m", "backend": "fake"} for name in "ab"}
    wires = [{"from": "a", "to": "b", **wire}]
    with pytest.raises(ValueError, match="'text' or 'error'"):
        Scenario.model_validate({"name": "s", "agents": agents, "wires": wires})
