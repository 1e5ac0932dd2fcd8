"""A run writes and prints no token and no private key."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fake_run import fake_runtime

from agentwire.errors import RequestError

pytestmark = pytest.mark.integration


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_no_secret_is_written_or_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token = "5ec2e7" * 10 + "abcd"
    monkeypatch.setattr("agentwire.runtime.lifecycle.new_token", lambda: token)
    caplog.set_level(logging.DEBUG)
    faults = {"crash_on": "poison"}
    async with fake_runtime(sender=faults, run_folder=tmp_path, record=True) as wire:
        outcomes = await wire.send_batch("sender", "receiver", ["fine", "poison"])
        metrics = repr(wire.metrics()) + repr(wire.agents)
    assert isinstance(outcomes[1], RequestError)
    files = files_below(tmp_path)
    assert {path.name for path in files} >= {
        "journal.jsonl", "sender.log", "deadletters.jsonl", "bus.jsonl",
    }  # fmt: skip
    for path in files:
        assert token.encode() not in path.read_bytes(), path
    assert token not in caplog.text + metrics + str(outcomes[1])
