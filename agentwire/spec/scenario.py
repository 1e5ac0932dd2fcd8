"""The scenario file: what it may say, checked by pydantic (unknown keys are refused).

``load.py`` reads the YAML, follows ``use:`` to agent files and turns every validation error into
one line with the nearest key. Nothing in here touches disk, network, torch or the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from agentwire.spec.agent import GraphSpec, Placement
from agentwire.spec.backends import BackendName
from agentwire.spec.launchers import LauncherName
from agentwire.spec.methods import MethodName
from agentwire.spec.routes import processes_of

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
"""Names of agents and scenarios: lower case, digits, ``_`` and ``-``."""


MOST_REPLICAS = 64
MOST_ROUTES = 1024
"""Wires that may have credit at once (``wire.credit.CreditGate``)."""


class SchemaModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelChoice(SchemaModel):
    """One model on one device.

    Attributes:
        model: registry name (``agentwire models list``), hub name, or a local folder.
        path: local folder with the weights, tried first.
        weights: ``random`` builds the model's exact shape without weights (speed only).
        layer: hidden states are read after this many layers, when this agent sends.
        device: ``auto`` takes a free GPU, else the CPU.
        devices: of an agent with replicas, the device of each.
        backend: what computes the model (docs/engines.md); other packages may add backends.
        engine: of ``backend: transformers``. ``static`` computes by hand-written forward passes in
            captured shapes; ``auto`` does so on a GPU, and else (or where the model is not one of
            those) as transformers do.
        place: what the agent needs of its machine, where a launcher chooses it.
        graphs: which shapes the static engine captures when the agent starts.
        max_wait_ms: how long the first row of a batch waits for company.
        rehearse: the agent keeps its code in the caches between messages, which costs up to a
            third of a core while they come (docs/design/engine.md); default: on a GPU.
    """

    model: str
    path: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    layer: Annotated[int, Field(ge=1)] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda:\d+)$")] = "auto"
    devices: list[Annotated[str, Field(pattern=r"^(auto|cpu|cuda:\d+)$")]] = []
    threads: Annotated[int, Field(ge=1)] | None = None
    backend: BackendName = "transformers"
    engine: Literal["auto", "transformers", "static"] = "auto"
    place: Placement = Field(default_factory=Placement)
    graphs: GraphSpec = Field(default_factory=GraphSpec)
    max_wait_ms: Annotated[float, Field(ge=0, le=10_000)] = 2.0
    rehearse: bool | None = None


class Agent(ModelChoice):
    """An agent, and the model that may stand in where its own cannot run.

    Attributes:
        replicas: how many processes it is, between which requests are balanced; default: one for
            each of ``devices``, or one.
    """

    FILE_KEYS: ClassVar = {"use"}
    """Keys that only files have; the reader replaces them."""

    stand_in: ModelChoice | None = None
    replicas: Annotated[int, Field(ge=1, le=MOST_REPLICAS)] | None = None

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.replicas or max(1, len(self.devices))

    @model_validator(mode="after")
    def _each_replica_has_a_device(self) -> Agent:
        for choice in (self, self.stand_in):
            if choice is None or not choice.devices:
                continue
            if choice.device != "auto":
                raise ValueError("give `device` or `devices`, not both")
            if len(choice.devices) != self.processes:
                raise ValueError(
                    f"{len(choice.devices)} devices for {self.processes} replicas: give one for "
                    "each"
                )
        return self


class WireSpec(SchemaModel):
    """A directed edge between two agents.

    Attributes:
        bridge: folder name of the bridge, or ``auto``: ``<sender>--<receiver>--<dataset>`` of the
            models and data that really run. ``auto--m16`` adds ``--m16`` to that name.
        soft_tokens: M.
        fallback: where soft tokens cannot be had: relay as ``text``, or end in an ``error``.
        when_down: where the sender is gone for good (its restart budget is spent): end in an
            ``error`` at once, or hand the ``text`` itself to the receiver.
        joint: of a wire that several senders share (``from: [a, b]``), all of them, in the order in
            which the receiver reads their soft tokens.
        reads: of such a wire, what each sender reads of a text: all of it, or its ``share``, which
            is as many words as the others', one after the other.
    """

    sender: Name = Field(alias="from")
    receiver: Name = Field(alias="to")
    bridge: str = "auto"
    soft_tokens: Annotated[int, Field(ge=1, le=512)] = 8
    fallback: Literal["text", "error"] = "text"
    when_down: Literal["text", "error"] = "error"
    joint: tuple[Name, ...] = ()
    reads: Literal["whole", "share"] = "whole"

    @model_validator(mode="after")
    def _joins_several(self) -> WireSpec:
        if self.joint and (len({*self.joint}) != len(self.joint) or len(self.joint) < 2):
            raise ValueError("`from: [...]` takes two senders or more, each once")
        if self.joint and self.sender not in self.joint:
            raise ValueError(f"{self.sender} is not among {', '.join(self.joint)}")
        if self.reads != "whole" and not self.joint:
            raise ValueError("`reads` is of a wire with several senders (`from: [a, b]`)")
        return self

    @property
    def place(self) -> int:
        """Where its soft tokens stand among those that are read together, from 1."""
        return self.joint.index(self.sender) + 1 if self.joint else 1

    @property
    def set_name(self) -> str:
        """Name of the whole wire, where several senders share it: ``a+b->c``."""
        return f"{'+'.join(self.joint or (self.sender,))}->{self.receiver}"

    @property
    def auto_bridge(self) -> bool:
        """Whether the bridge is named after what really runs."""
        return self.bridge == "auto" or self.bridge.startswith("auto--")

    @property
    def name(self) -> str:
        """Wire id on the bus."""
        return f"{self.sender}->{self.receiver}"


def fanned(wire: Any) -> list[Any]:
    """The wires that one entry of ``wires:`` stands for.

    ``to: [a, b]`` is a wire to each, ``from: [a, b]`` one from each, whose soft tokens are read
    together.
    """
    if not isinstance(wire, dict):
        return [wire]
    senders, receivers = wire.get("from"), wire.get("to")
    if isinstance(receivers, list) and not isinstance(senders, list):
        return [{**wire, "to": receiver} for receiver in receivers] or [wire]
    if isinstance(senders, list) and not isinstance(receivers, list):
        return [{**wire, "from": sender, "joint": senders} for sender in senders] or [wire]
    return [wire]


class DataChoice(SchemaModel):
    """A task, and the rows of it that are scored.

    Attributes:
        dataset: name of the task (``agentwire data list``), which has prompts, labels and rows; or
            the path of a task file, which is what ``file`` sets.
        file: task file of your own (docs/tasks.md), relative to the scenario.
        path: JSONL file or folder to take the rows from instead.
        split: the split that is scored.
    """

    dataset: str
    file: str | None = None
    path: str | None = None
    split: str = "test"

    @model_validator(mode="before")
    @classmethod
    def _a_file_stands_for_a_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("file") is None:
            return data
        if data.get("dataset", data["file"]) != data["file"]:
            raise ValueError("give `dataset` or `file`, not both")
        return {**data, "dataset": data["file"]}


class TaskChoice(DataChoice):
    """What is asked, on which rows, and which data may stand in."""

    stand_in: DataChoice | None = None


class TrainSpec(SchemaModel):
    """How ``agentwire train`` trains the scenario's bridge.

    Attributes:
        architecture: of the bridge (docs/design/bridge.md).
        average: decay of the moving average of the weights, which is what is evaluated and shipped.
        balanced: draw every class equally often instead of every row.
        diversity: weight of a loss that pushes soft tokens apart (``bridge.diversity``); 0: off.
        patience: evaluations on held-out rows without a better one that end the training; 0: off.
        precision: of the frozen receiver; ``auto`` is bfloat16 on a GPU, float32 on a CPU. What is
            trained is always float32.
        max_rows: training rows to use; 0: all.
    """

    steps: Annotated[int, Field(ge=1)] = 1500
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip: Annotated[float, Field(gt=0)] = 1.0
    architecture: str = "resampler"
    hidden: Annotated[int, Field(ge=8)] = 256
    blocks: Annotated[int, Field(ge=1)] = 2
    heads: Annotated[int, Field(ge=1)] = 8
    feed_forward: Annotated[int, Field(ge=1)] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    token_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.995
    balanced: bool = False
    diversity: Annotated[float, Field(ge=0)] = 0.0
    diversity_form: Literal["orthogonality", "entropy"] = "orthogonality"
    patience: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    held_out: Annotated[int, Field(ge=16)] = 1000
    max_rows: Annotated[int, Field(ge=0)] = 0
    evaluate_every: Annotated[int, Field(ge=1)] = 250
    max_text_tokens: Annotated[int, Field(ge=8)] = 96
    seed: int = 0

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> TrainSpec:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


BenchMethod = Literal["bridge", "receiver_direct", "receiver_replicas", "text_relay", "in_process"]
"""What ``agentwire bench`` compares (``benchmark.methods`` explains each)."""


class BenchPlan(SchemaModel):
    """What ``agentwire bench`` measures, and how often.

    Attributes:
        task: dataset whose prompts and labels are used (no rows of it); null: the scenario's.
        prompt_tokens: instead of the task's prompt, one of so many made-up words, which the bridge
            must not mind (``prompts: any``).
        batch_sizes: rows of one message, and of one batch of compute.
        text_tokens: length of the texts in the sender's tokens. At the first one the batch sizes
            are compared, at the others only ``length_batch`` rows.
        generated_tokens: longest message of text relay; null: what the task says.
        relay_batch_sizes: batch sizes of text relay; null: all. It may take minutes where the
            others take a second.
        in_flight: messages outstanding while throughput is measured (for each replica).
        warm_up: messages of each method and size that are not counted.
        rounds: how often all of them take turns; figures are medians over rounds.
        messages: most messages of one latency figure, over all rounds.
        seconds: of one method and size in one round.
        latency_seconds: the same where latency is measured; null: ``seconds``.
    """

    task: str | None = None
    prompt_tokens: Annotated[int, Field(ge=1, le=1024)] | None = None
    batch_sizes: list[Annotated[int, Field(ge=1, le=256)]] = Field(
        default=[1, 4, 16, 64], min_length=1
    )
    text_tokens: list[Annotated[int, Field(ge=1, le=4096)]] = Field(default=[48], min_length=1)
    length_batch: Annotated[int, Field(ge=1, le=256)] = 16
    generated_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    relay_batch_sizes: list[Annotated[int, Field(ge=1, le=256)]] | None = None
    methods: list[BenchMethod] = Field(
        default=["bridge", "receiver_direct", "receiver_replicas", "text_relay"], min_length=1
    )
    in_flight: Annotated[int, Field(ge=1, le=16)] = 4
    warm_up: Annotated[int, Field(ge=0, le=100)] = 2
    rounds: Annotated[int, Field(ge=1, le=100)] = 3
    messages: Annotated[int, Field(ge=3)] = 300
    seconds: Annotated[float, Field(gt=0)] = 2.0
    latency_seconds: Annotated[float, Field(gt=0)] | None = None


class BenchSpec(BenchPlan):
    """The plan of ``agentwire bench``; ``on_cpu`` is the whole plan where an agent has no GPU."""

    on_cpu: BenchPlan | None = None


class LayerChoice(SchemaModel):
    """A sender's layer in the model that is named, and in the one that may stand in for it."""

    named: Annotated[int, Field(ge=1)]
    stand_in: Annotated[int, Field(ge=1)]


