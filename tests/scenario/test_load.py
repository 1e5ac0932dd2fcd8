"""Scenario files: their meaning, and a helpful one-line error for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scenario_files import FAKE, write

from agentwire.errors import ScenarioError
from agentwire.scenario.load import load_agent, load_scenario
from agentwire.scenario.resolve import resolve
from agentwire.spec.scenario import Scenario

ROOT = Path(__file__).resolve().parents[2]


def error_of(folder: Path, text: str) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(write(folder, text))
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_scenarios_are_valid(path: Path) -> None:
    assert load_scenario(path).name == path.stem


@pytest.mark.parametrize("path", sorted((ROOT / "agents").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_agents_are_valid(path: Path) -> None:
    assert load_agent(path).stand_in is not None


def test_a_scenario_without_a_task_is_one(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, FAKE))
    assert scenario.task is None
    assert [wire.name for wire in scenario.wires] == ["ada->bob"]


def test_a_wire_to_several_receivers_is_a_wire_to_each(tmp_path: Path) -> None:
    text = FAKE.replace("to: bob}", "to: [bob, eve], fallback: error}").replace(
        "  bob:", "  eve: {model: model-b, backend: fake}\n  bob:"
    )
    scenario = load_scenario(write(tmp_path, text))
    assert [wire.name for wire in scenario.wires] == ["ada->bob", "ada->eve"]
    assert {wire.fallback for wire in scenario.wires} == {"error"}
    assert Scenario.model_validate(scenario.model_dump(by_alias=True)) == scenario
    built = Scenario.model_validate(
        {"name": "x", "agents": scenario.agents, "wires": [{"from": "ada", "to": ["bob", "eve"]}]}
    )
    assert [wire.name for wire in built.wires] == ["ada->bob", "ada->eve"]
    error = error_of(tmp_path, text.replace("[bob, eve]", "[bob, evelyn]"))
    assert "scenario.yaml:7" in error.message and "'evelyn'" in error.message
    error = error_of(tmp_path, text + "  - {from: eve, to: bob, soft_token: 4}\n")
    assert "scenario.yaml:8" in error.message and "soft_token" in error.message
    assert "wires" in error_of(tmp_path, text.replace("[bob, eve]", "[]")).message


def test_use_takes_a_file_and_what_stands_beside_it_overrides(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    write(
        tmp_path / "agents",
        "model: big\nlayer: 3\nbackend: fake\npath: weights\nstand_in: {model: small, layer: 2}\n",
        "a.yaml",
    )
    text = FAKE.replace(
        "{model: model-a, backend: fake}", "{use: agents/a.yaml, layer: 4, stand_in: {layer: 1}}"
    )
    agent = load_scenario(write(tmp_path, text)).agents["ada"]
    assert (agent.model, agent.layer) == ("big", 4)
    assert agent.stand_in is not None
    assert (agent.stand_in.model, agent.stand_in.layer) == ("small", 1)
    assert agent.path == str((tmp_path / "agents" / "weights").resolve())


def test_use_without_its_stand_in(tmp_path: Path) -> None:
    write(tmp_path, "model: big\nbackend: fake\nstand_in: {model: small}\n", "a.yaml")
    text = FAKE.replace("{model: model-a, backend: fake}", "{use: a.yaml, stand_in: null}")
    assert load_scenario(write(tmp_path, text)).agents["ada"].stand_in is None


def test_paths_are_relative_to_the_file_that_says_them(tmp_path: Path) -> None:
    text = FAKE + "task: {dataset: sst2, path: rows.jsonl}\n"
    text = text.replace("model: model-a", "model: ./weights")
    scenario = load_scenario(write(tmp_path, text))
    assert scenario.task is not None
    assert scenario.task.path == str((tmp_path / "rows.jsonl").resolve())
    assert scenario.agents["ada"].model == str((tmp_path / "weights").resolve())


def test_no_such_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, FAKE, "sentiment.yaml")
    with pytest.raises(ScenarioError, match="no such file") as caught:
        load_scenario(tmp_path / "sentimnt.yaml")
    assert "sentiment.yaml" in str(caught.value.hint)


def test_a_folder_is_not_a_scenario(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="is a folder"):
        load_scenario(tmp_path)


def test_yaml_error_shows_the_line(tmp_path: Path) -> None:
    error = error_of(tmp_path, FAKE.replace("agents:", "agents: ["))
    assert "scenario.yaml:4" in error.message
    assert "model-b" in error.message


@pytest.mark.parametrize(
    ("before", "after", "line", "key", "meant"),
    [
        ("wires:", "wyres:", 5, "wyres", "wires"),
        ("backend: fake}\n  bob", "bakend: fake}\n  bob", 3, "agents.ada.bakend", "backend"),
        ("{from: ada, to: bob}", "{from: ada, to: bob, bridg: x}", 6, "wires[0].bridg", "bridge"),
    ],
)
def test_unknown_key_names_the_nearest(
    tmp_path: Path, before: str, after: str, line: int, key: str, meant: str
) -> None:
    error = error_of(tmp_path, FAKE.replace(before, after))
    assert f"scenario.yaml:{line}" in error.message
    assert repr(key) in error.message
    assert repr(meant) in str(error.hint)


def test_unknown_key_in_a_used_file_names_that_file(tmp_path: Path) -> None:
    write(tmp_path, "model: m\nbackend: fake\nlayr: 3\n", "a.yaml")
    text = FAKE.replace("{model: model-a, backend: fake}", "{use: a.yaml}")
    error = error_of(tmp_path, text)
    assert "a.yaml:3" in error.message
    assert "'layer'" in str(error.hint)


def test_wire_to_an_unknown_agent(tmp_path: Path) -> None:
    error = error_of(tmp_path, FAKE.replace("to: bob", "to: bobb"))
    assert "scenario.yaml:6" in error.message
    assert "'bobb'" in error.message
    assert "'bob'" in str(error.hint)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("- 1\n", "must be a mapping"),
        ("just words\n", "must be a mapping"),
        (FAKE + "name: again\n", "given twice"),
        (FAKE + "methods: [brige]\n", "methods[0]"),
        (FAKE + "limit: -1\n", "limit"),
        (FAKE.replace("name: fakes", "name: Not A Name"), "name"),
        (FAKE.replace("model: model-a, ", ""), "'agents.ada.model' is missing"),
        (FAKE.replace("backend: fake}", "backend: fake, device: gpu}", 1), "agents.ada.device"),
        (FAKE.replace("to: bob", "to: ada"), "leads from an agent to itself"),
        (FAKE.replace("{model: model-a, backend: fake}", "{use: gone.yaml}"), "no such file"),
        (FAKE.replace("{model: model-a, backend: fake}", "{use: 3}"), "must be the path"),
        ("a: *nothing\n", "undefined alias"),
        ("when: 2026-99-99\n", "not valid YAML"),
        ("name: \x00\n", "not valid YAML"),
        (FAKE + 'limit: !!int ""\n', "scenario.yaml:7: not valid YAML: '' is not a valid int"),
        (FAKE + "limit: !!bool maybe\n", "scenario.yaml:7: not valid YAML: 'maybe' is not a valid"),
        (FAKE + 'description: "caf\\ud83d"\n', "scenario.yaml:7: the text holds half of a"),
        (FAKE + "description: !new x\n", "the tag '!new' is not supported"),
        (FAKE + "{1: 2, 3: 4}: x\n", "scenario.yaml:7: a key is a list or mapping"),
        (FAKE + "1: 2\n'1': 3\n", "scenario.yaml:8: the key '1' is given twice"),
        ("!!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_other_mistakes(tmp_path: Path, text: str, words: str) -> None:
    assert words in error_of(tmp_path, text).message


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    error = error_of(tmp_path, FAKE + "metods: []\nbatch: 3\n")
    assert "and 1 more" in error.message


def test_an_alias_bomb_is_refused_quickly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "too many" in error_of(tmp_path, "\n".join(lines)).message


def test_a_merge_bomb_is_refused_before_it_is_expanded(tmp_path: Path) -> None:
    bomb = "{k: v}"
    for level in range(14):
        bomb = f"{{<<: [&L{level} {bomb}, *L{level}]}}"
    assert "too many nested" in error_of(tmp_path, f"name: bomb\nagents: {bomb}\n").message
    assert "too many nested" in error_of(tmp_path, "[" * 5000).message


def test_a_merged_mapping_with_an_override(tmp_path: Path) -> None:
    text = (
        "name: merged\nagents:\n  ada: &small\n    model: a\n    backend: fake\n"
        "  bob:\n    <<: *small\n    model: b\nwires: [{from: ada, to: bob}]\n"
    )
    agents = load_scenario(write(tmp_path, text)).agents
    assert (agents["ada"].model, agents["bob"].model) == ("a", "b")
    assert agents["bob"].backend == "fake"
    error = error_of(tmp_path, text.replace("backend: fake", "backend: fake\n    layr: 3"))
    assert "scenario.yaml:6: unknown key 'agents.ada.layr'" in error.message


def test_words_and_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, FAKE + "description: on\nlimit: 016\n"))
    assert (scenario.description, scenario.limit) == ("on", 16)
    assert load_scenario(write(tmp_path, FAKE + "description: 1:30\n")).description == "1:30"


def test_an_endless_deadline_is_strict_json(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, FAKE + "deadline_s: .inf\n"))
    written = json.dumps(resolve(scenario).to_json(), allow_nan=False)
    assert Scenario.model_validate(json.loads(written)["scenario"]) == scenario


def test_a_recursive_alias_is_refused(tmp_path: Path) -> None:
    assert error_of(tmp_path, "a: &a [*a]\n").message


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"name: x\nagents: \xff\xfe\n")
    with pytest.raises(ScenarioError, match=r"s\.yaml:2: not UTF-8"):
        load_scenario(path)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ScenarioError, match="larger than"):
        load_scenario(path)
