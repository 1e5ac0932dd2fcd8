"""Receivers that read the text themselves, with something small trained beside them.

Soft prompt: Brian Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning" (2021,
arXiv:2104.08691): P trained vectors after BOS and before the task's text prompt. A *blind* one
reads no text; it is a control that can learn only how frequent the classes are. Adapters: ``lora``.

All are scored like every other method: the label words' likelihood at the first answer position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentwire.model.prompting import text_ids
from agentwire.model.texts import pad_right
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.scenario import TrainSpec
from agentwire.training.baselines.lora import Adapted, Adapter
from agentwire.training.objective import RandomStream, Score
from agentwire.wire.messages import TaskSpec

PROMPT_GRID = tuple(
    {"length": length, "learning_rate": rate} for length in (8, 32) for rate in (1e-2, 5e-2)
)
LORA_GRID = tuple({"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3))
EVALUATED_ROWS = 512
"""Rows of one pass in an evaluation, over all members."""


@dataclass(frozen=True, slots=True)
class TextRows:
    """Texts inside the task's text prompt, in the receiver's tokens.

    Attributes:
        ids: [n, T], padded on the right.
        lengths: [n] tokens of each row; the answer follows the last.
        labels: [n] class ids.
    """

    ids: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return int(self.lengths.shape[0])


def text_rows(
    backend: TransformersBackend,
    task: TaskSpec,
    texts: Sequence[str],
    labels: Sequence[int],
    max_tokens: int | None = None,
) -> TextRows:
    """``texts`` in the task's text prompt; texts longer than ``max_tokens`` are cut."""
    ids = backend.prepared(task).ids
    rows = [
        [*ids.before, *row[:max_tokens], *ids.after]
        for row in text_ids(backend.tokenizer, texts, ids.glue)
    ]
    padded, lengths = pad_right(rows, backend.tokenizer.pad_token_id or 0)
    device = backend.device
    return TextRows(
        padded.to(device), lengths.to(device), torch.tensor(list(labels), device=device)
    )


class SoftPrompt(nn.Module):
    """P trained vectors, in units of the receiver's embedding RMS; they start as its own words."""

    alpha: Tensor

    def __init__(self, backend: TransformersBackend, length: int) -> None:
        super().__init__()
        table = backend.model.get_input_embeddings()
        ids = torch.randint(0, table.weight.shape[0], (length,)).to(table.weight.device)
        with torch.no_grad():
            words = table(ids).float()
        alpha = torch.tensor(backend.identity.embedding_rms, device=words.device)
        self.register_buffer("alpha", alpha)
        self.latents = nn.Parameter(words / alpha)

    def forward(self) -> Tensor:
        return self.alpha * self.latents


Trainee = SoftPrompt | Adapter