if TYPE_CHECKING:

    class TrainAxes(SchemaModel):
        """Settings of ``TrainSpec`` as axes: each has a list of values."""
else:
    _AXES = {
        name: (
            # ``Annotated`` wants something to annotate with.
            list[
                Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            ],
            Field(None, min_length=1),
        )
        for name, field in TrainSpec.model_fields.items()
        if name != "seed"  # ``matrix.seeds``
    }
    TrainAxes = create_model("TrainAxes", __base__=SchemaModel, **_AXES)


class MatrixSpec(SchemaModel):
    """Axes of an experiment: every combination of their values is a cell, with its own bridge.

    Attributes:
        combine: ``product``: every combination. ``one_at_a_time``: layers, soft tokens and train
            settings vary one at a time around the scenario's own values (wires, tasks and seeds
            are still combined with each).
        missing: where a cell's bridge is not here and is not to be trained: ``error``, or ``skip``
            that cell and say so.
        seeds: of the bridge's training; figures are means over them.
        soft_tokens: M of the measured wire.
        layers: of the measured wire's sender.
        wires: measured wires by name, ``a->b``; default: the first.
        tasks: as the scenario's ``task``.
        train: any setting of ``train``, with a list of values.
    """

    combine: Literal["product", "one_at_a_time"] = "product"
    missing: Literal["error", "skip"] = "error"
    seeds: list[int] = []
    soft_tokens: list[Annotated[int, Field(ge=1, le=512)]] = []
    layers: list[Annotated[int, Field(ge=1)] | LayerChoice] = []
    wires: list[str] = []
    tasks: list[TaskChoice] = []
    train: TrainAxes = Field(default_factory=TrainAxes)

    @field_validator("seeds", "soft_tokens", "layers", "wires", "tasks")
    @classmethod
    def _values_are_distinct(cls, values: list[Any]) -> list[Any]:
        for i, value in enumerate(values):
            if value in values[:i]:
                raise ValueError(f"{value!r} is given twice")
        return values

    @model_validator(mode="after")
    def _has_an_axis(self) -> MatrixSpec:
        if not (self.axes() or self.wires or self.tasks or self.seeds):
            raise ValueError("no axis is given (seeds, soft_tokens, layers, wires, tasks, train)")
        return self

    def axes(self) -> dict[str, list[Any]]:
        """What varies in the bridge, seeds apart: ``layer``, ``soft_tokens``, ``train.…``."""
        train = {f"train.{k}": v for k, v in self.train.model_dump(exclude_none=True).items()}
        return {
            name: values
            for name, values in (
                ("layer", self.layers),
                ("soft_tokens", self.soft_tokens),
                *train.items(),
            )
            if values
        }


