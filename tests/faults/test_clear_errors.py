"""Wrong input ends in exit code 2 and one line with a next step, never as an unexpected error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import COMMAND_S
from scenario_files import FAKE, FAKE_TASK, write, write_bridge, write_rows
from test_run_integration import command, environment, only_run, run

from agentwire.bus.keys import KeyFolder
from agentwire.cli.app import main
from agentwire.errors import ModelError
from agentwire.model.sources.fingerprint import weight_files
from agentwire.runtime.deadletters import DeadLetters
from agentwire.runtime.ledger import Request
from agentwire.task.tokens import chat_or_plain
from agentwire.wire.messages import Channel, TaskSpec

pytestmark = pytest.mark.integration
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs a command in this process, which is faster; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTWIRE_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return call


def assert_clear(outcome: tuple[int, str, str], *words: str) -> None:
    code, _, errors = outcome
    assert code == 2, errors
    lines = errors.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("next: ")
    assert "\x1b" not in errors and all(word in errors for word in words), errors


# -- YAML ---------------------------------------------------------------------------------------

BAD_YAML = {
    "an empty int": 'batch_size: !!int ""',
    "no bool": "batch_size: !!bool maybe",
    "no float": "deadline_s: !!float x",
    "no time": "description: !!timestamp x",
    "no date": "description: 2026-99-99",
    "binary": "description: !!binary aGk=",
    "python": "description: !!python/name:os.system x",
    "half a pair": 'description: "caf\\ud83d"',
    "half a pair as a key": '"\\ude00": 1',
    "beyond Unicode": 'description: "\\U00110000"',
    "a zero character": 'description: "a\\0b"',
    "minutes": "batch_size: 1:30",
    "an infinite rate": "train: {learning_rate: .inf}",
    "an infinite time": "bench: {seconds: 1e999}",
    "an infinite decay": "train: {weight_decay: .inf}",
    "a negative infinity": "deadline_s: -.inf",
    "no number": "deadline_s: .nan",
    "a seed of 65 bits": "seed: 18446744073709551616",
    "a negative seed of 65 bits": "train: {seed: -9223372036854775809}",
    "a long hex seed": "seed: 0x" + "f" * 5000,
    "a seed of 5000 digits": "seed: " + "1" * 5000,
    "many steps": "train: {steps: 99999999999999999999}",
    "an alias in itself": "description: &a [*a]",
    "a deep list": "description: " + "[" * 2000 + "]" * 2000,
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_bad_values_of_a_scenario_are_named(call: Call, tmp_path: Path, case: str) -> None:
    write(tmp_path, FAKE + BAD_YAML[case] + "\n")
    assert_clear(call("validate", "scenario.yaml"), "scenario.yaml")


@pytest.mark.parametrize("levels", [16, 32, 200])
@pytest.mark.parametrize("form", ["{{<<: [{0}, *L{1}]}}", "[{0}, *L{1}]", "{{a: {0}, b: *L{1}}}"])
def test_bombs_are_refused_at_once(call: Call, tmp_path: Path, levels: int, form: str) -> None:
    text = "&L0 {k: v}"
    for level in range(1, levels + 1):
        text = f"&L{level} " + form.format(text, level - 1)
    write(tmp_path, f"name: bomb\nagents: {text}\nwires: []\n")
    start = time.monotonic()
    assert_clear(call("validate", "scenario.yaml"), "too many nested values")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("value", ["016", "0o20", "+16", "16"])
def test_numbers_are_yaml_1_2(call: Call, tmp_path: Path, value: str) -> None:
    write(tmp_path, FAKE + f"batch_size: {value}\ndescription: on\nbench: {{<<: {{rounds: 2}}, "
          "rounds: 3}\n")  # fmt: skip
    assert call("validate", "scenario.yaml")[0] == 0


def test_an_infinite_deadline_leaves_strict_json(tmp_path: Path) -> None:
    write_rows(tmp_path, 4)
    write(tmp_path, FAKE_TASK + "deadline_s: .inf\n")
    run(tmp_path, "scenario.yaml", "--methods", "bridge")

    def refuse(word: str) -> float:
        raise AssertionError(word)

    for file in only_run(tmp_path).glob("*.json"):
        json.loads(file.read_text(), parse_constant=refuse)
    run(tmp_path, "scenario.yaml", "--resume", f"runs/{only_run(tmp_path).name}")


# -- files --------------------------------------------------------------------------------------


def folder(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


KINDS = [folder, fifo, endless, loop]


@pytest.mark.parametrize("kind", KINDS)
def test_a_scenario_or_agent_file_of_another_kind(
    call: Call, tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    kind(tmp_path / "x.yaml")
    write(tmp_path, FAKE.replace("{model: model-a, backend: fake}", "{use: x.yaml}"))
    assert_clear(call("validate", "x.yaml"), "x.yaml")
    assert_clear(call("validate", "scenario.yaml"), "x.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_another_kind(call: Call, tmp_path: Path, kind: Callable[[Path], None]) -> None:
    kind(tmp_path / "rows.jsonl")
    write(tmp_path, FAKE_TASK)
    assert_clear(call("run", "scenario.yaml"), "rows.jsonl" if kind is not endless else "/dev/zero")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["weights.safetensors", "card.yaml"])
def test_a_bridge_of_another_kind(
    call: Call, tmp_path: Path, kind: Callable[[Path], None], file: str
) -> None:
    bridge = write_bridge(tmp_path / "bridges" / "test-bridge")
    card = next(p for p in bridge.iterdir() if p.suffix != ".safetensors")
    damaged = bridge / file if file.startswith("weights") else card
    damaged.unlink()
    kind(damaged)
    code, _, errors = call("bridges", "verify", "bridges/test-bridge")
    assert code == 2 and "unexpected" not in errors, errors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["result.json", "config.json", "predictions.jsonl",
                                  "journal.jsonl", "lock"])  # fmt: skip
def test_a_run_whose_file_is_of_another_kind(
    finished: Path, tmp_path: Path, call: Call, kind: Callable[[Path], None], file: str
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (only_run(tmp_path) / file).unlink()
    kind(only_run(tmp_path) / file)
    name = f"runs/{only_run(tmp_path).name}"
    if file == "result.json":
        assert_clear(call("report", name), "result.json")
        return
    code, _, errors = call("run", "scenario.yaml", "--resume", name)
    assert code == 2 and "unexpected" not in errors and "error: " in errors, errors


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished")
    write_rows(path, 8)
    write(path, FAKE_TASK)
    run(path, "scenario.yaml", "--methods", "bridge")
    return path


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on file sizes fails as a full disk does, without one."""
    write_rows(tmp_path, 400)
    write(tmp_path, FAKE_TASK)
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); " \
        "from agentwire.cli.app import main; main(sys.argv[1:])"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "scenario.yaml", "--limit", "0"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Free some space" in done.stderr and "unexpected" not in done.stderr


