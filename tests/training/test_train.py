"""Training a scenario's bridge end to end, in this process, with tiny models and made-up rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from agentwire.bridge import store
from agentwire.config import Config
from agentwire.errors import BridgeError, DataError, ModelError, ScenarioError
from agentwire.model.sources.fingerprint import fingerprint
from agentwire.model.transformers import TransformersBackend
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.spec.agent import AgentSpec
from agentwire.spec.scenario import DataChoice, Scenario
from agentwire.task.datasets import Dataset, load_rows
from agentwire.task.definitions import load_definition
from agentwire.task.rows import rows_sha256
from agentwire.training import loop
from agentwire.training.jobs import side_by_side
from agentwire.training.reporting import sparkline
from agentwire.training.rows import refuse_scored_rows, sample
from agentwire.training.train import train_scenario, train_scenarios

RECIPE = {
    "steps": 150,
    "batch_size": 16,
    "dropout": 0.0,
    "token_dropout": 0.0,
    "learning_rate": 3e-3,
    "hidden": 32,
    "heads": 4,
    "average": 0.9,
    "held_out": 64,
    "max_rows": 400,
    "evaluate_every": 50,
    "max_text_tokens": 24,
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    home = tmp_path / "home"
    monkeypatch.setenv("AGENTWIRE_HOME", str(home))
    for name in ("AGENTWIRE_DATA", "AGENTWIRE_BRIDGES"):
        monkeypatch.delenv(name, raising=False)
    return Config.from_env()


@pytest.fixture
def prepared(
    tmp_path: Path, config: Config, tiny_llama: Path, tiny_gemma: Path
) -> Callable[..., Resolved]:
    tiny.write_rows(tmp_path / "rows" / "train.jsonl", 600, seed=1)
    tiny.write_rows(tmp_path / "rows" / "test.jsonl", 40, seed=2)

    def build(**changes: Any) -> Resolved:
        raw: dict[str, Any] = {
            "name": "tiny",
            "agents": {
                "ada": {"model": str(tiny_llama), "layer": 1, "device": "cpu"},
                "bob": {"model": str(tiny_gemma), "device": "cpu"},
            },
            "wires": [{"from": "ada", "to": "bob", "soft_tokens": 4}],
            "task": {"dataset": "movie_snippets", "path": str(tmp_path / "rows")},
            "train": RECIPE,
        }
        for key, value in changes.items():
            raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
        scenario = Scenario.model_validate(raw)
        return resolve(scenario, inventory=Inventory(config), require_bridges=False)

    return build


def trained(resolved: Resolved, out: Path) -> Path:
    return train_scenario(resolved, out=out, progress=lambda stage, fraction: None)


def test_a_bridge_is_trained_and_its_card_says_how(
    prepared: Callable[..., Resolved], tmp_path: Path, tiny_llama: Path, tiny_gemma: Path
) -> None:
    reported: list[tuple[str, float]] = []
    resolved = prepared()
    folder = train_scenario(
        resolved, out=tmp_path / "out", progress=lambda *message: reported.append(message)
    )
    assert folder == tmp_path / "out" / "tiny-llama--tiny-gemma--movie_snippets"
    card = store.load(folder).card
    assert (card.sender.fingerprint, card.sender.width) == (fingerprint(tiny_llama), 32)
    assert (card.receiver.fingerprint, card.receiver.width) == (fingerprint(tiny_gemma), 48)
    assert (card.layer, card.soft_tokens, card.hidden) == (1, 4, 32)
    task = load_definition("movie_snippets").spec()
    assert card.prompts == (task.prompt_hash,)
    assert card.rms_range[0] < store.load(folder).module.alpha < card.rms_range[1]
    training = card.training
    assert (training.rows, training.held_out, training.split) == (400, 64, "train")
    assert training.held_out_accuracy > 0.75  # single words give the class away
    assert training.recipe == resolved.scenario.train.model_dump()
    assert training.provenance["rows_sha256"]
    fractions = [fraction for _, fraction in reported]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert any(stage.startswith("step 150: loss") for stage, _ in reported)


def test_a_card_names_no_path_of_this_machine(
    prepared: Callable[..., Resolved], tmp_path: Path
) -> None:
    folder = trained(prepared(train={"steps": 1}), tmp_path / "out")
    text = (folder / "card.yaml").read_text()
    assert str(tmp_path) not in text and "tmp" not in text
    card = store.load(folder).card
    assert (card.sender.model, card.receiver.model) == ("tiny-llama", "tiny-gemma")
    assert card.training.provenance["location"] == "movie_snippets/train.jsonl"


def test_a_trained_bridge_of_local_models_is_found_again(
    prepared: Callable[..., Resolved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(prepared(train={"steps": 1}), tmp_path / "bridges")
    monkeypatch.chdir(tmp_path)
    again = prepared()
    assert again.wire.folder == folder.resolve()
    assert again.wire.card == store.load(folder).card


def test_the_same_seed_trains_the_same_bridge(
    prepared: Callable[..., Resolved], tmp_path: Path
) -> None:
    resolved = prepared(train={"steps": 4, "max_rows": 64})
    first, again = (trained(resolved, tmp_path / name) for name in ("one", "two"))
    assert store.weights_sha256(first) == store.weights_sha256(again)
    other = prepared(train={"steps": 4, "max_rows": 64, "seed": 1})
    assert store.weights_sha256(trained(other, tmp_path / "three")) != store.weights_sha256(first)


def no_rows_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(spec: AgentSpec, progress: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("agentwire.training.models.TransformersBackend.load", load)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"task": {"path": "{tmp}/rows/test.jsonl"}}, DataError, "is one file"),
        ({"task": {"split": "train"}}, DataError, "scores the split 'train'"),
        ({"task": None}, ScenarioError, "no `task:`"),
        ({"agents": {"ada": {"model": "{llama}", "device": "cpu"}}}, ScenarioError, "no `layer`"),
    ],
)
def test_untrainable_scenarios_are_refused_before_a_model_loads(
    prepared: Callable[..., Resolved],
    tmp_path: Path,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    no_rows_load(monkeypatch)
    text = json.dumps(changes).replace("{tmp}", str(tmp_path)).replace("{llama}", str(tiny_llama))
    with pytest.raises(error, match=words) as caught:
        trained(prepared(**json.loads(text)), tmp_path / "out")
    assert caught.value.hint  # type: ignore[attr-defined]
    assert not (tmp_path / "out").exists()


def test_a_missing_layer_is_refused_before_states_are_computed(
    prepared: Callable[..., Resolved], tmp_path: Path, tiny_llama: Path
) -> None:
    reported: list[str] = []
    ada = {"model": str(tiny_llama), "layer": 5, "device": "cpu"}
    with pytest.raises(ModelError, match="layer 5 does not exist in a model with 4 layers"):
        train_scenario(
            prepared(agents={"ada": ada}),
            out=tmp_path / "out",
            progress=lambda stage, fraction: reported.append(stage),
        )
    assert "the sender's states" not in reported


def test_heads_that_do_not_divide_the_width_are_refused_in_the_scenario() -> None:
    with pytest.raises(ValueError, match="must be a multiple of heads"):
        Scenario.model_validate(
            {
                "name": "x",
                "agents": {"ada": {"model": "a"}, "bob": {"model": "b"}},
                "wires": [{"from": "ada", "to": "bob"}],
                "train": {"hidden": 100, "heads": 8},
            }
        )


@pytest.mark.parametrize("choice", [{"split": "test"}, {"split": "validation", "path": "{folder}"}])
def test_a_folder_of_splits_or_a_named_dataset_is_fine(
    tmp_path: Path, choice: dict[str, str]
) -> None:
    values = {key: value.replace("{folder}", str(tmp_path)) for key, value in choice.items()}
    refuse_scored_rows(DataChoice.model_validate({"dataset": "sst2", **values}))


@pytest.fixture
def rows(tmp_path: Path, config: Config) -> Dataset:
    tiny.write_rows(tmp_path / "train.jsonl", 100, seed=1)
    return load_rows("movie_snippets", "train", config=config, path=tmp_path)


def test_a_sample_is_random_keeps_the_order_and_has_provenance(rows: Dataset) -> None:
    part = sample(rows, 30, seed=0)
    places = [rows.rows.index(row) for row in part.rows]
    assert len(places) == 30 and places == sorted(places) and places[-1] > 40
    assert sample(rows, 30, seed=0) == part
    assert sample(rows, 30, seed=1).rows != part.rows
    assert part.provenance["rows_sha256"] == rows_sha256(part.rows)
    assert part.provenance["sample"] == "30 of 100 (seed=0)"
    assert sample(rows, 1000, seed=0).rows == rows.rows


def test_training_leaves_the_models_as_they_were(
    prepared: Callable[..., Resolved], tmp_path: Path, tiny_gemma: Path
) -> None:
    before = fingerprint(tiny_gemma)
    folder = trained(prepared(train={"steps": 2}), tmp_path / "out")
    assert fingerprint(tiny_gemma) == before
    assert {p.name for p in folder.iterdir()} == {"card.yaml", "weights.safetensors"}
    assert torch.is_grad_enabled()


def test_an_interrupted_training_resumes(prepared: Callable[..., Resolved], tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stops(stage: str, fraction: float) -> None:
        if stage.startswith("step 150"):
            raise Stopped

    resolved, reported = prepared(), []
    with pytest.raises(Stopped):
        train_scenario(resolved, out=tmp_path / "out", progress=stops)
    saved = list((tmp_path / "home" / "training").glob("*.safetensors"))
    assert [file.name.rpartition("-")[0] for file in saved] == [resolved.wire.bridge]
    folder = train_scenario(
        resolved, out=tmp_path / "out", progress=lambda stage, _: reported.append(stage)
    )
    assert [stage.split(":")[0] for stage in reported if stage.startswith("step")] == ["step 150"]
    left = {file.suffix for file in (tmp_path / "home" / "training").iterdir()}
    assert left == {".lock"}  # no checkpoint
    whole = trained(prepared(), tmp_path / "again")
    assert store.verify(folder).weights_sha256 == store.verify(whole).weights_sha256


def test_another_recipe_is_another_training(
    prepared: Callable[..., Resolved], tmp_path: Path
) -> None:
    def stops(stage: str, fraction: float) -> None:
        if stage.startswith("step 100"):
            raise KeyboardInterrupt

    for rate in (3e-3, 1e-3):
        with pytest.raises(KeyboardInterrupt):
            train_scenario(
                prepared(train={"learning_rate": rate}), out=tmp_path / "out", progress=stops
            )
    assert len(list((tmp_path / "home" / "training").glob("*.safetensors"))) == 2


SIDE_BY_SIDE: list[dict[str, Any]] = [
    {"train": {"seed": 0}},
    {"train": {"seed": 1, "learning_rate": 1e-3}},
    {"train": {"seed": 0, "dropout": 0.0, "balanced": True}, "soft": 2},
    {"train": {"seed": 2, "patience": 10, "diversity": 0.1}, "layer": 2},
]


def variants(prepared: Callable[..., Resolved], tiny_llama: Path, folder: Path) -> list[Resolved]:
    """Scenarios that differ in everything that bridges side by side may differ in."""
    short = {"steps": 12, "evaluate_every": 4, "dropout": 0.1, "token_dropout": 0.2}
    short |= {"max_rows": 100}
    found = []
    for number, raw in enumerate(SIDE_BY_SIDE):
        wire = {"from": "ada", "to": "bob", "bridge": f"b{number}"}
        agent = {"model": str(tiny_llama), "layer": raw.get("layer", 1), "device": "cpu"}
        resolved = prepared(
            train={**short, **raw["train"]},
            wires=[{**wire, "soft_tokens": raw.get("soft", 4)}],
            agents={"ada": agent},
        )
        found.append(resolved)
    return found


@pytest.fixture
def alone(
    prepared: Callable[..., Resolved], tiny_llama: Path, tmp_path: Path
) -> tuple[list[Resolved], list[store.Bridge]]:
    scenarios = variants(prepared, tiny_llama, tmp_path)
    return scenarios, [store.load(trained(one, tmp_path / "alone")) for one in scenarios]


def ignore(stage: str, fraction: float) -> None:
    pass


def assert_the_same(folders: list[Path], expected: list[store.Bridge]) -> None:
    for folder, other in zip(folders, expected, strict=True):
        mine = store.load(folder)
        for (name, value), wanted in zip(
            mine.module.state_dict().items(), other.module.state_dict().values(), strict=True
        ):
            # Sums are rounded otherwise, and AdamW makes steps of small gradients as large as any:
            # single weights move by a step or two; another seed moves all of them by hundreds.
            assert float((value - wanted).abs().mean()) < 3e-4, name
        assert mine.card.training.step == other.card.training.step
        assert mine.card.training.held_out_accuracy == pytest.approx(
            other.card.training.held_out_accuracy, abs=0.02
        )
        assert mine.card.training.recipe == other.card.training.recipe
        assert (mine.card.layer, mine.card.soft_tokens) == (
            other.card.layer,
            other.card.soft_tokens,
        )


def test_training_side_by_side_gives_the_same_bridges_as_alone(
    alone: tuple[list[Resolved], list[store.Bridge]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenarios, expected = alone
    loaded: list[str] = []
    load = TransformersBackend.load
    monkeypatch.setattr(
        "agentwire.training.models.TransformersBackend.load",
        lambda spec, progress: loaded.append(spec.name) or load(spec, progress),
    )
    reported: list[tuple[str, float]] = []
    folders = train_scenarios(
        scenarios, out=tmp_path / "together", progress=lambda *message: reported.append(message)
    )
    assert_the_same(folders, expected)
    assert sorted(loaded) == ["ada", "bob"]
    fractions = [fraction for _, fraction in reported]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert any(stage.endswith("(bridges 1 to 4 of 4)") for stage, _ in reported)
    assert store.load(folders[0]).card.training.device == "cpu, 4 side by side"


def test_interrupted_trainings_side_by_side_resume(
    alone: tuple[list[Resolved], list[store.Bridge]], tmp_path: Path
) -> None:
    scenarios, expected = alone

    def stops(stage: str, fraction: float) -> None:
        if stage.startswith("step 8"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_scenarios(scenarios, out=tmp_path / "out", progress=stops)
    checkpoints = (tmp_path / "home" / "training").glob
    assert len(list(checkpoints("*.safetensors"))) == 1
    reported: list[str] = []
    folders = train_scenarios(
        scenarios, out=tmp_path / "out", progress=lambda stage, _: reported.append(stage)
    )
    assert [s.split(":")[0] for s in reported if s.startswith("step")] == ["step 8", "step 12"]
    assert_the_same(folders, expected)
    assert not any(checkpoints("*.safetensors"))


def test_out_of_memory_halves_the_trainings_side_by_side(
    alone: tuple[list[Resolved], list[store.Bridge]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenarios, expected = alone
    tried: list[int] = []
    train_many = loop.train_many

    def small(objective: Any, recipes: Any, *rest: Any, **more: Any) -> Any:
        tried.append(len(recipes))
        if len(recipes) > 2:
            raise torch.OutOfMemoryError("too many")
        return train_many(objective, recipes, *rest, **more)

    monkeypatch.setattr("agentwire.training.loop.train_many", small)
    folders = train_scenarios(scenarios, out=tmp_path / "out", progress=ignore)
    assert tried == [4, 2, 2]
    assert_the_same(folders, expected)


def test_a_failed_training_does_not_affect_the_others(
    prepared: Callable[..., Resolved], tmp_path: Path
) -> None:
    scenarios = [
        prepared(
            train={"steps": 4, "evaluate_every": 2, "learning_rate": rate, "clip": clip},
            wires=[{"from": "ada", "to": "bob", "soft_tokens": 4, "bridge": name}],
        )
        for name, rate, clip in (("bad", 1.0, 1e30), ("good", 1e-3, 1.0))
    ]
    scenarios[0].scenario.train.__dict__["learning_rate"] = float("inf")
    with pytest.raises(BridgeError, match="bad: the loss is not finite"):
        train_scenarios(scenarios, out=tmp_path / "out", progress=ignore)
    assert store.verify(tmp_path / "out" / "good").training.step
    assert not (tmp_path / "out" / "bad").exists()


def test_a_bridge_that_several_tasks_name_is_trained_on_all_of_them(
    prepared: Callable[..., Resolved], tmp_path: Path
) -> None:
    tiny.write_rows(tmp_path / "more" / "train.jsonl", 300, seed=3)
    tiny.write_rows(tmp_path / "more" / "test.jsonl", 40, seed=4)
    scenarios = [
        prepared(
            train={"steps": 2, "max_rows": 100},
            wires=[{"from": "ada", "to": "bob", "soft_tokens": 4, "bridge": "universal"}],
            task={"dataset": dataset, "path": str(tmp_path / folder)},
        )
        for dataset, folder in (("movie_snippets", "rows"), ("sst2", "more"))
    ]
    (folder,) = train_scenarios(scenarios, out=tmp_path / "out", progress=ignore)
    card = store.load(folder).card
    assert (card.name, card.prompts) == ("universal", ("any",))
    assert card.training.dataset == "movie_snippets+sst2"
    assert (card.training.rows, card.training.held_out) == (200, 64 + 300 // 8)
    assert list(card.training.provenance) == ["movie_snippets", "sst2"]
    longer = prepared(
        train={"steps": 3}, wires=[{"from": "ada", "to": "bob", "bridge": "universal"}]
    )
    with pytest.raises(ValueError, match="more than their task"):
        train_scenarios([scenarios[0], longer], out=tmp_path / "out", progress=ignore)


def test_scenarios_that_cannot_train_together_are_refused(
    prepared: Callable[..., Resolved], tmp_path: Path
) -> None:
    pair = [prepared(train={"steps": steps}) for steps in (1, 2)]
    with pytest.raises(ValueError, match="differ"):
        train_scenarios(pair, out=tmp_path / "out", progress=ignore)


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([8] * 10, [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]),
        ([64, 64], [[0], [1]]),
        ([128, 8, 64], [[0], [1], [2]]),
        ([8, 16, 128, 8], [[0, 1], [2], [3]]),
        ([], []),
    ],
)
def test_groups_of_trainings(sizes: list[int], groups: list[list[int]]) -> None:
    assert side_by_side(sizes, 64) == groups


def test_the_loss_is_plotted(prepared: Callable[..., Resolved], tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "loss.png"
    train_scenario(
        prepared(train={"steps": 3, "evaluate_every": 1}),
        out=tmp_path / "out",
        progress=lambda stage, fraction: None,
        plot=picture,
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_sparkline() -> None:
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(range(100))) == 24
