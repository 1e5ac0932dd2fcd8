"""A decoder's forward pass with static shapes, made from a transformers model.

* Products of the same input are one product: queries, keys and values; gate and up.
* What precedes every row (BOS, or a whole prompt) is a prefix whose keys and values were computed
  once. With 32 tokens a row this also keeps products at whole tiles.
* If only the last position is needed, the last layer computes only that.
* There is no mask: rows are padded on the right, where a causal model cannot see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentwire.model.static.ops import KeyValue, Ops, Rotary

POSITIONS = 2048
"""Positions in the rotary tables; longer rows run in transformers."""
GELU = ("gelu_pytorch_tanh", "gelu_tanh")


class UnsupportedModel(ValueError):
    """This forward pass cannot compute a model; the message says why."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer: qkv [(H + 2 G) * D, d], gate_up [2 * I, d]; window in slots.

    The norms at the end are those that Gemma 3 has in addition.
    """

    before_attention: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    before_mlp: Tensor
    gate_up: Tensor
    down: Tensor
    rotary: Rotary
    window: int | None
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    after_attention: Tensor | None = None
    after_mlp: Tensor | None = None


Prefix = Sequence[KeyValue]
"""Keys and values [P, G, D] of each layer."""
Cache = Sequence[KeyValue]
"""Keys and values [n, S, G, D] of each layer."""


class StaticDecoder:
    """The decoder of a causal language model (Llama, Mistral, Qwen, Gemma 3 and their like).

    The model's projections become views of fused weights. Raises UnsupportedModel.
    """

    def __init__(self, model: Any, ops: Ops) -> None:
        decoder = model.get_decoder()
        config = model.config.get_text_config()
        self._check(decoder, config)
        self.ops = ops
        self.embed: nn.Module = model.get_input_embeddings()
        self.eps: float = config.rms_norm_eps
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.head_dim: int = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.width: int = config.hidden_size
        scalar = getattr(config, "query_pre_attn_scalar", None) or self.head_dim
        self.scale = float(scalar) ** -0.5
        self.gelu = _activation(config) in GELU
        # Gemma's norms scale by 1 + weight.
        self._shift = 1.0 if config.model_type.startswith("gemma") else 0.0
        self.norm = self._norm(decoder.norm)
        weight = decoder.layers[0].self_attn.q_proj.weight
        self.dtype, self.device = weight.dtype, weight.device
        self._tables: dict[str, Rotary] = {}
        self.layers = [self._layer(decoder, config, i) for i in range(len(decoder.layers))]

    @staticmethod
    def _check(decoder: Any, config: Any) -> None:
        for name in ("layers", "norm", "rotary_emb"):
            if not hasattr(decoder, name):
                raise UnsupportedModel(f"its decoder has no {name}")
        layer = decoder.layers[0]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            if not isinstance(getattr(layer.self_attn, name, None), nn.Linear):
                raise UnsupportedModel(f"its attention has no linear layer {name}")
        for name in ("gate_proj", "up_proj", "down_proj"):
            if not isinstance(getattr(layer.mlp, name, None), nn.Linear):
                raise UnsupportedModel(f"its feed-forward layer has no linear layer {name}")
            if getattr(layer.mlp, name).bias is not None:
                raise UnsupportedModel("its feed-forward layer has biases")
        if _activation(config) not in ("silu", *GELU):
            raise UnsupportedModel(f"its activation is {_activation(config)}")
        if getattr(config, "attn_logit_softcapping", None):
            raise UnsupportedModel("its attention has softcapped logits")
        if getattr(config, "use_bidirectional_attention", False):
            raise UnsupportedModel("its attention is not causal")

    def _norm(self, module: Any) -> Tensor:
        weight: Tensor = module.weight.detach()
        return weight.float() + self._shift if self._shift else weight

    def _layer(self, decoder: Any, config: Any, index: int) -> Layer:
        module = decoder.layers[index]
        attention, mlp = module.self_attn, module.mlp
        kinds = getattr(config, "layer_types", None)
        kind = kinds[index] if kinds else "full_attention"
        sliding = not kinds or kind == "sliding_attention"
        window = getattr(config, "sliding_window", None) if sliding else None
        qkv, bias = _fused([attention.q_proj, attention.k_proj, attention.v_proj])
        gate_up, _ = _fused([mlp.gate_proj, mlp.up_proj])
        sandwich = hasattr(module, "pre_feedforward_layernorm")
        after_attention = module.post_attention_layernorm
        before_mlp = module.pre_feedforward_layernorm if sandwich else after_attention

        def optional(module: Any) -> Tensor | None:
            return None if module is None else self._norm(module)

        return Layer(
            before_attention=self._norm(module.input_layernorm),
            qkv=qkv,
            qkv_bias=bias,
            out=attention.o_proj.weight.detach(),
            out_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.detach(),
            before_mlp=self._norm(before_mlp),
            gate_up=gate_up,
            down=mlp.down_proj.weight.detach(),
            rotary=self._table(decoder.rotary_emb, kind),
            window=window,
            query_norm=optional(getattr(attention, "q_norm", None)),
            key_norm=optional(getattr(attention, "k_norm", None)),
            after_attention=optional(after_attention if sandwich else None),
            after_mlp=optional(getattr(module, "post_feedforward_layernorm", None)),
        )

    def _table(self, module: Any, kind: str) -> Rotary:
        """Rotary tables from the model's own module, which knows its scaling rule."""
        typed = hasattr(module, "layer_types")
        key = kind if typed else ""
        if key not in self._tables:
            positions = torch.arange(POSITIONS, device=self.device)[None]
            like = torch.zeros(1, dtype=torch.float32, device=self.device)
            cos, sin = module(like, positions, kind) if typed else module(like, positions)
            half = self.head_dim // 2
            self._tables[key] = Rotary(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
        return self._tables[key]

    def trunk(self, ids: Tensor, layers: int, prefix: Prefix) -> Tensor:
        """Hidden states [n, T, d] of ``ids`` [n, T] after ``layers`` layers, without final norm."""
        residual, delta = self._run(self.embed(ids), layers, prefix)
        return (residual + delta).view(*ids.shape, -1)

    def last(self, x: Tensor, last: Tensor, prefix: Prefix, cache: Cache | None = None) -> Tensor:
        """Normed states [n, d] at the positions ``last`` [n], after all layers.

        The input embeddings x [n, T, d] are overwritten. ``cache`` receives the keys and values of
        prefix and tokens, [n, P + T, G, D] per layer.
        """
        residual, delta = self._run(x, len(self.layers), prefix, cache=cache, last=last)
        return self.ops.add_rms_norm(delta, residual, self.norm, self.eps)

    def step(self, tokens: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Normed states [n, d] of one more token in each row; stores it in ``cache``.

        Later slots of the cache than ``positions`` [n] are not attended to.
        """
        x = self.embed(tokens[:, None])
        residual, delta = self._run(x, len(self.layers), (), cache=cache, start=positions)
        return self.ops.add_rms_norm(delta, residual, self.norm, self.eps)

    @torch.inference_mode()
    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Keys and values of the tokens ``ids``."""
        if not ids:
            return ()
        cache = [self._slots(1, len(ids)) for _ in self.layers]
        row = torch.tensor([list(ids)], device=self.device)
        with torch.cuda.device(self.device if self.device.type == "cuda" else -1):
            self._run(self.embed(row), len(self.layers), (), cache=cache)
        return [(keys[0], values[0]) for keys, values in cache]

    def cache(self, rows: int, slots: int) -> Cache:
        """An empty cache for ``rows`` rows of ``slots`` tokens."""
        # Zeros: slots that were never written are read, and memory may hold a NaN.
        made = [self._slots(rows, slots) for _ in self.layers]
        return [(keys.zero_(), values.zero_()) for keys, values in made]

    def _slots(self, rows: int, slots: int) -> KeyValue:
        shape = (rows, slots, self.groups, self.head_dim)
        keys = torch.empty(shape, dtype=self.dtype, device=self.device)
        return keys, torch.empty_like(keys)

    def _run(
        self,
        x: Tensor,
        count: int,
        prefix: Prefix,
        *,
        cache: Cache | None = None,
        last: Tensor | None = None,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream, and what the last layer adds to it."""
        n, t, width = x.shape
        residual = x.reshape(n * t, width)
        delta: Tensor | None = None
        length = prefix[0][0].shape[0] if prefix else 0
        for i in range(count):
            keys, values = slots = self._slots(n, length + t) if cache is None else cache[i]
            fixed = prefix[i] if prefix else (keys[0, :0], values[0, :0])
            asked = last if i == count - 1 else None
            residual, delta = self._compute(
                self.layers[i], residual, delta, (n, t), slots, fixed, asked, start
            )
        if delta is None:
            raise ValueError("a pass needs at least one layer")
        return residual, delta

    def _compute(
        self,
        layer: Layer,
        residual: Tensor,
        delta: Tensor | None,
        shape: tuple[int, int],
        slots: KeyValue,
        fixed: KeyValue,
        last: Tensor | None,
        start: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ops, eps, (n, t) = self.ops, self.eps, shape
        if delta is None:
            h = ops.rms_norm(residual, layer.before_attention, eps)
        else:
            h = ops.add_rms_norm(delta, residual, layer.before_attention, eps)
        qkv = F.linear(h, layer.qkv, layer.qkv_bias).view(n, t, -1)
        if layer.query_norm is not None and layer.key_norm is not None:
            self._norm_heads(qkv, layer.query_norm, layer.key_norm)
        q = ops.rotary(qkv, layer.rotary, slots, fixed, start)
        if start is not None:
            mixed = ops.attend_one(q[:, 0], slots, start + 1, self.scale, layer.window)
        elif last is not None:
            rows = torch.arange(n, device=q.device)
            residual = residual.view(n, t, -1)[rows, last]
            length = slots[0].shape[1] - t
            lengths = last + (length + 1)
            mixed = ops.attend_one(q[rows, last], slots, lengths, self.scale, layer.window)
        else:
            mixed = ops.attend(q, slots, self.scale, layer.window)
        delta = F.linear(mixed.reshape(residual.shape[0], -1), layer.out, layer.out_bias)
        if layer.after_attention is not None:
            delta = ops.rms_norm(delta, layer.after_attention, eps)
        h = ops.add_rms_norm(delta, residual, layer.before_mlp, eps)
        delta = F.linear(ops.gated(F.linear(h, layer.gate_up), gelu=self.gelu), layer.down)
        if layer.after_mlp is not None:
            delta = ops.rms_norm(delta, layer.after_mlp, eps)
        return residual, delta

    def _norm_heads(self, qkv: Tensor, query_norm: Tensor, key_norm: Tensor) -> None:
        heads = qkv.view(*qkv.shape[:2], -1, self.head_dim)
        end = self.heads + self.groups
        for part, weight in ((slice(self.heads), query_norm), (slice(self.heads, end), key_norm)):
            normed = self.ops.rms_norm(heads[:, :, part].contiguous(), weight, self.eps)
            heads[:, :, part] = normed


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", ""))


@torch.no_grad()
def _fused(parts: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight for products of the same input; the layers' weights become views of it."""
    weight = torch.cat([part.weight for part in parts])
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    bias = torch.cat(biases) if len(biases) == len(parts) else None
    at = 0
    for part in parts:
        part.weight = nn.Parameter(weight[at : at + part.out_features], requires_grad=False)
        at += part.out_features
    return weight, bias
