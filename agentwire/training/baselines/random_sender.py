"""Control: the same bridge, trained in the same way, on a sender with random weights.

It shows what a bridge reaches with the words of the text alone, without what the sender learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from agentwire.training.baselines.baseline import Baseline, Fitted, receiver_model, sender_model
from agentwire.training.baselines.context import BaselineContext
from agentwire.training.baselines.fitting import train
from agentwire.training.models import new_bridge, untrained_bridge
from agentwire.training.objective import BridgeObjective, TrainingTask, soft_logits


def _fit(context: BaselineContext) -> Fitted:
    sender, receiver, recipe = context.random_sender, context.receiver, context.recipe
    receiver.prepare(context.task)
    states, held_out = (
        context.states_of_rows(rows, "states of the random sender", sender).to(receiver.device)
        for rows in (context.rows, context.held_out)
    )
    torch.manual_seed(recipe.seed)
    module = new_bridge(states, receiver, sender.identity, context.soft_tokens, recipe)
    logits = partial(receiver.logits_from_soft, task=context.task)
    task = TrainingTask(logits, [states], [held_out])
    objective = BridgeObjective([module], [task], [recipe])
    done = train(context, objective, [recipe], "training")[1]
    return Fitted(dict(done.module.state_dict()), {"held_out_accuracy": done.best.accuracy})


def _answer(context: BaselineContext, learned: Fitted, texts: Sequence[str]) -> Tensor:
    sender, receiver = context.random_sender, context.receiver
    module = untrained_bridge(receiver, sender.identity, context.soft_tokens, context.recipe)
    module.load_state_dict(learned.tensors)
    states = context.states_of(texts, sender).to(receiver.device)
    logits = partial(receiver.logits_from_soft, task=context.task)
    return soft_logits([module.eval()], logits, [states])[0]


RANDOM_SENDER = Baseline(
    "random sender",
    lambda r: (
        f"{sender_model(r)} with random weights -> {r.wire.spec.soft_tokens} soft tokens -> "
        f"{receiver_model(r)}"
    ),
    _fit,
    _answer,
    uses_soft_tokens=True,
)
