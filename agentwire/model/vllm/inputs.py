"""Checks and builds what a vLLM engine reads, and extracts label scores. Needs no vLLM.

An engine trusts its input: a soft token that is not finite spoils later answers of other requests,
and one of the wrong width hangs the next request. So every request is checked first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agentwire.errors import NackCode, RemoteProtocolError, ScenarioError
from agentwire.model.chat import check_length

MAX_LABELS = 128  # vLLM's limit on the log-probabilities of one request


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request may hold: embeddings of ``width``, ids below ``vocabulary``, and tokens."""

    width: int
    vocabulary: int
    length: int

    def check_ids(self, rows: Sequence[Sequence[int]], answer: int) -> None:
        """Checks prompts of token ids, each with ``answer`` tokens to generate."""
        check_length(self.length, rows, answer)
        for row in rows:
            if not row or min(row) < 0 or max(row) >= self.vocabulary:
                raise RemoteProtocolError(
                    NackCode.MALFORMED,
                    f"token ids must be 0 to {self.vocabulary - 1}, at least one",
                )

    def check_soft(self, payload: npt.NDArray[Any], around: int, answer: int) -> None:
        """Checks payloads [n, M, d] with ``around`` other tokens and ``answer`` tokens to generate.

        Raises RemoteProtocolError: TOO_LARGE, or BAD_PAYLOAD.
        """
        if payload.ndim != 3 or 0 in payload.shape or payload.shape[2] != self.width:
            raise RemoteProtocolError(
                NackCode.BAD_PAYLOAD,
                f"soft tokens have the shape {payload.shape}, expected [n, M, {self.width}]",
            )
        bad = np.flatnonzero(~np.isfinite(payload).all(axis=(1, 2)))
        if len(bad):
            raise RemoteProtocolError(
                NackCode.BAD_PAYLOAD, f"soft tokens of row {bad[0]} are not finite"
            )
        check_length(self.length, [range(payload.shape[1] + around)], answer)


def ids_prompt(ids: Sequence[int]) -> dict[str, Any]:
    return {"prompt_token_ids": list(ids)}


def soft_prompts(
    payload: npt.NDArray[np.float16],
    before: Sequence[int],
    after: Sequence[int],
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """``[before][M soft tokens][after]`` for n checked payloads, float16 [n, M, d].

    Mixed with token ids, because an engine with embeddings alone fails where it needs ids.
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


def check_labels(labels: Sequence[object]) -> None:
    """Raises ScenarioError for more labels than vLLM scores in one request."""
    if len(labels) > MAX_LABELS:
        raise ScenarioError(
            f"the task has {len(labels)} labels; vLLM scores at most {MAX_LABELS}.",
            hint="Use `backend: transformers` for the receiver of this task.",
        )


def label_scores(
    answers: Sequence[Mapping[int, Any]], labels: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Log-probabilities restricted to L label tokens, float32 [n, L].

    ``answers`` holds each row's ``vllm.Logprob`` by token id, over the whole vocabulary.
    """
    raw = np.array([[answer[label].logprob for label in labels] for answer in answers], np.float64)
    raw -= raw.max(axis=1, keepdims=True)
    scores: npt.NDArray[np.float32] = (raw - np.log(np.exp(raw).sum(axis=1, keepdims=True))).astype(
        np.float32
    )
    return scores
