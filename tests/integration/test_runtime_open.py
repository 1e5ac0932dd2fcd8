"""``agentwire.open`` with scenario files."""

import asyncio
from pathlib import Path

import pytest
from fake_run import my_children

import agentwire
from agentwire.errors import RequestError, ScenarioError
from agentwire.model.fake import answer
from agentwire.runtime import ProgressEvent
from agentwire.wire.messages import Channel

pytestmark = pytest.mark.integration

SCENARIO = """
name: three
agents:
  reader: {model: fake-reader, backend: fake}
  critic: {model: fake-critic, backend: fake}
  editor: {model: fake-editor, backend: fake}
wires:
  - {from: reader, to: critic}
  - {from: critic, to: editor}
  - {from: editor, to: reader, fallback: text}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "three.yaml"
    path.write_text(SCENARIO)
    return path


async def test_open_a_scenario_without_a_task(scenario: Path, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    labels = ["good", "bad"]
    run_folder = tmp_path / "run"
    async with agentwire.open(scenario, run_folder=run_folder, progress=events.append) as wire:
        assert set(wire.agents) == {"reader", "critic", "editor"}
        for sender, receiver in [("reader", "critic"), ("critic", "editor"), ("editor", "reader")]:
            reply = await wire.send(sender, receiver, "a text", prompt="Is it?", labels=labels)
            assert reply.label == answer("a text", labels)
            assert (reply.channel, reply.reason) == (Channel.SOFT, "")
        with pytest.raises(ScenarioError, match="no task"):
            await wire.send("reader", "critic", "a text")
        with pytest.raises(ScenarioError, match="no wire critic->reader"):
            await wire.send("critic", "reader", "a text", prompt="Is it?")
        with pytest.raises(RequestError):  # this bridge supports labels only
            await wire.send("reader", "critic", "x", prompt="p", generate=4, fallback="error")
        with pytest.raises(ScenarioError, match="uses bridge"):
            await wire.send("reader", "critic", "x", prompt="p", labels=labels, bridge="mine")
    ready = [event.agent for event in events if event.stage == "ready"]
    assert sorted(ready) == ["critic", "editor", "reader"]
    assert (run_folder / "journal.jsonl").exists() and (run_folder / "logs" / "critic.log").exists()
    assert not my_children()


async def test_start_and_close_in_different_tasks(scenario: Path) -> None:
    wire = agentwire.open(scenario)
    await asyncio.create_task(wire.start())
    reply = await wire.direct("reader", "x", prompt="p", generate=4)
    await asyncio.create_task(wire.aclose())
    assert reply.text == "fake-reader: x"
    assert not my_children()


async def test_an_agent_without_a_wire_can_be_asked_directly(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(
        "name: three\n"
        "agents:\n"
        "  ada: {model: fake-ada, backend: fake}\n"
        "  bob: {model: fake-bob, backend: fake}\n"
        "  eve: {model: fake-eve, backend: fake}\n"
        "wires: [{from: ada, to: bob}]\n"
    )
    async with agentwire.open(path) as wire:
        assert set(wire.agents) == {"ada", "bob", "eve"}
        reply = await wire.direct("eve", "x", prompt="p", generate=4)
    assert reply.text == "fake-eve: x"


async def test_opening_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no such file"):
        agentwire.open(tmp_path / "nothing.yaml")
