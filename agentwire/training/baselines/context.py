"""What a baseline can use: the bridge's rows, models, layer and states, in this process."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property

import torch

from agentwire.config import Config
from agentwire.download import OnProgress
from agentwire.errors import ScenarioError
from agentwire.model.prompting import MAX_TEXT_TOKENS, read_texts
from agentwire.model.transformers import TransformersBackend
from agentwire.scenario.resolve import Resolved
from agentwire.spec.backends import BACKENDS
from agentwire.spec.scenario import TrainSpec
from agentwire.task.datasets import Dataset
from agentwire.task.definitions import load_classification
from agentwire.task.rows import rows_sha256
from agentwire.training.models import load_agent
from agentwire.training.rows import training_rows
from agentwire.training.states import StateCache, cache_layers
from agentwire.wire.messages import TaskSpec

RANDOM_SEED = 1000
"""Added to the recipe's seed for the weights of the random sender."""


class BaselineContext:
    """One scenario for its baselines. Models, rows and states are loaded when first used.

    The models are loaded in the runner's process, in addition to those of the agents. ``progress``
    gets the stage and the fraction done, and may raise to cancel the work.

    Attributes:
        unread: tokens at the end of each text that an answer left out; empty: none. Whoever reads
            the texts sets it (``left_out``).

    Raises:
        ScenarioError: no task, no layer, or models without weights.
    """

    def __init__(self, resolved: Resolved, config: Config, progress: OnProgress) -> None:
        if resolved.data is None:
            raise ScenarioError("the scenario has no `task:`.", hint="Add a task with a dataset.")
        sender = resolved.wire.spec.sender
        layer = resolved.choices[sender].layer
        if not all(BACKENDS.get(a.backend).needs_weights for a in resolved.agents.values()):
            raise ScenarioError(
                "trained baselines need real models, not fake ones.",
                hint="Remove them from `methods`.",
            )
        if layer is None:
            raise ScenarioError(
                f"the agent {sender} sends but has no `layer`.",
                hint="Set the layer whose hidden states are read, e.g. `layer: 16`.",
            )
        self.resolved, self.config, self.progress = resolved, config, progress
        self.data, self.layer = resolved.data, layer
        self.unread: list[int] = []

    @property
    def recipe(self) -> TrainSpec:
        return self.resolved.scenario.train

    @property
    def soft_tokens(self) -> int:
        return self.resolved.wire.spec.soft_tokens

    @cached_property
    def task(self) -> TaskSpec:
        return load_classification(self.data.dataset).spec()

    @property
    def classes(self) -> int:
        return len(self.task.labels)

    @cached_property
    def sender(self) -> TransformersBackend:
        return load_agent(self.resolved, self.resolved.wire.spec.sender, self.progress)

    @cached_property
    def receiver(self) -> TransformersBackend:
        return load_agent(self.resolved, self.resolved.wire.spec.receiver, self.progress)

    @cached_property
    def random_sender(self) -> TransformersBackend:
        """The sender with random weights; the recipe's seed chooses them."""
        known = self.sender
        torch.manual_seed(RANDOM_SEED + self.recipe.seed)
        model = type(known.model)(copy.deepcopy(known.model.config))
        model = model.to(device=known.device, dtype=known.model.dtype).eval().requires_grad_(False)
        return TransformersBackend(model, known.tokenizer, known.identity, known.device)

    @cached_property
    def _split(self) -> tuple[Dataset, Dataset]:
        return training_rows(self.data, self.recipe, self.config)

    @property
    def rows(self) -> Dataset:
        """The bridge's training rows."""
        return self._split[0]

    @property
    def held_out(self) -> Dataset:
        """Rows that choose settings and steps."""
        return self._split[1]

    @cached_property
    def train_states(self) -> StateCache:
        return self.states_of_rows(self.rows, "states of the training rows")

    @cached_property
    def held_out_states(self) -> StateCache:
        return self.states_of_rows(self.held_out, "states of the held-out rows")

    def states_of_rows(
        self, rows: Dataset, stage: str, sender: TransformersBackend | None = None
    ) -> StateCache:
        """The states that the bridge reads, with the rows' labels."""
        texts, labels = zip(*((row.text, row.label) for row in rows.rows), strict=True)
        return cache_layers(
            sender or self.sender,
            texts,
            labels,
            layers=[self.layer],
            max_tokens=self.recipe.max_text_tokens,
            progress=lambda done: self.progress(stage, done),
        )[self.layer]

    def states_of(
        self, texts: Sequence[str], sender: TransformersBackend | None = None
    ) -> StateCache:
        """States of texts to answer; the labels of the cache have no meaning."""
        sender, layers = sender or self.sender, [self.layer]
        self.left_out(read_texts(sender.tokenizer, texts)[1])
        return cache_layers(
            sender, texts, [0] * len(texts), layers=layers, max_tokens=MAX_TEXT_TOKENS
        )[self.layer]

    def left_out(self, unread: Sequence[int]) -> None:
        """Notes how many tokens of each text to answer were not read."""
        self.unread = list(map(max, unread, self.unread or unread))

    def identity(self) -> dict[str, object]:
        """Everything that the training of a baseline depends on."""
        card = self.resolved.wire.card
        return {
            "task": self.task.task_id,
            "layer": self.layer,
            "soft_tokens": self.soft_tokens,
            "bridge": None if card is None else card.weights_sha256,
            "sender": self.sender.identity.fingerprint,
            "receiver": self.receiver.identity.fingerprint,
            "rows": rows_sha256(self.rows.rows),
            "held_out": rows_sha256(self.held_out.rows),
            "train": self.recipe.model_dump(),
        }
