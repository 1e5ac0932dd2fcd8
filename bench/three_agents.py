"""Three agents in a LangGraph: reader -> judge as soft tokens and as text, on rows of a data set.

The graphs are those of ``examples/langgraph_three_agents.py``, with the same models, prompts and
rows; only what the reader hands to the judge differs. Each row goes through both graphs, and the
first one changes with every row, so that other load slows both alike. Rows are written as they
come; a second call continues (``--minutes`` ends it early).

    .venv-frameworks/bin/python bench/three_agents.py [--rows 200] [--out FILE]

``make test-frameworks`` makes that environment.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from records import chosen_rows, parser_of, provenance, write

from agentwire.adapters.local import LocalAgents
from agentwire.benchmark.machine import conditions, load_average
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.task.metrics import mcnemar, wilson_interval

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = ("latent", "text")
Row = dict[str, Any]


def load_example() -> ModuleType:
    file = ROOT / "examples" / "langgraph_three_agents.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # where LangGraph looks up the type of its state
    spec.loader.exec_module(module)
    return module


def run(
    example: ModuleType, reviews: Sequence[tuple[str, int]], scratch: Path, minutes: float
) -> list[dict[str, Row]]:
    """Results of each row by graph. Missing rows are computed until the time is over."""
    done = [json.loads(line) for line in scratch.read_text().splitlines()]
    until = time.monotonic() + 60 * minutes
    if len(done) == len(reviews):
        return done
    with LocalAgents(example.SCENARIO) as agents, scratch.open("a", encoding="utf-8") as file:
        graphs = {"latent": example.latent(agents), "text": example.text(agents)}
        for graph in graphs.values():  # warm up
            example.ask(graph, *reviews[0])
        for row in example.compare(graphs, reviews[len(done) :]):
            done.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            if time.monotonic() > until:
                break
    return done


def figures(example: ModuleType, rows: Sequence[dict[str, Row]]) -> dict[str, Any]:
    """Both graphs, with 95 % intervals of their accuracies."""
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
    data: str,
    load: float | None,
) -> dict[str, Any]:
    about = provenance()
    right = [[bool(row[name]["right"]) for row in rows] for name in GRAPHS]
    test = mcnemar(*right)
    models = {name: agent.model for name, agent in resolved.agents.items()}
    return {
        "benchmark": "three_agents",
        "labels": [
            "STAND-INS: " + ", ".join(f"{name} {model}" for name, model in models.items()),
            f"data: {data}, seed {resolved.scenario.seed}",
            "the bridge was trained for this question and the text graph is zero-shot, so the "
            "accuracies do not compare training with training",
            *conditions(load),
        ],
        **about,
        "versions": about["versions"] | {"langgraph": metadata.version("langgraph")},
        "graphs": figures(example, rows),
        "paired": {
            "only latent right": test.only_first,
            "only text right": test.only_second,
            "p": float(f"{test.p_value:.3g}"),
        },
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--scratch", type=Path, default=Path(".scratch/three-agents.jsonl"))
    options = parser.parse_args()
    example, load = load_example(), load_average()
    resolved = resolve(load_scenario(example.SCENARIO), source=example.SCENARIO)
    chosen, data = chosen_rows(resolved, options.rows, resolved.scenario.seed)
    reviews = [(row.text, row.label) for row in chosen]
    options.scratch.parent.mkdir(parents=True, exist_ok=True)
    options.scratch.touch()
    rows = run(example, reviews, options.scratch, options.minutes)
    if len(rows) < len(reviews):
        print(f"{len(rows)} of {len(reviews)} rows: run again to continue", file=sys.stderr)
        return 1
    write(record(example, rows, resolved, data, load), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
