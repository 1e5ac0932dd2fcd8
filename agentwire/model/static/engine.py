"""The static engine: a language model on a GPU, each batch a captured graph of static shape.

It stands on the transformers backend, which loads the model and answers whatever has no captured
shape: texts longer than the longest bucket, batches larger than the largest, too many tasks. Which
of the two ran is counted, and shows in the stages: only the plain path has ``bridge`` apart.

What the wires need is captured before the agent says that it is ready: the sender's trunk with the
bridge, and the receiver's forward pass for the scenario's task. Reading and writing text is
captured at its first use in each shape.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agentwire.errors import DeviceError
from agentwire.model.backend import Encoded, Generated, Job, ReportProgress, Scored, Watch
from agentwire.model.prompting import around_text, plain_ids, text_ids
from agentwire.model.static.buckets import Buckets, fill
from agentwire.model.static.decoder import POSITIONS, Prefix, StaticDecoder, UnsupportedModel
from agentwire.model.static.graphs import Device, Port, PortJob
from agentwire.model.static.greedy import Generation
from agentwire.model.static.ops import PlainOps
from agentwire.model.transformers import LabelHead, PreparedTask, TransformersBackend
from agentwire.spec.agent import AgentSpec
from agentwire.wire.messages import BridgeIdentity, ModelIdentity, TaskSpec

log = logging.getLogger(__name__)

PORTS = 256
"""Captured shapes that are kept for tasks and texts; the one not used for longest goes."""
PREFIXES = 16
EXPRESS_ROWS = 1
"""Batches up to here have a graph of their own for when nothing else is under way."""


def ops_for(device: torch.device) -> PlainOps:
    """Triton kernels where they can be had, else plain torch."""
    if device.type != "cuda":
        return PlainOps()
    try:
        from agentwire.model.static.triton_ops import FusedOps
    except ImportError:
        log.warning("triton is not here: the plain operations are used, which are slower")
        return PlainOps()
    return FusedOps()


class StaticBackend:
    """A causal language model behind the ``Backend`` and ``Pipelined`` protocols.

    Args:
        plain: the model, loaded; it answers what has no captured shape.
        spec: the agent: which shapes are captured, and the largest batch.
        progress: told ``graphs`` and a fraction.

    Raises:
        UnsupportedModel: the model is not one that ``StaticDecoder`` computes.
    """

    def __init__(
        self, plain: TransformersBackend, spec: AgentSpec, progress: ReportProgress
    ) -> None:
        self.plain = plain
        self.decoder = StaticDecoder(plain.model, ops_for(plain.device))
        self.device = Device(plain.device, graphs=spec.graphs.enabled)
        self.counts: Counter[str] = Counter()
        self._spec = spec
        self._progress = progress
        self._buckets = Buckets.of(spec.graphs, spec.max_batch)
        self._encoders: dict[str, dict[tuple[int, int], Port]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}  # of a bridge's payloads: M, d
        self._ports: OrderedDict[tuple[Any, ...], _TaskPort] = OrderedDict()
        self._generations: OrderedDict[tuple[Any, ...], Generation] = OrderedDict()
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._stage: Port | None = None  # of rehearsals

    @property
    def identity(self) -> ModelIdentity:
        return self.plain.identity

    def summary(self) -> str:
        device = self.device
        ran = ", ".join(f"{what} {count}" for what, count in sorted(self.counts.items()))
        shapes = f"{device.captured} graphs with {device.captured_bytes / 2**30:.1f} GiB"
        return f"{ran or 'none'}; {shapes}"

    def _tell(self, done: int, of: int) -> None:
        device = self.device
        stage = f"graphs ({device.captured}, {device.captured_bytes / 2**30:.1f} GiB)"
        self._progress(stage if device.graphs else "shapes", done / max(1, of))

    def _tune(self, rows: Iterable[int]) -> None:
        for count in sorted(rows):
            self.decoder.tune(count)

    def _express(self, rows: int) -> bool:
        return self._spec.graphs.express and rows <= EXPRESS_ROWS

    def _prefix(self, ids: Sequence[int]) -> Prefix:
        key = tuple(ids)
        if key not in self._prefixes:
            while len(self._prefixes) >= PREFIXES:
                self._prefixes.popitem(last=False)
            self._prefixes[key] = self.decoder.prefix(key)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def _eagerly(self, what: str, rows: int, tokens: int) -> None:
        """Counts a batch for which no shape was captured, and says so the first time."""
        self.counts[f"{what} eager"] += 1
        if self.counts[f"{what} eager"] == 1:
            log.warning(
                "%s: %d rows of %d tokens have no captured shape (rows %s, tokens %s, at most %d "
                "together): computed eagerly",
                what,
                rows,
                tokens,
                self._buckets.rows,
                self._buckets.tokens,
                self._buckets.most,
            )

    # -- sender -----------------------------------------------------------------------------

    def add_bridge(self, folder: Path) -> BridgeIdentity:
        """As ``TransformersBackend.add_bridge``; captures trunk and bridge in every shape.

        Raises:
            DeviceError: the device has too little memory for the shapes.
        """
        identity = self.plain.add_bridge(folder)
        self._tune({n * t for n, t in self._buckets.shapes()})
        module = self.plain.bridge(identity.fingerprint)
        prefix = self._prefix(self.plain.opening())
        shapes = list(self._buckets.shapes())
        ports = self._encoders[identity.fingerprint] = {}
        self._sizes[identity.fingerprint] = identity.soft_tokens, identity.width
        for i, shape in enumerate(shapes):
            self._tell(i, len(shapes))
            try:
                ports[shape] = self._encoder(shape, identity.layer, module, prefix)
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"{self._spec.device} has too little memory to capture {shape[0]} rows of "
                    f"{shape[1]} tokens.",
                    hint="Lower `max_tokens`, `batches` or `texts` under `graphs:` in the agent's "
                    "file; what has no captured shape is computed eagerly.",
                ) from error
        self._set_stage()
        self._tell(1, 1)
        return identity

    def _encoder(self, shape: tuple[int, int], layer: int, module: Any, prefix: Prefix) -> Port:
        n, t = shape
        packed = torch.ones(n, t + 1, dtype=torch.long, device=self.decoder.device)
        steps = torch.arange(t, device=self.decoder.device)[None]

        def compute() -> Tensor:
            states = self.decoder.trunk(packed[:, :t], layer, prefix)
            soft: Tensor = module(states, steps < packed[:, t:]).half()
            norm = torch.linalg.vector_norm(soft, dim=-1, dtype=torch.float32)
            rms = norm / soft.shape[-1] ** 0.5
            return torch.cat([soft.flatten(1), rms.view(torch.float16)], dim=1)

        return Port.of(self.device, [packed], compute, express=self._express(n))

    def begin_encode(self, texts: Sequence[str], bridge: str) -> Job[Encoded] | None:
        start = time.perf_counter()
        rows = text_ids(self.plain.tokenizer, texts)
        longest = max(map(len, rows))
        shape = self._buckets.choose(len(rows), longest)
        if shape is None:
            self._eagerly("encode", len(rows), longest)
            return None
        port = self._encoders[bridge][shape]
        self.counts["encode"] += 1
        slot = port.slot()
        fill(slot.host_in[0].numpy(), rows)
        tokenize = _ms_since(start)
        port.launch(slot)
        count, size = len(rows), self._sizes[bridge]

        def read(output: Tensor, took: float) -> Encoded:
            stages = {"tokenize": tokenize, "encode": took}
            return _encoded(output.numpy()[:count], size, stages)

        return PortJob(port, slot, read)

    def rehearse(self, texts: Sequence[str]) -> None:
        """Goes the way of a row alone, with a graph of next to no work (``backend.Rehearsed``)."""
        stage = self._stage
        if stage is None or self.device.under_way:
            return
        rows = text_ids(self.plain.tokenizer, texts) if texts else [[0]]
        slot = stage.slot()
        fill(slot.host_in[0].numpy(), [rows[0][:1]])
        stage.launch(slot)
        PortJob(stage, slot, lambda output, took: _scored(output, [1], {"decode": took})).result()

    def _set_stage(self) -> None:
        if self._stage is None and self.device.graphs:
            packed = torch.ones(1, 2, dtype=torch.long, device=self.decoder.device)
            self._stage = Port.of(self.device, [packed], packed.float, express=True)

    def encode(self, texts: Sequence[str], bridge: str) -> Encoded:
        job = self.begin_encode(texts, bridge)
        return self.plain.encode(texts, bridge) if job is None else job.result()

    # -- receiver ---------------------------------------------------------------------------

    def prepare(self, task: TaskSpec) -> None:
        """Compiles the task, and captures it for the payloads that this agent's wires bring.

        Raises:
            ScenarioError: see ``compile_task``.
        """
        self.plain.prepare(task)
        if not task.labels:
            return
        self._set_stage()
        wanted = [(n, m) for m in self._spec.soft_tokens for n in reversed(self._buckets.rows)]
        length = self.plain.prepared(task).prompt.shape[0]
        self._tune({n * (m + length) for n, m in wanted})
        for i, (n, m) in enumerate(wanted):
            self._tell(i, len(wanted))
            self._soft_port(task, n, m)

    def _soft_port(self, task: TaskSpec, n: int, soft_tokens: int) -> _TaskPort | None:
        prepared = self.plain.prepared(task)
        length, labels = prepared.prompt.shape[0], len(task.labels)
        key = ("soft", n, soft_tokens, length, labels)
        if length + soft_tokens + len(self.plain.opening()) > POSITIONS:
            return None
        return self._port(key, lambda: self._soft(prepared, n, soft_tokens))

    def _soft(self, prepared: PreparedTask, n: int, soft_tokens: int) -> _TaskPort:
        decoder, prefix = self.decoder, self._prefix(self.plain.start)
        soft = torch.zeros(
            n, soft_tokens, decoder.width, dtype=torch.float16, device=decoder.device
        )
        prompt = prepared.prompt.clone()
        head = _copy(prepared.prompt_head)
        last = torch.full((n,), soft_tokens + prompt.shape[0] - 1, device=decoder.device)

        def compute() -> Tensor:
            x = torch.cat([soft.to(decoder.dtype), prompt.expand(n, -1, -1)], dim=1)
            return torch.log_softmax(head(decoder.last(x, last, prefix)), dim=-1)

        port = Port.of(self.device, [soft], compute, express=self._express(n))
        return _TaskPort(port, prompt, head)

    def begin_score_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec
    ) -> Job[Scored] | None:
        count, soft_tokens = payload.shape[:2]
        n = self._buckets.choose_rows(count)
        found = None if n is None else self._soft_port(task, n, soft_tokens)
        if found is None:
            self._eagerly("soft", count, soft_tokens)
            return None
        self.counts["soft"] += 1
        slot = found.port.slot()
        # From numpy: a message's payload may be read-only, which torch would warn about.
        slot.host_in[0].numpy()[:count] = payload
        prepared = self.plain.prepared(task)
        found.port.launch(slot, lambda: found.bind(prepared))
        read = len(self.plain.start) + soft_tokens + prepared.prompt.shape[0]
        return PortJob(
            found.port, slot, lambda output, took: _scored(output, [read] * count, {"decode": took})
        )

    def score_soft(self, payload: npt.NDArray[np.float16], task: TaskSpec) -> Scored:
        job = self.begin_score_soft(payload, task)
        return self.plain.score_soft(payload, task) if job is None else job.result()

    def begin_score_text(self, texts: Sequence[str], task: TaskSpec) -> Job[Scored] | None:
        start = time.perf_counter()
        prepared = self.plain.prepared(task)
        ids = prepared.ids
        rows = text_ids(self.plain.tokenizer, texts, ids.glue)
        longest = max(map(len, rows))
        shape = self._buckets.choose(len(rows), longest)
        if shape is not None and len(ids.before) + shape[1] + len(ids.after) > POSITIONS:
            shape = None
        if shape is None:
            self._eagerly("text", len(rows), longest)
            return None
        n, t = shape[0], shape[1] + len(ids.after)
        found = self._port(("text", task.task_id, n, t), lambda: self._text(prepared, n, t))
        self.counts["text"] += 1
        slot = found.port.slot()
        fill(slot.host_in[0].numpy(), [[*row, *ids.after] for row in rows])
        tokenize = _ms_since(start)
        found.port.launch(slot)
        read = [len(ids.before) + len(row) + len(ids.after) for row in rows]
        return PortJob(
            found.port,
            slot,
            lambda output, took: _scored(output, read, {"tokenize": tokenize, "decode": took}),
        )

    def _text(self, prepared: PreparedTask, n: int, t: int) -> _TaskPort:
        self._tune([n * t])
        decoder, prefix = self.decoder, self._prefix(prepared.ids.before)
        packed = torch.ones(n, t + 1, dtype=torch.long, device=decoder.device)
        head = prepared.text_head

        def compute() -> Tensor:
            x = decoder.embed(packed[:, :t])
            states = decoder.last(x, packed[:, t] - 1, prefix)
            return torch.log_softmax(head(states), dim=-1)

        port = Port.of(self.device, [packed], compute, express=self._express(n))
        return _TaskPort(port, None, head)

    def score_text(self, texts: Sequence[str], task: TaskSpec) -> Scored:
        job = self.begin_score_text(texts, task)
        return self.plain.score_text(texts, task) if job is None else job.result()

    def _port(self, key: tuple[Any, ...], make: Callable[[], _TaskPort]) -> _TaskPort:
        if key not in self._ports:
            while len(self._ports) >= PORTS:
                self._ports.popitem(last=False)
            self._ports[key] = make()
        self._ports.move_to_end(key)
        return self._ports[key]

    # -- text -------------------------------------------------------------------------------

    def relay(self, texts: Sequence[str], task: TaskSpec) -> Generated:
        if task.relay.verbatim:
            return Generated(list(texts), {})
        made = self._generate(texts, task.relay.template, task.relay.max_new_tokens)
        return self.plain.relay(texts, task) if made is None else made

    def generate(
        self, texts: Sequence[str], task: TaskSpec, watch: Watch | None = None
    ) -> Generated:
        """Token by token, since each is watched: the plain path."""
        return self.plain.generate(texts, task, watch)

    def generate_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec, watch: Watch | None = None
    ) -> Generated:
        """As ``generate``."""
        return self.plain.generate_soft(payload, task, watch)

    @torch.inference_mode()
    def _generate(self, texts: Sequence[str], template: str, most: int) -> Generated | None:
        start = time.perf_counter()
        tokenizer = self.plain.tokenizer
        before, glue, tail = around_text(tokenizer, template)
        after = plain_ids(tokenizer, tail)
        rows = text_ids(tokenizer, texts, glue)
        longest = max(map(len, rows))
        shape = self._buckets.choose(len(rows), longest)
        if shape is None or len(before) + shape[1] + len(after) + most > POSITIONS:
            self._eagerly("generate", len(rows), longest)
            return None
        n, t = shape[0], shape[1] + len(after)
        key = (tuple(before), n, t, most)
        if key not in self._generations:
            self._tune([n * t])
            head = self.plain.model.get_output_embeddings()
            self.decoder.tune(n, head.weight)
            self._generations[key] = Generation(
                self.device,
                self.decoder,
                lambda states: self.decoder.ops.linear(states, head.weight, head.bias),
                (n, t),
                self._prefix(before),
                most,
                self._ends(),
            )
            self._forget_generations()
        self._generations.move_to_end(key)
        self.counts["generate"] += 1
        tokenize, start = _ms_since(start), time.perf_counter()
        written = self._generations[key]([[*row, *after] for row in rows])
        said = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]
        return Generated(said, {"tokenize": tokenize, "generate": _ms_since(start)})

    def _forget_generations(self) -> None:
        """Each has a cache of keys and values: together they get a tenth of the device."""
        while len(self._generations) > 1 and (
            sum(kept.cache_bytes for kept in self._generations.values()) > self.device.total // 10
        ):
            self._generations.popitem(last=False)

    def _ends(self) -> list[int]:
        ends = self.plain.model.generation_config.eos_token_id
        if ends is None:
            return []
        return list(ends) if isinstance(ends, list | tuple) else [int(ends)]


class _TaskPort:
    """A port whose prompt and label words can be exchanged for those of another task."""

    def __init__(self, port: Port, prompt: Tensor | None, head: LabelHead) -> None:
        self.port = port
        self._prompt = prompt
        self._head = head
        self._bound: PreparedTask | None = None

    def bind(self, task: PreparedTask) -> None:
        """Writes the task's prompt and label words to where the program reads them."""
        if self._bound is not task and self._prompt is not None:
            self._write(self._prompt, task)

    @torch.inference_mode()
    def _write(self, prompt: Tensor, task: PreparedTask) -> None:
        prompt.copy_(task.prompt)
        self._head.weight.copy_(task.prompt_head.weight)
        if self._head.bias is not None and task.prompt_head.bias is not None:
            self._head.bias.copy_(task.prompt_head.bias)
        self._bound = task


def _copy(head: LabelHead) -> LabelHead:
    bias = None if head.bias is None else head.bias.clone()
    return LabelHead(head.weight.clone(), bias, head.softcap)


def _scored(output: Tensor, read: Sequence[int], stages: dict[str, float]) -> Scored:
    scores = output[: len(read)].float().numpy().copy()
    return Scored(scores, stages, [(tokens, 1) for tokens in read])


def _encoded(
    output: npt.NDArray[np.float16], size: tuple[int, int], stages: dict[str, float]
) -> Encoded:
    """What the sender's graph gives a row: M soft tokens of d, behind them the fp32 RMS of each."""
    values = size[0] * size[1]
    payload = output[:, :values].reshape(-1, *size)
    rms = np.ascontiguousarray(output[:, values:]).view(np.float32)
    return Encoded(payload.copy(), stages, rms)


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3


__all__ = ["StaticBackend", "UnsupportedModel", "ops_for"]
