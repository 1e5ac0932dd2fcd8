"""Every scenario that ships, from its file to its result, on a machine without its data.

Fake models (real processes and a real bus, no weights) take the place of the models, as a stand-in
does; the rows are those that stand in on a bare machine. A matrix keeps two values of one axis.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import ROOT, agentwire

from agentwire.spec.document import read_document, write_document

pytestmark = pytest.mark.integration

NOT_RUN = {
    "throughput": "it measures speed: tests/integration/test_bench_command.py",
    "llama_to_mistral_sst2_vllm": "it needs vLLM: tests/vllm_cpu",
    "baselines": "it needs training rows",
    "universal_unseen": "it needs the rows of emotion and subj",
}
FILES = [f for f in sorted((ROOT / "scenarios").glob("*.yaml")) if f.stem not in NOT_RUN]
ROWS = 4


def with_fake_models(file: Path) -> dict[str, Any]:
    """The scenario; its agents name what they name, and a fake model may stand in."""
    raw: dict[str, Any] = read_document(file).value
    for name, agent in raw["agents"].items():
        used = agent.pop("use", None)
        own = read_document(file.parent / used).value if used else dict(agent)
        layer = {"layer": own["layer"]} if "layer" in own else {}
        stand_in = {"model": f"fake-{name}", "backend": "fake", **layer}
        # A model of the registry would be fetched, and not stood in for.
        agent |= {"model": own["model"] if used else f"nobody/{name}", **layer}
        agent["stand_in"] = stand_in
    for wire in raw["wires"]:
        wire.pop("bridge", None)  # a fake model makes its own
    if matrix := raw.get("matrix"):
        train = matrix.get("train", {})
        axes = [(where, name) for where in (matrix, train) for name in where]
        lists = [(where, name) for where, name in axes if isinstance(where[name], list)]
        for index, (where, name) in enumerate(lists):
            where[name] = where[name][: 1 if index else 2]
    return raw


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs_with_what_a_bare_machine_has(file: Path, tmp_path: Path) -> None:
    raw = with_fake_models(file)
    write_document(tmp_path / file.name, raw)
    # The snippets, which stand in for SST-2, would be downloaded.
    tiny.write_rows(tmp_path / "data" / "movie_snippets" / "test.jsonl", 12, seed=2)
    data = str(tmp_path / "data")
    limited = ["run", file.name, "--json", "--limit", str(ROWS)]
    done = agentwire(tmp_path, *limited, AGENTWIRE_OFFLINE="1", AGENTWIRE_DATA=data)
    check(json.loads(done.stdout), raw)


def check(result: dict[str, Any], raw: dict[str, Any]) -> None:
    """Every cell was measured by the scenario's methods, on rows that say what they are."""
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


def test_nothing_that_ships_is_left_out() -> None:
    stems = {file.stem for file in (ROOT / "scenarios").glob("*.yaml")}
    assert {file.stem for file in FILES} | set(NOT_RUN) == stems
