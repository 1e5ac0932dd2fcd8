"""What a baseline of a scenario trains on: the bridge's rows, models and layer, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from agentwire.config import Config
from agentwire.errors import ScenarioError
from agentwire.model.prompting import MAX_TEXT_TOKENS
from agentwire.model.transformers import TransformersBackend
from agentwire.scenario.resolve import Resolved
from agentwire.spec.backends import BACKENDS
from agentwire.spec.scenario import TrainSpec
from agentwire.task.datasets import Dataset
from agentwire.task.definitions import load_definition
from agentwire.task.rows import rows_sha256
from agentwire.training.models import load_agent
from agentwire.training.rows import training_rows
from agentwire.training.states import StateCache, cache_states
from agentwire.wire.messages import TaskSpec

Tell = Callable[[str, float], None]
"""Told what goes on and the fraction done; may raise to end the work."""


class Setting:
    """One scenario, for baselines: each model, row and state is loaded when first asked for.

    Models are loaded once more than the agents' own, in the runner's process.

    Args:
        resolved: the scenario; its models' weights are on this machine.
        tell: told about progress.

    Raises:
        ScenarioError: no task, no layer, or models without weights.
    """

    def __init__(self, resolved: Resolved, config: Config, tell: Tell) -> None:
        if resolved.data is None:
            raise ScenarioError("the scenario has no `task:`.", hint="Add a task with a dataset.")
        choice = resolved.choices[resolved.wire.spec.sender]
        if not all(BACKENDS.get(a.backend).needs_weights for a in resolved.agents.values()):
            raise ScenarioError(
                "trained baselines need real models, not fake ones.",
                hint="Leave them out of `methods`.",
            )
        if choice.layer is None:
            raise ScenarioError(
                f"the agent {resolved.wire.spec.sender} sends but has no `layer`.",
                hint="Say after how many of its layers states are read, e.g. `layer: 16`.",
            )
        self.resolved, self.config, self.tell = resolved, config, tell
        self.data, self.layer = resolved.data, choice.layer

    @property
    def recipe(self) -> TrainSpec:
        """The scenario's training settings."""
        return self.resolved.scenario.train

    @cached_property
    def task(self) -> TaskSpec:
        return load_definition(self.data.dataset).spec()

    @property
    def classes(self) -> int:
        """L."""
        return len(self.task.labels)

    @cached_property
    def sender(self) -> TransformersBackend:
        return load_agent(self.resolved, self.resolved.wire.spec.sender, self.tell)

    @cached_property
    def receiver(self) -> TransformersBackend:
        return load_agent(self.resolved, self.resolved.wire.spec.receiver, self.tell)

    @cached_property
    def _parts(self) -> tuple[Dataset, Dataset]:
        return training_rows(self.data, self.recipe, self.config)

    @property
    def rows(self) -> Dataset:
        """Training rows: those of the bridge."""
        return self._parts[0]

    @property
    def held_out(self) -> Dataset:
        """Rows that choose settings and steps."""
        return self._parts[1]

    @cached_property
    def train_states(self) -> StateCache:
        return self._states(self.rows, "states of the training rows")

    @cached_property
    def held_out_states(self) -> StateCache:
        return self._states(self.held_out, "states of the held-out rows")

    def _states(self, part: Dataset, stage: str) -> StateCache:
        return cache_states(
            self.sender,
            [row.text for row in part.rows],
            [row.label for row in part.rows],
            layer=self.layer,
            max_tokens=self.recipe.max_text_tokens,
            progress=lambda done: self.tell(stage, done),
        )

    def states_of(self, texts: Sequence[str]) -> StateCache:
        """States of texts that are to be answered; their labels are not known."""
        return cache_states(
            self.sender, texts, [0] * len(texts), layer=self.layer, max_tokens=MAX_TEXT_TOKENS
        )

    def identity(self) -> dict[str, object]:
        """Everything that a baseline's training depends on, for its name in the cache."""
        card = self.resolved.wire.card
        return {
            "task": self.task.task_id,
            "layer": self.layer,
            "soft_tokens": self.resolved.wire.spec.soft_tokens,
            "bridge": None if card is None else card.weights_sha256,
            "sender": self.sender.identity.fingerprint,
            "receiver": self.receiver.identity.fingerprint,
            "rows": rows_sha256(self.rows.rows),
            "held_out": rows_sha256(self.held_out.rows),
            "train": self.recipe.model_dump(),
        }
