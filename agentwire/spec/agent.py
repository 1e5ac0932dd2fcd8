"""The spec of an agent process: plain values, sent as JSON to its stdin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentwire.wire.messages import TaskSpec


class Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OutgoingBridge(Plain):
    """A wire on which this agent is the sender, and its bridge folder (None: no bridge).

    Attributes:
        long_text, soft_tokens: as in ``spec.scenario.WireSpec``.
    """

    wire: str
    receiver: str
    folder: str | None
    long_text: Literal["text", "error"] | None = None
    soft_tokens: int = 0


class JointBridges(Plain):
    """A set of bridges that were trained together."""

    name: str
    bridges: tuple[str, ...]  # fingerprints, in the order of their payloads before the prompt
    prompts: tuple[str, ...]  # what they were trained for, as in ``BridgeIdentity.prompts``


class FakeModel(Plain):
    """Settings of the fake backend for tests: deterministic, with faults on demand."""

    width: int = 16
    layers: int = 4
    encode_ms: float = 0.0
    decode_ms: float = 0.0
    token_ms: float = 0.0  # for each generated word
    load_ms: float = 0.0
    crash_on: str = ""  # the process dies when a text contains this
    raise_on: str = ""  # the backend raises when a text contains this
    nan_on: str = ""  # the payload of such a text contains NaN
    hang_on: str = ""  # compute never returns when a text contains this
    memory_rows: int = 0  # rows that fit in the memory of the device; 0: no limit
    memory_on: str = ""  # a row with this text never fits
    pipelined: bool = False  # the delays are a device's, which works beside the thread


class GraphSpec(Plain):
    """The static shapes that an agent on a GPU captures as CUDA graphs when it starts.

    Attributes:
        enabled: if off, every batch runs eagerly.
        texts: tokens of a text. A text runs in the smallest shape that fits it.
        batches: rows of a batch; sizes above the agent's largest batch are skipped.
        max_tokens: rows * tokens of the largest shape; larger batches run eagerly.
        express: single rows use a graph that also moves their data.
    """

    enabled: bool = True
    express: bool = True
    texts: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (16, 32, 48, 64, 96, 128, 256, 512)
    batches: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    max_tokens: Annotated[int, Field(ge=1)] = 32_768


class Placement(Plain):
    """What an agent needs of the machine that a launcher chooses (``launcher: ray``).

    Attributes:
        cpus: default: the agent's threads.
        gpus: default: one if its device is a GPU, else none; a fraction shares one.
        labels: of the node, with values in Ray's syntax (``!value``, ``in(a, b)``).
        resources: other Ray resources, and how much of each.
    """

    cpus: float | None = Field(default=None, ge=0)
    gpus: float | None = Field(default=None, ge=0)
    labels: dict[str, str] = Field(default_factory=dict)
    resources: dict[str, float] = Field(default_factory=dict)


class AgentSpec(Plain):
    """One agent process."""

    name: str
    backend: str
    model: str  # registry name, hub name, or local folder
    folder: str | None = None  # local folder with the weights, resolved
    weights: Literal["pretrained", "random"] = "pretrained"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    threads: int | None = None  # of this process, on a CPU
    # Threads of each agent that lends its threads while idle, this one among them.
    cpu_shares: dict[str, int] = {}
    cpu_share_of: str = ""  # agent whose share it uses; the two never compute at the same time
    max_batch: int = 16
    max_wait_ms: float = 2.0
    batch_by: Literal["rows", "message"] = "rows"  # message: rows of others do not join
    rehearse: bool | None = None  # replays messages to stay warm; None: on a GPU
    bridges: tuple[OutgoingBridge, ...] = ()
    incoming: tuple[str, ...] = ()  # wires on which this agent is the receiver
    readers: tuple[str, ...] = ()  # folders of bridges whose receiver half it loads
    joint: tuple[JointBridges, ...] = ()  # what it reads together as the receiver
    fallback: dict[str, Literal["text", "error"]] = {}
    engine: Literal["auto", "transformers", "static"] = "auto"  # auto: static on a GPU
    graphs: GraphSpec = GraphSpec()
    soft_tokens: tuple[int, ...] = ()  # M of its incoming wires
    task: TaskSpec | None = None  # prepared before the agent reports that it is ready
    fake: FakeModel = FakeModel()
    place: Placement = Placement()


class CurveKeys(Plain):
    """CURVE keys (Z85) of an agent that connects to a bus on another machine."""

    public: str
    secret: str = Field(repr=False)
    server: str


class BusAddress(Plain):
    """The address of the bus, and the credentials of this incarnation."""

    endpoint: str  # ipc://… or tcp://…
    run: str  # 32 hex digits
    epoch: int
    token: str  # hex secret of this run


class AgentBootstrap(Plain):
    """The message from the supervisor to its child: one JSON line on stdin."""

    agent: AgentSpec
    bus: BusAddress
    keys: CurveKeys | None = None  # for a bus on another machine; None: the parent's bus
    telemetry: str | None = None  # file for the batch counts, written when the incarnation ends


def warms_up(spec: AgentSpec) -> bool:
    """Whether the agent replays messages to stay warm while it waits; by default on a GPU."""
    return spec.device.startswith("cuda") if spec.rehearse is None else spec.rehearse
