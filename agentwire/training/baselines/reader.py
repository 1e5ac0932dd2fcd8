"""A frozen receiver that reads the text itself, with something small trained beside it.

Soft prompt: Brian Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning" (2021,
arXiv:2104.08691): P trained vectors after BOS and before the task's text prompt. A *blind* soft
prompt reads no text; this control can learn only how frequent the classes are.

Adapters: Edward Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021,
arXiv:2106.09685), equation 3: h = W x + (scale / r) B A x.

Answers are scored as for every method: the likelihood of the label words at the first answer
position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agentwire.model.prompting import MAX_TEXT_TOKENS, read_texts
from agentwire.model.texts import pad_right
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.scenario import TrainSpec
from agentwire.training.baselines.fitting import ClassifierObjective
from agentwire.wire.messages import TaskSpec

EVALUATED_ROWS = 512
"""Rows in one pass of an evaluation."""
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Layers with an adapter: the attention projections."""


@dataclass(frozen=True, slots=True)
class TextRows:
    """Texts inside the task's text prompt, as the receiver's tokens."""

    ids: Tensor  # [n, T], padded on the right
    lengths: Tensor  # [n] tokens of each row; the answer follows the last
    labels: Tensor  # [n] class ids


def text_rows(
    backend: TransformersBackend,
    task: TaskSpec,
    texts: Sequence[str],
    labels: Sequence[int],
    max_tokens: int = MAX_TEXT_TOKENS,
) -> tuple[TextRows, list[int]]:
    """``texts`` in the task's text prompt, and the tokens of each beyond ``max_tokens``."""
    ids = backend.prepared(task).ids
    read, unread = read_texts(backend.tokenizer, texts, ids.glue, max_tokens)
    padded, lengths = pad_right(
        [[*ids.before, *row, *ids.after] for row in read], backend.tokenizer.pad_token_id or 0
    )
    device = backend.device
    rows = TextRows(
        padded.to(device), lengths.to(device), torch.tensor(list(labels), device=device)
    )
    return rows, unread


class SoftPrompt(nn.Module):
    """P trained vectors in units of the receiver's embedding RMS, initialised to random tokens."""

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


def adapted_layers(model: Any) -> list[tuple[str, nn.Linear]]:
    return [
        (name.replace(".", "/"), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS
    ]


class Adapter(nn.Module):
    """The trained matrices: A [in, r] and B [r, out] per layer of ``model``. B starts at zero."""

    def __init__(self, model: Any, rank: int = 16, scale: float = 32.0) -> None:
        super().__init__()
        self.factor = scale / rank
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for name, linear in adapted_layers(model):
            down = torch.empty(linear.in_features, rank)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.down[name] = nn.Parameter(down)
            self.up[name] = nn.Parameter(torch.zeros(rank, linear.out_features))

    @contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """Adds the adapter's output to the layers of ``model`` inside this context."""
        # The hooks come and go with each forward pass, which a CUDA graph does not see: it records
        # the kernels that they launch while it is captured.

        def hook(name: str) -> Any:
            def added(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                x = args[0]
                down, up = self.down[name][None].to(x.dtype), self.up[name][None].to(x.dtype)
                change = x.reshape(1, -1, x.shape[-1]) @ down @ up
                changed: Tensor = output + self.factor * change.view_as(output)
                return changed

            return added

        layers = adapted_layers(model)
        handles = [linear.register_forward_hook(hook(name)) for name, linear in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class Reader:
    """A frozen receiver that reads texts with a soft prompt or an adapter."""

    def __init__(self, backend: TransformersBackend, task: TaskSpec) -> None:
        self.backend, self.task = backend, task

    def logits(self, module: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        """Label logits [n, L] of ids [n, T]."""
        model = self.backend.model
        embedded = model.get_input_embeddings()(ids).to(model.dtype)
        last = lengths - 1
        if isinstance(module, SoftPrompt):
            prompt = module().to(embedded.dtype).expand(len(ids), -1, -1)
            embedded = torch.cat([embedded[:, :1], prompt, embedded[:, 1:]], dim=1)
            last = last + prompt.shape[1]
        with module.applied(model) if isinstance(module, Adapter) else nullcontext():
            output = model.get_decoder()(inputs_embeds=embedded, use_cache=False)
        rows = torch.arange(len(ids), device=ids.device)
        return self.backend.prepared(self.task).text_head(output.last_hidden_state[rows, last])

    @torch.no_grad()
    def scores(self, module: nn.Module, rows: TextRows) -> Tensor:
        """Label logits [n, L] of all rows."""
        order = rows.lengths.argsort()
        found = []
        for part in torch.split(order, EVALUATED_ROWS):
            lengths = rows.lengths[part]
            ids = rows.ids[part][:, : int(lengths.max())]
            found.append(self.logits(module, ids, lengths).float())
        return torch.cat(found)[order.argsort()]


def reader_objective(
    reader: Reader, module: nn.Module, rows: TextRows, held_out: TextRows, recipe: TrainSpec
) -> ClassifierObjective:
    """Trains a soft prompt or an adapter on texts."""

    def logits(module: nn.Module, chosen: Tensor) -> Tensor:
        ids, lengths = rows.ids[chosen], rows.lengths[chosen]
        if ids.device.type != "cuda":  # a CUDA graph needs a fixed shape
            ids = ids[:, : int(lengths.max())]
        return reader.logits(module, ids, lengths)

    return ClassifierObjective(
        [module], rows.labels, logits, held_out.labels, lambda m: reader.scores(m, held_out),
        recipe.label_smoothing,
    )  # fmt: skip


def blind_objective(
    logits: Callable[[Tensor], Tensor], module: SoftPrompt, labels: Tensor, held_out: Tensor
) -> ClassifierObjective:
    """Trains a soft prompt that sees no text: ``[BOS][P vectors][prompt]`` for every row."""

    def answer(module: nn.Module, rows: Tensor) -> Tensor:
        return logits(module()[None]).expand(len(rows), -1)

    return ClassifierObjective([module], labels, answer, held_out, lambda m: answer(m, held_out))
