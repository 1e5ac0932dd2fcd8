"""What a child process needs to know to be an agent: plain values, sent as JSON on its stdin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentwire.wire.messages import TaskSpec


class OutgoingBridge(BaseModel):
    """A wire on which this agent is the sender, and the bridge folder it uses (None: no bridge)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wire: str
    receiver: str
    folder: str | None


class JointBridges(BaseModel):
    """Bridges whose soft tokens an agent reads together: they were trained for that.

    Attributes:
        name: of the set.
        bridges: fingerprints, in the order in which their payloads stand before the prompt.
        prompts: what the set was trained for, as in ``BridgeIdentity.prompts``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    bridges: tuple[str, ...]
    prompts: tuple[str, ...]


class FakeModel(BaseModel):
    """Settings of the fake backend: deterministic, no torch, with faults on demand (for tests)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = 16
    layers: int = 4
    encode_ms: float = 0.0
    decode_ms: float = 0.0
    token_ms: float = 0.0  # for each generated word
    load_ms: float = 0.0
    crash_on: str = ""  # the process dies at once when a text holds this
    raise_on: str = ""  # the backend raises when a text holds this
    nan_on: str = ""  # the payload of such a text holds a NaN
    hang_on: str = ""  # compute never returns when a text holds this
    memory_rows: int = 0  # the device holds so many rows at once, more is out of memory; 0: all
    memory_on: str = ""  # a row with this text is out of memory even alone
    pipelined: bool = False  # the delays are those of a device beside the thread, as a GPU's


class GraphSpec(BaseModel):
    """Which static shapes an agent on a GPU captures as CUDA graphs when it starts.

    Attributes:
        enabled: off: every batch runs eagerly, op by op.
        texts: tokens of a text. A text runs in the smallest that holds it.
        batches: rows of a batch; those above the agent's largest batch are left out.
        max_tokens: rows * tokens of the largest shape; larger batches run eagerly.
        express: a row that is alone has a graph that moves its data itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    express: bool = True
    texts: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (16, 32, 48, 64, 96, 128, 256, 512)
    batches: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    max_tokens: Annotated[int, Field(ge=1)] = 32_768


class Placement(BaseModel):
    """What an agent needs of the machine that a launcher puts it on (``launcher: ray``).

    Attributes:
        cpus: default: the agent's threads.
        gpus: default: one if its device is a GPU, else none; a fraction shares one.
        labels: of the node, each with its value (``!value`` and ``in(a, b)`` as Ray reads them).
        resources: Ray's own names for anything else, and how much of each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: float | None = Field(default=None, ge=0)
    gpus: float | None = Field(default=None, ge=0)
    labels: dict[str, str] = Field(default_factory=dict)
    resources: dict[str, float] = Field(default_factory=dict)


class AgentSpec(BaseModel):
    """One agent process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    backend: str
    model: str = Field(description="registry name, hub name, or local folder")
    folder: str | None = Field(default=None, description="local folder with the weights, resolved")
    weights: Literal["pretrained", "random"] = "pretrained"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    threads: int | None = Field(default=None, description="CPU threads of this process")
    cpu_shares: dict[str, int] = Field(
        default_factory=dict,
        description="threads of each agent that lends its threads while idle, this one among them",
    )
    cpu_share_of: str = Field(
        default="",
        description="agent whose share it uses; the two never compute at the same time",
    )
    max_batch: int = 16
    max_wait_ms: float = 2.0
    batch_by: Literal["rows", "message"] = Field(
        default="rows",
        description="rows: rows of several messages share a batch; message: each has its own",
    )
    rehearse: bool | None = Field(
        default=None, description="keeps its code warm between messages; None: on a GPU"
    )
    bridges: tuple[OutgoingBridge, ...] = ()
    incoming: tuple[str, ...] = ()  # wires on which this agent is the receiver
    joint: tuple[JointBridges, ...] = ()  # what it reads together as the receiver
    fallback: dict[str, Literal["text", "error"]] = Field(default_factory=dict)
    engine: Literal["auto", "transformers", "static"] = Field(
        default="auto", description="static: the forward pass by hand; auto: it on a GPU"
    )
    graphs: GraphSpec = Field(default_factory=GraphSpec)
    soft_tokens: tuple[int, ...] = Field(default=(), description="M of its incoming wires")
    task: TaskSpec | None = Field(
        default=None, description="prepared before the agent says that it is ready"
    )
    fake: FakeModel = Field(default_factory=FakeModel)
    place: Placement = Field(default_factory=Placement)


class CurveKeys(BaseModel):
    """CURVE keys (Z85) of an agent that connects to a bus on another machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    public: str
    secret: str = Field(repr=False)
    server: str


class BusAddress(BaseModel):
    """Where the bus is, and what this incarnation must say to be let in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str  # ipc://… or tcp://…
    run: str  # 32 hex digits
    epoch: int
    token: str  # hex secret of this run


class AgentBootstrap(BaseModel):
    """The whole message from the supervisor to its child: one JSON line on stdin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: AgentSpec
    bus: BusAddress
    keys: CurveKeys | None = Field(
        default=None, description="joins a bus on another machine; None: its parent's own bus"
    )
    telemetry: str | None = Field(
        default=None, description="file for what the incarnation counted, written when it ends"
    )


def warms_up(spec: AgentSpec) -> bool:
    """Whether the agent replays messages to stay warm while it waits; by default on a GPU."""
    return spec.device.startswith("cuda") if spec.rehearse is None else spec.rehearse
