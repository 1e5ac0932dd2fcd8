"""The schema of scenario files. Unknown keys are refused.

``scenario/load.py`` reads the YAML and follows ``use:`` to agent files. This module touches neither
disk nor network, torch or the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    create_model,
    field_validator,
    model_validator,
)

from agentwire.spec.agent import GraphSpec, Placement
from agentwire.spec.backends import BackendName
from agentwire.spec.launchers import LauncherName
from agentwire.spec.methods import MethodName
from agentwire.spec.routes import processes_of

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
"""Names of agents and scenarios: lower case, digits, ``_`` and ``-``."""
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
"""What random generators take."""

MOST_REPLICAS = 64
MOST_ROUTES = 1024
"""Limit of ``wire.credit.CreditGate``."""


class SchemaModel(BaseModel):
    # "Infinity" as a string keeps config.json strict JSON, and pydantic reads it back.
    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_inf_nan="strings", allow_inf_nan=False
    )


class ModelChoice(SchemaModel):
    """One model on one device.

    Attributes:
        model: registry name (``agentwire models list``), hub name, or a local folder.
        path: local folder with the weights; used instead of a download.
        weights: ``random`` builds the model's exact shape with random weights (speed only).
        layer: the sender's hidden states are read after this many layers.
        dtype: of the weights.
        device: ``auto`` takes a free GPU, or the CPU if there is none.
        devices: the device of each replica.
        threads: CPU threads of each process; default: a share of the cores.
        backend: what computes the model (docs/engines.md); other packages may add backends.
        engine: engine of ``backend: transformers``. ``static`` uses hand-written forward passes in
            captured shapes. ``auto`` does so on a GPU for the models that it knows.
        place: what the agent needs of a machine that a launcher chooses.
        graphs: the shapes that the static engine captures when the agent starts.
        max_wait_ms: how long the first row of a batch waits for more rows.
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
    place: Placement = Placement()
    graphs: GraphSpec = GraphSpec()
    max_wait_ms: Annotated[float, Field(ge=0, le=10_000)] = 2.0
    rehearse: bool | None = None


class Agent(ModelChoice):
    """An agent.

    Attributes:
        stand_in: the model that runs where the agent's own model cannot.
        replicas: number of processes, between which requests are balanced; default: one per entry
            of ``devices``, or one.
    """

    FILE_KEYS: ClassVar = {"use"}
    """Keys that only files have; the reader replaces them."""

    stand_in: ModelChoice | None = None
    replicas: Annotated[int, Field(ge=1, le=MOST_REPLICAS)] | None = None

    @property
    def processes(self) -> int:
        """Number of processes."""
        return self.replicas or max(1, len(self.devices))

    @model_validator(mode="after")
    def _each_replica_has_a_device(self) -> Agent:
        for choice in (self, self.stand_in):
            if choice is None or not choice.devices:
                continue
            if choice.device != "auto":
                raise ValueError("set `device` or `devices`, not both")
            if len(choice.devices) != self.processes:
                raise ValueError(
                    f"{len(choice.devices)} devices for {self.processes} replicas: set one per "
                    "replica"
                )
        return self


