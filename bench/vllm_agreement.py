"""Do vLLM and transformers agree? The shipped bridge on a whole split, engine by engine.

A part runs one pair of engines as agents (real processes, real bus) over every row: through the
bridge, and with each agent reading the text itself. Scores are written to a scratch folder batch by
batch, so a stopped part continues. The record is made from all complete parts, each compared with
``transformers-transformers`` of the same environment; a part that is only in the record stays if it
has the same bridge, data and versions. Run it where vLLM is installed (``make vllm``):

    for part in transformers-transformers vllm-transformers transformers-vllm vllm-vllm; do
        .venv-vllm/bin/python bench/vllm_agreement.py $part
    done

In ``vllm-transformers`` the sender runs on vLLM and the receiver on transformers. Differences are
of the probability of the second label, between 0 and 1.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from records import parser_of, provenance, write

from agentwire.config import Config
from agentwire.runtime import Runtime
from agentwire.runtime.pending import replies_of
from agentwire.runtime.reply import Reply
from agentwire.scenario.resolve import resolve
from agentwire.spec.scenario import Scenario
from agentwire.task.datasets import load_rows

SENDER, RECEIVER = ("smollm2-135m-instruct", 15), ("gemma-3-270m", 10)
ENGINES = ("transformers", "vllm")
PARTS = [f"{sender}-{receiver}" for sender in ENGINES for receiver in ENGINES]
REFERENCE = PARTS[0]
CLOSE = 0.05  # largest distance of a close probability from one half
BATCH = 16
METHODS = ("bridge", "receiver_direct", "sender_direct")


def scenario(part: str, dataset: str, split: str) -> Scenario:
    """The small pair, each agent on the engine that ``part`` names."""
    first, second = part.split("-")
    return Scenario.model_validate(
        {
            "name": "agreement",
            "agents": {
                "sender": {"model": SENDER[0], "layer": SENDER[1], "backend": first},
                "receiver": {"model": RECEIVER[0], "layer": RECEIVER[1], "backend": second},
            },
            "wires": [{"from": "sender", "to": "receiver", "fallback": "error"}],
            "task": {"dataset": dataset, "split": split},
            "batch_size": BATCH,
        }
    )


class Scores:
    """Scores [rows, labels] of one part by method, in a file that grows with every batch."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.methods: dict[str, list[list[float]]] = {method: [] for method in METHODS}
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                batch = json.loads(line)
                self.methods[batch["method"]] += batch["scores"]

    def add(self, method: str, replies: Sequence[Reply]) -> None:
        scores = [list(reply.scores.values()) for reply in replies]
        self.methods[method] += scores
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"method": method, "scores": scores}) + "\n")


async def score(part: str, dataset: str, split: str, texts: Sequence[str], found: Scores) -> str:
    """Score every row that has no scores yet; returns the bridge's name and hash."""
    resolved = resolve(scenario(part, dataset, split))
    card = resolved.wire.card
    assert card is not None
    async with Runtime(resolved) as wire:
        for method, scores in found.methods.items():
            for start in range(len(scores), len(texts), BATCH):
                batch = texts[start : start + BATCH]
                if method == "bridge":
                    outcomes = await wire.send_batch("sender", "receiver", batch)
                else:
                    outcomes = await wire.direct_batch(method.removesuffix("_direct"), batch)
                found.add(method, replies_of(outcomes))
    return f"{card.name}, sha256 {card.weights_sha256}"


def compare(scores: Any, reference: Any, labels: Sequence[int]) -> dict[str, Any]:
    """Differences of one method from the reference."""
    ours, theirs = np.exp(np.array(scores)), np.exp(np.array(reference))
    off = np.abs(ours[:, 1] - theirs[:, 1])
    chosen, expected = ours.argmax(axis=1), theirs.argmax(axis=1)
    differs = np.flatnonzero(chosen != expected)
    return {
        "rows": len(ours),
        "other_label": len(differs),
        "rows_with_another_label": differs.tolist(),
        "farthest_of_those_from_half": _rounded(np.abs(theirs[differs, 1] - 0.5).max(initial=0)),
        "rows_close_to_half": int((np.abs(theirs[:, 1] - 0.5) < CLOSE).sum()),
        "largest_difference": _rounded(off.max()),
        "mean_difference": _rounded(off.mean()),
        "accuracy": _rounded((chosen == np.array(labels)).mean()),
        "accuracy_of_reference": _rounded((expected == np.array(labels)).mean()),
    }


def _rounded(value: Any) -> float:
    return float(f"{float(value):.3g}") if value < 0.001 else round(float(value), 6)


def kept(old: dict[str, Any], parts: dict[str, dict[str, Any]], data: str) -> list[str]:
    """Parts of an earlier record with the same bridge, data and versions."""
    now = next(iter(parts.values()))
    return [
        part
        for part, found in old.get("parts", {}).items()
        if part not in parts
        and part in old["figures"]
        and old["data"] == data
        and all(found[same] == now[same] for same in ("bridge", "versions"))
    ]


def record(
    parts: dict[str, dict[str, Any]], labels: Sequence[int], data: str, old: dict[str, Any]
) -> dict[str, Any]:
    figures = {}
    stays = kept(old, parts, data)
    if REFERENCE in parts:
        reference = parts[REFERENCE]["scores"]
        figures = {
            part: {m: compare(s, reference[m], labels) for m, s in found["scores"].items()}
            for part, found in parts.items()
            if part != REFERENCE
        } | {part: old["figures"][part] for part in stays}
    facts = parts | {part: old["parts"][part] for part in stays}
    return {
        "what": "predictions of vLLM beside those of transformers, small pair on a CPU",
        "parts": {
            part: {k: facts[part][k] for k in ("started", "command", "versions", "bridge")}
            for part in PARTS
            if part in facts
        },
        "hardware": provenance()["hardware"],
        "models": {"sender": SENDER[0], "receiver": RECEIVER[0], "dtype": "float32"},
        "data": data,
        "batch_size": BATCH,
        "figures": {part: figures[part] for part in PARTS if part in figures},
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.set_defaults(out=Path("bench/results/vllm-cpu.json"))
    parser.add_argument("part", choices=PARTS, help="<sender's engine>-<receiver's engine>")
    parser.add_argument("--dataset", default="sst2")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--scratch", type=Path, default=Path(".scratch/vllm-agreement"))
    arguments = parser.parse_args()
    split = load_rows(arguments.dataset, arguments.split, config=Config.from_env())
    about = provenance()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    texts = [row.text for row in split.rows]
    scores = Scores(arguments.scratch / f"{arguments.part}.jsonl")
    bridge = asyncio.run(score(arguments.part, arguments.dataset, arguments.split, texts, scores))
    found = {
        **about,
        "versions": about["versions"] | {"vllm-cpu": metadata.version("vllm-cpu")},
        "bridge": bridge,
        "scores": scores.methods,
    }
    (arguments.scratch / f"{arguments.part}.json").write_text(json.dumps(found), encoding="utf-8")
    parts = {
        part: json.loads(file.read_text(encoding="utf-8"))
        for part in PARTS
        if (file := arguments.scratch / f"{part}.json").exists()
    }
    digest = split.provenance["sha256"]
    data = f"{arguments.dataset} {arguments.split}, {len(split)} rows, sha256 {digest}"
    old = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    whole = record(parts, [row.label for row in split.rows], data, old)
    write(whole, arguments.out)
    for part, figures in whole["figures"].items():
        for method, f in figures.items():
            print(
                f"{part} {method}: {f['other_label']} of {f['rows']} labels differ; "
                f"probabilities by {f['largest_difference']} at most"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
