"""What an agent asks of a model. Engines: ``transformers``, ``static`` (GPUs) and ``fake``.

A backend is used by one thread. Arrays at this border are numpy, so that neither the agent loop
nor the tests need torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from agentwire.wire.messages import BridgeIdentity, ModelIdentity, TaskSpec

T = TypeVar("T", covariant=True)

ReportProgress = Callable[[str, float], None]
"""Called while something slow goes on: (stage, fraction in 0..1)."""
Watch = Callable[[int, str], bool]
"""Called while text is generated, after each step and for each row that still grows: (row, text
that was added, possibly none). False: nobody waits for this row any more, so it may end."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a sender made of a batch of texts.

    Attributes:
        payload: float16 [n, M, d], C-contiguous.
        stages: milliseconds: ``tokenize``, ``encode`` (the sender's layers), ``bridge``.
        rms: float32 [n, M]: of each soft token, where the device computed it as well. It is finite
            where all values are.
    """

    payload: npt.NDArray[np.float16]
    stages: dict[str, float]
    rms: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """What a receiver answered for a batch.

    Attributes:
        scores: float32 [n, L]: log-probabilities restricted to the task's L labels.
        stages: milliseconds: ``decode`` (the receiver's forward), ``tokenize`` where it read text.
        tokens: for each row, tokens read (soft tokens among them) and written; empty: not counted.
    """

    scores: npt.NDArray[np.float32]
    stages: dict[str, float]
    tokens: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """Generated texts of a batch.

    Attributes:
        stages: milliseconds: ``tokenize``, ``generate``.
        tokens: as in ``Scored``; the token that ends an answer is not counted.
    """

    texts: list[str]
    stages: dict[str, float]
    tokens: Sequence[tuple[int, int]] = ()


class Backend(Protocol):
    """One language model on one device."""

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is; sent in Hello."""
        ...

    def add_bridge(self, folder: Path) -> BridgeIdentity:
        """Loads and verifies a bridge that reads this model's states.

        Raises:
            BridgeError: missing, corrupt, or made for another model or layer count.
        """
        ...

    def prepare(self, task: TaskSpec) -> None:
        """Compiles the task's prompts and label tokens.

        Raises:
            ScenarioError: two labels share their first token, or a prompt is not usable.
        """
        ...

    def encode(self, texts: Sequence[str], bridge: str) -> Encoded:
        """Soft tokens for n texts, through the bridge with this fingerprint."""
        ...

    def score_soft(self, payload: npt.NDArray[np.float16], task: TaskSpec) -> Scored:
        """Label scores for n payloads, float16 [n, M, d]. The input was checked before."""
        ...

    def score_text(self, texts: Sequence[str], task: TaskSpec) -> Scored:
        """Label scores where the model reads the n texts itself."""
        ...

    def relay(self, texts: Sequence[str], task: TaskSpec) -> Generated:
        """The text-channel message for each of n texts (``task.relay``)."""
        ...

    def generate(
        self, texts: Sequence[str], task: TaskSpec, watch: Watch | None = None
    ) -> Generated:
        """Free-text answers to ``task.text_prompt`` for n texts (``task.form``, ``task.decoding``).

        Raises:
            RemoteProtocolError: a text is too long for this model, or no conversation that its
                chat template takes.
        """
        ...

    def generate_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec, watch: Watch | None = None
    ) -> Generated:
        """Free-text answers from n payloads, float16 [n, M, d]. The input was checked before."""
        ...


class Job(Protocol[T]):
    """A batch that a backend has begun and may not have finished."""

    def done(self) -> bool:
        """Whether ``result`` would not wait."""
        ...

    def wait(self) -> None:
        """Returns when it is done; may be called in any thread, while others begin batches."""
        ...

    def result(self) -> T:
        """The result, once; waits for it.

        Raises:
            Exception: whatever the model raised.
        """
        ...


@runtime_checkable
class Pipelined(Protocol):
    """A backend whose device works on one batch while its thread prepares the next.

    The three calls begin what ``encode``, ``score_soft`` and ``score_text`` do. They return None
    where this batch cannot be begun apart: then those are called.
    """

    def begin_encode(self, texts: Sequence[str], bridge: str) -> Job[Encoded] | None: ...

    def begin_score_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec
    ) -> Job[Scored] | None: ...

    def begin_score_text(self, texts: Sequence[str], task: TaskSpec) -> Job[Scored] | None: ...

    def summary(self) -> str:
        """For the log: how many batches ran in which way."""
        ...


@runtime_checkable
class Rehearsed(Protocol):
    """A backend whose way to the device can be gone without a batch (``agent.rehearsal``)."""

    def rehearse(self, texts: Sequence[str]) -> None:
        """Goes the way of a batch of these texts (none: of payloads), as far as that costs little.

        Does nothing while a batch is under way.
        """
        ...


@runtime_checkable
class SharesCpu(Protocol):
    """A backend whose CPU threads may change while it computes."""

    def set_thread_source(self, threads: Callable[[], int]) -> None:
        """Asks ``threads`` between the steps of a computation how many to use from then on."""
        ...