class WireSpec(SchemaModel):
    """A directed edge between two agents.

    Attributes:
        sender: ``from`` in the file.
        receiver: ``to`` in the file.
        bridge: folder name of the bridge. ``auto`` names it after the models and data that run:
            ``<sender>--<receiver>--<dataset>``; ``auto--m16`` appends ``--m16``.
        soft_tokens: number M of soft tokens; ``auto`` (0 in Python) for a reader bridge: by each
            text's length.
        fallback: without soft tokens, send ``text`` or end the request with an ``error``.
        long_text: what becomes of a text that is longer than the bridge reads (512 tokens): it goes
            as ``text`` with the reason ``too_long``, or its request ends with an ``error``
            (``too_large``). Default: as ``fallback``.
        fallback_below: a free-text answer from soft tokens whose confidence (``Reply.confidence``)
            is below this is asked again with the text, with the reason ``unsure``; ``card`` takes
            the threshold of the bridge's card. Needs a reader bridge and ``fallback: text``; not
            for streamed answers, which are already shown.
        when_down: when the sender's restart budget is spent, end requests with an ``error`` or hand
            the ``text`` itself to the receiver.
        joint: all senders of a joint wire (``from: [a, b]``), in the order in which the receiver
            reads their soft tokens.
        reads: each sender of a joint wire reads the ``whole`` text, or its ``share``: one of equal
            consecutive parts.
    """

    sender: Name = Field(alias="from")
    receiver: Name = Field(alias="to")
    bridge: str = "auto"
    soft_tokens: Annotated[
        int, BeforeValidator(lambda m: 0 if m == "auto" else m), Field(ge=0, le=512)
    ] = 8
    fallback: Literal["text", "error"] = "text"
    long_text: Literal["text", "error"] | None = None
    fallback_below: Annotated[FiniteFloat, Field(le=0)] | Literal["card"] | None = None
    when_down: Literal["text", "error"] = "error"
    joint: tuple[Name, ...] = ()
    reads: Literal["whole", "share"] = "whole"

    @model_validator(mode="after")
    def _joins_several(self) -> WireSpec:
        if self.joint and (len({*self.joint}) != len(self.joint) or len(self.joint) < 2):
            raise ValueError("`from: [...]` needs at least two senders, each once")
        if self.joint and self.sender not in self.joint:
            raise ValueError(f"{self.sender} is not among {', '.join(self.joint)}")
        if self.joint and self.long_text == "text":
            raise ValueError("`long_text: text` is not for wires with several senders")
        if self.reads != "whole" and not self.joint:
            raise ValueError("`reads` is for wires with several senders (`from: [a, b]`)")
        return self

    @property
    def place(self) -> int:
        """Place of this sender in ``joint``, from 1."""
        return self.joint.index(self.sender) + 1 if self.joint else 1

    @property
    def set_name(self) -> str:
        """Name of the whole wire with all of its senders: ``a+b->c``."""
        return f"{'+'.join(self.joint or (self.sender,))}->{self.receiver}"

    @property
    def auto_bridge(self) -> bool:
        """Whether the bridge is named after the models and data that run."""
        return self.bridge == "auto" or self.bridge.startswith("auto--")

    @property
    def name(self) -> str:
        """Wire id on the bus."""
        return f"{self.sender}->{self.receiver}"


def fanned(wire: Any) -> list[Any]:
    """The wires of one entry of ``wires:``.

    ``to: [a, b]`` makes a wire to each receiver. ``from: [a, b]`` makes a wire from each sender,
    whose soft tokens the receiver reads together.
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
    """The task that is scored, and the data that may stand in for its rows."""

    stand_in: DataChoice | None = None


class TrainSpec(SchemaModel):
    """Settings of ``agentwire train``.

    Attributes:
        architecture: of the bridge (docs/design/bridge.md).
        average: decay of the moving average of the weights; the average is evaluated and saved.
        balanced: draw every class equally often, instead of every row.
        diversity: weight of a loss that pushes soft tokens apart (``diversity_loss``); 0: off.
        patience: training stops after this many evaluations without improvement; 0: off.
        precision: of the frozen receiver; ``auto`` is bfloat16 on a GPU and float32 on a CPU.
            Trained weights are always float32.
        held_out: training rows that choose the step and the settings.
        max_rows: number of training rows; 0: all.
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
    seed: Seed = 0

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> TrainSpec:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


BenchMethod = Literal["bridge", "receiver_direct", "receiver_replicas", "text_relay", "in_process"]
"""What ``agentwire bench`` compares (``benchmark.session`` explains each)."""


class BenchPlan(SchemaModel):
    """What ``agentwire bench`` measures.

    Attributes:
        task: task whose prompts and labels are used, without its rows; null: the scenario's.
        prompt_tokens: use a prompt of this many arbitrary words instead of the task's; the bridge
            must accept any prompt (``prompts: any``).
        batch_sizes: rows of one message and of one batch of compute.
        text_tokens: lengths of the texts in the sender's tokens. All batch sizes are measured at
            the first length, and only ``length_batch`` rows at the others.
        generated_tokens: length limit of text relay's messages; null: the task's.
        relay_batch_sizes: batch sizes of text relay, which may take minutes; null: all.
        in_flight: outstanding messages per replica while throughput is measured.
        warm_up: messages of each method and size that are not counted.
        rounds: rounds in which all methods alternate; figures are medians over rounds.
        messages: limit of the messages behind one latency figure, over all rounds.
        seconds: time per method and size in one round.
        latency_seconds: the same for latency; null: ``seconds``.
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
    """The plan of ``agentwire bench``; ``on_cpu`` replaces it if any agent runs on the CPU."""

    on_cpu: BenchPlan | None = None


class LayerChoice(SchemaModel):
    """A sender's layer in the named model and in its stand-in."""

    named: Annotated[int, Field(ge=1)]
    stand_in: Annotated[int, Field(ge=1)]


