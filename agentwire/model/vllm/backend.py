"""The vLLM backend: a vLLM engine as sender and as receiver.

A receiver gets soft tokens as prompt embeddings and returns log-probabilities of the label tokens.
A sender's states are captured inside the engine (``vllm.states``). Sampled answers come from vLLM's
sampler: distributed as those of the transformers backend, and repeatable, but not the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agentwire.bridge import store
from agentwire.bridge.card import check_receiver, check_sender, read_card
from agentwire.bridge.halves import ReceivingReader, load_receiving
from agentwire.bridge.module import BridgeModule
from agentwire.download import OnProgress
from agentwire.errors import BridgeError, ModelError
from agentwire.model.backend import PLAIN, Asked, Encoded, Generated, Scored, Watch
from agentwire.model.chat import generation_rows
from agentwire.model.cpu.packing import groups_of
from agentwire.model.generation import Answers, end_ids
from agentwire.model.lru import LruCache
from agentwire.model.prompting import (
    MAX_PREPARED_TASKS,
    CompiledTask,
    compile_task,
    opening_ids,
    prompt_rows,
    read_texts,
    template_ids,
    text_limit,
)
from agentwire.model.sources.fingerprint import fingerprint
from agentwire.model.timing import Stopwatch
from agentwire.model.transformers import load_tokenizer, unloadable, weights_folder
from agentwire.model.vllm.engine import Engine, import_vllm
from agentwire.model.vllm.inputs import (
    RequestLimits,
    check_labels,
    ids_prompt,
    label_scores,
    soft_prompts,
)
from agentwire.model.vllm.states import StateTap, embedding_rms
from agentwire.spec.agent import AgentSpec
from agentwire.task.tokens import Tokenizer, start_ids
from agentwire.wire.messages import BridgeIdentity, ModelIdentity, TaskSpec


class VllmBackend:
    """A vLLM engine behind the ``Backend`` protocol; ``ends`` are ids that end an answer."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        identity: ModelIdentity,
        limits: RequestLimits,
        dtype: torch.dtype,
        ends: frozenset[int],
    ) -> None:
        self.identity = identity
        self._engine = engine
        self._tokenizer = tokenizer
        self._limits = limits
        self._dtype = dtype
        self._ends = ends
        self._start = start_ids(tokenizer)
        self._bridges: dict[str, tuple[StateTap, BridgeModule]] = {}
        self._readers: dict[str, ReceivingReader] = {}
        self._tasks: LruCache[str, CompiledTask] = LruCache(MAX_PREPARED_TASKS)

    @classmethod
    def load(cls, spec: AgentSpec, progress: OnProgress) -> VllmBackend:
        """Starts an engine with an agent's model; raises ModelError or DeviceError."""
        if spec.weights == "random":
            raise ModelError(
                f"{spec.name}: the vLLM backend does not support random weights.",
                hint="Set `backend: transformers`, or `weights: pretrained`.",
            )
        folder = weights_folder(spec)
        if spec.device == "cpu" and spec.threads is not None:
            torch.set_num_threads(spec.threads)  # vLLM forbids it later
        progress("library", 0.1)
        import_vllm(spec.device)
        logging.getLogger("transformers").setLevel(logging.ERROR)
        progress("tokenizer", 0.3)
        tokenizer = load_tokenizer(folder)
        config, ends = _read_config(folder, tokenizer)
        progress("weights", 0.4)
        engine = Engine.start(spec, folder, length=getattr(config, "max_position_embeddings", None))
        progress("fingerprint", 0.9)
        identity = ModelIdentity(
            name=spec.model,
            fingerprint=fingerprint(folder),
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            embedding_rms=embedding_rms(engine.model),
            dtype=spec.dtype,
            device=spec.device,
        )
        limits = RequestLimits(config.hidden_size, config.vocab_size, engine.length)
        progress("ready", 1.0)
        return cls(engine, tokenizer, identity, limits, getattr(torch, spec.dtype), ends)

    def add_bridge(self, folder: Path) -> BridgeIdentity:
        """Loads a bridge that reads this model; it runs beside the engine, in fp32."""
        if read_card(folder).reader is not None:
            raise BridgeError(
                "the vLLM backend does not read several layers, as a reader bridge does.",
                hint="Set `backend: transformers` for the sender.",
            )
        loaded = store.load(folder)
        check_sender(loaded.card, self.identity)
        model = self._engine.model
        device = next(model.parameters()).device
        tap = StateTap(model, loaded.card.layer)
        self._bridges[loaded.card.weights_sha256] = (tap, loaded.module.to(device))
        return loaded.card.identity()

    def add_reader(self, folder: Path) -> BridgeIdentity:
        """Loads the receiver's half of a reader bridge without additions, on the CPU."""
        card = check_receiver(read_card(folder), self.identity)
        if card.reader is not None and card.reader.additions:
            raise BridgeError(
                f"the vLLM backend cannot add to hidden states, as the bridge {card.name} does.",
                hint="Set `backend: transformers` for the receiver, or train the bridge with "
                "`additions: []`.",
            )
        self._readers[card.weights_sha256] = load_receiving(folder, torch.device("cpu"))
        return card.identity()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], bridge: str, soft_tokens: int = 0) -> Encoded:
        tap, module = self._bridges[bridge]
        clock = Stopwatch()
        opening = opening_ids(self._tokenizer)
        read, unread = read_texts(self._tokenizer, texts)
        rows = [opening + row for row in read]
        self._limits.check_ids(rows, 1)
        clock.lap("tokenize")
        tokens, count = self._engine.step_limits
        found: list[torch.Tensor] = []
        for group in groups_of([len(row) for row in rows], tokens, count):
            batch = [rows[i] for i in group]
            with tap.open():
                self._engine.run([ids_prompt(row) for row in batch], temperature=0, max_tokens=1)
            # The bridge never sees the opening token.
            found += [states[1:] for states in tap.states(batch)]
        clock.lap("encode")
        lengths = torch.tensor([len(row) - 1 for row in rows])
        states = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        mask = torch.arange(states.shape[1])[None, :] < lengths[:, None]
        soft = module(states, mask.to(states.device)).half().cpu().numpy()
        clock.lap("bridge")
        return Encoded(np.ascontiguousarray(soft), clock.stages, unread=unread)

    def prepare(self, task: TaskSpec) -> None:
        self._compiled(task)

    def _compiled(self, task: TaskSpec) -> CompiledTask:
        def compiled() -> CompiledTask:
            check_labels(task.labels)
            return compile_task(self._tokenizer, task)

        return self._tasks.get(task.task_id, compiled)

    def score_soft(
        self,
        payload: npt.NDArray[np.float16],
        task: TaskSpec,
        asked: Asked = PLAIN,
    ) -> Scored:
        """Label scores of payloads that ``RequestLimits.check_soft`` accepts."""
        clock = Stopwatch()
        ids = self._compiled(task)
        prompts = self._soft_prompts(payload, task, 1, asked)
        scores = self._score(prompts, ids.prompt_labels)
        clock.lap("decode")
        return Scored(scores, clock.stages, [(_length(prompt), 1) for prompt in prompts])

    @torch.inference_mode()
    def _soft_prompts(
        self,
        payload: npt.NDArray[np.float16],
        task: TaskSpec,
        answer: int,
        asked: Asked,
    ) -> list[dict[str, Any]]:
        """Checked prompts."""
        after: Sequence[Sequence[int]] = [self._compiled(task).prompt] * len(payload)
        if asked.questions:
            after = prompt_rows(self._tokenizer, task, asked.questions)
        if asked.reader:
            vectors, _ = self._readers[asked.reader].read(torch.from_numpy(np.array(payload)))
            payload = vectors.half().numpy()
        around = len(self._start) + max(map(len, after))
        self._limits.check_soft(payload, around, answer)
        return [
            prompt
            for row, ids in zip(payload, after, strict=True)
            for prompt in soft_prompts(row[None], self._start, ids, self._dtype)
        ]

    def score_text(self, texts: Sequence[str], task: TaskSpec, asked: Asked = PLAIN) -> Scored:
        clock = Stopwatch()
        ids = self._compiled(task)
        limit = text_limit(self._limits.length, len(ids.before) + len(ids.after), 1)
        if asked:
            rows, unread = self._text_rows(texts, replace(task, form="text"), asked)
        else:
            read, unread = read_texts(self._tokenizer, texts, ids.glue, limit)
            rows = [[*ids.before, *row, *ids.after] for row in read]
        self._limits.check_ids(rows, 1)
        clock.lap("tokenize")
        scores = self._score([ids_prompt(row) for row in rows], ids.text_labels)
        clock.lap("decode")
        return Scored(scores, clock.stages, [(len(row), 1) for row in rows], unread)

    def _score(
        self, prompts: Sequence[dict[str, Any]], labels: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        answers = self._engine.run(
            prompts, temperature=0, max_tokens=1, logprob_token_ids=list(labels)
        )
        return label_scores([answer.logprobs[0] for answer in answers], labels)

    def relay(self, texts: Sequence[str], task: TaskSpec) -> Generated:
        if task.relay.verbatim:
            return Generated(list(texts), {})
        clock = Stopwatch()
        before, read, after = template_ids(self._tokenizer, task.relay, texts, self._limits.length)
        rows = [[*before, *row, *after] for row in read]
        self._limits.check_ids(rows, task.relay.max_new_tokens)
        clock.lap("tokenize")
        answers = self._engine.run(
            [ids_prompt(row) for row in rows],
            temperature=0,
            max_tokens=task.relay.max_new_tokens,
            stop_token_ids=sorted(self._ends),
        )
        written = [
            self._tokenizer.decode(list(answer.token_ids), skip_special_tokens=True).strip()
            for answer in answers
        ]
        clock.lap("generate")
        return Generated(written, clock.stages)

    def _text_rows(
        self, texts: Sequence[str], task: TaskSpec, asked: Asked
    ) -> tuple[list[list[int]], list[int]]:
        questions = asked.of_rows(len(texts))
        return generation_rows(self._tokenizer, texts, task, self._limits.length, questions)

    def generate(
        self,
        texts: Sequence[str],
        task: TaskSpec,
        watch: Watch | None = None,
        asked: Asked = PLAIN,
    ) -> Generated:
        clock = Stopwatch()
        rows, unread = self._text_rows(texts, task, asked)
        self._limits.check_ids(rows, task.max_new_tokens)
        clock.lap("tokenize")
        prompts = [ids_prompt(row) for row in rows]
        answered = self._answer(prompts, [len(row) for row in rows], task, watch, clock)
        return replace(answered, unread=unread)

    def generate_soft(
        self,
        payload: npt.NDArray[np.float16],
        task: TaskSpec,
        watch: Watch | None = None,
        asked: Asked = PLAIN,
    ) -> Generated:
        clock = Stopwatch()
        prompts = self._soft_prompts(payload, task, task.max_new_tokens, asked)
        if asked.reader:
            task = self._readers[asked.reader].with_stops(task)
        read = list(map(_length, prompts))
        return self._answer(prompts, read, task, watch, clock, judge=bool(asked.reader))

    def _answer(
        self,
        prompts: Sequence[dict[str, Any]],
        read: Sequence[int],
        task: TaskSpec,
        watch: Watch | None,
        clock: Stopwatch,
        judge: bool = False,
    ) -> Generated:
        decoding = task.decoding
        answers = Answers(self._tokenizer, len(prompts), self._ends, decoding, watch)
        taken, sums = [0] * len(prompts), [0.0] * len(prompts)

        def take(row: int, made: Any) -> bool:
            tokens = made.token_ids
            for token in tokens[taken[row] :]:
                if not answers.is_done(row):
                    answers.take(row, token)
                    sums[row] = made.cumulative_logprob or 0.0
            taken[row] = len(tokens)
            return not answers.is_done(row)

        self._engine.watch(
            prompts,
            take,
            temperature=decoding.temperature / 1000,
            top_p=decoding.top_p / 1000,
            seed=decoding.seed if decoding.temperature else None,
            max_tokens=task.max_new_tokens,
            stop_token_ids=sorted(self._ends),
            logprobs=0 if judge else None,  # 0: of the sampled token only
        )
        generated = answers.generated(read, clock)
        if not judge:
            return generated
        means = [total / max(1, n) for total, n in zip(sums, answers.taken, strict=True)]
        return replace(generated, confidence=means)


def _length(prompt: Mapping[str, Any]) -> int:
    return len(prompt["prompt_token_ids"])


def _read_config(folder: Path, tokenizer: Tokenizer) -> tuple[Any, frozenset[int]]:
    """The text model's config and the tokens that end a text; raises ModelError."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if (folder / "generation_config.json").exists():
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        else:
            generation = GenerationConfig.from_model_config(config)
    except Exception as error:  # the library raises whatever its parsers raise
        raise unloadable("configuration", folder, error) from error
    return config.get_text_config(), end_ids(generation, tokenizer)
