"""Methods for tasks that are answered in words: text of limited length, and controls.

The text methods run on the agents. ``zero_payload`` and ``mean_payload`` are computed in the
runner's process, because an agent refuses a payload whose RMS is not the bridge's.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread

from agentwire.bridge.shape import ReaderShape
from agentwire.config import Config
from agentwire.download import OnProgress
from agentwire.errors import ScenarioError
from agentwire.evaluation.methods.base import QUESTIONS, MethodSpec
from agentwire.runtime.reply import Reply
from agentwire.scenario.resolve import Resolved
from agentwire.spec.backends import BACKENDS
from agentwire.spec.scenario import DataChoice
from agentwire.task.datasets import TRAIN_SPLIT, AnswerRow, Dataset, load_rows
from agentwire.task.definitions import AnswerDefinition, load_answer_task
from agentwire.task.holdout import without_overlap
from agentwire.training.baselines.baseline import receiver_model, sender_model
from agentwire.wire.messages import Channel

if TYPE_CHECKING:
    import numpy.typing as npt

    from agentwire.model.transformers import TransformersBackend
    from agentwire.runtime.pending import Outcome
    from agentwire.runtime.runtime import Runtime

SHOTS = 3
SHOT_WORDS = 150
"""Longest passage of a solved example, so that three of them leave room for the text."""
MEAN_ROWS = 64
"""Texts over which ``mean_payload`` takes the mean."""


def _data(resolved: Resolved) -> DataChoice:
    if resolved.data is None:
        raise ScenarioError("the scenario has no `task:`.", hint="Add a task with a dataset.")
    return resolved.data


def _task(resolved: Resolved) -> AnswerDefinition:
    return load_answer_task(_data(resolved).dataset)


def _rows(resolved: Resolved, split: str = "") -> Dataset[AnswerRow]:
    """The scored split, or another one."""
    data, config = _data(resolved), Config.from_env()
    return load_rows(data.dataset, split or data.split, config=config, path=data.path)


# -- text


@cache
def _tokenizer(folder: str) -> Any:
    from agentwire.model.transformers import load_tokenizer

    return load_tokenizer(Path(folder))


def _ends(resolved: Resolved, agent: str, text: str) -> list[int]:
    """Where each token of an agent's model ends in ``text``; of a fake model, each word."""
    spec = resolved.agents[agent]
    if not BACKENDS.get(spec.backend).needs_weights or spec.folder is None:
        words = text.split(" ")
        return [len(" ".join(words[: n + 1])) for n in range(len(words))]
    encoded = _tokenizer(spec.folder)(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return [end for _, end in encoded["offset_mapping"]]


def budget(resolved: Resolved, text: str) -> int:
    """M of a text: the wire's, or with ``soft_tokens: auto`` as the bridge chooses it."""
    wire = resolved.wire
    if wire.spec.soft_tokens:
        return wire.spec.soft_tokens
    shape = wire.card.shape if wire.card is not None else None
    if not isinstance(shape, ReaderShape):
        raise ScenarioError(
            f"wire {wire.spec.name}: `soft_tokens: auto` needs a reader bridge.",
            hint="Set `soft_tokens` to a number.",
        )
    return shape.size_for(len(_ends(resolved, wire.spec.sender, text)))


def cut(resolved: Resolved, text: str) -> str:
    """The first M tokens of the receiver's model."""
    ends = _ends(resolved, resolved.wire.spec.receiver, text)[: budget(resolved, text)]
    return text[: ends[-1]] if ends else ""


async def _send_cut(
    runtime: Runtime, resolved: Resolved, texts: Sequence[str], questions: Sequence[str]
) -> list[Outcome]:
    short = await anyio.to_thread.run_sync(lambda: [cut(resolved, text) for text in texts])
    return await runtime.direct_batch(resolved.wire.spec.receiver, short, question=questions)


async def _send_no_text(
    runtime: Runtime, resolved: Resolved, texts: Sequence[str], questions: Sequence[str]
) -> list[Outcome]:
    nothing = [""] * len(texts)
    return await runtime.direct_batch(resolved.wire.spec.receiver, nothing, question=questions)


async def _send_summary(
    runtime: Runtime, resolved: Resolved, texts: Sequence[str], questions: Sequence[str]
) -> list[Outcome]:
    """The sender's summary, of at most M tokens (with ``soft_tokens: auto``, the largest size)."""
    wire = resolved.wire
    most = wire.spec.soft_tokens or (wire.card.soft_tokens if wire.card else 0)
    relay = replace(_task(resolved).spec().relay, max_new_tokens=max(1, most))
    ends = (wire.spec.sender, wire.spec.receiver)
    return await runtime.send_batch(*ends, texts, channel="text", relay=relay, question=questions)


def solved_examples(task: AnswerDefinition, rows: Sequence[AnswerRow]) -> str:
    """What to write before a text, so that the text prompt shows solved examples first."""
    solved = [
        _filled(task.text_prompt, row.text, row.question) + f" {row.answers[0]}\n\n" for row in rows
    ]
    before = task.text_prompt.partition("{text}")[0]
    return ("".join(solved) + before).removeprefix(before)


def _filled(prompt: str, text: str, question: str) -> str:
    before, _, after = prompt.partition("{text}")
    return before.replace("{question}", question) + text + after.replace("{question}", question)


_EXAMPLES: WeakKeyDictionary[Runtime, str] = WeakKeyDictionary()


async def _choose_examples(runtime: Runtime, resolved: Resolved, progress: OnProgress) -> None:
    def choose() -> str:
        known = without_overlap(_rows(resolved, TRAIN_SPLIT), _rows(resolved)).rows
        short = [row for row in known if len(row.text.split()) <= SHOT_WORDS]
        draw = random.Random(resolved.scenario.seed)
        return solved_examples(_task(resolved), draw.sample(short, min(SHOTS, len(short))))

    _EXAMPLES[runtime] = await anyio.to_thread.run_sync(choose)


async def _send_few_shot(
    runtime: Runtime, resolved: Resolved, texts: Sequence[str], questions: Sequence[str]
) -> list[Outcome]:
    longer = [_EXAMPLES[runtime] + text for text in texts]
    return await runtime.direct_batch(resolved.wire.spec.receiver, longer, question=questions)


# -- controls


async def send_shuffled(
    runtime: Runtime, resolved: Resolved, texts: Sequence[str], questions: Sequence[str]
) -> list[Outcome]:
    """The soft tokens of another text of the scored split with each question."""
    rows = await anyio.to_thread.run_sync(lambda: _rows(resolved).rows)
    known = sorted({row.text for row in rows})
    others = []
    for text, question in zip(texts, questions, strict=True):
        # The row seeds the choice, so that a resumed run gives it the same other text.
        draw = random.Random(f"{resolved.scenario.seed}:{text}:{question}")
        others.append(draw.choice([other for other in known if other != text]))
    wire = resolved.wire.spec
    return await runtime.send_batch(
        wire.sender, wire.receiver, others, channel="soft", question=questions
    )


@dataclass(slots=True)
class _LocalReader:
    """The receiver with its half of the bridge, in this process."""

    receiver: TransformersBackend
    fingerprint: str
    zeros: npt.NDArray[Any]  # [1, M, width], float16
    mean: npt.NDArray[Any]  # as ``zeros``, which it is until ``mean_payload`` needs it
    lock: anyio.Lock = field(default_factory=anyio.Lock)


_LOCAL: WeakKeyDictionary[Runtime, _LocalReader] = WeakKeyDictionary()


async def _load_local(runtime: Runtime, resolved: Resolved) -> None:
    def load() -> _LocalReader:
        import numpy as np

        from agentwire.training.models import load_agent

        wire = resolved.wire
        if wire.card is None or wire.card.reader is None or wire.folder is None:
            raise ScenarioError(
                f"wire {wire.spec.name} has no reader bridge, whose payload could be replaced.",
                hint="Remove zero_payload and mean_payload from `methods`.",
            )
        receiver = load_agent(resolved, wire.spec.receiver, lambda stage, done: None)
        identity = receiver.add_reader(wire.folder)
        m = wire.spec.soft_tokens or identity.soft_tokens
        zeros = np.zeros((1, m, identity.width), dtype=np.float16)
        return _LocalReader(receiver, identity.fingerprint, zeros, zeros)

    if runtime not in _LOCAL:
        _LOCAL[runtime] = await anyio.to_thread.run_sync(load)


async def _load_mean(runtime: Runtime, resolved: Resolved, progress: OnProgress) -> None:
    await _load_local(runtime, resolved)
    local, wire = _LOCAL[runtime], resolved.wire

    def compute() -> npt.NDArray[Any]:
        import numpy as np

        from agentwire.training.models import load_agent

        sender = load_agent(resolved, wire.spec.sender, lambda stage, done: None)
        identity = sender.add_bridge(wire.folder)  # type: ignore[arg-type]
        rows, total = _rows(resolved).rows, local.zeros.astype(np.float64)
        draw = random.Random(resolved.scenario.seed)
        chosen = draw.sample(rows, min(MEAN_ROWS, len(rows)))
        for row in chosen:
            encoded = sender.encode([row.text], identity.fingerprint, total.shape[1])
            total += encoded.payload
        return (total / len(chosen)).astype(np.float16)

    local.mean = await anyio.to_thread.run_sync(compute)


async def _answer_locally(
    runtime: Runtime,
    resolved: Resolved,
    questions: Sequence[str],
    payload: Callable[[_LocalReader], npt.NDArray[Any]],
) -> list[Outcome]:
    from agentwire.model.backend import Asked

    await _load_local(runtime, resolved)
    local, task = _LOCAL[runtime], _task(resolved).spec()
    rows = payload(local).repeat(len(questions), axis=0)
    asked = Asked(tuple(questions), local.fingerprint)
    start = time.perf_counter()
    async with local.lock:
        made = await anyio.to_thread.run_sync(
            lambda: local.receiver.generate_soft(rows, task, None, asked)
        )
    ms = (time.perf_counter() - start) * 1000
    return [
        Reply(
            request_id=uuid.uuid4().hex,
            label=None,
            label_index=None,
            scores={},
            text=text,
            channel=Channel.TEXT,
            reason="",
            stages={"decode": ms},
            latency_ms=ms,
            payload_bytes=0,
            prompt_tokens=read,
            completion_tokens=written,
        )
        for text, (read, written) in zip(made.texts, made.tokens, strict=True)
    ]


async def send_zeros(
    runtime: Runtime, resolved: Resolved, questions: Sequence[str]
) -> list[Outcome]:
    return await _answer_locally(runtime, resolved, questions, lambda local: local.zeros)


async def _send_mean(
    runtime: Runtime, resolved: Resolved, texts: Sequence[str], questions: Sequence[str]
) -> list[Outcome]:
    return await _answer_locally(runtime, resolved, questions, lambda local: local.mean)


QUESTION_ONLY = MethodSpec(
    "question_only",
    "question only",
    lambda r: f"{receiver_model(r)} reads no text",
    _send_no_text,
    kinds=QUESTIONS,
)
SUMMARY_BUDGET = MethodSpec(
    "summary_budget",
    "summary budget",
    lambda r: f"{sender_model(r)} -> its summary of at most M tokens -> {receiver_model(r)}",
    _send_summary,
    uses_soft_tokens=True,
    kinds=QUESTIONS,
)
TOKEN_BUDGET = MethodSpec(
    "token_budget",
    "token budget",
    lambda r: f"{receiver_model(r)} reads the first {r.wire.spec.soft_tokens or 'M'} tokens",
    _send_cut,
    uses_soft_tokens=True,
    kinds=QUESTIONS,
)
RECEIVER_FEW_SHOT = MethodSpec(
    "receiver_few_shot",
    "receiver, few-shot",
    lambda r: f"{receiver_model(r)} reads {SHOTS} solved examples and the text",
    _send_few_shot,
    prepare=_choose_examples,
    trains_on=QUESTIONS,
    kinds=QUESTIONS,
)
MEAN_PAYLOAD = MethodSpec(
    "mean_payload",
    "mean payload",
    lambda r: f"mean soft tokens of {sender_model(r)} -> {receiver_model(r)}",
    _send_mean,
    prepare=_load_mean,
    uses_soft_tokens=True,
    kinds=QUESTIONS,
)
