"""``agentwire run`` end to end with real processes, the real bus and fake models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from scenario_files import FAKE_TASK, write, write_rows

from agentwire.evaluation.result import RunResult
from agentwire.model.fake import answer
from agentwire.task.definitions import load_definition
from agentwire.telemetry.journal import read_lines, unfinished

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["bridge", "text_relay", "receiver_direct", "sender_direct"]


def environment(folder: Path) -> dict[str, str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "AGENTWIRE_HOME": str(folder / "home")}
    for name in ("AGENTWIRE_DATA", "AGENTWIRE_BRIDGES"):
        env.pop(name, None)
    return env


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agentwire", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("run", *arguments),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


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


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


def only_run(folder: Path) -> Path:
    (found,) = (folder / "runs").iterdir()
    return found


def predictions(folder: Path) -> list[dict[str, Any]]:
    """The predictions written so far by the only run."""
    files = list(folder.glob("runs/*/predictions.jsonl"))
    return list(read_lines(files[0])) if files else []


def agent_pids(folder: Path) -> list[int]:
    (file,) = folder.glob("runs/*/journal.jsonl")
    return [e["pid"] for e in read_lines(file) if e["event"] == "agent_started"]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    write_rows(tmp_path, 30)
    return write(tmp_path, FAKE_TASK)


def test_replicas_of_a_run_are_seen_by_name_and_change_no_answer(tmp_path: Path) -> None:
    write_rows(tmp_path, 60)
    one, two = tmp_path / "one", tmp_path / "two"
    answers = []
    for folder, text in ((one, FAKE_TASK), (two, FAKE_TASK.replace("fake}", "fake, replicas: 2}"))):
        folder.mkdir()
        write_rows(folder, 60)
        done = run(folder, write(folder, text).name, "--methods", "bridge,receiver_direct")
        assert done.returncode == 0, done.stderr
        rows = {(r["method"], r["row"]): r["predicted"] for r in predictions(folder)}
        assert len(rows) == 120
        answers.append(rows)
    assert answers[0] == answers[1]
    result = RunResult.model_validate_json((only_run(two) / "result.json").read_text())
    assert set(result.agents) == {"ada.1", "ada.2", "bob.1", "bob.2"}
    assert len({agent.pid for agent in result.agents.values()}) == 4
    assert {path.stem for path in (only_run(two) / "logs").glob("*.log")} == set(result.agents)
    shown = subprocess.run(
        command("doctor", "scenario.yaml", "--json"),
        cwd=two,
        env=environment(two),
        capture_output=True,
        text=True,
        check=True,
    )
    (entry,) = json.loads(shown.stdout)["scenarios"]
    assert set(entry["agents"]) == set(result.agents)


def test_a_run_on_screen_and_on_disk(tmp_path: Path, scenario: Path) -> None:
    done = run(tmp_path, scenario.name)
    assert done.returncode == 0, done.stderr
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
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads((only_run(tmp_path) / "result.json").read_text())
    assert printed["methods"]["bridge"]["n"] == 7
    assert printed["settings"]["limit"] == 7


def test_predictions_do_not_depend_on_the_batch_size(tmp_path: Path, scenario: Path) -> None:
    found = []
    for size in (1, 16):
        write(tmp_path, FAKE_TASK.replace("batch_size: 4", f"batch_size: {size}"))
        done = run(tmp_path, scenario.name, "--out", f"runs{size}", "--methods", "bridge")
        assert done.returncode == 0, done.stderr
        (file,) = (tmp_path / f"runs{size}").glob("*/predictions.jsonl")
        found.append({r["row"]: (r["predicted"], r["scores"]) for r in read_lines(file)})
    assert found[0] == found[1]


def test_verbatim_relay_carries_the_text_itself(tmp_path: Path, scenario: Path) -> None:
    done = run(tmp_path, scenario.name, "--json", "--methods", "text_relay_verbatim")
    assert done.returncode == 0, done.stderr
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
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    folder = only_run(tmp_path)
    kept = predictions(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert result["interrupted"] is True
    assert 20 <= result["methods"]["bridge"]["n"] < rows
    assert f"--resume runs/{folder.name}" in errors
    assert "Traceback" not in errors
    pids = agent_pids(tmp_path)
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), "agents to end")

    again = run(tmp_path, *arguments, "--resume", f"runs/{folder.name}", "--json")
    assert again.returncode == 0, again.stderr
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
        wait_for(lambda: len(predictions(tmp_path)) >= 8, "rows")
        os.kill(agent_pids(tmp_path)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=90)
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
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    assert "bob" in errors and "is down" in errors
    assert "--resume runs/" in errors
    assert "Traceback" not in errors
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert result["interrupted"] is True
    assert result["methods"]["bridge"]["n"] == len(predictions(tmp_path)) >= 8


def test_a_run_of_something_else_is_not_resumed(tmp_path: Path, scenario: Path) -> None:
    assert run(tmp_path, scenario.name, "--limit", "5", "--methods", "bridge").returncode == 0
    folder = only_run(tmp_path)
    write(tmp_path, FAKE_TASK.replace("batch_size: 4", "batch_size: 5"))
    done = run(tmp_path, scenario.name, "--resume", str(folder))
    assert done.returncode == 2
    assert "batch_size was 4, now it is 5" in done.stderr
