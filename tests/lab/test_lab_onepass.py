"""One pass of the receiver for several Ms and tasks gives what a pass for each gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from lab.norms import fuse_norms
from lab.onepass import OnePass, ask
from lab.soft_tokens import best_rates

from agentwire.bridge.resampler import Resampler, ResamplerShape
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.scenario import TrainSpec
from agentwire.task.definitions import load_definition
from agentwire.training.objective import BridgeObjective, Part
from agentwire.training.states import StateCache

TASKS = [load_definition("sst2").spec(), load_definition("movie_snippets").spec()]


@pytest.fixture(params=["tiny_llama", "tiny_gemma"])
def receiver(request: pytest.FixtureRequest) -> TransformersBackend:
    folder: Path = request.getfixturevalue(request.param)
    return TransformersBackend.load(tiny.spec("x", folder), lambda stage, fraction: None)


def test_rows_padded_on_the_right_answer_as_they_do_alone(receiver: TransformersBackend) -> None:
    width = receiver.identity.width
    soft = [torch.randn(3, m, width, generator=torch.Generator().manual_seed(m)) for m in (2, 9)]
    together = ask(receiver, [(soft[0], TASKS[0]), (soft[1], TASKS[1])])
    for mine, task, answer in zip(soft, TASKS, together, strict=True):
        torch.testing.assert_close(answer, receiver.logits_from_soft(mine, task))


@pytest.mark.parametrize("same_rows", [False, True])
def test_losses_and_gradients_are_those_of_passes_for_each(
    receiver: TransformersBackend, *, same_rows: bool
) -> None:
    states = StateCache(torch.randn(40, 8).half(), torch.arange(0, 40, 5),
                        torch.full((8,), 5), torch.arange(8) % 2)  # fmt: skip
    recipes = [TrainSpec(batch_size=3, token_dropout=0.0, dropout=0.0) for _ in (2, 4)]
    modules = [Resampler(ResamplerShape(8, receiver.identity.width, m, hidden=16, heads=2))
               for m in (2, 4)]  # fmt: skip
    parts = [Part(lambda z, task=task: receiver.logits_from_soft(z, task), [states] * 2,
                  [states] * 2) for task in TASKS]  # fmt: skip
    rows = [[torch.tensor([0, 3, 5])] * 2, [torch.tensor([1, 2, 7])] * 2]
    found = []
    for problem in (
        BridgeObjective(modules, parts, recipes),
        OnePass(modules, parts, recipes, receiver, TASKS, same_rows=same_rows),
    ):
        for module in modules:
            module.zero_grad()
        losses = torch.stack(problem.losses(rows))
        losses.sum().backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.clone() for module in modules for p in module.parameters()
                     if p.grad is not None]  # fmt: skip
        found.append((losses.detach(), gradients))
    torch.testing.assert_close(found[0], found[1])


def test_fused_norms_change_nothing_but_rounding(receiver: TransformersBackend) -> None:
    soft = torch.randn(2, 4, receiver.identity.width)
    before = receiver.logits_from_soft(soft, TASKS[0])
    assert fuse_norms(receiver.model) >= 2 * receiver.identity.layers + 1
    torch.testing.assert_close(receiver.logits_from_soft(soft, TASKS[0]), before)


def test_the_rate_of_each_m_is_the_one_held_out_rows_prefer() -> None:
    def note(m: int, rate: float, accuracy: float, loss: float) -> dict[str, object]:
        return {"soft_tokens": m, "changes": {"learning_rate": rate}, "loss": loss,
                "held_out_accuracy": accuracy}  # fmt: skip

    tried = [note(2, 1e-3, 0.5, 0.4), note(2, 1e-4, 0.5, 0.3), note(8, 1e-3, 0.9, 0.1),
             note(8, 1e-4, 0.1, 0.9), {"soft_tokens": 16, "failed": "not finite"}]  # fmt: skip
    assert best_rates(tried) == {"2": 1e-4, "8": 1e-3}
