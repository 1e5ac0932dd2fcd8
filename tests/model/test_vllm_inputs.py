"""Checks and prompts for a vLLM engine. Needs no vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from agentwire.errors import NackCode, RemoteProtocolError, ScenarioError
from agentwire.model.vllm.inputs import (
    MAX_LABELS,
    RequestLimits,
    check_labels,
    ids_prompt,
    label_scores,
    soft_prompts,
)

ROOM = RequestLimits(width=4, vocabulary=100, length=12)


def soft(rows: int = 2, tokens: int = 3, width: int = 4) -> Any:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, tokens, width)).astype(np.float16)


def refused(payload: Any, around: int = 4) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        ROOM.check_soft(payload, around, 1)
    return caught.value


def test_valid_soft_tokens_pass() -> None:
    ROOM.check_soft(soft(), around=8, answer=1)  # 8 + 3 + 1: exactly full


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_enough(value: float) -> None:
    payload = soft()
    payload[1, 2, 3] = value
    error = refused(payload)
    assert error.code is NackCode.BAD_PAYLOAD
    assert "row 1" in error.message


@pytest.mark.parametrize(
    "shape", [(3, 4), (2, 3, 5), (2, 3, 3), (1, 2, 3, 4), (0, 3, 4), (2, 0, 4)]
)
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    assert refused(np.zeros(shape, np.float16)).code is NackCode.BAD_PAYLOAD


def test_too_long_is_refused() -> None:
    assert refused(soft(), around=9).code is NackCode.TOO_LARGE
    with pytest.raises(RemoteProtocolError) as caught:
        ROOM.check_ids([[1] * 10], 3)
    assert caught.value.code is NackCode.TOO_LARGE


@pytest.mark.parametrize("row", [[], [-1], [100]])
def test_token_ids_are_those_of_the_model(row: list[int]) -> None:
    ROOM.check_ids([[0, 99]], 1)
    with pytest.raises(RemoteProtocolError) as caught:
        ROOM.check_ids([[1], row], 1)
    assert caught.value.code is NackCode.MALFORMED


def test_soft_prompts_are_mixed_with_ids() -> None:
    payload = soft()
    first, second = soft_prompts(payload, [7], [8, 9], torch.float32)
    assert first["prompt_token_ids"] == [7, 0, 0, 0, 8, 9]
    assert first["prompt_is_token_ids"] == [True, False, False, False, True, True]
    embeds = second["prompt_embeds"]
    assert embeds.shape == (6, 4) and embeds.dtype is torch.float32
    assert np.array_equal(embeds[1:4].numpy(), payload[1].astype(np.float32))
    assert not embeds[[0, 4, 5]].any()
    assert ids_prompt((1, 2)) == {"prompt_token_ids": [1, 2]}


@dataclass
class Probability:
    logprob: float


def test_scores_are_restricted_to_the_labels_in_their_order() -> None:
    answers = [
        {5: Probability(-3.0), 6: Probability(-1.0), 9: Probability(-0.1)},  # 9: what was sampled
        {5: Probability(-700.0), 6: Probability(-701.0), 9: Probability(0.0)},
    ]
    scores = label_scores(answers, [6, 5])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(scores[0, 0] - scores[0, 1], 2.0, rtol=1e-6)
    np.testing.assert_allclose(scores[1, 0] - scores[1, 1], -1.0, rtol=1e-6)


def test_more_labels_than_vllm_scores_are_refused() -> None:
    check_labels(range(MAX_LABELS))
    with pytest.raises(ScenarioError, match="129 labels"):
        check_labels(range(MAX_LABELS + 1))
