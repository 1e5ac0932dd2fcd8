"""The static engine: a language model on a GPU that runs batches as CUDA graphs of fixed shape.

The transformers backend below it loads the model and runs every batch without a captured shape.
Which of the two ran is counted and shows in the stages: only the plain path reports ``bridge``.
What the wires need is captured before the agent is ready; reading and generating text is captured
at its first use in each shape.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from agentwire.download import OnProgress
from agentwire.errors import DeviceError
from agentwire.model.backend import PLAIN, Asked, Encoded, Generated, Job, Scored
from agentwire.model.lru import LruCache
from agentwire.model.prompting import (
    opening_ids,
    read_texts,
    template_ids,
    text_ids,
    text_limit,
)
from agentwire.model.static.buckets import Buckets, fill
from agentwire.model.static.decoder import POSITIONS, Prefix, StaticDecoder
from agentwire.model.static.graphs import GraphDevice, Runner, RunnerJob
from agentwire.model.static.greedy import Generation
from agentwire.model.static.ops import Ops, PlainOps
from agentwire.model.timing import ms_since
from agentwire.model.transformers import LabelHead, PreparedTask, TransformersBackend
from agentwire.spec.agent import AgentSpec
from agentwire.wire.messages import BridgeIdentity, RelaySpec, TaskSpec

log = logging.getLogger(__name__)

RUNNERS = 256  # captured shapes that are kept for tasks and texts
PREFIXES = 16
EXPRESS_ROWS = 1
"""Batches up to this size have a second graph, for when no other batch is running."""


def ops_for(device: torch.device) -> Ops:
    """Triton kernels where Triton is installed, else plain torch."""
    if device.type != "cuda":
        return PlainOps()
    try:
        from agentwire.model.static.triton_ops import FusedOps
    except ImportError:
        log.warning("Triton is not installed; the slower plain operations are used.")
        return PlainOps()
    return FusedOps()


class StaticBackend:
    """A causal language model behind the ``Backend`` and ``Pipelined`` protocols.

    ``plain`` runs what has no captured shape. Raises UnsupportedModel as ``StaticDecoder``.
    """

    def __init__(self, plain: TransformersBackend, spec: AgentSpec, progress: OnProgress) -> None:
        self.plain = plain
        self.identity = plain.identity
        # Free text is generated on the plain path, which can report every token.
        self.generate, self.generate_soft = plain.generate, plain.generate_soft
        self.add_reader = plain.add_reader
        self.decoder = StaticDecoder(plain.model, ops_for(plain.device))
        self.device = GraphDevice(plain.device, graphs=spec.graphs.enabled)
        self.counts: Counter[str] = Counter()
        self._spec = spec
        self._progress = progress
        self._buckets = Buckets.of(spec.graphs, spec.max_batch)
        self._encoders: dict[str, dict[tuple[int, int], Runner]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}  # of a bridge's payloads: M, d
        self._runners: LruCache[tuple[Any, ...], _TaskRunner] = LruCache(RUNNERS)
        self._generations: LruCache[tuple[Any, ...], Generation] = LruCache(RUNNERS)
        self._prefixes: LruCache[tuple[int, ...], Prefix] = LruCache(PREFIXES)
        self._warmup_runner: Runner | None = None

    def summary(self) -> str:
        ran = ", ".join(f"{what} {count}" for what, count in sorted(self.counts.items()))
        device = self.device
        graphs = f"{device.captured} graphs with {device.captured_bytes / 2**30:.1f} GiB"
        return f"{ran or 'none'}; {graphs}"

    def _report(self, done: int, of: int) -> None:
        device = self.device
        stage = f"graphs ({device.captured}, {device.captured_bytes / 2**30:.1f} GiB)"
        self._progress(stage if device.graphs else "shapes", done / max(1, of))

    def _runner(self, inputs: list[Tensor], compute: Callable[[], Tensor]) -> Runner:
        express = self._spec.graphs.express and len(inputs[0]) <= EXPRESS_ROWS
        return Runner(self.device, inputs, compute, express=express)

    def _prefix(self, ids: Sequence[int]) -> Prefix:
        key = tuple(ids)
        return self._prefixes.get(key, lambda: self.decoder.prefix(key))

    def _count_eager(self, what: str, rows: int, tokens: int) -> None:
        """Counts a batch without a captured shape; the first one is logged."""
        self.counts[f"{what} eager"] += 1
        if self.counts[f"{what} eager"] == 1:
            log.warning(
                f"{what}: {rows} rows of {tokens} tokens have no captured shape "
                f"({self._buckets}); they run without a graph."
            )

    def add_bridge(self, folder: Path) -> BridgeIdentity:
        """As ``TransformersBackend.add_bridge``; captures every shape, or raises DeviceError."""
        identity = self.plain.add_bridge(folder)
        if identity.sizes:
            return identity  # a reader bridge runs without graphs
        module = self.plain.bridge(identity.fingerprint)
        prefix = self._prefix(opening_ids(self.plain.tokenizer))
        shapes = list(self._buckets.shapes())
        runners = self._encoders[identity.fingerprint] = {}
        self._sizes[identity.fingerprint] = identity.soft_tokens, identity.width
        for i, shape in enumerate(shapes):
            self._report(i, len(shapes))
            try:
                runners[shape] = self._encoder(shape, identity.layer, module, prefix)
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"{self._spec.device} has too little memory to capture {shape[0]} rows of "
                    f"{shape[1]} tokens.",
                    hint="Lower `max_tokens`, `batches` or `texts` under `graphs:` in the agent's "
                    "file; shapes that are not captured run without a graph.",
                ) from error
        self._capture_warmup()
        self._report(1, 1)
        return identity

    def _encoder(self, shape: tuple[int, int], layer: int, module: Any, prefix: Prefix) -> Runner:
        n, t = shape
        packed = torch.ones(n, t + 1, dtype=torch.long, device=self.decoder.device)
        steps = torch.arange(t, device=self.decoder.device)[None]

        def compute() -> Tensor:
            states = self.decoder.trunk(packed[:, :t], layer, prefix)
            soft: Tensor = module(states, steps < packed[:, t:]).half()
            norm = torch.linalg.vector_norm(soft, dim=-1, dtype=torch.float32)
            rms = norm / soft.shape[-1] ** 0.5
            return torch.cat([soft.flatten(1), rms.view(torch.float16)], dim=1)

        return self._runner([packed], compute)

    def begin_encode(self, texts: Sequence[str], bridge: str) -> Job[Encoded] | None:
        if bridge not in self._encoders:
            return None
        start = time.perf_counter()
        rows, unread = read_texts(self.plain.tokenizer, texts)
        longest = max(map(len, rows))
        shape = self._buckets.choose(len(rows), longest)
        if shape is None:
            self._count_eager("encode", len(rows), longest)
            return None
        runner = self._encoders[bridge][shape]
        self.counts["encode"] += 1
        staging = runner.staging()
        fill(staging.host_in[0].numpy(), rows)
        tokenize = ms_since(start)
        runner.launch(staging)
        count, (m, d) = len(rows), self._sizes[bridge]

        def read(output: Tensor, took: float) -> Encoded:
            """Each row of the output holds M soft tokens of d values, then the fp32 RMS of each."""
            found = output.numpy()[:count]
            payload = found[:, : m * d].reshape(-1, m, d).copy()
            rms = np.ascontiguousarray(found[:, m * d :]).view(np.float32)
            return Encoded(payload, {"tokenize": tokenize, "encode": took}, rms, unread)

        return RunnerJob(runner, staging, read)

    def warm_up(self, texts: Sequence[str]) -> None:
        """Runs the path of a single row with a graph of next to no work (``SupportsWarmup``)."""
        runner = self._warmup_runner
        if runner is None or self.device.running:
            return
        rows = text_ids(self.plain.tokenizer, texts) if texts else [[0]]
        staging = runner.staging()
        fill(staging.host_in[0].numpy(), [rows[0][:1]])
        runner.launch(staging)
        RunnerJob(runner, staging, lambda output, took: _scored(output, [1], {})).result()

    def _capture_warmup(self) -> None:
        if self._warmup_runner is None and self.device.graphs:
            packed = torch.ones(1, 2, dtype=torch.long, device=self.decoder.device)
            self._warmup_runner = Runner(self.device, [packed], packed.float, express=True)

    def encode(self, texts: Sequence[str], bridge: str, soft_tokens: int = 0) -> Encoded:
        job = self.begin_encode(texts, bridge)
        return self.plain.encode(texts, bridge, soft_tokens) if job is None else job.result()

    def prepare(self, task: TaskSpec) -> None:
        """Compiles the task and captures it for the payloads that this agent's wires bring."""
        self.plain.prepare(task)
        if not task.labels:
            return
        self._capture_warmup()
        wanted = [(n, m) for m in self._spec.soft_tokens for n in reversed(self._buckets.rows)]
        for i, (n, m) in enumerate(wanted):
            self._report(i, len(wanted))
            self._soft_runner(task, n, m)

    def _soft_runner(self, task: TaskSpec, n: int, soft_tokens: int) -> _TaskRunner | None:
        prepared = self.plain.prepared(task)
        length, labels = prepared.prompt.shape[0], len(task.labels)
        # Tasks of one shape share a graph: ``_TaskRunner.bind`` copies their prompt in.
        key = ("soft", n, soft_tokens, length, labels)
        if length + soft_tokens + len(opening_ids(self.plain.tokenizer)) > POSITIONS:
            return None
        return self._runners.get(key, lambda: self._soft(prepared, n, soft_tokens))

    def _soft(self, prepared: PreparedTask, n: int, soft_tokens: int) -> _TaskRunner:
        decoder, prefix = self.decoder, self._prefix(self.plain.start)
        shape = (n, soft_tokens, decoder.width)
        soft = torch.zeros(shape, dtype=torch.float16, device=decoder.device)
        prompt = prepared.prompt.clone()
        given = prepared.prompt_head
        bias = None if given.bias is None else given.bias.clone()
        head = LabelHead(given.weight.clone(), bias, given.softcap)
        last = torch.full((n,), soft_tokens + prompt.shape[0] - 1, device=decoder.device)

        def compute() -> Tensor:
            x = torch.cat([soft.to(decoder.dtype), prompt.expand(n, -1, -1)], dim=1)
            return torch.log_softmax(head(decoder.last(x, last, prefix)), dim=-1)

        return _TaskRunner(self._runner([soft], compute), prompt, head)

    def begin_score_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec
    ) -> Job[Scored] | None:
        count, soft_tokens = payload.shape[:2]
        n, context = self._buckets.choose_rows(count), self.plain.context
        prepared = self.plain.prepared(task)
        length = len(self.plain.start) + soft_tokens + prepared.prompt.shape[0]
        fits = context is None or length < context  # the plain model refuses what does not
        found = self._soft_runner(task, n, soft_tokens) if fits and n is not None else None
        if found is None:
            self._count_eager("soft", count, soft_tokens)
            return None
        self.counts["soft"] += 1
        staging = found.runner.staging()
        # Through numpy: a message's payload may be read-only, which torch would warn about.
        staging.host_in[0].numpy()[:count] = payload
        found.runner.launch(staging, lambda: found.bind(prepared))
        read = [length] * count
        return RunnerJob(
            found.runner, staging, lambda output, took: _scored(output, read, {"decode": took})
        )

    def score_soft(
        self,
        payload: npt.NDArray[np.float16],
        task: TaskSpec,
        asked: Asked = PLAIN,
    ) -> Scored:
        if asked:
            self._count_eager("soft", *payload.shape[:2])
            return self.plain.score_soft(payload, task, asked)
        job = self.begin_score_soft(payload, task)
        return self.plain.score_soft(payload, task) if job is None else job.result()

    def begin_score_text(self, texts: Sequence[str], task: TaskSpec) -> Job[Scored] | None:
        start = time.perf_counter()
        prepared = self.plain.prepared(task)
        ids = prepared.ids
        limit = text_limit(self.plain.context, len(ids.before) + len(ids.after), 1)
        rows, unread = read_texts(self.plain.tokenizer, texts, ids.glue, limit)
        longest = max(map(len, rows))
        shape = self._buckets.choose(len(rows), longest)
        if shape is None or len(ids.before) + shape[1] + len(ids.after) > POSITIONS:
            self._count_eager("text", len(rows), longest)
            return None
        n, t = shape[0], shape[1] + len(ids.after)
        key = ("text", task.task_id, n, t)
        runner = self._runners.get(key, lambda: self._text(prepared, n, t)).runner
        self.counts["text"] += 1
        staging = runner.staging()
        fill(staging.host_in[0].numpy(), [[*row, *ids.after] for row in rows])
        tokenize = ms_since(start)
        runner.launch(staging)
        read = [len(ids.before) + len(row) + len(ids.after) for row in rows]

        def scored(output: Tensor, took: float) -> Scored:
            found = _scored(output, read, {"tokenize": tokenize, "decode": took})
            return replace(found, unread=unread)

        return RunnerJob(runner, staging, scored)

    def _text(self, prepared: PreparedTask, n: int, t: int) -> _TaskRunner:
        decoder, prefix = self.decoder, self._prefix(prepared.ids.before)
        packed = torch.ones(n, t + 1, dtype=torch.long, device=decoder.device)
        head = prepared.text_head

        def compute() -> Tensor:
            x = decoder.embed(packed[:, :t])
            states = decoder.last(x, packed[:, t] - 1, prefix)
            return torch.log_softmax(head(states), dim=-1)

        return _TaskRunner(self._runner([packed], compute), None, head)

    def score_text(self, texts: Sequence[str], task: TaskSpec, asked: Asked = PLAIN) -> Scored:
        if asked:
            return self.plain.score_text(texts, task, asked)
        job = self.begin_score_text(texts, task)
        return self.plain.score_text(texts, task) if job is None else job.result()

    def relay(self, texts: Sequence[str], task: TaskSpec) -> Generated:
        if task.relay.verbatim:
            return Generated(list(texts), {})
        made = self._generate(texts, task.relay)
        return self.plain.relay(texts, task) if made is None else made

    @torch.inference_mode()
    def _generate(self, texts: Sequence[str], relay: RelaySpec) -> Generated | None:
        start = time.perf_counter()
        tokenizer, limit = self.plain.tokenizer, relay.max_new_tokens
        before, rows, after = template_ids(tokenizer, relay, texts, self.plain.context)
        longest = max(map(len, rows))
        shape = self._buckets.choose(len(rows), longest)
        if shape is None or len(before) + shape[1] + len(after) + limit > POSITIONS:
            self._count_eager("generate", len(rows), longest)
            return None
        n, t = shape[0], shape[1] + len(after)
        generation = self._generations.get(
            (tuple(before), n, t, limit), lambda: self._generation((n, t), before, limit)
        )
        self._drop_generations()
        self.counts["generate"] += 1
        tokenize, start = ms_since(start), time.perf_counter()
        written = generation([[*row, *after] for row in rows])
        said = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]
        return Generated(said, {"tokenize": tokenize, "generate": ms_since(start)})

    def _generation(self, shape: tuple[int, int], before: Sequence[int], limit: int) -> Generation:
        head = self.plain.model.get_output_embeddings()
        ends = self.plain.model.generation_config.eos_token_id
        return Generation(
            self.device,
            self.decoder,
            lambda states: F.linear(states, head.weight, head.bias),
            shape,
            self._prefix(before),
            limit,
            [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [int(ends)],
        )

    def _drop_generations(self) -> None:
        """Each has a cache of keys and values: together they get a tenth of the device."""
        kept = self._generations.values
        while len(kept) > 1 and (
            sum(generation.cache_bytes for generation in kept.values()) > self.device.total // 10
        ):
            kept.popitem(last=False)


class _TaskRunner:
    """A runner whose prompt and label words can be replaced by those of another task."""

    def __init__(self, runner: Runner, prompt: Tensor | None, head: LabelHead) -> None:
        self.runner = runner
        self._prompt = prompt
        self._head = head
        self._bound: PreparedTask | None = None

    def bind(self, task: PreparedTask) -> None:
        """Copies the task's prompt and label words to where the graph reads them."""
        if self._bound is task or self._prompt is None:
            return
        with torch.inference_mode():
            self._prompt.copy_(task.prompt)
            self._head.weight.copy_(task.prompt_head.weight)
            if self._head.bias is not None and task.prompt_head.bias is not None:
                self._head.bias.copy_(task.prompt_head.bias)
        self._bound = task


def _scored(output: Tensor, read: Sequence[int], stages: dict[str, float]) -> Scored:
    scores = output[: len(read)].float().numpy().copy()
    return Scored(scores, stages, [(tokens, 1) for tokens in read])
