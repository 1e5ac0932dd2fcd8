"""The vLLM backend: the engine that people serve with, as sender and as receiver.

A receiver is given its soft tokens as prompt embeddings and asked for the log-probabilities of the
label tokens alone. A sender's states are caught inside the engine, at the layer its bridge reads
(``vllm_states``). The tokenizer, prompts, labels and the bridge are those of the transformers
backend, so both engines are asked the same thing.

Answers that are drawn (temperature above 0) are vLLM's draws: as likely as those of the
transformers backend, from the same seed for every run here, but not the same ones.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agentwire.bridge import store
from agentwire.bridge.card import check_sender
from agentwire.bridge.module import BridgeModule
from agentwire.errors import ModelError
from agentwire.model.backend import Encoded, Generated, ReportProgress, Scored, Watch
from agentwire.model.chat import generation_ids
from agentwire.model.generation import Answers, end_ids
from agentwire.model.latest import LatestTasks
from agentwire.model.prompting import (
    CompiledTask,
    Tokenizer,
    around_text,
    compile_task,
    plain_ids,
    start_ids,
    text_ids,
)
from agentwire.model.sources.lookup import fingerprint
from agentwire.model.texts import pad_right
from agentwire.model.transformers import load_tokenizer
from agentwire.model.vllm.engine import Engine, import_vllm
from agentwire.model.vllm.inputs import (
    Room,
    check_labels,
    groups,
    ids_prompt,
    label_scores,
    soft_prompts,
)
from agentwire.model.vllm.states import StateTap, embedding_rms
from agentwire.spec.agent import AgentSpec
from agentwire.wire.messages import BridgeIdentity, ModelIdentity, TaskSpec


class VllmBackend:
    """A vLLM engine behind the ``Backend`` protocol.

    Args:
        engine: running.
        tokenizer: the model's.
        identity: what it says of itself in Hello.
        room: what one request may hold.
        dtype: of the model's embeddings.
        ends: ids of tokens that end an answer.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        identity: ModelIdentity,
        room: Room,
        dtype: torch.dtype,
        ends: frozenset[int],
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._identity = identity
        self._room = room
        self._dtype = dtype
        self._ends = ends
        self._start = start_ids(tokenizer)
        self._bridges: dict[str, tuple[StateTap, BridgeModule]] = {}
        self._tasks: LatestTasks[CompiledTask] = LatestTasks()

    @classmethod
    def load(cls, spec: AgentSpec, progress: ReportProgress) -> VllmBackend:
        """Starts an engine with what ``spec`` names; the weights must be on this machine already.

        Raises:
            ModelError, DeviceError: vLLM is missing, does not fit the device, or cannot run the
                model.
        """
        if spec.weights == "random":
            raise ModelError(
                f"{spec.name}: the vLLM backend runs no models with random weights.",
                hint="Set `backend: transformers`, or `weights: pretrained`.",
            )
        if spec.folder is None:
            raise ModelError(
                f"the weights of {spec.model} are not on this machine.",
                hint=f"Run `agentwire models pull {spec.model}`.",
            )
        folder = Path(spec.folder)
        if spec.device == "cpu" and spec.threads is not None:
            torch.set_num_threads(spec.threads)  # vLLM forbids it later
        progress("library", 0.1)
        import_vllm(spec.device)
        logging.getLogger("transformers").setLevel(logging.ERROR)
        progress("tokenizer", 0.3)
        tokenizer = load_tokenizer(folder)
        shape, ends = _described(folder, tokenizer)
        progress("weights", 0.4)
        engine = Engine.start(spec, folder, room=getattr(shape, "max_position_embeddings", None))
        progress("fingerprint", 0.9)
        identity = ModelIdentity(
            name=spec.model,
            fingerprint=fingerprint(folder),
            width=shape.hidden_size,
            layers=shape.num_hidden_layers,
            embedding_rms=embedding_rms(engine.model),
            dtype=spec.dtype,
            device=spec.device,
        )
        room = Room(shape.hidden_size, shape.vocab_size, engine.length)
        progress("ready", 1.0)
        return cls(engine, tokenizer, identity, room, getattr(torch, spec.dtype), ends)

    @property
    def identity(self) -> ModelIdentity:
        return self._identity

    # -- sender -----------------------------------------------------------------------------

    def add_bridge(self, folder: Path) -> BridgeIdentity:
        """Loads a bridge that reads this model; it runs beside the engine, in fp32.

        Raises:
            BridgeError: corrupt, or made for another sender.
            ModelError: this model's layers cannot be read.
        """
        loaded = store.load(folder)
        check_sender(loaded.card, self._identity)
        model = self._engine.model
        device = next(model.parameters()).device
        tap = StateTap(model, loaded.card.layer)
        self._bridges[loaded.card.weights_sha256] = (tap, loaded.module.to(device))
        return loaded.card.identity()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], bridge: str) -> Encoded:
        tap, module = self._bridges[bridge]
        clock = _Stopwatch()
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else 0
        opening = self._start or [pad]
        rows = [opening + row for row in text_ids(self._tokenizer, texts)]
        self._room.check_ids(rows, 1)
        clock.lap("tokenize")
        tokens, count = self._engine.step_limits
        found: list[torch.Tensor] = []
        for group in groups([len(row) for row in rows], tokens, count):
            batch = [rows[i] for i in group]
            with tap.open():
                self._engine.run([ids_prompt(row) for row in batch], temperature=0, max_tokens=1)
            # The opening token is no text: a bridge never sees it.
            found += [states[1:] for states in tap.states(batch)]
        clock.lap("encode")
        _, lengths = pad_right([row[1:] for row in rows], pad)
        states = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        mask = torch.arange(states.shape[1])[None, :] < lengths[:, None]
        soft = module(states, mask.to(states.device)).half().cpu().numpy()
        clock.lap("bridge")
        return Encoded(np.ascontiguousarray(soft), clock.stages)

    # -- receiver ---------------------------------------------------------------------------

    def prepare(self, task: TaskSpec) -> None:
        self._tasks.of(task, self._compiled)

    def _compiled(self, task: TaskSpec) -> CompiledTask:
        check_labels(task.labels)
        return compile_task(self._tokenizer, task)

    def score_soft(self, payload: npt.NDArray[np.float16], task: TaskSpec) -> Scored:
        """As the protocol says; what would harm the engine is refused before it gets there.

        Raises:
            RemoteProtocolError: see ``Room.check_soft``.
        """
        clock = _Stopwatch()
        ids = self._tasks.of(task, self._compiled)
        prompts, read = self._soft_prompts(payload, ids, 1)
        scores = self._score(prompts, ids.prompt_labels)
        clock.lap("decode")
        return Scored(scores, clock.stages, [(read, 1)] * len(scores))

    def _soft_prompts(
        self, payload: npt.NDArray[np.float16], ids: CompiledTask, answer: int
    ) -> tuple[list[dict[str, Any]], int]:
        """Checked prompts, and how many tokens each holds."""
        around = len(self._start) + len(ids.prompt)
        self._room.check_soft(payload, around, answer)
        prompts = soft_prompts(payload, self._start, ids.prompt, self._dtype)
        return prompts, around + payload.shape[1]

    def score_text(self, texts: Sequence[str], task: TaskSpec) -> Scored:
        clock = _Stopwatch()
        ids = self._tasks.of(task, self._compiled)
        read = text_ids(self._tokenizer, texts, ids.glue)
        rows = [[*ids.before, *row, *ids.after] for row in read]
        self._room.check_ids(rows, 1)
        clock.lap("tokenize")
        scores = self._score([ids_prompt(row) for row in rows], ids.text_labels)
        clock.lap("decode")
        return Scored(scores, clock.stages, [(len(row), 1) for row in rows])

    def _score(
        self, prompts: Sequence[dict[str, Any]], labels: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        answers = self._engine.run(
            prompts, temperature=0, max_tokens=1, logprob_token_ids=list(labels)
        )
        return label_scores([answer.logprobs[0] for answer in answers], labels)

    # -- text -------------------------------------------------------------------------------

    def relay(self, texts: Sequence[str], task: TaskSpec) -> Generated:
        if task.relay.verbatim:
            return Generated(list(texts), {})
        clock = _Stopwatch()
        before, glue, tail = around_text(self._tokenizer, task.relay.template)
        after = plain_ids(self._tokenizer, tail)
        rows = [[*before, *row, *after] for row in text_ids(self._tokenizer, texts, glue)]
        self._room.check_ids(rows, task.relay.max_new_tokens)
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

    def generate(
        self, texts: Sequence[str], task: TaskSpec, watch: Watch | None = None
    ) -> Generated:
        clock = _Stopwatch()
        rows = [generation_ids(self._tokenizer, text, task) for text in texts]
        self._room.check_ids(rows, task.max_new_tokens)
        clock.lap("tokenize")
        prompts = [ids_prompt(row) for row in rows]
        return self._answer(prompts, [len(row) for row in rows], task, watch, clock)

    def generate_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec, watch: Watch | None = None
    ) -> Generated:
        clock = _Stopwatch()
        prompts, read = self._soft_prompts(
            payload, self._tasks.of(task, self._compiled), task.max_new_tokens
        )
        return self._answer(prompts, [read] * len(prompts), task, watch, clock)

    def _answer(
        self,
        prompts: Sequence[dict[str, Any]],
        read: Sequence[int],
        task: TaskSpec,
        watch: Watch | None,
        clock: _Stopwatch,
    ) -> Generated:
        decoding = task.decoding
        answers = Answers(self._tokenizer, len(prompts), 0, self._ends, decoding, watch)
        taken = [0] * len(prompts)

        def take(row: int, tokens: Sequence[int]) -> bool:
            for token in tokens[taken[row] :]:
                if not answers.is_done(row):
                    answers.take(row, token)
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
        )
        texts = answers.texts()
        clock.lap("generate")
        written = [len(row) for row in answers.written]
        return Generated(texts, clock.stages, list(zip(read, written, strict=True)))


def _described(folder: Path, tokenizer: Tokenizer) -> tuple[Any, frozenset[int]]:
    """What the files beside the weights say: the text model's config, and which ids end a text.

    Raises:
        ModelError: the folder holds no model.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        whole = AutoConfig.from_pretrained(folder, local_files_only=True)
        if (folder / "generation_config.json").exists():
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        else:
            generation = GenerationConfig.from_model_config(whole)
    except Exception as error:  # the library raises whatever its parsers raise
        raise ModelError(
            f"{folder} holds no model that can be loaded: {error}",
            hint="Remove the folder and run `agentwire models pull` again.",
        ) from error
    return whole.get_text_config(), end_ids(
        SimpleNamespace(generation_config=generation), tokenizer
    )


class _Stopwatch:
    """Milliseconds of each lap; the engine returns when its device is done."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.stages[name] = self.stages.get(name, 0.0) + (now - self._last) * 1e3
        self._last = now
