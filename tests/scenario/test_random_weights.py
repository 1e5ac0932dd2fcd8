"""Scenarios with random weights: their bridges, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentwire.config import Config
from agentwire.errors import BridgeError, ModelError, ScenarioError
from agentwire.model.sources import random_weights
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.resolve import resolve
from agentwire.spec.scenario import Scenario

LLAMA, MISTRAL = "random/tiny-llama", "random/tiny-mistral"


def scenario(**changes: Any) -> Scenario:
    agent = {"weights": "random", "device": "cpu", "layer": 2}
    values: dict[str, Any] = {
        "name": "speed",
        "agents": {"a": {"model": LLAMA, **agent}, "b": {"model": MISTRAL, **agent}},
        "wires": [{"from": "a", "to": "b", "bridge": "one-that-is-not-here", "soft_tokens": 4}],
    }
    return Scenario.model_validate({**values, **changes})


@pytest.fixture
def machine(tmp_path: Path) -> Inventory:
    return Inventory(Config(home=tmp_path))


def test_a_wire_between_random_models_has_a_random_bridge(machine: Inventory) -> None:
    resolved = resolve(scenario(), inventory=machine)
    folder = random_weights.bridge_folder(MISTRAL, 4, 2)
    assert resolved.wire.bridge == folder
    assert resolved.agents["a"].bridges[0].folder == folder
    assert resolved.agents["b"].soft_tokens == (4,)
    assert not resolved.substitutions
    assert {site.detail for site in resolved.weights.values()} == {"random weights"}


def test_settings_of_the_engine_reach_the_agent(machine: Inventory) -> None:
    agents = {
        "a": {
            "model": LLAMA,
            "weights": "random",
            "device": "cpu",
            "layer": 2,
            "engine": "static",
            "graphs": {"texts": [48], "batches": [1, 4]},
            "max_wait_ms": 0.5,
        },
        "b": {"model": MISTRAL, "weights": "random", "device": "cpu"},
    }
    spec = resolve(scenario(agents=agents), inventory=machine).agents["a"]
    assert (spec.engine, spec.graphs.texts, spec.graphs.batches) == ("static", (48,), (1, 4))
    assert spec.max_wait_ms == 0.5


def test_one_random_end_alone_is_refused(machine: Inventory) -> None:
    agents = {
        "a": {"model": LLAMA, "weights": "random", "device": "cpu", "layer": 2},
        "b": {"model": "gemma-3-270m", "device": "cpu"},
    }
    with pytest.raises(BridgeError, match="one agent has random weights"):
        resolve(scenario(agents=agents), inventory=machine)


def test_a_random_sender_without_a_layer_is_refused(machine: Inventory) -> None:
    agents = {
        name: {"model": model, "weights": "random", "device": "cpu"}
        for name, model in (("a", LLAMA), ("b", MISTRAL))
    }
    with pytest.raises(BridgeError, match="has no `layer`"):
        resolve(scenario(agents=agents), inventory=machine)


def test_a_model_of_no_known_shape_is_refused(machine: Inventory) -> None:
    agents = {"a": {"model": "gpt2", "weights": "random"}, "b": {"model": MISTRAL}}
    with pytest.raises(ModelError, match="shape is unknown"):
        resolve(scenario(agents=agents), inventory=machine)


def test_nothing_is_trained_for_random_weights(machine: Inventory, tmp_path: Path) -> None:
    from agentwire.training.train import train_scenario

    resolved = resolve(
        scenario(task={"dataset": "movie_snippets"}), inventory=machine, require_bridges=False
    )
    with pytest.raises(ScenarioError, match="random weights"):
        train_scenario(resolved, out=tmp_path, progress=lambda *_: None, config=machine.config)
