"""The training objective of a reader bridge: cross-entropy of answers after soft tokens or text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from agentwire.bridge.reader import Reader
from agentwire.spec.scenario import TrainSpec
from agentwire.training.baselines.reader import Adapter
from agentwire.training.objective import RandomStream, Score
from agentwire.training.reader.corpus import (
    ANSWER_TOKENS,
    CONTINUATION,
    ITEM_TOKENS,
    QUESTION_TOKENS,
    Corpus,
)
from agentwire.training.reader.receiver import FrozenReceiver
from agentwire.training.reader.schedule import Schedule, StepShape
from agentwire.training.reader.states import LayerStates


class ReaderTrainee(nn.Module):
    """A reader bridge, optionally with an adapter of the receiver."""

    def __init__(self, reader: Reader, adapter: Adapter | None = None) -> None:
        super().__init__()
        self.reader, self.adapter = reader, adapter

    def prefix(
        self, receiver: FrozenReceiver, states: Tensor, mask: Tensor, size: int, joined: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        """The embeddings before a question, and the additions, for states [n, T, L, width]."""
        soft, additions = self.reader(states, mask, size)
        return self.around(receiver, soft, additions, joined)

    def around(
        self, receiver: FrozenReceiver, soft: Tensor, additions: Tensor | None, joined: int
    ) -> tuple[Tensor, Tensor | None]:
        """``[BOS][vectors][soft][vectors]`` [n / joined, P, d], and the additions
        [n / joined, joined x M, layers, d].

        The soft tokens of ``joined`` successive rows become one text.
        """
        n = len(soft) // joined
        soft = soft.reshape(n, -1, soft.shape[-1])
        if additions is not None:
            additions = additions.reshape(n, -1, *additions.shape[2:])
        half = self.reader.receiver
        parts = (receiver.start, half.before, soft, half.after)
        rows = [p.to(receiver.table.dtype).expand(n, -1, -1) for p in parts]
        return torch.cat(rows, dim=1), additions


class TextTrainee(nn.Module):
    """A baseline: tuned vectors around a text that the receiver reads, optionally an adapter.

    Source: Lester et al. (2021, arXiv:2104.08691), with vectors on both sides.
    """

    def __init__(
        self, receiver: FrozenReceiver, length: int, adapter: Adapter | None = None
    ) -> None:
        super().__init__()
        alpha = float(receiver.table.float().pow(2).mean().sqrt())
        draw = torch.randn(2, length, receiver.table.shape[1], device=receiver.device)
        self.vectors = nn.Parameter(draw * alpha * 0.5)
        self.adapter = adapter

    def sequence(
        self, receiver: FrozenReceiver, text: Tensor, lengths: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``[BOS][vectors][text][vectors][ids]`` as embeddings [n, L, d], padded on the right.

        Args:
            text: [n, T] ids, padded on the right.
            lengths: [n] tokens of each text.
            ids: [n, I] question and answer.

        Returns:
            The embeddings, and the position [n] of the first of ``ids``.
        """
        n, tuned = len(ids), self.vectors.shape[1]
        base = len(receiver.start)
        longest = base + 2 * tuned + text.shape[1] + ids.shape[1]
        place = torch.arange(longest, device=ids.device).expand(n, -1)
        in_text = place - base - tuned
        in_after = in_text - lengths[:, None]
        in_ids = in_after - tuned
        words = torch.where(
            in_ids >= 0,
            ids.gather(1, in_ids.clamp(0, ids.shape[1] - 1)),
            text.gather(1, in_text.clamp(0, text.shape[1] - 1)),
        )
        embedded = receiver.embed(words)
        vectors = self.vectors.to(embedded.dtype)
        before = vectors[0][(place - base).clamp(0, tuned - 1)]
        after = vectors[1][in_after.clamp(0, tuned - 1)]
        embedded = torch.where(((place >= base) & (in_text < 0))[..., None], before, embedded)
        embedded = torch.where(((in_after >= 0) & (in_ids < 0))[..., None], after, embedded)
        first = receiver.start[place.clamp(max=base - 1)]
        embedded = torch.where((place < base)[..., None], first, embedded)
        return embedded, base + 2 * tuned + lengths


