"""Linear probes on the sender's states, which show how much of the answer is in them.

Guillaume Alain and Yoshua Bengio, "Understanding intermediate layers using linear classifier
probes" (2016, arXiv:1610.01644). There are two: logistic regression on the mean of a text's states,
and a linear layer on states pooled by learned attention. Both read the states as the bridge does:
per-feature z-scores of the training set, clamped at 8 sigma, without the opening token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentwire.bridge.resampler import CLAMP_SIGMAS
from agentwire.scenario.resolve import Resolved
from agentwire.training.baselines.baseline import Baseline, Fitted, sender_model
from agentwire.training.baselines.context import BaselineContext
from agentwire.training.baselines.fitting import ClassifierObjective, recipe_of, train
from agentwire.training.objective import score
from agentwire.training.states import StateCache

L2_GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
ATTENTION_GRID = tuple(
    {"heads": heads, "learning_rate": rate, "dropout": dropout}
    for heads in (1, 8)
    for rate in (1e-3, 3e-3)
    for dropout in (0.1, 0.5)
)
ROWS = 1024
"""Texts whose states are gathered at once."""


@dataclass(frozen=True, slots=True)
class Scaler:
    """Per-feature z-scores with a training set's statistics, clamped."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, cache: StateCache) -> Scaler:
        return cls(*cache.statistics())

    def __call__(self, states: Tensor) -> Tensor:
        return ((states.float() - self.mean) / self.std).clamp(-CLAMP_SIGMAS, CLAMP_SIGMAS)


def _batches(cache: StateCache) -> Iterator[tuple[Tensor, Tensor]]:
    """States and masks of all texts, in batches as wide as their longest text."""
    for rows in torch.arange(len(cache), device=cache.flat.device).split(ROWS):  # type: ignore[no-untyped-call]
        yield cache.gather(rows, int(cache.lengths[rows].max()))


@torch.no_grad()
def mean_pooled(cache: StateCache, scaler: Scaler) -> Tensor:
    """The mean of each text's standardised states, fp32 [n, d]."""
    found = []
    for states, mask in _batches(cache):
        total = (scaler(states) * mask[:, :, None]).sum(dim=1)
        found.append(total / mask.sum(dim=1, keepdim=True))
    return torch.cat(found)


