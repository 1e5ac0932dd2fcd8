"""README, guide and architecture page: their numbers, commands, files and links are right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "docs/guide.md": GUIDE, "docs/architecture.md": ARCHITECTURE}


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
    return found


def cells(first: str) -> list[str]:
    """The cells after the first one of the row that begins with ``first``, without bold marks."""
    rows = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", README, flags=re.MULTILINE)
    assert len(rows) == 1, f"README has {len(rows)} rows that begin with {first!r}"
    return [cell.strip().replace("**", "") for cell in rows[0].split("|")]


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 900


@pytest.mark.parametrize(
    ("title", "task"),
    [("SST-2", "sst2"), ("TREC", "trec"), ("Banking77", "banking77"), ("AG News", "ag_news")],
)
def test_the_accuracies_are_those_of_the_record(title: str, task: str) -> None:
    found = record("accuracy-small")
    figures = found["figures"]
    rows, forward, best_forward, reverse, best_reverse = cells(title)
    assert rows == f"{found['tasks'][task]['rows']:,}"
    for shown, best, direction in (
        (forward, best_forward, "forward"),
        (reverse, best_reverse, "reverse"),
    ):
        assert shown == f"{figures[f'{task}.{direction}.bridge.mean']:.3f}"
        baselines = [
            figures.get(f"{task}.{direction}.{name}.mean", 0.0)
            for name, method in found["methods"].items()
            if method["kind"] == "baseline"
        ]
        assert best.endswith(f"{max(baselines):.3f}")


def test_speed_on_equal_gpus_is_that_of_the_record() -> None:
    ratio = record("speed-h100x2")["figures"]["vs_direct_equal_gpus@16"]
    assert f"the bridge is {ratio:.2f} x as fast as two receivers" in " ".join(README.split())


def code_blocks(page: str, language: str) -> Iterator[str]:
    for found in re.finditer(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        yield found[1]


def test_the_shown_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {name for line in targets for name in line.split()}
    commands = {file.stem for file in (ROOT / "agentwire" / "cli").glob("*.py")}
    for block in (block for page in PAGES.values() for block in code_blocks(page, "sh")):
        assert set(re.findall(r"^make (\w+)", block, re.MULTILINE)) <= made
        assert set(re.findall(r"^agentwire (\w+)", block, re.MULTILINE)) <= commands


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[name]):
        assert (folder / target).exists(), target


def test_the_files_of_the_architecture_page_exist() -> None:
    named = set(re.findall(r"`((?:agentwire|tests|bench)/[\w/.]+)`", ARCHITECTURE))
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("name", PAGES)
def test_install_commands_name_this_project(name: str) -> None:
    """The package ``agentwire`` on the public index belongs to somebody else."""
    assert not re.search(r"pip install +['\"]?agentwire", PAGES[name])