class Scenario(SchemaModel):
    """One experiment: agents, wires, and (optionally) a task to run through them.

    Attributes:
        launcher: ``local``: every agent is a process on this machine. ``ray``: agents are placed on
            a Ray cluster (docs/scaling.md). Others come from the ``agentwire.launchers`` entry
            points of installed packages.
        address: of the Ray cluster; ``auto``: the cluster of this machine; ``local``: a new one on
            this machine.
    """

    name: Name
    description: str = ""
    launcher: LauncherName = "local"
    address: str = "auto"
    agents: dict[Name, Agent]
    wires: list[WireSpec] = Field(min_length=1)
    task: TaskChoice | None = None
    methods: list[MethodName] = Field(
        default=["bridge", "text_relay", "receiver_direct", "sender_direct"], min_length=1
    )
    batch_size: Annotated[int, Field(ge=1, le=256)] = 16
    in_flight: Annotated[int, Field(ge=1, le=16)] = 2
    limit: Annotated[int, Field(ge=0)] | None = None
    seed: int = 0
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    train: TrainSpec = Field(default_factory=TrainSpec)
    bench: BenchSpec = Field(default_factory=BenchSpec)
    matrix: MatrixSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_wire_to_several_is_several_wires(cls, data: Any) -> Any:
        wires = data.get("wires") if isinstance(data, dict) else None
        if not isinstance(wires, list):
            return data
        return {**data, "wires": [one for wire in wires for one in fanned(wire)]}

    @property
    def processes(self) -> list[str]:
        """Names of all agents' processes: replicas one by one."""
        return [p for name, a in self.agents.items() for p in processes_of(name, a.processes)]

    @model_validator(mode="after")
    def _matrix_fits(self) -> Scenario:
        if self.matrix is None:
            return self
        if self.task is None:
            raise ValueError("a matrix needs a `task:` to score")
        known = {wire.set_name: wire for wire in self.wires}
        for name in self.matrix.wires:
            if name not in known:
                raise ValueError(f"matrix.wires: there is no wire {name!r} ({', '.join(known)})")
        for name in self.matrix.wires or [self.wires[0].set_name]:
            if not known[name].joint:
                continue
            if self.matrix.layers:
                raise ValueError(
                    f"matrix.layers: wire {name} has several senders, each with a layer of its own"
                )
            if len(self.matrix.tasks) > 1 and not known[name].auto_bridge:
                raise ValueError(
                    f"matrix.tasks: a set of bridges is trained on one task, so wire {name} needs "
                    "one for each (`bridge: auto` names them)"
                )
        return self

    @model_validator(mode="after")
    def _wires_join_known_agents(self) -> Scenario:
        seen: set[str] = set()
        for wire in self.wires:
            for end in (wire.sender, wire.receiver):
                if end not in self.agents:
                    known = ", ".join(sorted(self.agents))
                    raise ValueError(
                        f"wire {wire.name} names the agent {end!r}, which is not defined "
                        f"(agents: {known})"
                    )
            if wire.sender == wire.receiver:
                raise ValueError(f"wire {wire.name} leads from an agent to itself")
            if wire.name in seen:
                raise ValueError(f"wire {wire.name} is defined twice")
            seen.add(wire.name)
        count = {name: agent.processes for name, agent in self.agents.items()}
        routes = sum(count[w.sender] * count[w.receiver] for w in self.wires) + sum(count.values())
        if routes > MOST_ROUTES:
            raise ValueError(
                f"{routes} routes between replicas are more than the {MOST_ROUTES} that a bus has: "
                "give its agents fewer replicas"
            )
        for wire in self.wires:
            for sender in wire.joint:
                others = [w.joint for w in self.wires if w.name == f"{sender}->{wire.receiver}"]
                if others != [wire.joint]:
                    raise ValueError(f"wire {wire.set_name} has no part from {sender}")
        return self
