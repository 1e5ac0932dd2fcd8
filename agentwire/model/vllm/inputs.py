"""What goes into a vLLM engine, checked and built; and label scores out of what it answers.

An engine shares one batch among all requests and trusts its input: one soft token that is not a
number spoils the answers of later requests, and one of a wrong width hangs the next. So every
request is checked here, before the engine sees it. Nothing in here needs vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from agentwire.errors import NackCode, RemoteProtocolError, ScenarioError

MOST_LABELS = 128
"""vLLM's own limit on the tokens whose log-probabilities one request may ask for."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one request may hold.

    Attributes:
        width: d of the model's embeddings.
        vocabulary: token ids are below this.
        length: tokens of a prompt and its answer together.
    """

    width: int
    vocabulary: int
    length: int

    def check_ids(self, rows: Sequence[Sequence[int]], answer: int) -> None:
        """Refuses prompts of token ids that the engine cannot take.

        Args:
            answer: tokens that may be generated after each.

        Raises:
            RemoteProtocolError: TOO_LARGE, or MALFORMED for no tokens or ids out of range.
        """
        for row in rows:
            self._check_length(len(row), answer)
            if not row or min(row) < 0 or max(row) >= self.vocabulary:
                raise RemoteProtocolError(
                    NackCode.MALFORMED, f"token ids are 0 to {self.vocabulary - 1}, one at least"
                )

    def check_soft(self, payload: npt.NDArray[Any], around: int, answer: int) -> None:
        """Refuses soft tokens that would harm the engine or other requests in it.

        Args:
            payload: [n, M, d].
            around: tokens before and after the soft ones.
            answer: tokens that may be generated after each.

        Raises:
            RemoteProtocolError: BAD_PAYLOAD for another shape or what is not finite; TOO_LARGE.
        """
        if payload.ndim != 3 or 0 in payload.shape or payload.shape[2] != self.width:
            raise RemoteProtocolError(
                NackCode.BAD_PAYLOAD,
                f"soft tokens of the shape {payload.shape} do not fit [n, M, {self.width}]",
            )
        bad = np.flatnonzero(~np.isfinite(payload).all(axis=(1, 2)))
        if len(bad):
            raise RemoteProtocolError(
                NackCode.BAD_PAYLOAD, f"soft tokens of row {bad[0]} are not finite"
            )
        self._check_length(payload.shape[1] + around, answer)

    def _check_length(self, tokens: int, answer: int) -> None:
        if tokens + answer > self.length:
            raise RemoteProtocolError(
                NackCode.TOO_LARGE,
                f"{tokens} tokens and an answer of {answer} are more than the {self.length} "
                "tokens that this engine can see",
            )


def ids_prompt(ids: Sequence[int]) -> dict[str, Any]:
    """A prompt of token ids."""
    return {"prompt_token_ids": list(ids)}


def soft_prompts(
    payload: npt.NDArray[np.float16],
    before: Sequence[int],
    after: Sequence[int],
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """``[before][M soft tokens][after]`` for each of n checked payloads, float16 [n, M, d].

    Always the mixed form: an engine that gets embeddings alone knows no token ids, and what
    works on token ids then fails inside it.
    """
    n, m, d = payload.shape
    embeds = torch.zeros(n, len(before) + m + len(after), d, dtype=dtype)
    embeds[:, len(before) : len(before) + m] = torch.from_numpy(np.array(payload)).to(dtype)
    ids = [*before, *[0] * m, *after]
    are_ids = [True] * len(before) + [False] * m + [True] * len(after)
    return [
        {"prompt_embeds": row, "prompt_token_ids": ids, "prompt_is_token_ids": are_ids}
        for row in embeds
    ]


class LogProbability(Protocol):
    """vLLM's record of one token."""

    logprob: float


def check_labels(labels: Sequence[object]) -> None:
    """
    Raises:
        ScenarioError: more labels than one request may ask for.
    """
    if len(labels) > MOST_LABELS:
        raise ScenarioError(
            f"{len(labels)} labels are more than the {MOST_LABELS} that vLLM scores at once.",
            hint="Use `backend: transformers` for the receiver of this task.",
        )


def label_scores(
    answers: Sequence[Mapping[int, LogProbability]], labels: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Log-probabilities restricted to L labels, float32 [n, L].

    Args:
        answers: of each row, token id -> log-probability over the whole vocabulary.
        labels: token ids, in the task's order.
    """
    raw = np.array([[answer[label].logprob for label in labels] for answer in answers], np.float64)
    raw -= raw.max(axis=1, keepdims=True)
    scores: npt.NDArray[np.float32] = (raw - np.log(np.exp(raw).sum(axis=1, keepdims=True))).astype(
        np.float32
    )
    return scores


def groups(lengths: Sequence[int], tokens: int, rows: int) -> list[list[int]]:
    """Indices of neighbours that one step of the engine can take whole.

    Args:
        lengths: tokens of each row; none is longer than ``tokens``.
        tokens, rows: most of one step.
    """
    found: list[list[int]] = []
    size = 0
    for index, length in enumerate(lengths):
        if not found or size + length > tokens or len(found[-1]) >= rows:
            found.append([])
            size = 0
        found[-1].append(index)
        size += length
    return found
