"""Training a scenario's bridge end to end, in this process, with tiny models and made-up rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from agentwire.agent.spec import AgentSpec
from agentwire.bridge import store
from agentwire.bridge.curve import sparkline
from agentwire.bridge.train import refuse_scored_rows, sample, train_scenario
from agentwire.config import Config
from agentwire.errors import DataError, ModelError, ScenarioError
from agentwire.model.fingerprint import fingerprint
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.scenario.schema import DataChoice, Scenario
from agentwire.task.datasets import Dataset, load_rows
from agentwire.task.definitions import load_definition
from agentwire.task.rows import rows_sha256

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
    told: list[tuple[str, float]] = []
    resolved = prepared()
    folder = train_scenario(
        resolved, out=tmp_path / "out", progress=lambda *news: told.append(news)
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
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert any(stage.startswith("step 150: loss") for stage, _ in told)


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

    monkeypatch.setattr("agentwire.bridge.train.TransformersBackend.load", load)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"task": {"path": "{tmp}/rows/test.jsonl"}}, DataError, "is one file"),
        ({"task": {"split": "train"}}, DataError, "scores the split 'train'"),
        ({"task": None}, ScenarioError, "no `task:`"),
        ({"agents": {"ada": {"model": "{llama}", "device": "cpu"}}}, ScenarioError, "no `layer`"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_model_loads(
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


def test_a_layer_that_is_not_there_is_refused_before_the_states_are_computed(
    prepared: Callable[..., Resolved], tmp_path: Path, tiny_llama: Path
) -> None:
    told: list[str] = []
    ada = {"model": str(tiny_llama), "layer": 5, "device": "cpu"}
    with pytest.raises(ModelError, match="layer 5 of a model with 4 layers"):
        train_scenario(
            prepared(agents={"ada": ada}),
            out=tmp_path / "out",
            progress=lambda stage, fraction: told.append(stage),
        )
    assert "the sender's states" not in told


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


def test_a_sample_is_random_in_the_sources_order_and_says_what_it_is(rows: Dataset) -> None:
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


def test_a_stopped_training_goes_on(prepared: Callable[..., Resolved], tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stops(stage: str, fraction: float) -> None:
        if stage.startswith("step 150"):
            raise Stopped

    resolved, told = prepared(), []
    with pytest.raises(Stopped):
        train_scenario(resolved, out=tmp_path / "out", progress=stops)
    saved = list((tmp_path / "home" / "training").glob("*.safetensors"))
    assert [file.name.rpartition("-")[0] for file in saved] == [resolved.wire.bridge]
    folder = train_scenario(
        resolved, out=tmp_path / "out", progress=lambda stage, _: told.append(stage)
    )
    assert [stage.split(":")[0] for stage in told if stage.startswith("step")] == ["step 150"]
    assert not any((tmp_path / "home" / "training").iterdir())
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
    assert len(list((tmp_path / "home" / "training").iterdir())) == 2


def test_the_loss_is_drawn(prepared: Callable[..., Resolved], tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "loss.png"
    train_scenario(
        prepared(train={"steps": 3, "evaluate_every": 1}),
        out=tmp_path / "out",
        progress=lambda stage, fraction: None,
        plot=picture,
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_line_of_bars() -> None:
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(range(100))) == 24
