"""The shipped bridge between the two registry models, on 32 fixed test rows.

Answers through processes and bus equal those in one process, whatever the batch size.

`agentwire run` scores whole test splits. These rows only guard against a broken bridge.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

import agentwire
from agentwire.bridge.card import CARD_FILE
from agentwire.bridge.store import verify
from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.evaluation.predictions import choose_rows
from agentwire.model.sources.lookup import locate
from agentwire.model.sources.registry import MODELS
from agentwire.runtime.reply import Reply
from agentwire.spec.agent import AgentSpec
from agentwire.spec.scenario import Scenario
from agentwire.task.datasets import load_rows
from agentwire.task.definitions import load_definition
from agentwire.task.rows import Example
from agentwire.wire.messages import Channel

pytestmark = pytest.mark.real

SENDER, RECEIVER, DATASET = "smollm2-135m-instruct", "gemma-3-270m", "movie_snippets"
BRIDGE = Path(__file__).resolve().parents[2] / "bridges" / f"{SENDER}--{RECEIVER}--{DATASET}"
ROWS = 32
WELL_ABOVE_CHANCE = 0.70  # chance is 0.5; the whole split is at about 0.84
PAYLOAD_BYTES = 8 * 640 * 2


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    config = Config.from_env()
    for model in (SENDER, RECEIVER):
        if not locate(model, config=config).present:
            pytest.skip(f"{model} is not in the cache (`agentwire models pull {model}`)")
    if not (BRIDGE / CARD_FILE).is_file():
        pytest.skip(f"there is no bridge {BRIDGE.name} (`agentwire train scenarios/...`)")
    try:
        split = load_rows(DATASET, "test", config=config, allow_download=False)
    except DataError:
        pytest.skip(f"the snippets are not in the cache (`agentwire data pull {DATASET}`)")
    return [split.rows[i] for i in choose_rows(len(split), ROWS, seed=0)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def through_bus(rows: list[Example]) -> AsyncIterator[dict[int, list[Reply]]]:
    """Replies by batch size, from two agents in processes of their own."""
    scenario = Scenario.model_validate(
        {
            "name": "shipped",
            "agents": {
                "sender": {"model": SENDER, "layer": verify(BRIDGE).layer, "device": "cpu"},
                "receiver": {"model": RECEIVER, "device": "cpu"},
            },
            "wires": [
                {"from": "sender", "to": "receiver", "bridge": BRIDGE.name, "fallback": "error"}
            ],
            "task": {"dataset": DATASET, "split": "test"},
        }
    )
    texts = [row.text for row in rows]
    async with agentwire.open(scenario) as wire:
        assert len({info.pid for info in wire.agents.values()}) == 2
        many = wire.send_many("sender", "receiver", texts, batch_size=16)
        batched = [reply async for batch in many for reply in batch]
        single = [await wire.send("sender", "receiver", text) for text in texts]
    yield {16: batched, 1: single}


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def in_process(rows: list[Example]) -> npt.NDArray[np.float32]:
    """Scores [32, 2] of the same pipeline without processes and bus, one row at a time."""
    from agentwire.model.transformers import TransformersBackend

    config = Config.from_env()

    def load(model: str) -> TransformersBackend:
        folder = str(locate(model, config=config).folder)
        spec = AgentSpec(name="x", backend="transformers", model=model, folder=folder)
        return TransformersBackend.load(spec, lambda stage, fraction: None)

    task = load_definition(DATASET).spec()
    with torch_threads(1):  # with one row, more threads only wait for each other
        sender = load(SENDER)
        bridge = sender.add_bridge(BRIDGE).fingerprint
        payloads = [sender.encode([row.text], bridge).payload for row in rows]
        del sender
        receiver = load(RECEIVER)
        return np.concatenate([receiver.score_soft(p, task).scores for p in payloads])


def right(rows: list[Example], chosen: list[int | None]) -> float:
    return sum(row.label == label for row, label in zip(rows, chosen, strict=True)) / len(rows)


def test_its_card() -> None:
    if not (BRIDGE / CARD_FILE).is_file():
        pytest.skip(f"there is no bridge {BRIDGE.name} (it ships under bridges/)")
    card = verify(BRIDGE)
    assert card.name == BRIDGE.name
    assert (card.sender.model, card.receiver.model) == (SENDER, RECEIVER)
    assert (card.sender.fingerprint, card.receiver.fingerprint) == (
        MODELS[SENDER].sha256,
        MODELS[RECEIVER].sha256,
    )
    identity = card.identity()
    assert identity.soft_tokens * identity.width * 2 == PAYLOAD_BYTES
    assert card.prompts == (load_definition(DATASET).spec().prompt_hash,)
    assert (card.training.dataset, card.training.split) == (DATASET, "train")


@pytest.mark.parametrize("batch", [1, 16])
def test_soft_tokens_carry_the_class_of_a_text(
    rows: list[Example], through_bus: dict[int, list[Reply]], batch: int
) -> None:
    replies = through_bus[batch]
    assert {(r.channel, r.reason, r.payload_bytes) for r in replies} == {
        (Channel.SOFT, "", PAYLOAD_BYTES)
    }
    assert right(rows, [r.label_index for r in replies]) >= WELL_ABOVE_CHANCE


@pytest.mark.parametrize("batch", [1, 16])
def test_the_bus_changes_no_prediction(
    through_bus: dict[int, list[Reply]], in_process: npt.NDArray[np.float32], batch: int
) -> None:
    for reply, scores in zip(through_bus[batch], in_process, strict=True):
        assert list(reply.scores.values()) == pytest.approx(scores.tolist(), abs=0.03)
        # Rounding may change the label only where both scores are close.
        if abs(float(scores[0] - scores[1])) > 0.03:
            assert reply.label_index == int(scores.argmax())
