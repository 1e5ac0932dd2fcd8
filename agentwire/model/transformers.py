"""The transformers backend: one causal language model on one device.

It computes only what is needed. A sender runs the layers that its bridge reads, without LM head. A
receiver's input ``[BOS][M soft tokens][prompt]`` has a fixed length and needs no mask, and the LM
head is applied to the last position and the label words only. Padding is on the right, where a
causal model cannot see it, so results do not depend on the batch.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agentwire.bridge import store
from agentwire.bridge.card import check_receiver, check_sender, read_card
from agentwire.bridge.halves import (
    ManyLayers,
    ReceivingReader,
    SendingReader,
    SoftInputs,
    lay_out,
    load_receiving,
    load_sending,
)
from agentwire.bridge.module import BridgeModule
from agentwire.download import OnProgress
from agentwire.errors import DeviceError, ModelError, first_line
from agentwire.model.backend import PLAIN, Asked, Encoded, Generated, Scored, Watch
from agentwire.model.chat import check_length, generation_rows
from agentwire.model.cpu.packed_linear import pack_linears
from agentwire.model.cpu.packing import can_pack, packed_states
from agentwire.model.generation import Answers, Confidence, continue_text, end_ids
from agentwire.model.lru import LruCache
from agentwire.model.prompting import (
    MAX_PREPARED_TASKS,
    CompiledTask,
    compile_task,
    opening_ids,
    prompt_rows,
    read_texts,
    template_ids,
    text_ids,
    text_limit,
)
from agentwire.model.sources import random_weights
from agentwire.model.sources.fingerprint import fingerprint
from agentwire.model.texts import TextReader, pad_right
from agentwire.model.timing import Stopwatch
from agentwire.spec.agent import AgentSpec
from agentwire.task.tokens import Tokenizer, pad_id, start_ids
from agentwire.wire.messages import BridgeIdentity, ModelIdentity, TaskSpec

RELOAD = "Remove the folder and run `agentwire models pull` again."

CPU_CONTEXT: Final = 4096
"""Tokens that one row may have on a CPU, since nobody else is answered during its pass. A prompt of
10,600 tokens held gemma-3-270m on two busy cores until the hang limit of 120 s."""


def weights_folder(spec: AgentSpec) -> Path:
    """The local folder with an agent's weights; raises ModelError if they are not here."""
    if spec.folder is None:
        raise ModelError(
            f"the weights of {spec.model} are not on this machine.",
            hint=f"Run `agentwire models pull {spec.model}`.",
        )
    return Path(spec.folder)


