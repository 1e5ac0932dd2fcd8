"""Parts of other pages that are made from the records."""

from __future__ import annotations

from typing import Any

import pytest
from rendering import pages

BASE: dict[str, Any] = {
    "hardware": {"cpu": "some", "cores": 2},
    "versions": {"python": "3"},
    "started": "2026-01-02T03:04:05+00:00",
    "command": "python bench/x.py",
}


def way(added: float) -> dict[str, float]:
    return {"p50_ms": 8.0 + added, "added_p50_ms": added, "p95_ms": 20.0}


COSTS = BASE | {
    "benchmark": "embedding",
    "messages": 500,
    "ways": {
        "Python API": way(0.0),
        "A adapter": way(-0.2),
        "B adapter": way(0.5),
        "gateway": way(3.6),
    },
}


def graph(accuracy: str, tokens: float) -> dict[str, Any]:
    return {"rows": 200, "accuracy": accuracy, "tokens reader -> judge": tokens}


GRAPHS = BASE | {
    "benchmark": "three_agents",
    "labels": ["STAND-INS: reader small"],
    "graphs": {"latent": graph("0.8", 8), "text": graph("0.5", 12.25)},
    "paired": {"only latent right": 70, "only text right": 10, "p": 1e-9},
}


def text_of(page: str) -> str:
    name = pages.PARTS[page][0]
    return (
        f"before\n<!-- {name}: made by bench/render.py -->\nstale\n<!-- end of {name} -->\nafter\n"
    )


def test_what_embedding_costs() -> None:
    page = "docs/embedding/README.md"
    made = pages.renewed(page, text_of(page), {"embedding-cpu": COSTS, "three": GRAPHS})
    assert made.startswith("before\n") and made.endswith("-->\nafter\n") and "stale" not in made
    assert "| gateway | 11.60 | +3.60 | 20.00 |" in made
    assert "Adapters add -0.2 to +0.5 ms, the gateway +3.6 ms" in made
    assert "Measured 2026-01-02 with `python bench/x.py` on cpu some, cores 2." in made


def test_three_agents_both_ways() -> None:
    page = "docs/embedding/langchain.md"
    made = pages.renewed(page, text_of(page), {"embedding-cpu": COSTS, "three": GRAPHS})
    assert "| tokens reader -> judge | 8 | 12.25 |" in made
    assert "by soft tokens alone: 70 rows, by text alone: 10 (exact McNemar p 1e-09)" in made
    assert "STAND-INS: reader small." in made


def test_a_page_without_its_record_is_refused() -> None:
    with pytest.raises(ValueError, match="a record that is not there"):
        pages.renewed("docs/scaling.md", text_of("docs/scaling.md"), {"embedding-cpu": COSTS})
