"""Three agents in a LangGraph, reader -> judge as soft tokens and as text, on rows of a data set.

The graphs are those of ``examples/langgraph_three_agents.py``: same models, prompts and rows; only
what the reader hands to the judge differs. Each row goes through both, one after the other, and the
one that goes first changes with every row, so other work on the machine slows both alike. Rows are
written down as they come; called again, it goes on where it was (``--minutes`` ends it early).

    .venv-frameworks/bin/python bench/three_agents.py [--rows 200] [--out FILE]

``make test-frameworks`` makes that environment.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from agentwire.adapters.local import LocalAgents
from agentwire.benchmark.machine import conditions, load_average
from agentwire.config import Config
from agentwire.evaluation.predictions import choose_rows
from agentwire.evaluation.summary import hardware, versions
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.task.datasets import load_rows
from agentwire.task.metrics import mcnemar, wilson_interval

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = ("latent", "text")
Row = dict[str, Any]


def the_example() -> ModuleType:
    """The module that users read."""
    file = ROOT / "examples" / "langgraph_three_agents.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # LangGraph looks up there what its state is made of
    spec.loader.exec_module(module)
    return module


def run(
    example: ModuleType, reviews: Sequence[tuple[str, int]], scratch: Path, minutes: float
) -> list[dict[str, Row]]:
    """The rows so far, by graph; those that are missing are asked until the time is over."""
    done = [json.loads(line) for line in scratch.read_text().splitlines()]
    until = time.monotonic() + 60 * minutes
    if len(done) == len(reviews):
        return done
    with LocalAgents(example.SCENARIO) as agents, scratch.open("a", encoding="utf-8") as file:
        graphs = {"latent": example.latent(agents), "text": example.text(agents)}
        for graph in graphs.values():  # what is slow once is not what is compared
            example.ask(graph, *reviews[0])
        for row in example.compare(graphs, reviews[len(done) :]):
            done.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            if time.monotonic() > until:
                break
    return done


def figures(example: ModuleType, rows: Sequence[dict[str, Row]]) -> dict[str, Any]:
    """Both graphs side by side, with 95 % intervals of their accuracies."""
    found = {}
    for name in GRAPHS:
        shown = example.summary([row[name] for row in rows])
        low, high = wilson_interval(round(shown["accuracy"] * len(rows)), len(rows))
        shown["accuracy"] = f"{shown['accuracy']:.3f} ({low:.3f} .. {high:.3f})"
        found[name] = shown
    return found


def record(
    example: ModuleType,
    rows: Sequence[dict[str, Row]],
    resolved: Resolved,
    digest: str,
    load: float | None,
) -> dict[str, Any]:
    """What is published; ``load``: of the machine before this call."""
    assert resolved.data is not None
    right = [[bool(row[name]["right"]) for row in rows] for name in GRAPHS]
    test = mcnemar(*right)
    models = {name: agent.model for name, agent in resolved.agents.items()}
    return {
        "benchmark": "three_agents",
        "labels": [
            "STAND-INS: " + ", ".join(f"{name} {model}" for name, model in models.items()),
            f"data: {resolved.data.dataset} {resolved.data.split}, {len(rows)} rows, "
            f"seed {resolved.scenario.seed}, sha256 {digest}",
            "the bridge was trained for this question, the text graph is zero-shot: the accuracies "
            "do not compare training with training",
            *conditions(load),
        ],
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware().model_dump(),
        "versions": versions() | {"langgraph": metadata.version("langgraph")},
        "graphs": figures(example, rows),
        "paired": {
            "only latent right": test.only_first,
            "only text right": test.only_second,
            "p": float(f"{test.p_value:.3g}"),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--scratch", type=Path, default=Path(".scratch/three-agents.jsonl"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    example, load = the_example(), load_average()
    resolved = resolve(load_scenario(example.SCENARIO), source=example.SCENARIO)
    assert resolved.data is not None
    data = load_rows(resolved.data.dataset, resolved.data.split, config=Config.from_env())
    chosen = choose_rows(len(data), options.rows, resolved.scenario.seed)
    reviews = [(data.rows[i].text, data.rows[i].label) for i in chosen]
    options.scratch.parent.mkdir(parents=True, exist_ok=True)
    options.scratch.touch()
    rows = run(example, reviews, options.scratch, options.minutes)
    if len(rows) < len(reviews):
        print(f"{len(rows)} of {len(reviews)} rows: call it again to go on", file=sys.stderr)
        return 1
    result = record(example, rows, resolved, data.provenance["sha256"], load)
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
