"""Three agents in a LangGraph: the reader passes soft tokens to the judge.

    pip install '.[models,langchain]' langgraph
    python examples/langgraph_three_agents.py                     # the 12 reviews in this file
    python examples/langgraph_three_agents.py --data rows.jsonl --rows 40

Every review goes through the same graph twice, with the same models: once with the reader's payload
(a handle in the state), and once with the reader's summary as text. Accuracy, tokens, bytes and
latency of both are printed at the end. ``bench/three_agents.py`` does the same for more rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.graph import END, START, StateGraph

from agentwire.adapters.langchain import ChatAgentwire
from agentwire.adapters.local import LocalAgents

SCENARIO = Path(__file__).with_name("three_agents.yaml")
LABELS = ["negative", "positive"]
REVIEWS = [
    ("A warm, generous film that finds new jokes in an old story.", 1),
    ("Two hours of noise in search of a single idea.", 0),
    ("The leads are so good that you forget how thin the plot is, and gladly.", 1),
    ("It looks expensive and feels cheap.", 0),
    ("Tender, funny and wise; I left wanting to call my mother.", 1),
    ("A lifeless remake that misses everything that made the first one sing.", 0),
    ("Every frame is alive with curiosity.", 1),
    ("The script gives its fine cast nothing to do, at great length.", 0),
    ("A small masterpiece of timing.", 1),
    ("Tedious, smug and far too pleased with its own cleverness.", 0),
    ("The last twenty minutes are as moving as anything this year.", 1),
    ("I have seen better acting in safety videos.", 0),
]


class State(TypedDict, total=False):
    """The state of the graph. It contains only text."""

    review: str
    message: AIMessage  # reader -> judge
    verdict: AIMessage  # judge -> writer
    reply: AIMessage


def build(reader: Callable[[State], State], agents: LocalAgents) -> Any:
    """The graph. Only the reader differs between the two runs."""
    judge = ChatAgentwire(agents=agents, model="judge", labels=LABELS)
    writer = ChatAgentwire(agents=agents, model="writer", max_tokens=24)

    def judges(state: State) -> State:
        return {"verdict": judge.invoke([HumanMessage(str(state["message"].content))])}

    def writes(state: State) -> State:
        asked = (
            f"A customer's review of our film was {state['verdict'].content}. Reply in one line."
        )
        return {"reply": writer.invoke([SystemMessage("You are polite."), HumanMessage(asked)])}

    graph = StateGraph(State)
    for name, node in (("reader", reader), ("judge", judges), ("writer", writes)):
        graph.add_node(name, node)
    graph.add_edge(START, "reader")
    graph.add_edge("reader", "judge")
    graph.add_edge("judge", "writer")
    graph.add_edge("writer", END)
    return graph.compile()


def latent(agents: LocalAgents) -> Any:
    keeps = ChatAgentwire(agents=agents, model="reader->judge:keep")
    return build(lambda state: {"message": keeps.invoke(state["review"])}, agents)


def text(agents: LocalAgents) -> Any:
    sums_up = ChatAgentwire(agents=agents, model="reader", max_tokens=48)
    asked = "Summarise this film review in one sentence, keeping its opinion.\n\n"
    return build(lambda state: {"message": sums_up.invoke(asked + state["review"])}, agents)


def ask(graph: Any, review: str, label: int) -> dict[str, Any]:
    """Sends one review through a graph and returns its measurements."""
    began = time.perf_counter()
    state = graph.invoke({"review": review})
    seconds = time.perf_counter() - began
    message, verdict = state["message"], state["verdict"]
    read, judged = (m.response_metadata["agentwire"] for m in (message, verdict))
    return {
        "right": verdict.content == LABELS[label],
        "channel": judged["channel"],
        "tokens reader -> judge": message.usage_metadata["output_tokens"],
        "bytes in the graph's state": len(str(message.content).encode()),
        "bytes on the bus": judged["payload_bytes"],
        "reader + judge, ms": read["latency_ms"] + judged["latency_ms"],
        "whole graph, ms": 1000 * seconds,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of the sizes and medians of the times."""

    def mean(name: str) -> float:
        return statistics.mean(row[name] for row in rows)

    return {
        "rows": len(rows),
        "accuracy": mean("right"),
        "channel": " and ".join(sorted({row["channel"] for row in rows})),
        "tokens reader -> judge": mean("tokens reader -> judge"),
        "bytes in the graph's state": mean("bytes in the graph's state"),
        "bytes on the bus": mean("bytes on the bus"),
        "reader + judge, p50 ms": statistics.median(row["reader + judge, ms"] for row in rows),
        "whole graph, p50 ms": statistics.median(row["whole graph, ms"] for row in rows),
    }


def compare(
    graphs: dict[str, Any], reviews: Sequence[tuple[str, int]]
) -> Iterator[dict[str, dict[str, Any]]]:
    """Sends every review through every graph. The graphs take turns in going first."""
    order = list(graphs)
    for review, label in reviews:
        yield {name: ask(graphs[name], review, label) for name in order}
        order.append(order.pop(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help='lines of {"text": ..., "label": 0 or 1}')
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = REVIEWS
    if options.data:
        lines = [json.loads(line) for line in options.data.read_text().splitlines()]
        rows = [(line["text"], line["label"]) for line in lines]
    rows = rows[: options.rows]
    with LocalAgents(SCENARIO) as agents:
        graphs = {"latent": latent(agents), "text": text(agents)}
        for graph in graphs.values():  # one-time costs are not measured
            graph.invoke({"review": rows[0][0]})
        asked = list(compare(graphs, rows))
    results = {name: summary([row[name] for row in asked]) for name in graphs}
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name in results["latent"]:
        shown = [results[run][name] for run in ("latent", "text")]
        print(
            f"{name:28}", *(f"{v:>12.3f}" if isinstance(v, float) else f"{v!s:>12}" for v in shown)
        )


if __name__ == "__main__":
    main()
