"""The interface between an agent and its model, with numpy arrays on both sides.

A backend is used by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from agentwire.wire.messages import BridgeIdentity, ModelIdentity, TaskSpec

T = TypeVar("T", covariant=True)

TOO_LONG: Final = "too_long"
"""The reason of texts that a bridge, or a model, cannot read as a whole."""

Watch = Callable[[int, str], bool]
"""Called after each generation step for each unfinished row: (row, new text, possibly empty).
Returns False to end the row because nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Soft tokens of a batch: float16 [n, M, d], C-contiguous.

    Attributes:
        stages: milliseconds of ``tokenize``, ``encode`` (the sender's layers) and ``bridge``.
        rms: float32 [n, M], of each soft token, if the device computed it; finite exactly where all
            values of the soft token are.
        unread: tokens at the end of each text that were not read; empty: none.
        sizes: M of each text where they differ; what follows in a row's payload is 0.
    """

    payload: npt.NDArray[np.float16]
    stages: dict[str, float]
    rms: npt.NDArray[np.float32] | None = None
    unread: Sequence[int] = ()
    sizes: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """Label scores of a batch: float32 [n, L], log-probabilities restricted to the task's L labels.

    Attributes:
        stages: milliseconds of ``decode``, and of ``tokenize`` if texts were read.
        tokens: (tokens read, tokens written) of each row; empty if not counted.
        unread: as in ``Encoded``.
    """

    scores: npt.NDArray[np.float32]
    stages: dict[str, float]
    tokens: Sequence[tuple[int, int]] = ()
    unread: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """Generated texts of a batch; the rest as in ``Scored``, without end tokens.

    Attributes:
        confidence: mean log-probability of each answer's tokens, the one that ended it included;
            empty if not computed. Backends compute it for payloads of reader bridges.
    """

    texts: list[str]
    stages: dict[str, float]
    tokens: Sequence[tuple[int, int]] = ()
    unread: Sequence[int] = ()
    confidence: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """What the rows of a batch ask beside their task.

    Attributes:
        questions: one for each row, for ``{question}`` in the task's prompts; empty: none.
        reader: fingerprint of the reader bridge that the payloads came through.
    """

    questions: Sequence[str] = ()
    reader: str = ""

    def __bool__(self) -> bool:
        return bool(self.questions or self.reader)

    def of_rows(self, rows: int) -> Sequence[str]:
        """The question of each row, perhaps empty."""
        return self.questions or [""] * rows


PLAIN: Final = Asked()


class Backend(Protocol):
    """One language model on one device.

    ``asked`` and ``soft_tokens`` are left out of a call unless they say something.
    """

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is; sent in Hello."""

    def add_bridge(self, folder: Path) -> BridgeIdentity:
        """Loads and verifies a bridge that reads this model's states; raises BridgeError."""

    def add_reader(self, folder: Path) -> BridgeIdentity:
        """Loads this model's half of a reader bridge that it receives from; raises BridgeError."""

    def prepare(self, task: TaskSpec) -> None:
        """Compiles the task's prompts and label tokens; raises ScenarioError if unusable."""

    def encode(self, texts: Sequence[str], bridge: str, soft_tokens: int = 0) -> Encoded:
        """Soft tokens for n texts, through the bridge with this fingerprint.

        ``soft_tokens``: M, one of the bridge's sizes; 0: by each text's length.
        """

    def score_soft(
        self,
        payload: npt.NDArray[np.float16],
        task: TaskSpec,
        asked: Asked = PLAIN,
    ) -> Scored:
        """Label scores for n checked payloads, float16 [n, M, d]."""

    def score_text(self, texts: Sequence[str], task: TaskSpec, asked: Asked = PLAIN) -> Scored:
        """Label scores for n texts that this model reads itself."""

    def relay(self, texts: Sequence[str], task: TaskSpec) -> Generated:
        """The text-channel message for each of n texts (``task.relay``)."""

    def generate(
        self,
        texts: Sequence[str],
        task: TaskSpec,
        watch: Watch | None = None,
        asked: Asked = PLAIN,
    ) -> Generated:
        """Free-text answers to ``task.text_prompt`` for n texts (``task.form``, ``task.decoding``).

        Raises:
            RemoteProtocolError: a text is too long for this model, or a conversation does not fit
                its chat template.
        """

    def generate_soft(
        self,
        payload: npt.NDArray[np.float16],
        task: TaskSpec,
        watch: Watch | None = None,
        asked: Asked = PLAIN,
    ) -> Generated:
        """Free-text answers for n checked payloads, float16 [n, M, d]."""


class Job(Protocol[T]):
    """A batch that a backend has started."""

    def done(self) -> bool:
        """Whether ``result`` would return at once."""

    def wait(self) -> None:
        """Blocks until the batch is done. May be called from any thread."""

    def result(self) -> T:
        """Waits for the result and returns it; may be called once. Raises what the model raised."""


@runtime_checkable
class Pipelined(Protocol):
    """A backend whose device computes one batch while its thread prepares the next.

    The three methods start what ``encode``, ``score_soft`` and ``score_text`` compute. They return
    None if the batch has to go through those methods instead.
    """

    def begin_encode(self, texts: Sequence[str], bridge: str) -> Job[Encoded] | None: ...

    def begin_score_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec
    ) -> Job[Scored] | None: ...

    def begin_score_text(self, texts: Sequence[str], task: TaskSpec) -> Job[Scored] | None: ...

    def summary(self) -> str:
        """Batches by the path they took, for the log."""


@runtime_checkable
class SupportsWarmup(Protocol):
    """A backend that can exercise its path to the device without a batch (``agent.warmup``)."""

    def warm_up(self, texts: Sequence[str]) -> None:
        """Runs the path of a batch of these texts (none: payloads), unless a batch is running."""


@runtime_checkable
class SharesCpu(Protocol):
    """A backend whose number of CPU threads may change while it computes."""

    def set_thread_source(self, threads: Callable[[], int]) -> None:
        """Makes the model call ``threads`` before each layer for the number of threads to use."""
