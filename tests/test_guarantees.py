"""Every promise in docs/guarantees.md names a test, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guarantees.md"


def table_rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if row[-1] != "test" and set(row[-1]) != {"-"}]


ROWS = table_rows()


def test_there_are_promises() -> None:
    assert len(ROWS) > 20


def runnable_in(tree: ast.Module) -> set[str]:
    """Names that pytest runs: test functions, and steps of state machines that are test cases."""
    found: set[str] = set()
    cases = {
        node.value.value.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "TestCase"
        and isinstance(node.value.value, ast.Name)
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:5] == "test_":
            found.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name in cases:
            found.update(step.name for step in node.body if _is_step(step))
    return found


def _is_step(node: ast.stmt) -> bool:
    calls = [d.func for d in getattr(node, "decorator_list", []) if isinstance(d, ast.Call)]
    return any(isinstance(f, ast.Name) and f.id in ("rule", "invariant") for f in calls)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_promise_names_a_test_that_is_run(row: list[str]) -> None:
    tests = re.findall(r"`(tests/[^`]+)`", row[-1])
    assert tests, "the last column names a test"
    for name in tests:
        file, function = name.split("::")
        assert Path(file).name.startswith("test_")
        assert function in runnable_in(ast.parse((ROOT / file).read_text())), name


def test_a_helper_is_no_test() -> None:
    source = """
def test_one(): ...
def helper(): ...
class Machine(RuleBasedStateMachine):
    @invariant()
    def holds(self): ...
    def inner(self): ...
class Idle(RuleBasedStateMachine):
    @invariant()
    def never_run(self): ...
TestMachine = Machine.TestCase
"""
    assert runnable_in(ast.parse(source)) == {"test_one", "holds"}


def test_each_fault_of_the_matrix_is_in_its_record() -> None:
    """No fault of the long form is left out of what is published, and each has its rounds."""
    import json
    import sys

    sys.path.insert(0, str(ROOT / "bench"))
    from chaos.matrix import RUNNER, names

    figures = json.loads((ROOT / "bench" / "results" / "chaos.json").read_text())["figures"]
    for fault in [*names(), RUNNER]:
        assert figures[f"{fault}_rounds"] >= 20, fault
        for bad in ("lost", "duplicated", "wrong"):
            assert figures[f"{fault}_{bad}"] == 0, fault
