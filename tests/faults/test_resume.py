"""A resumed run trusts none of its files, and has its folder to itself."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import COMMAND_S
from scenario_files import FAKE_TASK, write, write_rows
from test_run_integration import command, environment, only_run, run, running, wait_for

from agentwire.cli.app import main
from agentwire.config import lock_file

pytestmark = pytest.mark.integration
Line = dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a scenario with one run of 12 rows."""
    folder = tmp_path_factory.mktemp("finished")
    write_rows(folder, 12)
    write(folder, FAKE_TASK)
    run(folder, "scenario.yaml", "--methods", "bridge", "--limit", "12")
    return folder


@pytest.fixture
def lines(finished: Path) -> Iterator[list[Line]]:
    """The predictions of that run, which are restored afterwards."""
    file = only_run(finished) / "predictions.jsonl"
    whole = file.read_bytes()
    yield [json.loads(line) for line in whole.split(b"\n") if line]
    file.write_bytes(whole)


def resume(folder: Path, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    options = ["--resume", f"runs/{only_run(folder).name}", *more]
    return run(folder, "scenario.yaml", *options, code=code)


Refuse = Callable[..., str]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Resumes in this process, which is faster; nothing starts because it is refused. Returns the
    errors.
    """

    def call(folder: Path) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("AGENTWIRE_HOME", str(folder / "home"))
        with pytest.raises(SystemExit) as end:
            main(["run", "scenario.yaml", "--resume", f"runs/{only_run(folder).name}"])
        assert end.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return call


def other(line: Line) -> str:
    return next(name for name in line["scores"] if name != line["predicted"])


DAMAGE: dict[str, Callable[[Line], object]] = {
    "a row that is not in the set": lambda line: line | {"row": 12},
    "a negative row": lambda line: line | {"row": -1},
    "a row as text": lambda line: line | {"row": str(line["row"])},
    "a row that is true": lambda line: line | {"row": True},
    "another label": lambda line: line | {"label": min({*line["scores"]} - {line["label"]})},
    "a label that does not exist": lambda line: line | {"label": "seven"},
    "another prediction": lambda line: line | {"predicted": other(line)},
    "a prediction that does not exist": lambda line: line | {"predicted": "seven"},
    "no prediction": lambda line: {k: v for k, v in line.items() if k != "predicted"},
    "one key more": lambda line: line | {"note": 1},
    "an infinite score": lambda line: line | {"scores": dict.fromkeys(line["scores"], math.inf)},
    "a score as text": lambda line: line | {"scores": dict.fromkeys(line["scores"], "0")},
    "a method that does not exist": lambda line: line | {"method": "guess"},
    "an answer and an error": lambda line: line | {"error": "deadline"},
    "a negative latency": lambda line: line | {"latency_ms": -1.0},
    "a list": lambda line: [line],
    "a number": lambda line: 5,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_prediction_is_named_by_file_and_line(
    finished: Path, lines: list[Line], refuse: Refuse, damage: str
) -> None:
    lines[4] = DAMAGE[damage](lines[4])  # type: ignore[assignment]
    file = only_run(finished) / "predictions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "predictions.jsonl:5:" in refuse(finished)


@pytest.mark.parametrize("copy", ["whole", "another row of its label"])
def test_a_prediction_that_is_there_twice_is_named(
    finished: Path, lines: list[Line], refuse: Refuse, copy: str
) -> None:
    again = dict(lines[3])
    if copy != "whole":
        same = next(n for n in range(4, 12) if lines[n]["label"] == again["label"])
        again["row"] = lines.pop(same)["row"]
    file = only_run(finished) / "predictions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, again]))
    assert f"predictions.jsonl:{len(lines) + 1}: it repeats line 4" in refuse(finished)


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_that_a_crash_has_cut_is_asked_again(
    finished: Path, lines: list[Line], cut: int
) -> None:
    file = only_run(finished) / "predictions.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    done = resume(finished, "--json")
    assert json.loads(done.stdout)["methods"]["bridge"]["n"] == 12


CHANGES = {
    "layer": ("backend: fake}", "backend: fake, layer: 3}"),
    "device": ("backend: fake}", "backend: fake, threads: 2}"),
    "fallback": ("to: bob}", "to: bob, fallback: error}"),
    "soft_tokens": ("to: bob}", "to: bob, soft_tokens: 4}"),
    "batch_size": ("batch_size: 4", "batch_size: 5"),
    "in_flight": ("batch_size: 4", "batch_size: 4\nin_flight: 3"),
    "seed": ("batch_size: 4", "batch_size: 4\nseed: 9"),
    "deadline_s": ("batch_size: 4", "batch_size: 4\ndeadline_s: 9"),
    "train": ("batch_size: 4", "batch_size: 4\ntrain: {steps: 9}"),
    "split": ("path: rows.jsonl", "path: rows.jsonl, split: train"),
    "model": ("model-b", "model-c"),
    "name": ("name: fakes", "name: others"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_scenario_is_refused(finished: Path, refuse: Refuse, field: str) -> None:
    before, after = CHANGES[field]
    write(finished, FAKE_TASK.replace(before, after))
    try:
        errors = refuse(finished)
    finally:
        write(finished, FAKE_TASK)
    assert "cannot be resumed: its " in errors and "restore what has changed" in errors


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", '{"limit": 1}', '{"limit": 1, "methods": 5, "run": {}}']
)
def test_a_damaged_config_is_refused(finished: Path, refuse: Refuse, content: str) -> None:
    file = only_run(finished) / "config.json"
    whole = file.read_bytes()
    file.write_text(content)
    try:
        assert "config.json" in refuse(finished)
    finally:
        file.write_bytes(whole)


def test_what_does_not_change_an_answer_may_change(finished: Path) -> None:
    write(finished, FAKE_TASK.replace("name: fakes", "name: fakes\ndescription: said better"))
    resume(finished)
    write(finished, FAKE_TASK)


def test_a_run_in_progress_is_not_resumed_and_a_killed_one_is(tmp_path: Path) -> None:
    write_rows(tmp_path, 3000)
    write(tmp_path, FAKE_TASK.replace("batch_size: 4", "batch_size: 1"))
    arguments = ["scenario.yaml", "--methods", "bridge", "--limit", "0"]
    with running(tmp_path, *arguments) as process:
        wait_for(lambda: list(tmp_path.glob("runs/*/config.json")), "the run")
        second = resume(tmp_path, code=2)
        assert f"is in use by process {process.pid}" in second.stderr
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    third = resume(tmp_path, "--json")
    assert json.loads(third.stdout)["methods"]["bridge"]["n"] == 3000
    rows = (only_run(tmp_path) / "predictions.jsonl").read_text().count("\n")
    assert rows == 3000


def test_of_two_resumes_at_once_one_is_refused(finished: Path, lines: list[Line]) -> None:
    file = only_run(finished) / "predictions.jsonl"
    file.write_text(json.dumps(lines[0]) + "\n")
    both = [
        subprocess.Popen(
            command("run", "scenario.yaml", "--resume", f"runs/{only_run(finished).name}"),
            cwd=finished,
            env=environment(finished),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=COMMAND_S)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    # The second may start when the first has ended.
    assert codes in ([0, 2], [0, 0]), errors
    assert file.read_text().count("\n") == 12


MATRIX = FAKE_TASK + "methods: [bridge]\nmatrix: {seeds: [0, 1]}\n"


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    write_rows(folder, 8)
    write(folder, MATRIX)
    run(folder, "scenario.yaml", "--limit", "6")
    return folder


def test_a_resumed_matrix_keeps_its_limit(matrix: Path) -> None:
    done = resume(matrix, "--json")
    assert {cell["methods"]["bridge"]["n"] for cell in json.loads(done.stdout)["cells"]} == {6}


def test_a_locked_matrix_is_refused(matrix: Path, refuse: Refuse) -> None:
    with (only_run(matrix) / "lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is in use by process" in refuse(matrix)


@pytest.mark.parametrize("file", ["result.json", "predictions.jsonl"])
def test_the_figures_of_a_finished_cell_are_checked(
    matrix: Path, refuse: Refuse, file: str
) -> None:
    damaged = only_run(matrix) / "cells" / "seed1" / file
    whole = damaged.read_text()
    changed = whole.replace('"correct": ', '"correct": 1', 1)
    if file == "predictions.jsonl":
        changed = whole.partition("\n")[2]
    damaged.write_text(changed)
    try:
        assert "result.json: its bridge is not that of predictions.jsonl" in refuse(matrix)
    finally:
        damaged.write_text(whole)


@pytest.mark.parametrize("change", ["batch_size: 5", "batch_size: 4\nseed: 4"])
def test_a_changed_matrix_is_refused(matrix: Path, refuse: Refuse, change: str) -> None:
    write(matrix, MATRIX.replace("batch_size: 4", change))
    try:
        assert "cannot be resumed: its scenario." in refuse(matrix)
    finally:
        write(matrix, MATRIX)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = "import sys, agentwire.config as c, pathlib, os; " \
        "c.lock_file(pathlib.Path(sys.argv[1]), 'x'); os.kill(os.getpid(), 9)"  # fmt: skip
    file = tmp_path / "lock"
    subprocess.run([sys.executable, "-c", code, str(file)], env=environment(tmp_path), check=False)
    assert file.read_text().startswith("process ")
    lock_file(file, "x").close()
