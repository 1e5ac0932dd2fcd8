"""A recorded run with faults replays to the same outcomes; a modified recording does not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from fake_run import fake_runtime
from typer.testing import CliRunner

from agentwire.bus.recording import FILE_NAME
from agentwire.bus.replay import differences, replay
from agentwire.errors import InputError, RequestError

pytestmark = pytest.mark.integration

TEXTS = [f"a secret review number {n}" for n in range(48)]


async def record(folder: Path) -> None:
    slow = {"encode_ms": 10, "decode_ms": 10, "nan_on": "nan"}
    async with fake_runtime(sender=slow, receiver=slow, run_folder=folder, record=True) as wire:
        pid = wire.agents["receiver"].pid
        seen = 0
        async for batch in wire.send_many("sender", "receiver", TEXTS, batch_size=4):
            seen += len(batch)
            if seen == 16:
                os.kill(pid, signal.SIGKILL)
        await wire.send_batch("sender", "receiver", ["nan", "fine"], relay="verbatim")
        late = await wire.send_batch("sender", "receiver", ["late"], deadline=0.001)
        assert isinstance(late[0], RequestError)
        await wire.direct("sender", "alone")


async def test_a_run_with_faults_replays_to_the_same_outcomes(tmp_path: Path) -> None:
    await record(tmp_path)
    path, journal = tmp_path / FILE_NAME, tmp_path / "journal.jsonl"
    done = replay(path)
    assert differences(done, journal) == []
    assert done.recorded is not None and done.recorded["results"] > 0
    assert len(done.answered) >= len(TEXTS) + 2
    kept = path.read_text()
    assert "secret" not in kept and b"secret".hex() not in kept  # texts are not recorded
    lines = kept.splitlines()
    # A modified recording is detected: without one message, the outcomes differ.
    results = [i for i, line in enumerate(lines) if '"peer"' in line and len(line) > 300]
    path.write_text("\n".join(lines[: results[-1]] + lines[results[-1] + 1 :]) + "\n")
    assert differences(replay(path), journal) != []


async def test_the_command_and_a_torn_recording(tmp_path: Path) -> None:
    from typer import Typer

    from agentwire.cli.replay import replay as command

    await record(tmp_path)
    app = Typer()
    app.command()(command)
    shown = CliRunner().invoke(app, [str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "same outcomes" in shown.output and " 0 unfinished" in shown.output
    path = tmp_path / FILE_NAME
    lines = path.read_text().splitlines()
    whole = "".join(line + "\n" for line in lines[:10])
    path.write_text(whole + lines[10][:20])  # as after a kill
    assert replay(path).recorded is None and replay(path).torn == [f"{path}:11"]
    shown = CliRunner().invoke(app, [str(tmp_path)])
    assert f"skipped: {path}:11, an unfinished last line" in shown.output, shown.output
    assert "the recording was cut short" in shown.output
    for junk, match in (
        ("nonsense\n", ":11: not a JSON object"),  # a kill cannot cause this
        ('{"frames": [], "clo\n', ":11: not a JSON object"),
        ('{"clock": []}\n', ":11: not a recording of a bus"),
        ('{"tick": 1.0}\n', ":11: not a recording of a bus"),
        ('{"tick": 1.0, "clock": []}\n' + lines[10] + "\nnonsense\n", ":13: not a JSON object"),
    ):
        path.write_text(whole + junk)
        with pytest.raises(InputError, match=match):
            replay(path)
    path.write_text(json.dumps({"bus": {}}) + "\n")
    with pytest.raises(InputError, match=":1: not a recording"):
        replay(path)
    path.write_text("")
    with pytest.raises(InputError, match="is empty"):
        replay(path)
    with pytest.raises(InputError, match="cannot be read"):
        replay(tmp_path / "none")
