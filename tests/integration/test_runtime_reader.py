"""A reader bridge between two tiny language models through real processes and sockets."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from fake_run import LIMITS

import agentwire
from agentwire.bridge.card import read_card, write_card
from agentwire.cli.agent import spec_of
from agentwire.errors import BridgeError, NackCode, RequestError
from agentwire.model.sources.lookup import public_name
from agentwire.runtime import Reply, Runtime
from agentwire.runtime.deployment import Deployment
from agentwire.spec.agent import OutgoingBridge
from agentwire.spec.scenario import WireSpec
from agentwire.wire.messages import Channel

pytestmark = pytest.mark.integration

SIZES, LATENT = (2, 4, 8), 16 + 32
TEXTS = [
    "a warm film",
    "the dull and clumsy story of a tired cast",
    "what a wonderful, moving, funny score! " * 4,
    "cold",
] * 4
QUESTIONS = [f"Is scene {i} {'warm ' * (i % 5)}or not?" for i in range(16)]
LONG = "a warm film " * 200  # more than the 512 tokens that a bridge reads


@dataclass(frozen=True)
class Setup:
    """The two models and their bridge."""

    llama: Path
    gemma: Path
    bridge: Path

    def runtime(self, *receivers: str, halves: Sequence[Path | None] = (), **wire: Any) -> Runtime:
        """ada (llama) sends to receivers (gemma); ``halves`` replaces what each has loaded."""
        receivers = receivers or ("bob",)
        wires = [
            WireSpec.model_validate({"from": "ada", "to": name, "fallback": "text", **wire})
            for name in receivers
        ]
        bridges = tuple(
            OutgoingBridge(
                wire=one.name,
                receiver=one.receiver,
                folder=str(self.bridge),
                long_text=one.long_text,
                soft_tokens=0 if one.soft_tokens == 8 else one.soft_tokens,
            )
            for one in wires
        )
        agents = {name: tiny.spec(name, self.gemma) for name in receivers}
        agents["ada"] = tiny.spec("ada", self.llama, bridges=bridges)
        built = Deployment.of_specs(agents, wires)
        for name, half in zip(receivers, halves, strict=False):
            readers = () if half is None else (str(half),)
            spec = built.agents[name].model_copy(update={"readers": readers})
            built.agents[name] = spec  # type: ignore[index]
        return Runtime(built, limits=LIMITS)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_gemma: Path) -> Setup:
    sender, receiver = _models(tiny_llama, tiny_gemma)
    folder = tmp_path_factory.mktemp("bridges") / "tiny-reader"
    tiny.write_reader(folder, sender.identity, receiver.identity)
    return Setup(tiny_llama, tiny_gemma, folder)


def _models(llama: Path, gemma: Path) -> Any:
    from agentwire.model.transformers import TransformersBackend

    return [
        TransformersBackend.load(tiny.spec(name, folder), lambda stage, fraction: None)
        for name, folder in (("ada", llama), ("bob", gemma))
    ]


def replies(outcomes: Sequence[Any]) -> list[Reply]:
    assert all(isinstance(outcome, Reply) for outcome in outcomes), outcomes
    return list(outcomes)


async def test_answers_through_the_bus_equal_those_in_one_process(setup: Setup) -> None:
    from agentwire.model.backend import Asked
    from agentwire.runtime.call_options import make_task, with_question

    async with setup.runtime() as wire:
        alone = [
            await wire.send("ada", "bob", text, prompt=question, generate=6)
            for text, question in zip(TEXTS, QUESTIONS, strict=True)
        ]
        template = "\nQuestion: {question}\nAnswer:"
        options = {"prompt": template, "question": QUESTIONS, "generate": 6}
        batch = replies(await wire.send_batch("ada", "bob", TEXTS, **options))
        assert [reply.text for reply in batch] == [reply.text for reply in alone]
        many = [o async for part in wire.send_many("ada", "bob", TEXTS, **options) for o in part]
        assert [reply.text for reply in replies(many)] == [reply.text for reply in alone]
    sender, receiver = _models(setup.llama, setup.gemma)
    bridge = sender.add_bridge(setup.bridge).fingerprint
    card = receiver.add_reader(setup.bridge)
    reader = read_card(setup.bridge).reader
    for text, question, reply in zip(TEXTS, QUESTIONS, alone, strict=True):
        task = make_task(None, with_question({"prompt": question, "generate": 6}, reader))
        payload = sender.encode([text], bridge).payload
        made = receiver.generate_soft(payload, task, None, Asked([question], bridge))
        assert made.texts == [reply.text]
        m = payload.shape[1]
        assert (reply.channel, reply.soft_tokens) == (Channel.SOFT, m)
        assert reply.payload_bytes == m * LATENT * 2 and card.width == LATENT
        assert reply.prompt_tokens == made.tokens[0][0] > 1 + 2 * 2 + m
    assert len({reply.soft_tokens for reply in alone}) > 1
    assert len({reply.text for reply in alone}) > 4


async def test_one_kept_passage_answers_five_questions(setup: Setup) -> None:
    async with setup.runtime() as wire:
        kept = await wire.keep("ada", "bob", TEXTS[2])
        assert (kept.channel, kept.soft_tokens) == (Channel.SOFT, 8)
        answers = [
            await wire.send("ada", "bob", kept, prompt=question, generate=6)
            for question in QUESTIONS[:5]
        ]
        expected = [
            await wire.send("ada", "bob", TEXTS[2], prompt=question, generate=6)
            for question in QUESTIONS[:5]
        ]
        assert [reply.text for reply in answers] == [reply.text for reply in expected]
        assert {reply.channel for reply in answers} == {Channel.SOFT}
        *pieces, last = [
            event
            async for event in wire.stream("ada", "bob", kept, prompt=QUESTIONS[3], generate=6)
        ]
        assert isinstance(last, Reply) and last.text == answers[3].text
        assert "".join(map(str, pieces)) == last.text
        labels = await wire.send(
            "ada", "bob", kept, prompt="Good?", labels=["negative", "positive"]
        )
        assert labels.channel is Channel.SOFT and labels.label in ("negative", "positive")


async def test_two_receivers_answer_about_one_passage(setup: Setup) -> None:
    async with setup.runtime("bob", "eve") as wire:
        expected = await wire.send("ada", "bob", TEXTS[1], prompt="Who?", generate=6)
        outcomes = await wire.fan_out("ada", ["bob", "eve"], TEXTS[1], prompt="Who?", generate=6)
        assert [reply.text for reply in replies(list(outcomes.values()))] == [expected.text] * 2
        own = {"bob": {"prompt": "Who?"}, "eve": {"prompt": "Where?"}}
        outcomes = await wire.fan_out("ada", own, TEXTS[1], generate=6)
        assert isinstance(outcomes["bob"], Reply) and outcomes["bob"].text == expected.text


async def test_a_long_text_is_relayed_or_refused_but_never_cut(setup: Setup) -> None:
    ask: dict[str, Any] = {"prompt": "Who?", "generate": 4}
    async with setup.runtime() as wire:
        short, long = replies(await wire.send_batch("ada", "bob", [TEXTS[0], LONG], **ask))
        assert (short.channel, short.reason) == (Channel.SOFT, "")
        assert (long.channel, long.reason.partition(":")[0]) == (Channel.TEXT, "too_long")
        assert (long.soft_tokens, long.unread) == (0, 0)
    async with setup.runtime(long_text="error", soft_tokens=4) as wire:
        outcomes = await wire.send_batch("ada", "bob", [TEXTS[2], LONG], **ask)
        assert isinstance(outcomes[0], Reply) and outcomes[0].soft_tokens == 4
        assert isinstance(outcomes[1], RequestError)
        assert outcomes[1].code is NackCode.TOO_LARGE


async def test_a_missing_or_wrong_half_is_refused(setup: Setup, tmp_path: Path) -> None:
    sender, receiver = _models(setup.llama, setup.gemma)
    other = tmp_path / "other"
    tiny.write_reader(other, sender.identity, receiver.identity, seed=9)
    for half in (None, other):
        async with setup.runtime(halves=[half]) as wire:
            reply = await wire.send("ada", "bob", TEXTS[0], prompt="Who?", generate=4)
            assert (reply.channel, reply.reason) == (Channel.TEXT, NackCode.BRIDGE_MISMATCH)
            with pytest.raises(RequestError) as error:
                await wire.send("ada", "bob", TEXTS[0], prompt="Who?", generate=4, fallback="error")
            assert error.value.code is NackCode.BRIDGE_MISMATCH


@contextlib.asynccontextmanager
async def opened(folder: Path, setup: Setup, **wire: object) -> AsyncIterator[Runtime]:
    scenario = {
        "name": "ask",
        "agents": {
            "ada": {"model": str(setup.llama), "device": "cpu", "threads": 1},
            "bob": {"model": str(setup.gemma), "device": "cpu", "threads": 1},
        },
        "wires": [{"from": "ada", "to": "bob", "bridge": "tiny-reader", **wire}],
    }
    (folder / "ask.yaml").write_text(json.dumps(scenario))
    shutil.copytree(setup.bridge, folder / "tiny-reader", dirs_exist_ok=True)
    card = read_card(setup.bridge)
    names = {"sender": setup.llama, "receiver": setup.gemma}
    ends = {
        end: getattr(card, end).model_copy(update={"model": public_name(str(path))})
        for end, path in names.items()
    }
    write_card(folder / "tiny-reader", card.model_copy(update=ends))
    async with agentwire.open(folder / "ask.yaml") as runtime:
        yield runtime


async def test_a_scenario_hands_the_bridge_to_both_agents(setup: Setup, tmp_path: Path) -> None:
    for soft_tokens, expected in (("auto", 2), (8, 8)):
        async with opened(tmp_path, setup, soft_tokens=soft_tokens, fallback="error") as wire:
            reply = await wire.send("ada", "bob", TEXTS[0], prompt="Who?", generate=4)
            assert (reply.channel, reply.soft_tokens) == (Channel.SOFT, expected)
    there = spec_of(tmp_path / "ask.yaml", "bob", None)  # on another machine
    assert there.readers == (str((tmp_path / "tiny-reader").resolve()),)
    with pytest.raises(BridgeError, match="makes 2 or 4 or 8 soft tokens, but the wire says 3"):
        async with opened(tmp_path, setup, soft_tokens=3, fallback="error"):
            pass
