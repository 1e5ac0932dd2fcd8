"""Runs every example as a user would. Gateway examples run against a real gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair import ROOT, SCENARIO
from patience import COMMAND_S

pytestmark = pytest.mark.real
EXAMPLES = ROOT / "examples"
ON_GATEWAY = {
    "gateway_openai.py": "openai",
    "gateway_openai_agents.py": "agents.run",
    "gateway_pydantic_ai.py": "pydantic_ai",
    "gateway_llamaindex.py": "llama_index.llms.openai_like",
    "gateway_crewai.py": "crewai",
}
IN_PROCESS = {
    "autogen_team.py": "autogen_agentchat",
    "agent_framework_pair.py": "agent_framework",
    "langgraph_three_agents.py": "langgraph",
}
ALONE = {"fan_out.py": "agentwire", "fan_in.py": "agentwire"}


def python_for(name: str, module: str) -> str:
    """The interpreter for an example. CrewAI has its own environment."""
    crewai = os.environ.get("CREWAI_PYTHON")
    python = crewai if crewai and module == "crewai" else sys.executable
    found = subprocess.run(
        [python, "-c", f"import importlib.util as u, sys; sys.exit(not u.find_spec({module!r}))"],
        capture_output=True,
        check=False,
    )
    if found.returncode:
        pytest.skip(f"{name} needs {module}; `make test-frameworks`")
    return python


def call(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    python = python_for(name, {**ON_GATEWAY, **IN_PROCESS, **ALONE}[name])
    quiet = {"CREWAI_DISABLE_TELEMETRY": "true", "OTEL_SDK_DISABLED": "true"}
    return subprocess.run(
        [python, str(EXAMPLES / name), *arguments],
        env={**os.environ, **quiet, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )


def run(name: str, *arguments: str) -> str:
    done = call(name, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway over the small pair, in its own process."""
    command = [sys.executable, "-m", "agentwire", "serve", str(SCENARIO), "--port", "0"]
    with subprocess.Popen(
        [*command, "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("name", ON_GATEWAY)
def test_framework_on_the_gateway(name: str, request: pytest.FixtureRequest) -> None:
    python_for(name, ON_GATEWAY[name])  # skips before any model is loaded
    lines = run(name, "--url", request.getfixturevalue("url")).splitlines()
    assert any("<|agentwire:" in line for line in lines)
    verdicts = [line for line in lines if line.split(": ")[0] in ("judge", "mistral")]
    if name == "gateway_crewai.py":  # it asks a good and a bad review
        assert [line.split(": ")[1] for line in verdicts] == ["positive", "negative"]
        handles = [line for line in lines if line.startswith("reader: <|agentwire:")]
        assert len(set(handles)) == 2
    else:
        assert verdicts and all("positive" in line for line in verdicts)


@pytest.mark.parametrize("name", ["autogen_team.py", "agent_framework_pair.py"])
def test_pair_in_a_framework(name: str) -> None:
    last = run(name, "A moving, funny and beautifully acted film.").splitlines()[-1]
    assert last.startswith("judge:") and last.endswith("positive")


def test_three_agents_in_a_graph() -> None:
    results = json.loads(run("langgraph_three_agents.py", "--rows", "3", "--json"))
    latent, text = results["latent"], results["text"]
    assert (latent["channel"], text["channel"]) == ("soft", "text")
    assert latent["tokens reader -> judge"] == 8 and latent["bytes on the bus"] == 8 * 640 * 2
    assert latent["bytes in the graph's state"] == 46


def test_fan_out_example() -> None:
    lines = run("fan_out.py", "--texts", "3").splitlines()
    assert lines[0].startswith("positive") and lines[1].startswith("negative")
    assert [line.split(" p50")[0].strip() for line in lines[-2:]] == ["fan_out", "two sends"]


def test_fan_in_example() -> None:
    done = call("fan_in.py", "--rows", "2")
    if done.returncode == 2:  # no set of bridges is shipped
        assert "needs bridges that were trained together" in done.stderr
        assert "agentwire train" in done.stderr
        pytest.skip("the set of bridges has not been trained here")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 rows of sst2")
    titles = ["both halves", "first half alone", "second half alone"]
    assert [line.split("  ")[0].strip() for line in lines[1:]] == titles


def test_every_example_is_tested() -> None:
    named = {*ON_GATEWAY, *IN_PROCESS, *ALONE}
    assert {path.name for path in Path(EXAMPLES).glob("*.py")} == named
