"""Processes that may open no file any more, from outside: they answer, and end in good order."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from patience import COMMAND_S, EVENT_S
from scenario_files import FAKE_TASK, write, write_rows
from test_gateway_faults import ADA, HELLO, gateway, httpx
from test_run_integration import agent_pids, only_run, predictions, running, wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="needs prlimit"),
]


FEW = 8  # all are in use; poll() fails for more descriptors than the limit


def exhaust(pid: int) -> None:
    """No file that the process opens from now on gets a descriptor."""
    hard = psutil.Process(pid).rlimit(resource.RLIMIT_NOFILE)[1]
    psutil.Process(pid).rlimit(resource.RLIMIT_NOFILE, (FEW, hard))


def agents_of(pid: int) -> list[psutil.Process]:
    return [c for c in psutil.Process(pid).children() if "agentwire.agent" in str(c.cmdline())]


@pytest.mark.parametrize("again", [False, True], ids=["at once", "after work"])
def test_a_gateway_without_descriptors_ends_in_good_order(tmp_path: Path, again: bool) -> None:
    with gateway(tmp_path) as served:
        agents = agents_of(served.process.pid)
        if again:
            assert served.post(model="writer", messages=HELLO).status_code == 200
        exhaust(served.process.pid)
        time.sleep(0.2)
    assert served.process.returncode == 0
    psutil.wait_procs(agents, EVENT_S)
    assert not any(agent.is_running() for agent in agents)


def test_a_gateway_without_descriptors_answers_over_what_is_open(tmp_path: Path) -> None:
    """The first request of each kind comes when no module can be loaded any more."""
    with gateway(tmp_path) as served, httpx.Client(timeout=COMMAND_S) as client:
        client.headers["authorization"] = f"Bearer {ADA}"
        assert client.get(served.url + "/models").status_code == 200
        exhaust(served.process.pid)
        place = served.url + "/chat/completions"
        body = {"model": "writer", "messages": HELLO}
        label = {"model": "llama->mistral", "messages": HELLO}
        wrong: list[tuple[dict[str, Any], int]] = [
            (body | {"stream": True}, 200), (body, 200), (label, 200),
            (body | {"model": "nobody"}, 404), (body | {"messages": 5}, 400),
            (body | {"top_k": 3}, 400), (body | {"response_format": {"type": "x"}}, 400),
        ]  # fmt: skip
        for sent, code in wrong:
            answered = client.post(place, json=sent)
            assert answered.status_code == code, answered.text
        assert client.post(place, content=b"{").status_code == 400
        for path in ("/healthz", "/metrics"):
            assert client.get(served.url.removesuffix("/v1") + path).status_code == 200


def test_agents_without_descriptors_answer_and_end(tmp_path: Path) -> None:
    with gateway(tmp_path) as served:
        agents = agents_of(served.process.pid)
        assert len(agents) == 3
        for agent in agents:
            exhaust(agent.pid)
        for model in ("writer", "llama->mistral", "nobody"):
            asked = served.post(model=model, messages=HELLO)
            assert asked.status_code == (404 if model == "nobody" else 200), asked.text
        assert [agent.pid for agent in agents_of(served.process.pid)] == [a.pid for a in agents]
    psutil.wait_procs(agents, EVENT_S)
    assert not any(agent.is_running() for agent in agents)


def test_a_run_without_descriptors_is_interrupted(tmp_path: Path) -> None:
    write_rows(tmp_path, 4000)
    write(tmp_path, FAKE_TASK.replace("batch_size: 4", "batch_size: 1"))
    with running(tmp_path, "scenario.yaml", "--limit", "0") as process:
        wait_for(lambda: len(predictions(tmp_path)) > 20, "predictions")
        pids = agent_pids(tmp_path)
        exhaust(process.pid)
        process.send_signal(2)
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors and "unexpected" not in errors, errors
    assert process.returncode in (2, 130)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    rows = (only_run(tmp_path) / "predictions.jsonl").read_text().split("\n")
    assert all(json.loads(row) for row in rows if row)