def test_a_full_disk_behind_stdout(finished: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("report", f"runs/{only_run(finished).name}"),
            cwd=finished,
            env=environment(finished),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert_clear((done.returncode, "", done.stderr), "No space left")


def test_a_run_folder_that_is_deleted(tmp_path: Path) -> None:
    write_rows(tmp_path, 4000)
    write(tmp_path, FAKE_TASK.replace("batch_size: 4", "batch_size: 1"))
    with subprocess.Popen(
        command("run", "scenario.yaml", "--limit", "0", "--methods", "bridge"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not list(tmp_path.glob("runs/*/predictions.jsonl")) and process.poll() is None:
            time.sleep(0.05)
        shutil.rmtree(tmp_path / "runs")
        errors = process.communicate(timeout=COMMAND_S)[1]
    assert process.returncode == 2, errors
    assert "unexpected" not in errors and "Traceback" not in errors


# -- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["argument", "option", "variable", "folder"])
def test_names_that_are_not_utf_8(tmp_path: Path, where: str) -> None:
    bad = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(bad)
    write(tmp_path, FAKE)
    done = subprocess.run(
        [
            *command("validate"),
            bad if where == "argument" else str(tmp_path / "scenario.yaml"),
            *([b"--x" + bad] if where == "option" else []),
        ],
        cwd=bad if where == "folder" else tmp_path,
        env=environment(tmp_path) | ({"AGENTWIRE_DATA": os.fsdecode(bad)} if where == "variable"
                                     else {}),
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert_clear((done.returncode, "", done.stderr), "is not UTF-8")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("words", [("report",), ("data", "list"), ("validate", "scenario.yaml")])
def test_terminals_without_utf_8(finished: Path, encoding: str, words: tuple[str, ...]) -> None:
    arguments = [*words, f"runs/{only_run(finished).name}"] if words == ("report",) else [*words]
    done = subprocess.run(
        command(*arguments),
        cwd=finished,
        env=environment(finished) | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    done.stdout.decode(encoding)


ESCAPES = ["\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "bell\x07", "back\x08\x08\x08space"]


@pytest.mark.parametrize("text", ESCAPES)
def test_stored_texts_do_not_steer_the_terminal(
    finished: Path, tmp_path: Path, call: Call, text: str
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    file = only_run(tmp_path) / "result.json"
    stored = json.loads(file.read_text())
    stored["agents"]["ada"]["model"] = stored["methods"]["bridge"]["label"] = text
    file.write_text(json.dumps(stored))
    shown = [call("report", f"runs/{file.parent.name}"), call("report", text)]
    task = TaskSpec("task", "p", "{text}", ("a", "b"))
    request = Request(bytes(16), "a->b", task.task_id, text, Channel.SOFT, "text", 0.0)
    DeadLetters(file.parent).add(request, task, "ada", text)
    for extra in ([], ["--json"]):
        shown.append(call("deadletters", "list", f"runs/{file.parent.name}", *extra))
    write(tmp_path, FAKE.replace("model-a", json.dumps(text)).replace("fake}", "fak}"))
    shown += [call("validate", "scenario.yaml"), call("validate", "scenario.yaml", "--json")]
    assert [code for code, *_ in shown] == [0, 2, 0, 0, 2, 2]
    for _, out, errors in shown:
        assert not {*"\x1b\x9b\x07\x08"} & {*out, *errors}


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0cc\x1cd", "a\ud83d"])
def test_any_text_of_a_dead_letter_is_read_again(tmp_path: Path, text: str) -> None:
    task = TaskSpec("task", "p", "{text}", ("a", "b"))
    letters = DeadLetters(tmp_path)
    for number, said in enumerate(["before", text, "after"]):
        request = Request(bytes([number] * 16), "a->b", task.task_id, "", Channel.SOFT, "text", 0.0)
        request.text = said
        letters.add(request, task, "ada", said)
    assert [letter.text for letter in letters.all()] == ["before", text, "after"]


def test_a_dataset_description_with_a_bom(call: Call, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_rows(data, 4, "test.jsonl")
    card = {"splits": {"test": {"file": "test.jsonl"}}}
    (data / "dataset.json").write_text("\ufeff" + json.dumps(card), encoding="utf-8")
    write(tmp_path, FAKE_TASK.replace("rows.jsonl", "data"))
    assert call("validate", "scenario.yaml")[0] == 0
    run(tmp_path, "scenario.yaml", "--methods", "bridge")


@pytest.mark.parametrize("text", ["cut \\ud83d", "\\ude00"])
def test_rows_with_half_a_pair(call: Call, tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_text(
        f'{{"text": "fine", "label": 0}}\n{{"text": "{text}", "label": 1}}\n'
    )
    write(tmp_path, FAKE_TASK)
    assert_clear(call("run", "scenario.yaml"), "rows.jsonl:2")


# -- models, bridges, machines ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model-1.bin", "model.pt", "a.ckpt", "m.pkl"])
def test_an_index_of_pickles_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError, match="pickle"):
        weight_files(tmp_path)


def test_a_chat_template_that_fails_is_named() -> None:
    class Tokenizer:
        chat_template = "{{ ''.__class__ }}"

        def apply_chat_template(self, *arguments: object, **options: object) -> str:
            raise RuntimeError("access to attribute '__class__' is unsafe\nmore")

    with pytest.raises(ModelError, match="chat template cannot be used: access to"):
        chat_or_plain(Tokenizer(), "{text}")  # type: ignore[arg-type]


def test_verify_without_a_name_checks_all(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bridge(tmp_path / "own" / "one")
    (write_bridge(tmp_path / "own" / "two") / "weights.safetensors").write_bytes(b"")
    monkeypatch.setenv("AGENTWIRE_BRIDGES", str(tmp_path / "own"))
    code, out, errors = call("bridges", "verify", "--json")
    states = {one["bridge"]: one["valid"] for one in json.loads(out)}
    assert code == 2 and states["two"] is False and len(states) >= 2
    assert "bridges are not valid" in errors


def test_a_long_tmpdir(tmp_path: Path) -> None:
    long = tmp_path / ("l" * 60) / ("m" * 60)
    long.mkdir(parents=True)
    write_rows(tmp_path, 4)
    write(tmp_path, FAKE_TASK)
    done = subprocess.run(
        command("run", "scenario.yaml", "--methods", "bridge"),
        cwd=tmp_path,
        env=environment(tmp_path) | {"TMPDIR": str(long)},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_agent_without_an_answer_says_so(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    keys.server()
    keys.new("bob")
    write(tmp_path, FAKE)
    code = "import agentwire.agent.join as j, sys; j.SILENCE_S = 0.3; " \
        "from agentwire.cli.app import main; main(sys.argv[1:])"  # fmt: skip
    words = ["agent", "scenario.yaml", "bob", "--connect", "tcp://127.0.0.1:9"]
    files = ["--key", str(keys.folder / "bob.key"), "--server", str(keys.folder / "bus.pub")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words, *files],
        cwd=tmp_path,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
        process.kill()
    assert "is loaded" in lines[0]
    assert "no answer from the bus" in lines[1] and "agentwire keys allow bob" in lines[1]
