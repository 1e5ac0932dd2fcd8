"""``agentwire run`` end to end with real processes, the real bus and fake models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import agentwire, command, environment
from patience import COMMAND_S, EVENT_S
from scenario_files import FAKE_TASK, write, write_rows

from agentwire.evaluation.result import RunResult
from agentwire.model.fake import answer
from agentwire.task.definitions import load_definition
from agentwire.telemetry.journal import read_lines, unfinished

pytestmark = pytest.mark.integration

METHODS = ["bridge", "text_relay", "receiver_direct", "sender_direct"]


def run(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return agentwire(folder, "run", *arguments, code=code)


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run in its own process group, as a terminal starts it."""
    with subprocess.Popen(
        command("run", *arguments),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = EVENT_S) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


def only_run(folder: Path) -> Path:
    (found,) = (folder / "runs").iterdir()
    return found


def predictions(folder: Path) -> list[dict[str, Any]]:
    """The predictions written so far by the only run."""
    files = list(folder.glob("runs/*/predictions.jsonl"))
    return list(read_lines(files[0])) if files else []


def journal(folder: Path, event: str) -> list[dict[str, Any]]:
    """The events of this name that the only run has written so far."""
    files = list(folder.glob("runs/*/journal.jsonl"))
    return [e for e in read_lines(files[0]) if e["event"] == event] if files else []


def agent_pids(folder: Path) -> list[int]:
    return [event["pid"] for event in journal(folder, "agent_started")]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    write_rows(tmp_path, 30)
    return write(tmp_path, FAKE_TASK)


def test_replicas_are_listed_by_name_and_change_no_answer(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in write_rows(tmp_path, 60).read_text().splitlines()]
    write(tmp_path, FAKE_TASK.replace("fake}", "fake, replicas: 2}"))
    run(tmp_path, "scenario.yaml", "--methods", "bridge,receiver_direct")
    words = load_definition("movie_snippets").label_words
    found = {(r["method"], r["row"]): r["predicted"] for r in predictions(tmp_path)}
    assert found == {
        (method, i): answer(row["text"], words)
        for method in ("bridge", "receiver_direct")
        for i, row in enumerate(rows)
    }
    folder = only_run(tmp_path)
    result = RunResult.model_validate_json((folder / "result.json").read_text())
    assert set(result.agents) == {"ada.1", "ada.2", "bob.1", "bob.2"}
    assert len({agent.pid for agent in result.agents.values()}) == 4
    assert {path.stem for path in (folder / "logs").glob("*.log")} == set(result.agents)
    shown = agentwire(tmp_path, "doctor", "scenario.yaml", "--json")
    (entry,) = json.loads(shown.stdout)["scenarios"]
    assert set(entry["agents"]) == set(result.agents)


def test_a_run_on_screen_and_on_disk(tmp_path: Path, scenario: Path) -> None:
    done = run(tmp_path, scenario.name)
    folder = only_run(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "result.json", "predictions.jsonl", "journal.jsonl", "logs"}
    result = RunResult.model_validate_json((folder / "result.json").read_text())
    assert list(result.methods) == METHODS
    assert not result.interrupted
    assert result.dataset.rows == 30
    words = load_definition("movie_snippets").label_words
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    right = sum(answer(row["text"], words) == words[row["label"]] for row in rows)
    for name, method in result.methods.items():
        assert (method.correct, method.n) == (right, 30), name
        assert method.latency_ms is not None
        assert f"{right}/30" in done.stdout
    for record in predictions(tmp_path):
        total = sum(record["stages_ms"].values())
        assert total == pytest.approx(record["latency_ms"], abs=0.1)
    bridge, relay = result.methods["bridge"], result.methods["text_relay"]
    assert (bridge.channels.soft, bridge.channels.text) == (30, 0)
    assert bridge.payload_bytes == 8 * 16 * 2
    assert (relay.channels.soft, relay.channels.text) == (0, 30)
    pids = {agent.pid for agent in result.agents.values()}
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert unfinished(read_lines(folder / "journal.jsonl")) == []