if TYPE_CHECKING:

    class TrainAxes(SchemaModel):
        """Settings of ``TrainSpec`` as axes, each with a list of values."""
else:
    _AXES = {
        # The last annotation is there because ``Annotated`` needs one.
        name: (list[Annotated[field.annotation, *field.metadata, None]], Field(None, min_length=1))
        for name, field in TrainSpec.model_fields.items()
        if name != "seed"  # that axis is ``matrix.seeds``
    }
    TrainAxes = create_model("TrainAxes", __base__=SchemaModel, **_AXES)


class MatrixSpec(SchemaModel):
    """Axes of an experiment. Each combination of their values is a cell with its own bridge.

    Attributes:
        combine: ``product``: every combination. ``one_at_a_time``: layers, soft tokens and train
            settings vary one at a time around the scenario's own values; wires, tasks and seeds are
            combined with each of them.
        missing: if a cell's bridge is missing and not trained: ``error``, or ``skip`` the cell.
        seeds: seeds of the bridge's training; figures are means over them.
        soft_tokens: values of M of the measured wire.
        layers: layers of the measured wire's sender.
        wires: names of the measured wires, ``a->b``; default: the first wire.
        tasks: like the scenario's ``task``.
        train: settings of ``train``, each with a list of values.
    """

    combine: Literal["product", "one_at_a_time"] = "product"
    missing: Literal["error", "skip"] = "error"
    seeds: list[Seed] = []
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
        """Axes of the bridge without seeds: ``layer``, ``soft_tokens``, ``train.…``."""
        train = {f"train.{k}": v for k, v in self.train.model_dump(exclude_none=True).items()}
        axes = {"layer": self.layers, "soft_tokens": self.soft_tokens, **train}
        return {name: values for name, values in axes.items() if values}


class Scenario(SchemaModel):
    """Agents, wires, and optionally a task to score.

    Attributes:
        launcher: ``local``: every agent is a process on this machine. ``ray``: agents are placed on
            a Ray cluster (docs/scaling.md). Others come from the ``agentwire.launchers`` entry
            points of installed packages.
        address: of the Ray cluster; ``auto``: the cluster of this machine; ``local``: a new one on
            this machine.
        task: what ``agentwire run`` scores; not needed by ``agentwire.open``.
        batch_size: rows of one message.
        in_flight: outstanding messages per replica.
        limit: rows to score; 0: all; default: 200 on a CPU, else all.
        seed: chooses the rows.
        deadline_s: seconds until a request fails.
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
    seed: Seed = 0
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 300.0
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
        """Names of the processes of all agents, each replica by its own."""
        return [p for name, a in self.agents.items() for p in processes_of(name, a.processes)]

    @model_validator(mode="after")
    def _matrix_fits(self) -> Scenario:
        if self.matrix is None:
            return self
        if self.task is None:
            raise ValueError("a matrix needs a `task:` to score")
        known = {wire.set_name: wire for wire in self.wires}
        for name in self.matrix.wires or [self.wires[0].set_name]:
            if name not in known:
                raise ValueError(f"matrix.wires: there is no wire {name!r} ({', '.join(known)})")
            if not known[name].joint:
                continue
            if self.matrix.layers:
                raise ValueError(
                    f"matrix.layers: wire {name} has several senders, each with its own layer"
                )
            if len(self.matrix.tasks) > 1 and not known[name].auto_bridge:
                raise ValueError(
                    f"matrix.tasks: a joint set of bridges is trained on one task, so wire {name} "
                    "needs a set per task (set `bridge: auto`)"
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
                f"{routes} routes between replicas exceed the limit of {MOST_ROUTES}: use fewer "
                "replicas"
            )
        for wire in self.wires:
            for sender in wire.joint:
                others = [w.joint for w in self.wires if w.name == f"{sender}->{wire.receiver}"]
                if others != [wire.joint]:
                    raise ValueError(f"wire {wire.set_name} lacks its wire from {sender}")
        return self