class Reader:
    """A frozen receiver with S trainees of one kind, each on its own part of a batch.

    Args:
        adapted: of ``lora.adapters`` on this backend's model, where the trainees are adapters.
    """

    def __init__(
        self, backend: TransformersBackend, task: TaskSpec, adapted: Adapted | None = None
    ) -> None:
        self.backend, self.task, self.adapted = backend, task, adapted

    def logits(self, trainees: Sequence[nn.Module], ids: Tensor, lengths: Tensor) -> Tensor:
        """Label logits [S * n, L] of ids [S * n, T]: the first n rows are the first trainee's."""
        embedded = self.backend.model.get_input_embeddings()(ids).to(self.backend.model.dtype)
        last = lengths - 1
        if isinstance(trainees[0], SoftPrompt):
            prompts = torch.stack([prompt() for prompt in trainees]).to(embedded.dtype)
            prompts = prompts.repeat_interleave(len(ids) // len(trainees), dim=0)
            embedded = torch.cat([embedded[:, :1], prompts, embedded[:, 1:]], dim=1)
            last = last + prompts.shape[1]
        elif self.adapted is not None:
            self.adapted.active = [t for t in trainees if isinstance(t, Adapter)]
        hidden = self.backend.model.get_decoder()(
            inputs_embeds=embedded, use_cache=False
        ).last_hidden_state
        if self.adapted is not None:
            self.adapted.active = ()
        rows = torch.arange(len(ids), device=ids.device)
        return self.backend.prepared(self.task).text_head(hidden[rows, last])

    @torch.no_grad()
    def scores(self, trainees: Sequence[nn.Module], rows: TextRows) -> list[Tensor]:
        """Label logits [n, L] of all rows, for each trainee."""
        order = rows.lengths.argsort()
        count = len(trainees)
        found: list[list[Tensor]] = [[] for _ in trainees]
        for part in torch.split(order, max(1, EVALUATED_ROWS // count)):
            lengths = rows.lengths[part]
            ids = rows.ids[part][:, : int(lengths.max())]
            logits = self.logits(trainees, ids.repeat(count, 1), lengths.repeat(count))
            for answers, mine in zip(found, logits.chunk(count), strict=True):
                answers.append(mine.float())
        back = order.argsort()
        return [torch.cat(answers)[back] for answers in found]


class ReaderObjective:
    """S trainees of one reader, trained side by side; batch sizes must be the same."""

    def __init__(
        self,
        reader: Reader,
        modules: Sequence[Trainee],
        rows: TextRows,
        held_out: TextRows,
        recipes: Sequence[TrainSpec],
    ) -> None:
        self.reader, self.rows, self.held_out = reader, rows, held_out
        self.modules: Sequence[nn.Module] = list(modules)
        self.recipes = list(recipes)
        self.labels: Sequence[Sequence[Tensor]] = [[rows.labels]] * len(self.modules)
        self.random: Sequence[RandomStream] = ()
        self.device = rows.ids.device

    def losses(self, rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        chosen = torch.cat([numbers for (numbers,) in rows])
        lengths = self.rows.lengths[chosen]
        ids = self.rows.ids[chosen]
        if self.device.type != "cuda":  # a CUDA graph wants one shape
            ids = ids[:, : int(lengths.max())]
        logits = self.reader.logits(self.modules, ids, lengths).chunk(len(self.modules))
        return [
            F.cross_entropy(mine, self.rows.labels[numbers], label_smoothing=r.label_smoothing)
            for mine, (numbers,), r in zip(logits, rows, self.recipes, strict=True)
        ]

    def evaluate(self, modules: Sequence[nn.Module]) -> list[Score]:
        labels = self.held_out.labels
        return [score(logits, labels) for logits in self.reader.scores(modules, self.held_out)]


class BlindObjective:
    """S soft prompts that never see a text: ``[BOS][P vectors][prompt]``, whatever the row is."""

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        modules: Sequence[SoftPrompt],
        labels: Tensor,
        held_out: Tensor,
    ) -> None:
        self.logits = logits
        self.modules: Sequence[nn.Module] = list(modules)
        self.labels: Sequence[Sequence[Tensor]] = [[labels]] * len(self.modules)
        self.random: Sequence[RandomStream] = ()
        self.held_out = held_out
        self.device = labels.device

    def losses(self, rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        answers = self.logits(torch.stack([prompt() for prompt in self.modules]))
        return [
            F.cross_entropy(answer.expand(len(numbers), -1), self.labels[0][0][numbers])
            for answer, (numbers,) in zip(answers, rows, strict=True)
        ]

    @torch.no_grad()
    def evaluate(self, modules: Sequence[nn.Module]) -> list[Score]:
        answers = self.logits(torch.stack([prompt() for prompt in modules]))
        return [score(a.expand(len(self.held_out), -1), self.held_out) for a in answers]


def score(logits: Tensor, labels: Tensor) -> Score:
    """Mean cross-entropy and accuracy of logits [n, L]."""
    right = float((logits.argmax(-1) == labels).double().mean())
    return Score(float(F.cross_entropy(logits.float(), labels)), right)
