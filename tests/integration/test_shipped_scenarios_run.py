"""Every shipped scenario runs on a machine that has neither its models nor its data.

Fake models in real processes stand in for the models, and sample rows for the data. A matrix keeps
two values of one axis and one of each other axis.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import ROOT, agentwire
from scenario_files import make_card, write_bridge

from agentwire.bridge.card import CardReader
from agentwire.model.fake import READER_SIZES
from agentwire.spec.document import read_document, write_document

pytestmark = pytest.mark.integration

NOT_RUN = {
    "throughput": "it measures speed: tests/integration/test_bench_command.py",
    "llama_to_mistral_sst2_vllm": "it needs vLLM: tests/vllm_cpu",
    "read_once": "it has no task: tests/integration/test_demo.py",
    "baselines": "it needs training rows",
    "universal_unseen": "it needs the rows of emotion and subj",
}
FILES = [f for f in sorted((ROOT / "scenarios").glob("*.yaml")) if f.stem not in NOT_RUN]
ROWS = 4
READER = "test-reader"


def with_fake_models(file: Path) -> dict[str, Any]:
    """The scenario with a fake stand-in for each model."""
    raw: dict[str, Any] = read_document(file).value
    for name, agent in raw["agents"].items():
        used = agent.pop("use", None)
        own = read_document(file.parent / used).value if used else dict(agent)
        layer = {"layer": own["layer"]} if "layer" in own else {}
        stand_in = {"model": f"fake-{name}", "backend": "fake", **layer}
        # A registry model would be downloaded and no stand-in used.
        agent |= {"model": own["model"] if used else f"nobody/{name}", **layer}
        agent["stand_in"] = stand_in
    for wire in raw["wires"]:
        reads = str(wire.pop("bridge", "")).endswith("--reader")
        if reads:  # else a fake model makes its own
            wire |= {"bridge": READER, "soft_tokens": READER_SIZES[-1]}
            for end, model in (("from", "model-a"), ("to", "model-b")):  # those of ``make_card``
                raw["agents"][wire[end]]["stand_in"]["model"] = model
    # These are computed beside the agents, on the models themselves.
    raw["methods"] = [m for m in raw["methods"] if not m.endswith("_payload")]
    if matrix := raw.get("matrix"):
        train = matrix.get("train", {})
        axes = [(where, name) for where in (matrix, train) for name in where]
        lists = [(where, name) for where, name in axes if isinstance(where[name], list)]
        for index, (where, name) in enumerate(lists):
            where[name] = where[name][: 1 if index else 2]
    return raw


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs_on_a_bare_machine(file: Path, tmp_path: Path) -> None:
    raw = with_fake_models(file)
    write_document(tmp_path / file.name, raw)
    section = CardReader(layers=(0, 2), sizes=READER_SIZES, prompt=0, where="sender")
    sizes = {"reader": section, "soft_tokens": READER_SIZES[-1]}
    card = make_card(architecture="reader", answers="free", **sizes)
    write_bridge(tmp_path / "bridges" / READER, card)
    # Else the snippets, the stand-in for SST-2, would be downloaded.
    tiny.write_rows(tmp_path / "data" / "movie_snippets" / "test.jsonl", 12, seed=2)
    data = str(tmp_path / "data")
    limited = ["run", file.name, "--json", "--limit", str(ROWS)]
    done = agentwire(tmp_path, *limited, AGENTWIRE_OFFLINE="1", AGENTWIRE_DATA=data)
    check(json.loads(done.stdout), raw)


def check(result: dict[str, Any], raw: dict[str, Any]) -> None:
    """Every cell was measured by all methods, and its rows name their source."""
    assert {s["kind"] for s in result["substitutions"]} >= {"model"}
    cells = result["cells"] if "matrix" in raw else [result]
    assert {name for cell in cells for name in cell["methods"]} == set(raw["methods"])
    for cell in cells:
        provenance = cell["dataset"]["provenance"]
        expected = {"passkey": "generated", "movie_s": "folder"}
        assert provenance["source"] == expected.get(cell["dataset"]["name"][:7], "sample")
        if provenance["source"] == "sample":
            assert "no part of" in provenance["note"]
        assert {record["n"] for record in cell["methods"].values()} == {ROWS}
        if "bridge" in cell["methods"]:
            assert cell["methods"]["bridge"]["channels"] == {"soft": ROWS, "text": 0}


def test_every_shipped_scenario_is_run_or_excluded() -> None:
    stems = {file.stem for file in (ROOT / "scenarios").glob("*.yaml")}
    assert {file.stem for file in FILES} | set(NOT_RUN) == stems
