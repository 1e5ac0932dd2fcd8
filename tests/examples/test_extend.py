"""The examples of docs/extend, installed and run as another package would be."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import ROOT, agentwire

from agentwire.spec.document import parse_document

pytestmark = pytest.mark.integration

EXAMPLES, DOCS = ROOT / "examples" / "extend", ROOT / "docs" / "extend"
MAX_LINES = 40


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def values(yaml: str) -> Any:
    return parse_document(yaml, Path("example.yaml")).value


class Workspace:
    """A folder with a scenario, and a folder of installed packages for all child processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site-packages"
        self.site.mkdir()

    def install(self, module: str, page: str) -> None:
        """Install an example with the entry points that its page shows."""
        shutil.copy(EXAMPLES / f"{module}.py", self.site)
        groups = tomllib.loads(blocks(page, "toml")[0])["project"]["entry-points"]
        lines = []
        for group, entries in groups.items():
            lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
        info = self.site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

    def run(self, *arguments: str, packages: bool = True, code: int = 0) -> Any:
        """Run the command line; returns the JSON that it prints, or the error message."""
        path = f"{ROOT}{os.pathsep}{self.site}" if packages else str(ROOT)
        done = agentwire(self.folder, *arguments, "--json", code=code, PYTHONPATH=path)
        return done.stderr if code else json.loads(done.stdout)

    def write(self, name: str, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        (self.folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("my_*.*")), ids=lambda file: file.name)
def test_examples_are_short(file: Path) -> None:
    assert len([line for line in file.read_text().splitlines() if line.strip()]) <= MAX_LINES


def test_task(workspace: Workspace) -> None:
    task, scenario = blocks("task.md", "yaml")
    assert values(task) == values((EXAMPLES / "my_task.yaml").read_text())
    for file in EXAMPLES.glob("my_task*"):
        shutil.copy(file, workspace.folder)
    workspace.write("scenario.yaml", scenario)
    result = workspace.run("run", "scenario.yaml")
    assert (result["dataset"]["name"], result["dataset"]["split"]) == ("review_length", "test")
    assert {method: entry["n"] for method, entry in result["methods"].items()} == {
        "bridge": 4,
        "receiver_direct": 4,
    }
    run = workspace.folder / "runs" / result["run_id"]
    lines = (run / "predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["row"] for line in lines} == {0, 1, 2, 3}


def test_backend(workspace: Workspace) -> None:
    workspace.write("scenario.yaml", blocks("backend.md", "yaml")[0])
    rows = [("a warm film", 1), ("a dull film", 0), ("moving", 1), ("an empty story", 0)]
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    workspace.write("rows.jsonl", "\n".join(lines))
    refused = workspace.run("validate", "scenario.yaml", code=2)
    assert "Input should be" in refused and "words" in refused
    workspace.install("my_backend", "backend.md")
    methods = workspace.run("run", "scenario.yaml")["methods"]
    assert {name: entry["accuracy"] for name, entry in methods.items()} == {
        "bridge": 1.0,
        "receiver_direct": 1.0,
    }
    assert methods["bridge"]["channels"] == {"soft": 4, "text": 0}
    assert methods["bridge"]["payload_bytes"] == 8 * 2


def test_launcher(workspace: Workspace) -> None:
    scenario = values(blocks("backend.md", "yaml")[0]) | values(blocks("launcher.md", "yaml")[0])
    workspace.write("scenario.yaml", scenario)
    workspace.write("rows.jsonl", json.dumps({"text": "a warm film", "label": 1}))
    workspace.install("my_backend", "backend.md")
    refused = workspace.run("validate", "scenario.yaml", code=2)
    assert "launcher: Input should be 'local' or 'ray'" in refused
    workspace.install("my_launcher", "launcher.md")
    methods = workspace.run("run", "scenario.yaml")["methods"]
    assert [entry["accuracy"] for entry in methods.values()] == [1.0, 1.0]


@dataclass(frozen=True)
class TinyRun:
    """A run of two tiny models with the own architecture and the own methods, in one command."""

    workspace: Workspace
    methods: dict[str, Any]


@pytest.fixture(scope="module")
def tiny_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_gemma: Path
) -> TinyRun:
    workspace = Workspace(tmp_path_factory.mktemp("tiny-extend"))
    tiny.write_rows(workspace.folder / "rows" / "train.jsonl", 64, seed=1)
    tiny.write_rows(workspace.folder / "rows" / "test.jsonl", 8, seed=2)
    bridges = values(blocks("architecture.md", "yaml")[0])
    methods = values(blocks("method.md", "yaml")[0])
    scenario = {
        **bridges,
        "agents": {
            "llama": {"model": str(tiny_llama), "layer": 1, "device": "cpu", "threads": 1},
            "mistral": {"model": str(tiny_gemma), "device": "cpu", "threads": 1},
        },
        "task": {"dataset": "movie_snippets", "path": "rows"},
        "methods": ["bridge", *methods["methods"]],
    }
    scenario["train"] |= {"steps": 4, "batch_size": 8, "held_out": 16, "evaluate_every": 2}
    workspace.write("scenario.yaml", scenario)
    workspace.write("bridge.yaml", {**scenario, "methods": ["bridge"]})
    workspace.install("my_bridge", "architecture.md")
    workspace.install("my_method", "method.md")
    return TinyRun(workspace, workspace.run("run", "scenario.yaml", "--train")["methods"])


def test_architecture(tiny_run: TinyRun) -> None:
    assert tiny_run.methods["bridge"]["channels"] == {"soft": 8, "text": 0}
    (card,) = tiny_run.workspace.folder.glob("bridges/*/card.yaml")
    assert values(card.read_text())["architecture"] == "mean"
    refused = tiny_run.workspace.run("run", "bridge.yaml", packages=False, code=2)
    assert "architecture: Input should be 'resampler'" in refused


def test_methods(tiny_run: TinyRun) -> None:
    direct, first_words, bag_of_words = list(tiny_run.methods.values())[1:]
    assert list(tiny_run.methods)[1:] == ["receiver_direct", "first_words", "bag_of_words"]
    assert all(entry["n"] == 8 and not entry["errors"] for entry in tiny_run.methods.values())
    assert first_words["payload_bytes"] < direct["payload_bytes"]
    assert bag_of_words["payload_bytes"] == 0
    assert bag_of_words["accuracy"] == 1.0  # single words tell the class of a row
