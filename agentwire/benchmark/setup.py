"""From a resolved scenario to what a benchmark starts: agents, batches, task and texts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from agentwire.errors import ScenarioError
from agentwire.runtime.deployment import Deployment
from agentwire.scenario.resolve import Resolved
from agentwire.spec.backends import BACKENDS
from agentwire.spec.scenario import BenchPlan
from agentwire.task.definitions import load_classification
from agentwire.wire.messages import RelaySpec, TaskSpec

RELAY = RelaySpec("Summarize the following text in one short sentence.\n\n{text}", 50)
MADE_UP = TaskSpec("bench", "", "{text}", ("good", "bad"), RELAY)
TEXTS = 256
"""Different texts of each length; messages take them in turn."""
_FREQUENT = """
the film story cast music scene light time world heart night house water road city voice
hand face life love war child woman man friend year day place part line book word game work
good bad long short new old small great slow fast dark warm cold deep high low true strong
with from into over under about after before and but for not that this they have will can
"""
WORDS = tuple(_FREQUENT.split())
"""Frequent words: one token each in most vocabularies."""
ATTEMPTS = 200

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class BenchSetup:
    """What a benchmark starts."""

    resolved: Resolved  # the scenario on this machine, its models fetched
    plan: BenchPlan
    deployment: Deployment  # its agents, and a copy of the receiver if replicas are measured
    sender: str
    receiver: str
    replica: str | None  # name of the receiver's copy; None: not measured

    @property
    def task(self) -> TaskSpec:
        assert self.deployment.task is not None  # setup_of sets it
        return self.deployment.task

    def texts(self, tokens: int) -> list[str]:
        """Made-up texts of this many tokens of the sender."""
        count = counter(self.deployment.agents[self.sender].folder)
        return make_texts(count, tokens, TEXTS, self.resolved.scenario.seed)

    def labels(self) -> list[str]:
        """Conditions that a reader of the figures must know."""
        labels = [
            f"{s.used} stands in for {s.wanted}: {s.reason}" for s in self.resolved.substitutions
        ]
        agents = self.deployment.agents
        random = [name for name, spec in agents.items() if spec.weights == "random"]
        if random:
            labels.append(f"random weights ({', '.join(random)}): speed only, answers mean nothing")
        fake = [n for n, spec in agents.items() if not BACKENDS.get(spec.backend).needs_weights]
        if fake:
            labels.append(f"fake models ({', '.join(fake)}): no language model was measured")
        labels.append("texts are made of random words; accuracy is not measured")
        return labels


def setup_of(resolved: Resolved, plan: BenchPlan) -> BenchSetup:
    """What to start; raises ScenarioError without a task, or if the wire cannot be measured."""
    wire = resolved.wire.spec
    if wire.joint:
        raise ScenarioError(
            f"Wire {wire.set_name} has several senders; benchmarks measure wires with one.",
            hint="Measure a wire with one sender.",
        )
    task = _task_of(resolved, plan)
    # A message is one batch, so that a figure for 16 rows is one of batches of 16 rows.
    batching = {
        "max_batch": max(*plan.batch_sizes, plan.length_batch),
        "max_wait_ms": 0.0,
        "batch_by": "message",
        "task": task,
    }
    agents = {name: spec.model_copy(update=batching) for name, spec in resolved.agents.items()}
    replica = None
    if "receiver_replicas" in plan.methods:
        replica = f"{wire.receiver}-replica"
        sender = agents[wire.sender]
        # A copy of the receiver on the sender's device and threads, without wires.
        changes: dict[str, object] = {
            "name": replica,
            "device": sender.device,
            "threads": sender.threads,
            "cpu_shares": sender.cpu_shares,
            "cpu_share_of": sender.name,
            "bridges": (),
            "incoming": (),
            "soft_tokens": (),
            "fallback": {},
        }
        agents[replica] = agents[wire.receiver].model_copy(update=changes)
    deployment = replace(Deployment.of(resolved), agents=agents, task=task)
    return BenchSetup(resolved, plan, deployment, wire.sender, wire.receiver, replica)


def _task_of(resolved: Resolved, plan: BenchPlan) -> TaskSpec:
    """The task of every message; raises ScenarioError if none is named."""
    name = plan.task or (resolved.data.dataset if resolved.data is not None else None)
    if name is None and plan.prompt_tokens is None:
        raise ScenarioError(
            "The benchmark has no task.",
            hint="Set bench.task (a dataset's name) or bench.prompt_tokens in the scenario.",
        )
    task = MADE_UP if name is None else load_classification(name).spec()
    if plan.prompt_tokens is not None:
        receiver = resolved.agents[resolved.wire.spec.receiver]
        count, seed = counter(receiver.folder), resolved.scenario.seed
        (prompt,) = make_texts(count, plan.prompt_tokens, 1, seed)
        task = replace(task, prompt=prompt, text_prompt="{text} " + prompt)
    if plan.generated_tokens is not None:
        task = replace(task, relay=replace(task.relay, max_new_tokens=plan.generated_tokens))
    return task


def count_words(text: str) -> int:
    """Stands in for a tokenizer that is not on this machine."""
    return len(text.split())


def counter(folder: Path | str | None) -> Count:
    """Counts tokens with the tokenizer in ``folder``, or words if there is none."""
    file = None if folder is None else Path(folder, "tokenizer.json")
    if file is None or not file.is_file():
        return count_words
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def make_texts(count: Count, tokens: int, amount: int, seed: int) -> list[str]:
    """``amount`` texts of ``tokens`` tokens each, or of the nearest length below that was found."""
    draw = random.Random(f"{seed} {tokens}")
    return [_text(count, tokens, draw) for _ in range(amount)]


def _text(count: Count, tokens: int, draw: random.Random) -> str:
    words = [draw.choice(WORDS) for _ in range(tokens)]
    best = ""
    for _ in range(ATTEMPTS):
        text = " ".join(words)
        size = count(text)
        if size == tokens:
            return text
        if size < tokens:
            best = text
            words.append(draw.choice(WORDS))
        else:
            del words[: max(1, min(size - tokens, len(words) - 1))]
    return best or WORDS[0]