def load_model(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A causal language model from a local folder, for inference; raises ModelError."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:  # the library raises whatever its parsers raise
        raise unloadable("model", folder, error) from error
    # The library fills missing tensors with random numbers and goes on.
    missing = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if missing:
        raise ModelError(
            f"the model in {folder} cannot be loaded: {missing[0]} is missing or has another "
            f"shape ({len(missing)} tensors in all).",
            hint=RELOAD,
        )
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local folder; raises ModelError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a broken tokenizer.json raises a bare Exception
        raise unloadable("tokenizer", folder, error) from error


def unloadable(what: str, folder: Path, error: Exception) -> ModelError:
    reason = first_line(error)
    return ModelError(f"the {what} in {folder} cannot be loaded: {reason}", hint=RELOAD)


def torch_device(name: str) -> torch.device:
    """The torch device with this name; raises DeviceError if this machine lacks it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(
            f"{name!r} is not a device.", hint="Set `device: cpu`, `cuda:0` or `auto`."
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"the device {name} does not exist ({torch.cuda.device_count()} GPUs were found).",
            hint="Set `device: cpu` or `device: auto` in the agent's file; see `agentwire doctor`.",
        )
    return device


def trunk(model: Any, layers: int) -> Any:
    """The first ``layers`` layers of ``model`` without final norm, sharing its weights.

    Its ``last_hidden_state`` equals ``hidden_states[layers]`` of the whole model. Raises ModelError
    if the model has no such layers.
    """
    base: Any = (
        model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, "model", None)
    )
    if not isinstance(getattr(base, "layers", None), nn.ModuleList) or not hasattr(base, "norm"):
        raise ModelError(
            f"{type(model).__name__} is not a decoder of stacked layers with a final norm.",
            hint="Use a Llama-, Mistral-, Qwen- or Gemma-like model as the sender.",
        )
    if not 1 <= layers <= len(base.layers):
        raise ModelError(
            f"layer {layers} does not exist in a model with {len(base.layers)} layers.",
            hint=f"Set `layer` to 1 to {len(base.layers)}.",
        )
    short = copy.copy(base)
    # nn.Module keeps its children in one dict, which the copy must not share.
    short._modules = dict(base._modules)
    short.layers = base.layers[:layers]
    short.norm = nn.Identity()
    return short


def sampled_rms(embed: Callable[[Tensor], Tensor], count: int, device: torch.device) -> float:
    """RMS of a sample of input embeddings as the layers see them: Gemma scales them by sqrt(d)."""
    ids = torch.arange(0, count, max(1, count // 4096), device=device)
    with torch.inference_mode():
        return float(embed(ids).float().pow(2).mean().sqrt())


@dataclass(frozen=True, slots=True)
class LabelHead:
    """The LM head restricted to the task's L label tokens: weight [L, d], bias [L] or None."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None

    def __call__(self, last: Tensor) -> Tensor:
        """Logits [n, L] in fp32 from the last position's states [n, d]."""
        logits = last.float() @ self.weight.float().T
        if self.bias is not None:
            logits = logits + self.bias.float()
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """The static parts of a task on the model's device."""

    ids: CompiledTask
    start: Tensor  # embeddings [0 or 1, d] of BOS
    prompt: Tensor  # embeddings [P, d] of what follows the soft tokens
    prompt_head: LabelHead  # the label tokens after the prompt
    text_head: LabelHead  # the label tokens after the text prompt


class TransformersBackend:
    """A causal language model with an LM head, in eval mode, behind the ``Backend`` protocol."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, identity: ModelIdentity, device: torch.device
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.start = start_ids(tokenizer)
        self.identity = identity
        self._bridges: dict[str, tuple[Any, BridgeModule | SendingReader, bool]] = {}
        self._readers: dict[str, ReceivingReader] = {}
        self._tasks: LruCache[str, PreparedTask] = LruCache(MAX_PREPARED_TASKS)
        self._pad = pad_id(tokenizer)
        self._ends = end_ids(model.generation_config, tokenizer)
        self._texts = TextReader(model, ends=self._ends, pad=self._pad)

    @property
    def ends(self) -> frozenset[int]:
        """The token ids that end an answer."""
        return self._ends

    @classmethod
    def load(cls, spec: AgentSpec, progress: OnProgress) -> TransformersBackend:
        """Loads an agent's model; raises ModelError or DeviceError."""
        random = spec.weights == "random"
        if random:
            random_weights.shape(spec.model)  # refuses unknown ones before anything is built
        folder = None if random else weights_folder(spec)
        logging.getLogger("transformers").setLevel(logging.ERROR)
        device = torch_device(spec.device)
        dtype = getattr(torch, spec.dtype)
        if device.type == "cpu" and spec.threads is not None:
            torch.set_num_threads(spec.threads)
        if folder is None:
            progress("weights", 0.3)
            model = random_weights.build(spec.model, dtype, device)
            tokenizer: Tokenizer = random_weights.RandomTokenizer(spec.model)
            identity = random_weights.identity(spec.model, spec.dtype, str(device))
        else:
            progress("tokenizer", 0.1)
            tokenizer = load_tokenizer(folder)
            progress("weights", 0.3)
            model = load_model(folder, dtype=dtype, device=device)
            progress("fingerprint", 0.9)
            table = model.get_input_embeddings()
            count, width = table.weight.shape
            identity = ModelIdentity(
                name=spec.model,
                fingerprint=fingerprint(folder),
                width=width,
                layers=model.config.get_text_config().num_hidden_layers,
                embedding_rms=sampled_rms(table, count, device),
                dtype=spec.dtype,
                device=str(device),
            )
        progress("ready", 1.0)
        return cls(model, tokenizer, identity, device)

    def for_inference(self) -> TransformersBackend:
        """Makes this model faster and unable to train (see ``cpu.packed_linear``); returns it."""
        if self.device.type == "cpu":
            pack_linears(self.model)
            self._texts.inference_only = True
        return self

    def set_thread_source(self, threads: Callable[[], int]) -> None:

        def before_layer(*_: Any) -> None:
            wanted = threads()
            if wanted != torch.get_num_threads():
                torch.set_num_threads(wanted)

        for layer in self.model.get_decoder().layers:
            layer.register_forward_pre_hook(before_layer)

    def _stopwatch(self) -> Stopwatch:
        if self.device.type != "cuda":
            return Stopwatch()
        return Stopwatch(lambda: torch.cuda.synchronize(self.device))

    def add_bridge(self, folder: Path) -> BridgeIdentity:
        """Loads a bridge that reads this model; it runs on this model's device, in fp32."""
        if str(folder).startswith(random_weights.BRIDGE_PREFIX):
            identity, made = random_weights.random_bridge(str(folder), self.identity, self.device)
            self._bridges[identity.fingerprint] = (trunk(self.model, identity.layer), made, False)
            return identity
        card = read_card(folder)
        check_sender(card, self.identity)
        short = trunk(self.model, card.layer)
        module: BridgeModule | SendingReader
        if card.reader is not None:
            module = load_sending(folder, self.device)
            short = ManyLayers(short, card.reader.layers)
        else:
            module = store.load(folder).module.to(self.device)
        # A GPU at these sizes is limited by launches, not by padding, and needs static shapes.
        packs = self.device.type == "cpu" and can_pack(short)
        self._bridges[card.weights_sha256] = (short, module, packs)
        return card.identity()

    def add_reader(self, folder: Path) -> BridgeIdentity:
        """Loads the receiver's half of a reader bridge, on this model's device, in fp32."""
        card = check_receiver(read_card(folder), self.identity)
        self._readers[card.weights_sha256] = load_receiving(folder, self.device)
        identity = card.identity()
        if self.device.type == "cuda":  # the first pass loads kernels, which takes a second
            payload = np.zeros((1, identity.soft_tokens, identity.width), np.float16)
            task = TaskSpec("warm-up", "", "{text}", max_new_tokens=2)
            self.generate_soft(payload, task, None, Asked(reader=identity.fingerprint))
        return identity

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Sender input: ids [n, 1+T] with an opening token, and a mask [n, T] of the text's."""
        return self._padded(text_ids(self.tokenizer, texts))

    def _padded(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        opening = opening_ids(self.tokenizer)
        ids, lengths = pad_right([[*opening, *row] for row in texts], self._pad)
        mask = torch.arange(ids.shape[1] - 1)[None, :] < (lengths - 1)[:, None]
        return ids.to(self.device), mask.to(self.device)

    @property
    def context(self) -> int | None:
        """Tokens that the model can read and write, if known; on a CPU at most ``CPU_CONTEXT``."""
        limit: int | None = getattr(
            self.model.config.get_text_config(), "max_position_embeddings", None
        )
        if self.device.type == "cpu":
            return CPU_CONTEXT if limit is None else min(limit, CPU_CONTEXT)
        return limit

    def bridge(self, fingerprint: str) -> BridgeModule | SendingReader:
        """The module of a bridge that was added."""
        return self._bridges[fingerprint][1]

    def states(self, short: Any, ids: Tensor) -> Tensor:
        """Hidden states [n, T, width] of the text's tokens, from a ``trunk``."""
        output: Tensor = short(input_ids=ids, use_cache=False).last_hidden_state
        return output[:, 1:]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], bridge: str, soft_tokens: int = 0) -> Encoded:
        short, module, packs = self._bridges[bridge]
        clock = self._stopwatch()
        rows, unread = read_texts(self.tokenizer, texts)
        ids, mask = self._padded(rows)
        clock.lap("tokenize")
        states = packed_states(short, ids, mask) if packs else self.states(short, ids)
        clock.lap("encode")
        sizes: Sequence[int] = ()
        if isinstance(module, SendingReader):
            soft, sizes = module(states, mask, soft_tokens)
        else:
            soft = module(states, mask).half()
        payload = np.ascontiguousarray(soft.cpu().numpy())
        clock.lap("bridge")
        return Encoded(payload, clock.stages, unread=unread, sizes=sizes)

    def prepare(self, task: TaskSpec) -> None:
        self.prepared(task)

    def prepared(self, task: TaskSpec) -> PreparedTask:
        """The task's static parts, computed once while the task is in use."""
        return self._tasks.get(task.task_id, lambda: self._compiled(task))

    def _compiled(self, task: TaskSpec) -> PreparedTask:
        ids = compile_task(self.tokenizer, task)
        # Not inference tensors: training may use them after an agent has scored with them.
        with torch.inference_mode(False), torch.no_grad():
            return PreparedTask(
                ids=ids,
                start=self._embed(self.start),
                prompt=self._embed(ids.prompt),
                prompt_head=self._head(ids.prompt_labels),
                text_head=self._head(ids.text_labels),
            )

    def _embed(self, ids: Sequence[int]) -> Tensor:
        """Input embeddings [len(ids), d] as the model's layers see them."""
        table = self.model.get_input_embeddings()
        embedded: Tensor = table(torch.tensor(list(ids), dtype=torch.long, device=self.device))
        return embedded.to(self.model.dtype)

    def _head(self, labels: Sequence[int]) -> LabelHead:
        """The LM head restricted to these tokens."""
        head = self.model.get_output_embeddings()
        index = torch.tensor(list(labels), dtype=torch.long, device=self.device)
        bias = getattr(head, "bias", None)
        return LabelHead(
            # At 20, logits in half precision are 1/8 apart: too coarse to compare labels.
            weight=head.weight[index].float(),
            bias=None if bias is None else bias[index].float(),
            softcap=getattr(self.model.config.get_text_config(), "final_logit_softcapping", None),
        )

    def soft_inputs(self, soft: Tensor, task: TaskSpec) -> Tensor:
        """``[BOS][M soft tokens][prompt]`` as embeddings [n, 1+M+P, d] in the model's dtype.

        Raises:
            RemoteProtocolError: the model cannot read so many.
        """
        n = soft.shape[0]
        prepared = self.prepared(task)
        length = len(prepared.start) + soft.shape[1] + len(prepared.prompt)
        check_length(self.context, [range(length)], 1 if task.labels else task.max_new_tokens)
        start, prompt = prepared.start.expand(n, -1, -1), prepared.prompt.expand(n, -1, -1)
        return torch.cat([start, soft.to(self.model.dtype), prompt], dim=1)

    def logits_from_soft(self, soft: Tensor, task: TaskSpec) -> Tensor:
        """Label logits [n, L] for soft tokens [n, M, d]; gradients flow to the soft tokens."""
        decoder = self.model.get_decoder()
        inputs = self.soft_inputs(soft, task)
        hidden = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return self.prepared(task).prompt_head(hidden[:, -1])

    def _asked_inputs(self, soft: Tensor, task: TaskSpec, asked: Asked) -> SoftInputs:
        """The input of rows with questions of their own, or from a reader bridge."""
        start = self.prepared(task).start
        rows = prompt_rows(self.tokenizer, task, asked.of_rows(len(soft)))
        embedded = self._embed([i for row in rows for i in row])
        prompts = torch.split(embedded, [len(row) for row in rows])
        half = self._readers[asked.reader] if asked.reader else None
        others = len(start) + soft.shape[1] + (2 * half.card.prompt if half else 0)
        lengths = [range(others + len(row)) for row in rows]
        check_length(self.context, lengths, max(1, task.max_new_tokens))
        return lay_out(start, soft, prompts, self.model.dtype, half)

    @torch.inference_mode()
    def score_soft(
        self,
        payload: npt.NDArray[np.float16],
        task: TaskSpec,
        asked: Asked = PLAIN,
    ) -> Scored:
        clock = self._stopwatch()
        soft = torch.from_numpy(np.array(payload)).to(self.device)
        prepared = self.prepared(task)
        if asked:
            inputs = self._asked_inputs(soft, task, asked)
            decoder, read = self.model.get_decoder(), inputs.lengths
            with inputs.added(decoder):
                hidden = decoder(
                    inputs_embeds=inputs.embeds,
                    attention_mask=inputs.mask,
                    position_ids=inputs.positions,
                    use_cache=False,
                ).last_hidden_state
            logits = prepared.prompt_head(hidden[:, -1])
        else:
            logits = self.logits_from_soft(soft, task)
            read = [len(prepared.start) + soft.shape[1] + len(prepared.prompt)] * len(soft)
        scores = torch.log_softmax(logits, dim=-1).cpu().numpy()
        clock.lap("decode")
        return Scored(scores, clock.stages, [(n, 1) for n in read])

    @torch.inference_mode()
    def score_text(self, texts: Sequence[str], task: TaskSpec, asked: Asked = PLAIN) -> Scored:
        clock = self._stopwatch()
        prepared = self.prepared(task)
        ids = prepared.ids
        if asked:
            before: Sequence[int] = ()
            rows, unread = self._text_rows(texts, replace(task, form="text"), asked)
        else:
            before = ids.before
            limit = text_limit(self.context, len(before) + len(ids.after), 1)
            read, unread = read_texts(self.tokenizer, texts, ids.glue, limit)
            rows = [[*row, *ids.after] for row in read]
        clock.lap("tokenize")
        last = self._texts.last_states(before, rows)
        scores = torch.log_softmax(prepared.text_head(last), dim=-1).cpu().numpy()
        clock.lap("decode")
        tokens = [(len(before) + len(row), 1) for row in rows]
        return Scored(scores, clock.stages, tokens, unread)

    def relay(self, texts: Sequence[str], task: TaskSpec) -> Generated:
        if task.relay.verbatim:
            return Generated(list(texts), {})
        clock = self._stopwatch()
        before, read, after = template_ids(self.tokenizer, task.relay, texts, self.context)
        rows = [[*row, *after] for row in read]
        clock.lap("tokenize")
        written = self._texts.continued(before, rows, task.relay.max_new_tokens)
        relayed = [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in written]
        clock.lap("generate")
        return Generated(relayed, clock.stages)

    def _text_rows(
        self, texts: Sequence[str], task: TaskSpec, asked: Asked
    ) -> tuple[list[list[int]], list[int]]:
        questions = asked.of_rows(len(texts))
        return generation_rows(self.tokenizer, texts, task, self.context, questions)

    @torch.inference_mode()
    def generate(
        self,
        texts: Sequence[str],
        task: TaskSpec,
        watch: Watch | None = None,
        asked: Asked = PLAIN,
    ) -> Generated:
        clock = self._stopwatch()
        rows, unread = self._text_rows(texts, task, asked)
        check_length(self.context, rows, task.max_new_tokens)
        read = [len(row) for row in rows]
        ids = [[self._pad] * (max(read) - len(row)) + row for row in rows]
        mask = [[0] * (max(read) - n) + [1] * n for n in read]
        clock.lap("tokenize")
        inputs = {"input_ids": torch.tensor(ids, device=self.device)}
        answered = self._answer(task, watch, clock, read, torch.tensor(mask), inputs)
        return replace(answered, unread=unread)

    @torch.inference_mode()
    def generate_soft(
        self,
        payload: npt.NDArray[np.float16],
        task: TaskSpec,
        watch: Watch | None = None,
        asked: Asked = PLAIN,
    ) -> Generated:
        clock = self._stopwatch()
        soft = torch.from_numpy(np.array(payload)).to(self.device)
        if asked:
            inputs = self._asked_inputs(soft, task, asked)
            if asked.reader:
                task = self._readers[asked.reader].with_stops(task)
            given = {"inputs_embeds": inputs.embeds}
            judged = Confidence() if asked.reader else None
            with inputs.added(self.model.get_decoder()):
                return self._answer(task, watch, clock, inputs.lengths, inputs.mask, given, judged)
        embeds = self.soft_inputs(soft, task)
        n, length = embeds.shape[:2]
        mask = torch.ones(n, length, dtype=torch.long)
        return self._answer(task, watch, clock, [length] * n, mask, {"inputs_embeds": embeds})

    def _answer(
        self,
        task: TaskSpec,
        watch: Watch | None,
        clock: Stopwatch,
        read: list[int],
        mask: Tensor,
        inputs: dict[str, Tensor],
        confidence: Confidence | None = None,
    ) -> Generated:
        answers = Answers(self.tokenizer, len(read), self._ends, task.decoding, watch)
        continue_text(
            self.model,
            answers,
            task.decoding,
            confidence,
            attention_mask=mask.to(self.device),
            max_new_tokens=task.max_new_tokens,
            pad_token_id=self._pad,
            eos_token_id=sorted(self._ends),
            **inputs,
        )
        generated = answers.generated(read, clock)
        if confidence is None:
            return generated
        return replace(generated, confidence=confidence.means(answers.taken))
