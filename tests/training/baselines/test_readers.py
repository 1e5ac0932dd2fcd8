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
from agentwire.training.baselines.lora import Adapter, adapted, adapters
from agentwire.training.baselines.reader import (
    BlindObjective,
    Reader,
    ReaderObjective,
    SoftPrompt,
    TextRows,
    score,
    text_rows,
)
from agentwire.training.loop import Trained, train_many


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


def rows_of(model: TransformersBackend, n: int, seed: int, cut: int | None = None) -> TextRows:
    texts, labels = zip(*tiny.sentences(n, seed), strict=True)
    return text_rows(model, TASK, texts, labels, cut)


def recipes(count: int, **changes: object) -> list[TrainSpec]:
    values = {"steps": 45, "batch_size": 16, "learning_rate": 3e-2, "average": 0.8,
              "evaluate_every": 15, "weight_decay": 0.0}  # fmt: skip
    return [TrainSpec.model_validate({**values, **changes, "seed": s}) for s in range(count)]


def test_a_reader_with_untrained_adapters_is_the_receiver_itself(
    model: TransformersBackend,
) -> None:
    texts = [text for text, _ in tiny.sentences(9, 3)] + ["x", "cold " * 30]
    rows = text_rows(model, TASK, texts, [0] * len(texts))
    with adapters(model.model) as state:
        torch.manual_seed(0)
        scores = Reader(model, TASK, state).scores([Adapter(model.model)], rows)[0]
    wanted = torch.from_numpy(model.score_text(texts, TASK).scores)
    assert torch.allclose(scores.log_softmax(-1), wanted, atol=1e-4)


def test_adapters_leave_the_model_as_it_was(model: TransformersBackend) -> None:
    texts = [text for text, _ in tiny.sentences(4, 3)]
    before = model.score_text(texts, TASK).scores
    adapter = Adapter(model.model)
    with torch.no_grad():
        for up in adapter.up.values():
            up.normal_()
    with adapters(model.model) as state:
        rows = text_rows(model, TASK, texts, [0] * 4)
        changed = Reader(model, TASK, state).scores([adapter], rows)[0].log_softmax(-1)
        # Not active: what else runs on the model meanwhile is not changed.
        assert (model.score_text(texts, TASK).scores == before).all()
    assert not torch.allclose(changed, torch.from_numpy(before), atol=1e-3)
    assert (model.score_text(texts, TASK).scores == before).all()
    assert not any(module._forward_hooks for _, module in adapted(model.model))


def test_each_adapter_works_on_its_own_rows(model: TransformersBackend) -> None:
    rows = rows_of(model, 6, 3)
    pair = []
    for seed in range(2):
        torch.manual_seed(seed)
        adapter = Adapter(model.model)
        with torch.no_grad():
            for up in adapter.up.values():
                up.normal_(std=0.3)
        pair.append(adapter)
    with adapters(model.model) as state:
        reader = Reader(model, TASK, state)
        together = reader.scores(pair, rows)
        alone = [reader.scores([adapter], rows)[0] for adapter in pair]
    for mine, single in zip(together, alone, strict=True):
        assert torch.allclose(mine, single, atol=1e-4)
    assert not torch.allclose(*together, atol=1e-2)


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_they_learn_and_the_model_does_not(model: TransformersBackend, kind: str) -> None:
    rows, held = rows_of(model, 128, 1), rows_of(model, 64, 2)
    weights = {k: v.clone() for k, v in model.model.state_dict().items()}
    specs = recipes(2, learning_rate=1e-2 if kind == "lora" else 1e-1)
    with adapters(model.model) as state:
        modules: list[SoftPrompt | Adapter] = []
        for seed in range(2):
            torch.manual_seed(seed)
            prompt = kind == "prompt"
            modules.append(SoftPrompt(model, 4) if prompt else Adapter(model.model, 4))
        reader = Reader(model, TASK, state)
        untrained = score(reader.scores(modules[:1], rows)[0], rows.labels).loss
        done = train_many(ReaderObjective(reader, modules, rows, held, specs), specs)
        for one in done:
            assert isinstance(one, Trained)
            assert one.history[-1].train_loss < 0.9 * untrained
            if kind == "lora":  # a random model with nothing but a prompt is a poor reader
                assert one.best.accuracy > 0.7
            assert reader.scores([one.module], held)[0].shape == (64, 2)
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
    with adapters(gemma.model) as state:
        plain = Reader(gemma, TASK, state).scores([Adapter(gemma.model)], written)[0]
    assert torch.allclose(Reader(gemma, TASK).scores([prompt], rows)[0], plain, atol=1e-4)


def test_a_blind_prompt_learns_only_how_frequent_classes_are(llama: TransformersBackend) -> None:
    labels = torch.tensor([1] * 90 + [0] * 30)
    held = torch.tensor([1] * 30 + [0] * 10)
    torch.manual_seed(0)
    specs = recipes(1, learning_rate=1e-1)
    problem = BlindObjective(
        lambda soft: llama.logits_from_soft(soft, TASK), [SoftPrompt(llama, 2)], labels, held
    )
    done = train_many(problem, specs)[0]
    assert isinstance(done, Trained)
    assert done.best.accuracy == 0.75
    assert done.best.loss == pytest.approx(0.5623, abs=0.02)  # the entropy of (3/4, 1/4)


def test_long_texts_are_cut_in_training(llama: TransformersBackend) -> None:
    texts = ["cold " * 50, "x"]
    whole = text_rows(llama, TASK, texts, [0, 1])
    cut = text_rows(llama, TASK, texts, [0, 1], 8)
    assert cut.lengths[0] < whole.lengths[0]
    assert cut.lengths[1] == whole.lengths[1]


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
