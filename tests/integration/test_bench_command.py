"""``agentwire bench`` as a user types it, with fake and with tiny models."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import agentwire, command, environment
from patience import COMMAND_S

pytestmark = pytest.mark.integration

ALL = ["bridge", "receiver_direct", "receiver_replicas", "text_relay", "in_process"]
TWO = "bridge,receiver_direct"
FAKE: dict[str, Any] = {
    "name": "fakes",
    "agents": {
        "ada": {"model": "model-a", "backend": "fake"},
        "bob": {"model": "model-b", "backend": "fake"},
    },
    "wires": [{"from": "ada", "to": "bob"}],
    "bench": {
        "prompt_tokens": 4,
        "generated_tokens": 3,
        "batch_sizes": [1, 4],
        "text_tokens": [8, 16],
        "length_batch": 2,
        "methods": ALL,
        "rounds": 2,
        "messages": 8,
        "seconds": 0.05,
        "warm_up": 1,
    },
}


def bench(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return agentwire(folder, "bench", *arguments, code=code)


def write(folder: Path, scenario: dict[str, Any]) -> str:
    (folder / "scenario.yaml").write_text(json.dumps(scenario))
    return "scenario.yaml"


def test_all_measurements_with_fake_models(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="`make test` installs matplotlib")
    scenario = write(tmp_path, FAKE)
    done = bench(tmp_path, "all", scenario, "--json", "--out", "out/r.json", "--plots", "pictures")
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "out" / "r.json").read_text())
    assert printed["interrupted"] is False
    assert set(printed["agents"]) == {"ada", "bob", "bob-replica"}
    assert any("fake models" in label for label in printed["labels"])
    cells = {(c["kind"], c["method"], c["batch_size"], c["text_tokens"]) for c in printed["cells"]}
    assert {("throughput", m, b, 8) for m in ALL for b in (1, 4)} <= cells
    assert {("latency", "bridge", 1, t) for t in (8, 16)} <= cells
    for cell in printed["cells"]:
        assert not cell["error"]
        rates = cell["rows_per_s_rounds"]
        assert len(rates) == (2 if cell["kind"] == "throughput" else 0)
        assert all(rate > 0 for rate in rates)
    # Every message is one batch of its own size, as "@4" says.
    for agent, kinds in printed["batches"].items():
        assert set(kinds) == ({"encode"} if agent == "ada" else set(kinds)), agent
        assert {int(rows) for sizes in kinds.values() for rows in sizes} <= {1, 2, 4}
    assert set(printed["batches"]["bob"]) == {"soft", "text"}
    assert printed["batches"]["bob"]["soft"]["4"] > 8
    figures = printed["figures"]
    for name in (
        "e2e_p50_ms@1", "e2e_p99_ms@1", "samples_per_s@4", "samples_per_s@best", "vs_direct@4",
        "vs_direct_equal_gpus@4", "vs_text_relay_latency@1", "vs_text_relay_throughput@4",
        "bus_cost@4", "stages_gap@1", "vs_direct@2/16tok",
    ):  # fmt: skip
        assert name in figures, name
    # 8 soft tokens of width 16 in fp16, whatever the text's length
    assert figures["payload_bytes@1"] == figures["payload_bytes@1/16tok"] == 8 * 16 * 2
    drawn = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert drawn == [
        f"fakes-{name}.{suffix}"
        for name in ("lengths", "stages", "throughput")
        for suffix in ("png", "svg")
    ]
    svg = (tmp_path / "pictures" / "fakes-throughput.svg").read_text()
    assert "fake models" in svg and "text relay" in svg


def test_throughput_of_tiny_models(tmp_path: Path, tiny_llama: Path, tiny_gemma: Path) -> None:
    from agentwire.model.transformers import TransformersBackend

    sender, receiver = (
        TransformersBackend.load(tiny.spec(name, folder), lambda stage, fraction: None).identity
        for name, folder in (("ada", tiny_llama), ("bob", tiny_gemma))
    )
    card = tiny.make_card(sender, receiver, 1, name="tiny-bridge", prompts=("any",))
    names = {"sender": tiny_llama.name, "receiver": tiny_gemma.name}
    ends = {e: getattr(card, e).model_copy(update={"model": names[e]}) for e in names}
    card = card.model_copy(update=ends)
    tiny.write_bridge(tmp_path / "bridges" / "tiny-bridge", card)
    scenario = {
        "name": "tiny",
        "agents": {
            "ada": {"model": str(tiny_llama), "layer": 1, "device": "cpu", "threads": 1},
            "bob": {"model": str(tiny_gemma), "device": "cpu", "threads": 1},
        },
        "wires": [{"from": "ada", "to": "bob", "soft_tokens": 4, "bridge": "tiny-bridge"}],
        "bench": {"on_cpu": {**FAKE["bench"], "task": "sst2", "prompt_tokens": None}},
    }
    done = bench(
        tmp_path,
        "throughput",
        write(tmp_path, scenario),
        "--json",
        "--batch-sizes",
        "3",
        "--methods",
        TWO,
    )
    record = json.loads(done.stdout)
    assert not [c["error"] for c in record["cells"] if c["error"]]
    measured = {c["method"] for c in record["cells"] if c["batch_size"] == 3}
    assert measured == set(TWO.split(","))
    assert "vs_direct@3" in record["figures"]
    bridge = next(c for c in record["cells"] if c["method"] == "bridge")
    assert bridge["payload_bytes"] == 4 * 48 * 2 and bridge["stages_ms"]["encode"] > 0


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path) -> None:
    scenario = write(tmp_path, {**FAKE, "bench": {**FAKE["bench"], "rounds": 100, "seconds": 1}})
    process = subprocess.Popen(
        command("bench", "throughput", scenario, "--out", "r.json", "--methods", TWO),
        cwd=tmp_path,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = 0
    for line in process.stderr:
        seen += line.startswith("round 1")
        if seen == 3:
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=COMMAND_S)
    assert process.returncode == 130
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["interrupted"] is True
    assert len([c for c in record["cells"] if c["rows_per_s_rounds"]]) >= 3
    assert "samples_per_s@1" in record["figures"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["throughput", "nowhere.yaml"], "no such file"),
        (["latency", "scenario.yaml", "--methods", "telepathy"], "--methods"),
        (["latency", "scenario.yaml", "--batch-sizes", "1,x"], "not a list of numbers"),
        (["throughput", "scenario.yaml", "--batch-sizes", "0"], "--batch-sizes"),
        (["throughput", "scenario.yaml", "--rounds", "0"], "--rounds"),
        (["throughput", "scenario.yaml", "--out", "scenario.yaml/r.json"], "cannot be written"),
    ],
)
def test_bad_input_is_refused_with_a_hint(tmp_path: Path, arguments: list[str], says: str) -> None:
    write(tmp_path, FAKE)
    done = bench(tmp_path, *arguments, code=2)
    assert says in done.stderr and "next:" in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout


def test_a_scenario_without_a_task_or_prompt_is_refused(tmp_path: Path) -> None:
    scenario = {**FAKE, "bench": {"batch_sizes": [1]}}
    done = bench(tmp_path, "latency", write(tmp_path, scenario), code=2)
    assert "bench.task" in done.stderr


def test_random_weights_through_the_static_engine(tmp_path: Path) -> None:
    agent = {"weights": "random", "device": "cpu", "engine": "static", "layer": 2, "threads": 1}
    shapes = {"graphs": {"texts": [8], "batches": [1]}}
    plan = {**FAKE["bench"], "text_tokens": [8], "rounds": 1, "batch_sizes": [2]}
    plan["methods"] = ["bridge", "receiver_direct", "in_process"]
    scenario = {
        "name": "random",
        "agents": {
            "ada": {"model": "random/tiny-llama", **agent, **shapes},
            "bob": {"model": "random/tiny-mistral", **agent, **shapes},
        },
        "wires": [{"from": "ada", "to": "bob"}],
        "bench": plan,
    }
    done = bench(tmp_path, "all", write(tmp_path, scenario), "--json", "--out", "r.json")
    printed = json.loads(done.stdout)
    assert any("random weights" in label for label in printed["labels"])
    assert {agent["weights"] for agent in printed["agents"].values()} == {"random"}
    cells = {(c["kind"], c["method"]): c for c in printed["cells"]}
    assert {method for _, method in cells} == set(plan["methods"])
    assert not any(cell["error"] for cell in cells.values())
    bridge = cells["throughput", "bridge"]
    assert bridge["payload_bytes"] == 8 * 64 * 2
    assert {"tokenize", "encode", "decode", "wire"} <= set(bridge["stages_ms"])
    assert "bridge" not in bridge["stages_ms"]  # nothing fell back to the plain backend
