"""From a resolved scenario to what a benchmark starts: agents, batches, task and texts."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from agentwire.benchmark.methods import REPLICA
from agentwire.benchmark.texts import WORDS, Count, counter, make_texts
from agentwire.errors import ScenarioError
from agentwire.runtime.deployment import Deployment
from agentwire.scenario.resolve import Resolved
from agentwire.spec.agent import AgentSpec
from agentwire.spec.scenario import BenchPlan
from agentwire.task.definitions import load_definition
from agentwire.wire.messages import RelaySpec, TaskSpec

LABELS = ("good", "bad")
RELAY_TEMPLATE = "Summarize the following text in one short sentence.\n\n{text}"
RELAY_TOKENS = 50
TEXTS = 256
"""Different texts of each length; messages take them in turn."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a benchmark starts.

    Attributes:
        resolved: the scenario on this machine, its models fetched.
        plan: what is measured.
        wiring: agents, with a replica of the receiver where one is measured; the task.
        sender, receiver: ends of the wire.
        replica: name of the receiver's copy; None: not measured.
    """

    resolved: Resolved
    plan: BenchPlan
    deployment: Deployment
    sender: str
    receiver: str
    replica: str | None

    @property
    def task(self) -> TaskSpec:
        """What the receiver is asked."""
        assert self.deployment.task is not None  # setting_of gives it one
        return self.deployment.task

    def texts(self, tokens: int) -> list[str]:
        """Made-up texts of so many tokens of the sender."""
        return make_texts(self._count(), tokens, TEXTS, self.resolved.scenario.seed)

    def _count(self) -> Count:
        folder = self.deployment.agents[self.sender].folder
        return counter(Path(folder) if folder else None)


def setting_of(resolved: Resolved, plan: BenchPlan) -> Setting:
    """What to start for a resolved and fetched scenario.

    Raises:
        ScenarioError: nothing says what the receiver is asked.
    """
    wire = resolved.wire.spec
    if wire.joint:
        raise ScenarioError(
            f"wire {wire.set_name} has several senders, which no benchmark measures yet.",
            hint="Measure a wire with one sender.",
        )
    largest = max(*plan.batch_sizes, plan.length_batch, 1)
    task = task_of(resolved, plan)
    # A message is one batch, whatever else waits: a figure for 16 rows is one of 16 rows.
    agents = {
        name: spec.model_copy(
            update={
                "max_batch": largest,
                "max_wait_ms": 0.0,
                "batch_by": "message",
                "task": task,
            }
        )
        for name, spec in resolved.agents.items()
    }
    replica = None
    if "receiver_replicas" in plan.methods:
        replica = f"{wire.receiver}-{REPLICA}"
        agents[replica] = _replica(replica, agents[wire.receiver], agents[wire.sender])
    deployment = replace(Deployment.of(resolved), agents=agents, task=task)
    return Setting(resolved, plan, deployment, wire.sender, wire.receiver, replica)


def _replica(name: str, receiver: AgentSpec, sender: AgentSpec) -> AgentSpec:
    """A copy of the receiver on the sender's device and threads, on no wire."""
    return receiver.model_copy(
        update={
            "name": name,
            "device": sender.device,
            "threads": sender.threads,
            "cpu_shares": sender.cpu_shares,
            "cpu_share_of": sender.name,
            "bridges": (),
            "incoming": (),
            "soft_tokens": (),
            "fallback": {},
        }
    )


def task_of(resolved: Resolved, plan: BenchPlan) -> TaskSpec:
    """The task of every message.

    Raises:
        ScenarioError: neither the plan nor the scenario names one.
    """
    data = resolved.data
    name = plan.task or (data.dataset if data is not None else None)
    if name is not None:
        task = load_definition(name).spec()
    elif plan.prompt_tokens is not None:
        task = TaskSpec("bench", "", "{text}", LABELS, RelaySpec(RELAY_TEMPLATE, RELAY_TOKENS))
    else:
        raise ScenarioError(
            "nothing says what the receiver is asked in the benchmark.",
            hint="Give bench.task (a dataset's name) or bench.prompt_tokens in the scenario.",
        )
    if plan.prompt_tokens is not None:
        prompt = _prompt(plan.prompt_tokens, _receiver_count(resolved), resolved.scenario.seed)
        task = replace(task, prompt=prompt, text_prompt="{text} " + prompt)
    if plan.generated_tokens is not None:
        relay = replace(task.relay, max_new_tokens=plan.generated_tokens)
        task = replace(task, relay=relay)
    return task


def _receiver_count(resolved: Resolved) -> Count:
    folder = resolved.agents[resolved.wire.spec.receiver].folder
    return counter(Path(folder) if folder else None)


def _prompt(tokens: int, count: Count, seed: int) -> str:
    (prompt,) = make_texts(count, tokens, 1, seed)
    return prompt or random.Random(seed).choice(WORDS)