def test_json_is_the_file_and_nothing_else(tmp_path: Path, scenario: Path) -> None:
    done = run(tmp_path, scenario.name, "--json", "--limit", "7", "--methods", "bridge")
    printed = json.loads(done.stdout)
    assert printed == json.loads((only_run(tmp_path) / "result.json").read_text())
    assert printed["methods"]["bridge"]["n"] == 7
    assert printed["settings"]["limit"] == 7


def test_verbatim_relay_carries_the_text_itself(tmp_path: Path, scenario: Path) -> None:
    done = run(tmp_path, scenario.name, "--json", "--methods", "text_relay_verbatim")
    method = json.loads(done.stdout)["methods"]["text_relay_verbatim"]
    assert method["channels"] == {"soft": 0, "text": 30}
    assert method["stages_ms"].get("generate", 0) == 0


def test_an_interrupt_keeps_what_is_done_and_resume_goes_on(tmp_path: Path) -> None:
    rows = 500
    write_rows(tmp_path, rows)
    write(tmp_path, FAKE_TASK.replace("batch_size: 4", "batch_size: 1"))
    arguments = ["scenario.yaml", "--limit", "0", "--methods", "bridge,receiver_direct"]
    with running(tmp_path, *arguments) as process:
        wait_for(lambda: len(predictions(tmp_path)) >= 20, "rows")
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: the whole group gets it
        _, errors = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 130, errors
    folder = only_run(tmp_path)
    kept = predictions(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert result["interrupted"] is True
    assert 20 <= sum(m["n"] for m in result["methods"].values()) < 2 * rows
    assert f"--resume runs/{folder.name}" in errors
    assert "Traceback" not in errors
    pids = agent_pids(tmp_path)
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), "agents to end")

    again = run(tmp_path, *arguments, "--resume", f"runs/{folder.name}", "--json")
    result = json.loads(again.stdout)
    assert result["interrupted"] is False
    assert {name: m["n"] for name, m in result["methods"].items()} == {
        "bridge": rows,
        "receiver_direct": rows,
    }
    records = predictions(tmp_path)
    assert records[: len(kept)] == kept
    assert len({(r["method"], r["row"]) for r in records}) == len(records) == 2 * rows


def test_a_killed_agent_is_started_again_and_no_row_is_lost(tmp_path: Path) -> None:
    rows = 400
    write_rows(tmp_path, rows)
    write(tmp_path, FAKE_TASK)
    arguments = ["scenario.yaml", "--limit", "0", "--methods", "bridge"]
    with running(tmp_path, *arguments) as process:
        wait_for(lambda: journal(tmp_path, "admitted"), "rows in flight")
        os.kill(agent_pids(tmp_path)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0, errors
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert result["methods"]["bridge"]["n"] == rows
    assert result["methods"]["bridge"]["errors"] == {}
    assert sum(agent["restarts"] for agent in result["agents"].values()) == 1
    assert "restarts" in errors


def test_an_agent_that_stays_down_ends_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    write_rows(tmp_path, 5000)
    write(tmp_path, FAKE_TASK)
    with running(tmp_path, "scenario.yaml", "--limit", "0", "--methods", "bridge") as process:
        wait_for(lambda: len(predictions(tmp_path)) >= 8, "rows")
        killed: set[int] = set()

        def kill_the_newest() -> bool:
            for pid in {*agent_pids(tmp_path)[1:]} - killed:
                killed.add(pid)
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)
            return process.poll() is not None

        wait_for(kill_the_newest, "the run to end")
        _, errors = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 1, errors
    assert "bob" in errors and "is down" in errors
    assert "--resume runs/" in errors
    assert "Traceback" not in errors
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert result["interrupted"] is True
    assert result["methods"]["bridge"]["n"] == len(predictions(tmp_path)) >= 8


def test_a_run_of_something_else_is_not_resumed(tmp_path: Path, scenario: Path) -> None:
    run(tmp_path, scenario.name, "--limit", "5", "--methods", "bridge")
    folder = only_run(tmp_path)
    write(tmp_path, FAKE_TASK.replace("batch_size: 4", "batch_size: 5"))
    done = run(tmp_path, scenario.name, "--resume", str(folder), code=2)
    assert "batch_size was 4, now it is 5" in done.stderr
