"""Soft prompts and adapters beside tiny frozen models of two families."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from tiny import TASK

from agentwire.model.transformers import TransformersBackend
from agentwire.spec.scenario import TrainSpec
from agentwire.task.rows import Example
from agentwire.training.baselines.few_shot import few_shot_task
from agentwire.training.baselines.reader import (
    Adapter,
    Reader,
    SoftPrompt,
    TextRows,
    adapted_layers,
    blind_objective,
    reader_objective,
    text_rows,
)
from agentwire.training.loop import Trained, train_many
from agentwire.training.objective import score


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> TransformersBackend:
    return TransformersBackend.load(tiny.spec("llama", tiny_llama), lambda s, f: None)


@pytest.fixture(scope="module")
def gemma(tiny_gemma: Path) -> TransformersBackend:
    return TransformersBackend.load(tiny.spec("gemma", tiny_gemma), lambda s, f: None)


@pytest.fixture(params=["llama", "gemma"])
def model(request: pytest.FixtureRequest) -> TransformersBackend:
    found: TransformersBackend = request.getfixturevalue(request.param)
    return found


def rows_of(model: TransformersBackend, n: int, seed: int, cut: int = 512) -> TextRows:
    texts, labels = zip(*tiny.sentences(n, seed), strict=True)
    return text_rows(model, TASK, texts, labels, cut)[0]


def recipe(**changes: object) -> TrainSpec:
    values = {"steps": 45, "batch_size": 16, "learning_rate": 3e-2, "average": 0.8,
              "evaluate_every": 15, "weight_decay": 0.0}  # fmt: skip
    return TrainSpec.model_validate({**values, **changes})


def test_a_reader_with_an_untrained_adapter_is_the_receiver_itself(
    model: TransformersBackend,
) -> None:
    texts = [text for text, _ in tiny.sentences(9, 3)] + ["x", "cold " * 30]
    rows, _ = text_rows(model, TASK, texts, [0] * len(texts))
    torch.manual_seed(0)
    scores = Reader(model, TASK).scores(Adapter(model.model), rows)
    wanted = torch.from_numpy(model.score_text(texts, TASK).scores)
    assert torch.allclose(scores.log_softmax(-1), wanted, atol=1e-4)


def test_an_adapter_leaves_the_model_unchanged(model: TransformersBackend) -> None:
    texts = [text for text, _ in tiny.sentences(4, 3)]
    before = model.score_text(texts, TASK).scores
    adapter = Adapter(model.model)
    with torch.no_grad():
        for up in adapter.up.values():
            up.normal_()
    rows, _ = text_rows(model, TASK, texts, [0] * 4)
    changed = Reader(model, TASK).scores(adapter, rows).log_softmax(-1)
    assert not torch.allclose(changed, torch.from_numpy(before), atol=1e-3)
    assert (model.score_text(texts, TASK).scores == before).all()
    assert not any(layer._forward_hooks for _, layer in adapted_layers(model.model))


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_they_learn_and_the_model_does_not(model: TransformersBackend, kind: str) -> None:
    rows, held_out = rows_of(model, 128, 1), rows_of(model, 64, 2)
    weights = {k: v.clone() for k, v in model.model.state_dict().items()}
    spec = recipe(learning_rate=1e-2 if kind == "lora" else 1e-1)
    torch.manual_seed(0)
    module = SoftPrompt(model, 4) if kind == "prompt" else Adapter(model.model, 4)
    reader = Reader(model, TASK)
    untrained = score(reader.scores(module, rows), rows.labels).loss
    (done,) = train_many(reader_objective(reader, module, rows, held_out, spec), [spec])
    assert isinstance(done, Trained)
    assert done.history[-1].train_loss < 0.9 * untrained
    if kind == "lora":  # a random model with nothing but a prompt reads poorly
        assert done.best.accuracy > 0.7
    assert all(torch.equal(weights[k], v) for k, v in model.model.state_dict().items())


def test_a_prompt_stands_after_the_opening_token(gemma: TransformersBackend) -> None:
    """Where it repeats the embeddings of real words, it reads as if they had been written there."""
    rows = rows_of(gemma, 3, 1)
    word = gemma.tokenizer("cold", add_special_tokens=False)["input_ids"]
    prompt = SoftPrompt(gemma, len(word))
    table = gemma.model.get_input_embeddings()
    with torch.no_grad():
        prompt.latents.copy_(table(torch.tensor(word)) / prompt.alpha)
    ids = torch.cat([rows.ids[:, :1], torch.tensor([word] * 3), rows.ids[:, 1:]], dim=1)
    written = TextRows(ids, rows.lengths + len(word), rows.labels)
    plain = Reader(gemma, TASK).scores(Adapter(gemma.model), written)
    assert torch.allclose(Reader(gemma, TASK).scores(prompt, rows), plain, atol=1e-4)


def test_a_blind_prompt_learns_only_how_frequent_classes_are(llama: TransformersBackend) -> None:
    labels = torch.tensor([1] * 90 + [0] * 30)
    held = torch.tensor([1] * 30 + [0] * 10)
    torch.manual_seed(0)
    spec = recipe(learning_rate=1e-1)
    objective = blind_objective(
        lambda soft: llama.logits_from_soft(soft, TASK), SoftPrompt(llama, 2), labels, held
    )
    (done,) = train_many(objective, [spec])
    assert isinstance(done, Trained)
    assert done.best.accuracy == 0.75
    assert done.best.loss == pytest.approx(0.5623, abs=0.02)  # the entropy of (3/4, 1/4)


def test_long_texts_are_cut_in_training(llama: TransformersBackend) -> None:
    texts = ["cold " * 50, "x"]
    whole, _ = text_rows(llama, TASK, texts, [0, 1])
    cut, unread = text_rows(llama, TASK, texts, [0, 1], 8)
    assert cut.lengths[0] < whole.lengths[0]
    assert cut.lengths[1] == whole.lengths[1]
    assert unread == [int(whole.lengths[0] - cut.lengths[0]), 0]


def test_few_shot_prompts_hold_solved_examples_of_every_class() -> None:
    rows = [Example(f"text {{text}} {i}", i % 2) for i in range(40)]
    task = few_shot_task(TASK, rows, 3, seed=0)
    assert task.text_prompt.count("{text}") == 1
    assert task.text_prompt.endswith(TASK.text_prompt)
    for word in TASK.labels:
        assert task.text_prompt.count(f"Sentiment: {word}") == 3
    assert few_shot_task(TASK, rows, 3, seed=0) == task
    assert few_shot_task(TASK, rows, 3, seed=1) != task
    assert task.prompt_hash == TASK.prompt_hash
