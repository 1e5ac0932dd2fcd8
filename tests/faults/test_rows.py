"""A row that cannot be sent or computed fails alone; its neighbours are answered."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import fake_runtime
from scenario_files import FAKE_TASK, write, write_rows
from test_run_integration import only_run, predictions, run

from agentwire.errors import RequestError, ScenarioError
from agentwire.runtime.call_options import GenerationOptions

pytestmark = pytest.mark.integration
LIMIT = 256 * 1024

BAD: dict[str, tuple[Any, str]] = {
    "None": (None, "malformed"),
    "NaN": (math.nan, "malformed"),
    "bytes": (b"good", "malformed"),
    "a number": (7, "malformed"),
    "a list": (["good"], "malformed"),
    "half of a pair": ("cut \ud83d", "malformed"),
    "the other half": ("\ude00 cut", "malformed"),
    "halves in the wrong order": ("\ude00\ud83d", "malformed"),
    "one byte too long": ("z" * (LIMIT + 1), "too_large"),
    "too long in bytes, not in characters": ("é" * (LIMIT // 2 + 1), "too_large"),
    "far too long": ("z" * (20 << 20), "too_large"),
}
GOOD = ["good", "fine", "an emoji \U0001f600", "a zero \0", "", np.str_("numpy"), "z" * LIMIT]


def codes(outcomes: Sequence[Any]) -> list[str]:
    return [o.code.value if isinstance(o, RequestError) else "answer" for o in outcomes]


async def test_only_the_bad_rows_of_a_call_fail() -> None:
    rows, expected = [], []
    for text, code in BAD.values():
        rows += ["good", text]
        expected += ["answer", code]
    async with fake_runtime() as wire:
        alone = await wire.send("sender", "receiver", "good")
        for outcomes in (
            await wire.send_batch("sender", "receiver", rows),
            await wire.send_batch("sender", "receiver", rows, channel="text"),
            await wire.direct_batch("receiver", rows),
            [o async for b in wire.send_many("sender", "receiver", rows, batch_size=3) for o in b],
        ):
            assert codes(outcomes) == expected
        batch = await wire.send_batch("sender", "receiver", rows)
        assert [o.label for o in batch[::2]] == [alone.label] * len(BAD)  # type: ignore[union-attr]
        assert all(f"Text {i} of the call" in str(batch[i]) for i in range(1, len(rows), 2))
        assert codes(await wire.send_batch("sender", "receiver", GOOD)) == ["answer"] * len(GOOD)
        assert (await wire.send("sender", "receiver", "good")).label == alone.label
        assert [agent.restarts for agent in wire.agents.values()] == [0, 0]


async def one_error(call: Any) -> str:
    with pytest.raises(RequestError) as error:
        await call
    return error.value.code.value


async def test_calls_of_one_text_raise_its_error() -> None:
    async with fake_runtime() as wire:
        for text, code in BAD.values():
            assert await one_error(wire.send("sender", "receiver", text)) == code
            assert await one_error(wire.keep("sender", "receiver", text)) == code
            assert await one_error(wire.direct("receiver", text)) == code
            assert await one_error(anext(aiter(wire.stream("sender", "receiver", text)))) == code


def chat(*contents: str) -> str:
    return json.dumps([{"role": "user", "content": content} for content in contents])


CHATS = [
    chat("cut \ud83d"),
    chat("\ude00"),
    chat("fine", "cut \ud83d"),
    '[{"role": "user", "content": "\\uD83D"}]',
    '[{"role": "\\ud83d", "content": "x"}]',
    "[" * 50_000,
    "[]",
    "not json",
]


async def test_a_bad_conversation_fails_alone_and_kills_no_agent() -> None:
    rows = [row for bad in CHATS for row in (chat("hello"), bad)]
    async with fake_runtime() as wire:
        call: dict[str, Any] = {"form": "chat", "prompt": "", "generate": GenerationOptions(8)}
        outcomes = await wire.direct_batch("receiver", rows, **call)
        assert codes(outcomes) == ["answer", "malformed"] * len(CHATS)
        assert (await wire.direct("receiver", chat("hello"), **call)).text
        assert [agent.restarts for agent in wire.agents.values()] == [0, 0]


async def test_an_agent_that_writes_what_cannot_be_sent_lives_on() -> None:
    """The fake model repeats the text behind its name, which makes it too long."""
    rows = ["good", "z" * (LIMIT - 4), "fine"]
    async with fake_runtime() as wire:
        call: dict[str, Any] = {"prompt": "", "generate": GenerationOptions(64)}
        outcomes = await wire.direct_batch("receiver", rows, **call)
        assert codes(outcomes) == ["answer", "too_large", "answer"]
        assert [agent.restarts for agent in wire.agents.values()] == [0, 0]


def test_a_run_names_its_rows_without_an_answer(tmp_path: Path) -> None:
    file = write_rows(tmp_path, 24)
    lines = file.read_text().split("\n")
    lines[7] = json.dumps({"text": "z" * (LIMIT + 1), "label": 1})
    file.write_text("\n".join(lines))
    write(tmp_path, FAKE_TASK)
    options = ["--limit", "0", "--methods", "bridge,receiver_direct"]
    done = run(tmp_path, "scenario.yaml", *options, code=1)
    assert "row 7 has no answer (bridge: too_large)" in done.stderr
    assert "1 without answer" in done.stdout and "23/24" not in done.stderr
    failed = [(r["method"], r["row"], r["error"]) for r in predictions(tmp_path) if r["error"]]
    assert sorted(failed) == [("bridge", 7, "too_large"), ("receiver_direct", 7, "too_large")]
    assert len(predictions(tmp_path)) == 48
    folder = f"runs/{only_run(tmp_path).name}"
    run(tmp_path, "scenario.yaml", "--resume", folder, "--json", code=1)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "cut \ud83d"},
        {"prompt": b"bytes"},
        {"prompt": "p", "labels": ["good", "cut \ud83d"]},
        {"labels": ["good", None]},
        {"prompt": "p" * 100_000},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    async def call() -> None:
        async with fake_runtime() as wire:
            await wire.send("sender", "receiver", "good", **options)

    with pytest.raises(ScenarioError):
        asyncio.run(call())


@pytest.mark.parametrize("stop", ["cut \ud83d", (None,), (b"x",)])
def test_bad_stop_strings_are_refused(stop: Any) -> None:
    with pytest.raises(ScenarioError, match="stop is out of range"):
        GenerationOptions(stop=stop)