@dataclass(frozen=True, slots=True)
class Logistic:
    """Multinomial logistic regression on z-scores of its features."""

    mean: Tensor  # [d], like std: of the training features
    std: Tensor
    weight: Tensor  # [d, L]
    bias: Tensor  # [L]

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, L] of features [n, d]."""
        return ((features - self.mean) / self.std) @ self.weight + self.bias


def fit_logistic(features: Tensor, labels: Tensor, classes: int, l2: float) -> Logistic:
    """Minimises mean cross-entropy + l2 / 2 * |W|^2 with L-BFGS (D. Liu and J. Nocedal, 1989)."""
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    x = (features - mean) / std
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, labels) + l2 / 2 * weight.pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Logistic(mean, std, weight.detach(), bias.detach())


def choose_logistic(
    features: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor, classes: int
) -> tuple[Logistic, dict[str, float]]:
    """The probe whose L2 weight is best on held-out rows, with that weight and the accuracy."""
    found = []
    for l2 in L2_GRID:
        probe = fit_logistic(features, labels, classes, l2)
        found.append((score(probe(held_out), held_out_labels).accuracy, l2, probe))
    accuracy, l2, probe = max(found, key=lambda one: one[0])
    return probe, {"l2": l2, "held_out_accuracy": accuracy}


class AttentionProbe(nn.Module):
    """States [n, T, d] and a mask -> class logits [n, L].

    Each of ``heads`` learned queries weighs the tokens by softmax. One linear layer reads the
    concatenated pooled states.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, scaler: Scaler, classes: int, *, heads: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        width = scaler.mean.shape[0]
        self.register_buffer("mean", scaler.mean.clone())
        self.register_buffer("std", scaler.std.clone())
        self.query = nn.Linear(width, heads, bias=False)
        nn.init.normal_(self.query.weight, std=width**-0.5)
        self.read = nn.Linear(heads * width, classes)
        nn.init.normal_(self.read.weight, std=(heads * width) ** -0.5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        z = Scaler(self.mean, self.std)(states)
        scores = self.query(z).masked_fill(~mask[:, :, None], float("-inf"))
        pooled = scores.softmax(dim=1).transpose(1, 2) @ z  # [n, heads, d]
        return self.read(self.dropout(pooled.flatten(1)))  # type: ignore[no-any-return]


def probe_objective(
    modules: Sequence[AttentionProbe], cache: StateCache, held_out: StateCache
) -> ClassifierObjective:
    """Attention probes on the same states, trained side by side."""
    # A CUDA graph needs a fixed width, read before the capture.
    longest = cache.longest if cache.flat.device.type == "cuda" else 0

    def logits(module: nn.Module, rows: Tensor) -> Tensor:
        width = longest or int(cache.lengths[rows].max())
        found: Tensor = module(*cache.gather(rows, width))
        return found

    return ClassifierObjective(
        modules, cache.labels, logits, held_out.labels, lambda m: probe_logits(m, held_out)
    )


@torch.no_grad()
def probe_logits(module: nn.Module, cache: StateCache) -> Tensor:
    """Class logits [n, L] of every text."""
    return torch.cat([module(states, mask) for states, mask in _batches(cache)])


def _fit_mean(context: BaselineContext) -> Fitted:
    train_states, held_out = context.train_states, context.held_out_states
    scaler = Scaler.of(train_states)
    probe, notes = choose_logistic(
        mean_pooled(train_states, scaler), train_states.labels,
        mean_pooled(held_out, scaler), held_out.labels, context.classes,
    )  # fmt: skip
    scales = {"scaler_mean": scaler.mean, "scaler_std": scaler.std}
    return Fitted(scales | asdict(probe), notes)


def _answer_mean(context: BaselineContext, learned: Fitted, texts: Sequence[str]) -> Tensor:
    known = {key: value.to(context.sender.device) for key, value in learned.tensors.items()}
    scaler = Scaler(known.pop("scaler_mean"), known.pop("scaler_std"))
    return Logistic(**known)(mean_pooled(context.states_of(texts), scaler))


def _fit_attention(context: BaselineContext) -> Fitted:
    scaler = Scaler.of(context.train_states)
    modules, recipes = [], []
    for choice in ATTENTION_GRID:
        torch.manual_seed(context.recipe.seed)
        heads, dropout = int(choice["heads"]), choice["dropout"]
        module = AttentionProbe(scaler, context.classes, heads=heads, dropout=dropout)
        modules.append(module.to(context.sender.device))
        recipes.append(recipe_of(context, learning_rate=choice["learning_rate"], clip=10.0))
    objective = probe_objective(modules, context.train_states, context.held_out_states)
    number, best = train(context, objective, recipes, "training")
    notes = {**ATTENTION_GRID[number], "held_out_accuracy": best.best.accuracy}
    return Fitted(dict(best.module.state_dict()), notes)


def _answer_attention(context: BaselineContext, learned: Fitted, texts: Sequence[str]) -> Tensor:
    tensors = learned.tensors
    module = AttentionProbe(
        Scaler(tensors["mean"], tensors["std"]), context.classes, heads=learned.notes["heads"]
    )
    module.load_state_dict(tensors)
    return probe_logits(module.to(context.sender.device).eval(), context.states_of(texts))


def _layer_of(resolved: Resolved) -> str:
    layer = resolved.choices[resolved.wire.spec.sender].layer
    return f"{sender_model(resolved)}'s layer {layer}"


PROBE_MEAN = Baseline(
    "probe, mean",
    lambda r: f"logistic regression on the mean of {_layer_of(r)}",
    _fit_mean,
    _answer_mean,
)
PROBE_ATTENTION = Baseline(
    "probe, attention",
    lambda r: f"attention-pooled linear probe on {_layer_of(r)}",
    _fit_attention,
    _answer_attention,
)
