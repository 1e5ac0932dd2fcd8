"""Bridges of several M, or over several tasks, through one pass of the frozen receiver.

``BridgeObjective`` asks the receiver once for each task and each M. Rows of different lengths can
share a pass too: a causal model's state at a row's last token does not depend on what pads it on
the right. Steps here are bound by launches, so one pass in place of several is what saves time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from agentwire.bridge.resampler import Resampler
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.scenario import TrainSpec
from agentwire.training.objective import BridgeObjective, Part
from agentwire.wire.messages import TaskSpec


def ask(backend: TransformersBackend, questions: Sequence[tuple[Tensor, TaskSpec]]) -> list[Tensor]:
    """Label logits [n, L] of each of several ``(soft tokens [n, M, d], task)``, in one pass."""
    inputs = [backend.soft_inputs(soft, task) for soft, task in questions]
    longest = max(one.shape[1] for one in inputs)
    padded = torch.cat([F.pad(one, (0, 0, 0, longest - one.shape[1])) for one in inputs])
    hidden = backend.model.get_decoder()(inputs_embeds=padded, use_cache=False).last_hidden_state
    found, begin = [], 0
    for one, (_, task) in zip(inputs, questions, strict=True):
        end = begin + len(one)
        last = hidden[begin:end, one.shape[1] - 1]
        found.append(backend.prepared(task).prompt_head(last))
        begin = end
    return found


class OnePass(BridgeObjective):
    """A ``BridgeObjective`` whose members and tasks share each pass through the receiver.

    Args:
        backend: the receiver that ``parts`` ask.
        tasks: of each part.
        same_rows: all parts ask about the same texts: a payload is made once, and asked about by
            each part.
    """

    def __init__(
        self,
        modules: Sequence[Resampler],
        parts: Sequence[Part],
        recipes: Sequence[TrainSpec],
        backend: TransformersBackend,
        tasks: Sequence[TaskSpec],
        *,
        same_rows: bool = False,
    ) -> None:
        super().__init__(modules, parts, recipes)
        self._backend, self._tasks, self._same_rows = backend, list(tasks), same_rows

    def losses(self, rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        made: list[list[Tensor]] = []
        for s in range(len(self.modules)):
            if self._same_rows:
                made.append([self._soft(s, 0, rows[s][0])] * len(self.parts))
            else:
                made.append([self._soft(s, p, rows[s][p]) for p in range(len(self.parts))])
        questions = [(soft, self._tasks[p]) for mine in made for p, soft in enumerate(mine)]
        answers = iter(ask(self._backend, questions))
        total = []
        for s, mine in enumerate(made):
            losses = [
                self._loss(s, soft, next(answers), part.cache[s].labels[numbers])
                for soft, part, numbers in zip(mine, self.parts, rows[s], strict=True)
            ]
            total.append(torch.stack(losses).mean())
        return total
