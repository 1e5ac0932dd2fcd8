"""The frozen receiver in the training of a reader bridge: loss of answers, and greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from agentwire.bridge.halves import before_layers
from agentwire.model.transformers import TransformersBackend
from agentwire.training.baselines.reader import Adapter


def fuse_norms(model: nn.Module) -> int:
    """Replaces the RMS norms of a frozen model by one kernel each; returns how many were replaced.

    The library's own norms launch several kernels, which took two thirds of a training step on a
    GPU. A norm whose fused result differs by more than rounding is kept.
    """
    fused = 0
    for module in model.modules():
        weight, eps = getattr(module, "weight", None), _eps(module)
        if not isinstance(weight, Tensor) or weight.ndim != 1 or eps is None:
            continue
        x = torch.linspace(-3, 5, 4 * len(weight), device=weight.device, dtype=weight.dtype)
        x = x.view(4, -1)
        with torch.no_grad():
            expected = module(x).float()
            for scale in (weight.detach(), 1 + weight.detach()):  # Llama's form and Gemma's
                found = F.rms_norm(x, (len(weight),), scale, eps).float()
                if torch.allclose(found, expected, rtol=0.02, atol=0.02):
                    module.forward = partial(_rms_norm, scale=scale, eps=eps)
                    fused += 1
                    break
    return fused


def _eps(module: nn.Module) -> float | None:
    if not type(module).__name__.endswith("RMSNorm"):
        return None
    return getattr(module, "eps", getattr(module, "variance_epsilon", None))


def _rms_norm(x: Tensor, *, scale: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (len(scale),), scale, eps)


class FrozenReceiver:
    """A frozen decoder-only model that reads vectors and answers in words.

    Token ids are indices into ``vocabulary``: a smaller LM head makes steps cheaper.

    Args:
        backend: the model. Its norms are replaced (``fuse_norms``).
        vocabulary: [V] the model's ids that may occur.
    """

    def __init__(self, backend: TransformersBackend, vocabulary: Tensor) -> None:
        self.backend, self.device = backend, backend.device
        self.decoder: Any = backend.model.get_decoder()
        self.vocabulary = vocabulary.to(self.device)
        with torch.no_grad():
            # Gemma scales its embeddings inside the embedding module.
            table = backend.model.get_input_embeddings()(self.vocabulary[None])[0]
            self.table: Tensor = table.to(backend.model.dtype).contiguous()
            head: Tensor = backend.model.get_output_embeddings().weight
            self.head = head[self.vocabulary].contiguous()
            start = torch.tensor(backend.start, device=self.device)
            self.start: Tensor = backend.model.get_input_embeddings()(start).to(self.table.dtype)
        fuse_norms(backend.model)
        self.softcap = getattr(
            backend.model.config.get_text_config(), "final_logit_softcapping", None
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., d] of ids [...]."""
        return F.embedding(ids, self.table)

    def logits(self, states: Tensor) -> Tensor:
        """[..., V] in fp32 of last hidden states [..., d]."""
        found = (states @ self.head.T).float()
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)

    def states(
        self,
        embedded: Tensor,
        additions: tuple[int, Sequence[int], Tensor] | None = None,
        adapter: Adapter | None = None,
        **cache: Any,
    ) -> Tensor:
        """Last hidden states [n, L, d] of embeddings [n, L, d].

        Args:
            additions: first position, layers, and vectors [n, M, layers, d] that are added to the
                inputs of these layers.
            cache: arguments of the model's forward for generation. Without them, attention is
                causal and nothing is masked, so padding must stand on the right.
        """
        # Without a mask, attention uses its fastest kernel. The library would build a mask.
        given = cache or {"attention_mask": self._no_mask(embedded.shape[1]), "use_cache": False}
        with ExitStack() as stack:
            if additions is not None:
                stack.enter_context(self._added(*additions))
            if adapter is not None:
                stack.enter_context(adapter.applied(self.backend.model))
            output = self.decoder(inputs_embeds=embedded, **given)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _no_mask(self, length: int) -> Mapping[str, None] | None:
        config = self.backend.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        if not kinds or (window and length > window):
            return None  # the library builds the masks that it needs
        return dict.fromkeys(set(kinds)) if len(set(kinds)) > 1 else None

    @contextmanager
    def _added(self, start: int, layers: Sequence[int], vectors: Tensor) -> Iterator[None]:
        size = vectors.shape[1]

        def hook(number: int) -> Any:
            def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                states: Tensor = args[0] if args else kwargs["hidden_states"]
                if states.shape[1] < start + size:
                    return None  # a decoding step of one token
                middle = states[:, start : start + size] + vectors[:, :, number].to(states.dtype)
                parts = [states[:, :start], middle, states[:, start + size :]]
                changed = torch.cat(parts, dim=1)
                if args:
                    return (changed, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": changed}

            return add

        with before_layers(self.decoder.layers, layers, [hook(i) for i in range(len(layers))]):
            yield

    def answer_loss(
        self, states: Tensor, ids: Tensor, first: Tensor, begins: Tensor, ends: Tensor, most: int
    ) -> Tensor:
        """Mean cross-entropy of the answers' tokens.

        Args:
            states: [n, L, d].
            ids: [n, I] of questions with answers.
            first: [n] position of ``ids[:, 0]`` in the sequence.
            begins, ends: [n] where the answers begin and end in ``ids``.
            most: answer tokens that count; further ones are ignored.
        """
        steps = torch.arange(most, device=ids.device)[None, :]
        place = begins[:, None] + steps
        asked = place < ends[:, None]
        place = place.clamp(max=ids.shape[1] - 1)
        targets = torch.where(asked, ids.gather(1, place), -100)
        before = (first[:, None] + place - 1).clamp(max=states.shape[1] - 1)
        index = before[..., None].expand(-1, -1, states.shape[-1])
        logits = self.logits(states.gather(1, index))
        losses = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
        )
        return losses / asked.sum()

    @torch.inference_mode()
    def greedy(
        self,
        prefix: Tensor,
        ids: Sequence[Sequence[int]],
        ends: Sequence[int],
        most: int,
        additions: tuple[int, Sequence[int], Tensor] | None = None,
        adapter: Adapter | None = None,
        hidden: Tensor | None = None,
    ) -> list[list[int]]:
        """Greedy answers.

        Padding changes no answer as long as all tokens fit into the model's sliding window.

        Args:
            prefix: embeddings [n, P, d].
            ids: the question of each row. Shorter ones are padded between prefix and question.
            ends: ids that end an answer; they are not part of it.
            most: longest answer in tokens.
            additions, adapter: as for ``states``.
            hidden: [n, P] positions of the prefix that are padding.
        """
        n, width = len(ids), max(len(row) for row in ids)
        padded = torch.zeros(n, width, dtype=torch.long)
        mask = torch.zeros(n, width, dtype=torch.long)
        for i, row in enumerate(ids):
            padded[i, width - len(row) :] = torch.tensor(row)
            mask[i, width - len(row) :] = 1
        before = torch.ones(prefix.shape[:2], dtype=torch.long, device=self.device)
        if hidden is not None:
            before = before.masked_fill(hidden, 0)
        seen = torch.cat([before, mask.to(self.device)], dim=1)
        position = (seen.cumsum(-1) - 1).clamp(min=0)
        embedded = torch.cat([prefix.to(self.table.dtype), self.embed(padded.to(self.device))], 1)
        cache = DynamicCache(config=self.decoder.config)
        last = torch.tensor(list(ends)).to(self.device)
        open_rows = torch.ones(n, dtype=torch.bool, device=self.device)
        found: list[Tensor] = []
        for step in range(most):
            states = self.states(
                embedded, additions if step == 0 else None, adapter,
                past_key_values=cache, use_cache=True, attention_mask=seen, position_ids=position,
            )  # fmt: skip
            token = self.logits(states[:, -1]).argmax(-1)
            open_rows = open_rows & ~torch.isin(token, last)
            found.append(torch.where(open_rows, token, -1))
            if not open_rows.any():
                break
            embedded = self.embed(token[:, None])
            position = position[:, -1:] + 1
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        rows = torch.stack(found, dim=1).tolist()
        return [row[: row.index(-1)] if -1 in row else row for row in rows]

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids."""
        known = [int(self.vocabulary[i]) for i in ids]
        return self.backend.tokenizer.decode(known, skip_special_tokens=True).strip()
