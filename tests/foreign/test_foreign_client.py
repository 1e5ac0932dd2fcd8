"""docs/protocol.md is enough to write a client: one was, and it talks to a running bus.

``client.py`` knows nothing of agentwire. What it and the page say must also hold for every golden
message.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from patience import COMMAND_S

from agentwire.model.fake import answer
from agentwire.runtime import Runtime

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
from fake_run import fake_runtime

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "client.py"
GOLDEN = sorted((HERE.parent / "golden").glob("*.bin"))

LABELS = ["good", "bad", "mixed"]
TASK: dict[str, Any] = {
    "name": "reviews – ünïcode",
    "prompt": "Answer:",
    "text_prompt": "{text}\nAnswer:",
    "labels": LABELS,
    "relay": {"template": "Sum up: {text}", "max_new_tokens": 2},
    "max_new_tokens": 0,
    "decoding": {"temperature": 0, "top_p": 1000, "seed": 0, "stop": [], "stream": False},
    "form": "text",
}
TEXTS = ["a délightful film", "dull", "", "so-so, but long: " + "x" * 5000]
WIRE = "sender->receiver"


def foreign() -> ModuleType:
    spec = importlib.util.spec_from_file_location("foreign_client", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_it_reads_and_writes_every_golden_message(path: Path) -> None:
    module, data, frames = foreign(), path.read_bytes(), []
    while data:
        (size,) = struct.unpack_from("<I", data)
        frames.append(data[4 : 4 + size])
        data = data[4 + size :]
    header, rows, body = module.unpack(frames)
    again = {key: value for key, value in header.items() if key not in ("n", "c")}
    assert module.unpack(module.pack(again, rows, body)) == (header, rows, body)
    damaged = [frames[0], frames[1], frames[2] + b"\0"]
    with pytest.raises(ValueError, match="checksum"):
        module.unpack(damaged)


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with fake_runtime(deployment={"task": None}) as runtime:
        yield runtime


def talk(runtime: Runtime, **changes: Any) -> tuple[list[dict[str, Any]], str, int]:
    """What the program prints, what it complains of, and its exit status."""
    assert runtime._lifecycle is not None
    address = runtime._lifecycle._connect(lambda *message: None, lambda reason: None)._address
    given = {"endpoint": address.endpoint, "run": address.run, "token": address.token} | changes
    done = subprocess.run(
        [sys.executable, "-I", str(PROGRAM), json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_S,
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr, done.returncode


@pytest.mark.integration
async def test_it_joins_a_running_bus_and_gets_its_answers(runtime: Runtime) -> None:
    generate = TASK | {"labels": [], "max_new_tokens": 4}
    questions = [
        {"wire": WIRE, "task": TASK, "texts": TEXTS, "channel": "soft"},
        {"wire": WIRE, "task": TASK, "texts": TEXTS[:1], "channel": "text"},
        {"wire": "@receiver", "task": TASK, "texts": TEXTS[:2], "channel": "text"},
        {"wire": "@receiver", "task": generate, "texts": TEXTS[:1], "channel": "text"},
    ]
    lines, errors, status = await asyncio.to_thread(talk, runtime, questions=questions)
    assert (status, errors, lines.pop()) == (0, "", {"foreign": True})
    soft, relayed, direct, generated = lines[:4], lines[4:5], lines[5:7], lines[7:]
    for text, line in zip(TEXTS + TEXTS[:2], soft + direct, strict=True):
        assert LABELS[line["scores"].index(max(line["scores"]))] == answer(text, tuple(LABELS))
        assert math.isclose(sum(map(math.exp, line["scores"])), 1.0, rel_tol=1e-5)
    assert [line["channel"] for line in soft] == ["soft"] * 4
    assert [(line["channel"], line["reason"]) for line in relayed] == [("text", "")]
    assert len(generated) == 1 and generated[0]["text"]
    # The same question, asked by the runtime's own client, has the same scores.
    reply = await runtime.send("sender", "receiver", TEXTS[1], prompt="Answer:", labels=LABELS)
    assert reply.label == answer(TEXTS[1], tuple(LABELS))


@pytest.mark.integration
async def test_it_is_rejected_without_the_token(runtime: Runtime) -> None:
    _, errors, status = await asyncio.to_thread(talk, runtime, token="no", questions=[])
    assert status == 1 and "turned away: unauthorized" in errors