class ReaderObjective:
    """Trains one module on a corpus; it is an ``Objective``.

    Args:
        states: hidden states of the corpus's passages, for a ``ReaderTrainee``. A ``TextTrainee``
            reads the first tokens of the text, as many as the step's ``size`` (0: all of them, a
            negative number: none).
        judge: the score of a module on held-out questions.
    """

    def __init__(
        self,
        module: ReaderTrainee | TextTrainee,
        receiver: FrozenReceiver,
        corpus: Corpus,
        schedule: Schedule,
        recipe: TrainSpec,
        judge: Callable[[nn.Module], Score],
        states: LayerStates | None = None,
    ) -> None:
        self.modules: Sequence[nn.Module] = [module]
        self.receiver, self.corpus, self.states = receiver, corpus, states
        self.recipe, self.judge, self._schedule = recipe, judge, schedule
        self.device = receiver.device
        self.random: Sequence[RandomStream] = [RandomStream(recipe.seed, self.device)]

    def batches(self, recipes: Sequence[TrainSpec]) -> Sequence[Sequence[Tensor]]:
        return [[self._schedule.rows.to(self.device)]]

    def shape(self, number: int) -> StepShape:
        return self._schedule.shapes[number]

    def losses(self, rows: Sequence[Sequence[Tensor]], shape: Any) -> list[Tensor]:
        ((chosen,),) = rows
        module, mixed = self.modules[0], self.device.type == "cuda"
        with self.random[0](), torch.autocast(self.device.type, torch.bfloat16, mixed):
            if isinstance(module, TextTrainee):
                return [self._text_loss(module, chosen, shape)]
            return [self._reader_loss(module, chosen, shape)]

    def _reader_loss(self, module: Any, rows: Tensor, shape: StepShape) -> Tensor:
        each = 1 if shape.kind == CONTINUATION else 2
        items, receiver = self.corpus.items, self.receiver
        rows = rows[: len(rows) // 2 * each]
        assert self.states is not None
        passages = items.passages[rows[::each]]
        states, mask = self.states.gather(passages, shape.longest)
        if self.recipe.token_dropout:
            keep = torch.rand(mask.shape, device=mask.device) >= self.recipe.token_dropout
            states = states * keep[..., None, None]
        prefix, additions = module.prefix(receiver, states, mask, shape.size, shape.joined)
        owner = torch.arange(len(rows), device=self.device) // (each * shape.joined)
        ids = items.ids[rows, : ITEM_TOKENS if each == 1 else QUESTION_TOKENS].long()
        embedded = torch.cat([prefix[owner], receiver.embed(ids)], dim=1)
        start = len(receiver.start) + module.reader.shape.prompt
        added = None
        if additions is not None:
            added = (start, module.reader.shape.additions, additions[owner])
        hidden = receiver.states(embedded, added, module.adapter)
        first = torch.full((len(rows),), prefix.shape[1], device=self.device)
        most = ITEM_TOKENS if shape.kind == CONTINUATION else ANSWER_TOKENS
        return receiver.answer_loss(hidden, ids, first, items.begins[rows], items.ends[rows], most)

    def _text_loss(self, module: TextTrainee, rows: Tensor, shape: StepShape) -> Tensor:
        items, receiver = self.corpus.items, self.receiver
        # The receiver's tokens of a passage are about as many as the sender's.
        width = shape.size or shape.longest
        text, _ = self.corpus.receiver.gather(items.passages[rows], max(width, 1))
        lengths = self.corpus.receiver.lengths[items.passages[rows]].clamp(max=max(width, 0))
        ids = items.ids[rows, :QUESTION_TOKENS].long()
        embedded, first = module.sequence(receiver, text, lengths, ids)
        hidden = receiver.states(embedded, None, module.adapter)
        return receiver.answer_loss(
            hidden, ids, first, items.begins[rows], items.ends[rows], ANSWER_TOKENS
        )

    def evaluate(self, modules: Sequence[nn.Module]) -> list[Score]:
        return [self.judge(module) for module in modules]
