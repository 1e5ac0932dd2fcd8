"""Baselines of a scenario: fitted on the bridge's rows, kept in the cache, answering new texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from agentwire.config import Config
from agentwire.errors import DataError, ScenarioError
from agentwire.evaluation.methods import METHODS, get_method
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.spec.scenario import Scenario
from agentwire.training.baselines.baseline import Baseline, Fitted
from agentwire.training.baselines.context import BaselineContext
from agentwire.training.baselines.fitting import cache_file, fitted

LOCAL = (
    "few_shot",
    "lora",
    "lora_relay",
    "probe_attention",
    "probe_mean",
    "prompt_tuning",
    "prompt_tuning_blind",
    "random_sender",
)
"""All baselines but ``encoder_linear``, which needs a download."""
TRAIN = {
    "steps": 90,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "average": 0.9,
    "held_out": 48,
    "evaluate_every": 30,
}


class Cancelled(Exception):
    pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    tiny.write_rows(folder / "rows" / "train.jsonl", 400, seed=1)
    tiny.write_rows(folder / "rows" / "test.jsonl", 40, seed=2)
    return folder


def resolved(place: Path, sender: Path, receiver: Path, **changes: Any) -> Resolved:
    raw: dict[str, Any] = {
        "name": "tiny",
        "agents": {
            "ada": {"model": str(sender), "layer": 1, "device": "cpu"},
            "bob": {"model": str(receiver), "device": "cpu"},
        },
        "wires": [{"from": "ada", "to": "bob", "soft_tokens": 2}],
        "task": {"dataset": "movie_snippets", "path": str(place / "rows")},
        "train": TRAIN,
    }
    scenario = Scenario.model_validate({**raw, **changes})
    config = Config(home=place / "home")
    return resolve(scenario, inventory=Inventory(config), require_bridges=False)


@pytest.fixture(scope="module")
def context(place: Path, tiny_llama: Path, tiny_gemma: Path) -> BaselineContext:
    return BaselineContext(
        resolved(place, tiny_llama, tiny_gemma), Config(home=place / "home"), lambda s, f: None
    )


def learn(context: BaselineContext, name: str) -> Fitted:
    return fitted(context, name, METHODS.get(name))


def answers(
    context: BaselineContext, name: str, learned: Fitted, texts: Sequence[str]
) -> torch.Tensor:
    baseline: Baseline = METHODS.get(name)
    return baseline.answer(context, learned, texts).float().cpu()


def test_every_baseline_is_a_method_that_is_prepared() -> None:
    others = {"shuffled_payload", "mean_payload", "receiver_few_shot"}  # read rows, train nothing
    for name in METHODS.names():
        method = get_method(name)
        assert method.name == name and method.title
        assert (method.prepare is not None) == (
            isinstance(METHODS.get(name), Baseline) or name in others
        )


@pytest.mark.parametrize("name", LOCAL)
def test_it_is_fitted_once_and_answers_new_texts(context: BaselineContext, name: str) -> None:
    learned = learn(context, name)
    assert 0 <= learned.notes["held_out_accuracy"] <= 1
    texts, labels = zip(*tiny.sentences(60, 7), strict=True)
    logits = answers(context, name, learned, texts)
    assert logits.shape == (60, 2)
    assert torch.isfinite(logits).all()
    right = float((logits.argmax(-1) == torch.tensor(labels)).double().mean())
    if name.startswith("probe"):
        assert right > 0.65  # single words give the class away; chance is a half
    if name == "prompt_tuning_blind":
        assert len(set(logits.argmax(-1).tolist())) == 1
    alone = torch.cat([answers(context, name, learned, [text]) for text in texts[:5]])
    assert torch.allclose(alone.log_softmax(-1), logits[:5].log_softmax(-1), atol=1e-3)

    def refuse(stage: str, fraction: float) -> None:
        raise Cancelled

    context.progress = refuse  # nothing is fitted again
    try:
        again = learn(context, name)
    finally:
        context.progress = lambda stage, fraction: None
    assert again.notes == learned.notes
    assert torch.allclose(answers(context, name, again, texts), logits, atol=1e-5)


def test_an_unknown_method_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ScenarioError, match=r"no method 'prob_mean'.*Did you mean 'probe_mean'"):
        get_method("prob_mean")


def test_other_rows_layers_and_recipes_are_other_baselines(
    context: BaselineContext, place: Path, tiny_llama: Path, tiny_gemma: Path
) -> None:
    def file(**changes: Any) -> Path:
        other = resolved(place, tiny_llama, tiny_gemma, **changes)
        return cache_file(BaselineContext(other, context.config, lambda s, f: None), "probe_mean")

    same = cache_file(context, "probe_mean")
    assert file() == same
    assert file(train={**TRAIN, "seed": 1}) != same
    assert file(train={**TRAIN, "max_rows": 100}) != same
    agents = {
        "ada": {"model": str(tiny_llama), "layer": 2, "device": "cpu"},
        "bob": {"model": str(tiny_gemma), "device": "cpu"},
    }
    assert file(agents=agents) != same
    assert cache_file(context, "probe_attention") != same


def test_a_corrupt_cache_file_is_fitted_again(context: BaselineContext) -> None:
    learn(context, "probe_mean")
    file = cache_file(context, "probe_mean")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert learn(context, "probe_mean").notes["l2"]
    assert file.read_bytes()[:8] == whole[:8]


def test_progress_can_cancel_the_work(place: Path, tiny_llama: Path, tiny_gemma: Path) -> None:
    def stop(stage: str, fraction: float) -> None:
        if "held-out" in stage:
            raise Cancelled

    config = Config(home=place / "elsewhere")
    context = BaselineContext(resolved(place, tiny_llama, tiny_gemma), config, stop)
    with pytest.raises(Cancelled):
        learn(context, "lora")
    assert not list(config.home.rglob("*.safetensors"))


def test_a_scenario_without_a_layer_or_with_fake_models_is_refused(
    place: Path, tiny_llama: Path, tiny_gemma: Path
) -> None:
    agents = {
        "ada": {"model": str(tiny_llama), "device": "cpu"},
        "bob": {"model": str(tiny_gemma), "device": "cpu"},
    }
    config = Config(home=place / "home")
    with pytest.raises(ScenarioError, match="no `layer`"):
        BaselineContext(
            resolved(place, tiny_llama, tiny_gemma, agents=agents), config, lambda s, f: None
        )
    fake = {name: {"model": "m", "backend": "fake", "layer": 1} for name in ("ada", "bob")}
    with pytest.raises(ScenarioError, match="real models"):
        BaselineContext(
            resolved(place, tiny_llama, tiny_gemma, agents=fake), config, lambda s, f: None
        )


def test_the_scored_rows_are_never_trained_on(
    place: Path, tiny_llama: Path, tiny_gemma: Path
) -> None:
    task = {"dataset": "movie_snippets", "path": str(place / "rows"), "split": "train"}
    config = Config(home=place / "home")
    context = BaselineContext(
        resolved(place, tiny_llama, tiny_gemma, task=task), config, lambda s, f: None
    )
    with pytest.raises(DataError, match="scores the split"):
        learn(context, "probe_mean")
