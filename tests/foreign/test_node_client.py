"""A client in another language, written from docs/protocol.md alone, at a running bus.

Runs where Node and its msgpack package are installed: ``make test-node`` installs the package.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_foreign_client import LABELS, TASK, TEXTS, WIRE, fake_runtime

from agentwire.model.fake import answer

HERE = Path(__file__).resolve().parent / "node"
NODE = shutil.which("node")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        NODE is None or not (HERE / "node_modules" / "@msgpack").exists(),
        reason="Node or its msgpack package is not installed (make test-node)",
    ),
]


def talk(given: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    program = [NODE or "node", str(HERE / "client.js"), json.dumps(given)]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)


async def test_it_joins_a_running_bus_and_gets_its_answers() -> None:
    generate = TASK | {"labels": [], "max_new_tokens": 4}
    questions = [
        {"wire": WIRE, "task": TASK, "texts": TEXTS, "channel": "soft"},
        {"wire": WIRE, "task": TASK, "texts": TEXTS[:1], "channel": "text"},
        {"wire": "@receiver", "task": TASK, "texts": TEXTS[:2], "channel": "text"},
        {"wire": "@receiver", "task": generate, "texts": TEXTS[:1], "channel": "text"},
    ]
    async with fake_runtime(deployment={"task": None}) as runtime:
        given = runtime.invitation() | {"questions": questions}
        done = await asyncio.to_thread(talk, given)
        refused = [
            await asyncio.to_thread(talk, given | changes)
            for changes in ({"token": "no"}, {"name": "client"})
        ]
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["channel"] for line in lines] == ["soft"] * 4 + ["text"] * 4
    for text, line in zip(TEXTS + TEXTS[:1] + TEXTS[:2], lines, strict=False):
        best = line["scores"].index(max(line["scores"]))
        if line["channel"] == "soft":
            assert LABELS[best] == answer(text, tuple(LABELS))
    assert lines[-1]["text"]
    for one in refused:
        assert one.returncode == 1 and "turned away: unauthorized" in one.stderr
