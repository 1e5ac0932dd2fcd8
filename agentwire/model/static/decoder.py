"""A decoder's forward pass by hand: static shapes, fused weights, nothing computed in vain.

It shares its weights with the transformers model that it was made from, and that model is the
reference it is tested against. What differs:

* The products of one input are one product: queries, keys and values; gate and up.
* What stands before every row (BOS, or a whole prompt) is a prefix whose keys and values were
  computed once. At 32 tokens a row that also keeps products at whole tiles.
* Where only the last position is asked for, the last layer computes only that: its queries,
  feed-forward layer and norm.
* No mask is built: rows are padded on the right, where a causal model cannot see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agentwire.model.static.ops import KeyValue, PlainOps, Rotary

POSITIONS = 2048
"""Positions for which rotary tables are kept; longer rows are not for this forward pass."""
GELU = ("gelu_pytorch_tanh", "gelu_tanh")


class UnsupportedModel(ValueError):
    """Why a model cannot be computed by this forward pass."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer, as its products use them.

    Attributes:
        qkv: [(H + 2 G) * D, d]; gate_up: [2 * I, d].
        window: slots that a query sees; None: all.
        query_norm, key_norm, after_attention, after_mlp: norms that Gemma 3 has in addition.
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


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of every layer, each [n, S, G, D]."""

    layers: tuple[KeyValue, ...]

    def first(self, rows: int, slots: int) -> Cache:
        """A view of the first ``rows`` and ``slots``."""
        return Cache(tuple((k[:rows, :slots], v[:rows, :slots]) for k, v in self.layers))


Prefix = Sequence[KeyValue]
"""Keys and values [P, G, D] of each layer."""


class StaticDecoder:
    """The decoder of a causal language model (Llama, Mistral, Qwen, Gemma 3 and their like).

    Args:
        model: a transformers model in eval mode; its projections become views of fused weights.
        ops: how the small operations are computed.

    Raises:
        UnsupportedModel: the model has something that this pass does not compute.
    """

    def __init__(self, model: Any, ops: PlainOps) -> None:
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
                raise UnsupportedModel(f"its attention has no plain {name}")
        for name in ("gate_proj", "up_proj", "down_proj"):
            if not isinstance(getattr(layer.mlp, name, None), nn.Linear):
                raise UnsupportedModel(f"its feed-forward layer has no plain {name}")
            if getattr(layer.mlp, name).bias is not None:
                raise UnsupportedModel("its feed-forward layer has biases")
        if _activation(config) not in ("silu", *GELU):
            raise UnsupportedModel(f"its activation is {_activation(config)}")
        if getattr(config, "attn_logit_softcapping", None):
            raise UnsupportedModel("its attention caps its logits")
        if getattr(config, "use_bidirectional_attention", False):
            raise UnsupportedModel("its attention is not causal")

    # -- weights ----------------------------------------------------------------------------

    def _norm(self, module: Any) -> Tensor:
        weight: Tensor = module.weight.detach()
        return weight.float() + self._shift if self._shift else weight

    def _optional_norm(self, module: Any) -> Tensor | None:
        return None if module is None else self._norm(module)

    def _layer(self, decoder: Any, config: Any, index: int) -> Layer:
        module = decoder.layers[index]
        attention, mlp = module.self_attn, module.mlp
        kinds = getattr(config, "layer_types", None)
        kind = kinds[index] if kinds else "full_attention"
        sliding = kind == "sliding_attention" if kinds else True
        window = getattr(config, "sliding_window", None) if sliding else None
        qkv, bias = _fused([attention.q_proj, attention.k_proj, attention.v_proj])
        gate_up, _ = _fused([mlp.gate_proj, mlp.up_proj])
        sandwich = hasattr(module, "pre_feedforward_layernorm")
        after_attention = module.post_attention_layernorm if sandwich else None
        before_mlp = (
            module.pre_feedforward_layernorm if sandwich else module.post_attention_layernorm
        )
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
            query_norm=self._optional_norm(getattr(attention, "q_norm", None)),
            key_norm=self._optional_norm(getattr(attention, "k_norm", None)),
            after_attention=self._optional_norm(after_attention),
            after_mlp=self._optional_norm(getattr(module, "post_feedforward_layernorm", None)),
        )

    def _table(self, module: Any, kind: str) -> Rotary:
        """The model's own tables, so that no scaling rule is written twice."""
        typed = hasattr(module, "layer_types")
        key = kind if typed else ""
        if key not in self._tables:
            positions = torch.arange(POSITIONS, device=self.device)[None]
            like = torch.zeros(1, dtype=torch.float32, device=self.device)
            cos, sin = module(like, positions, kind) if typed else module(like, positions)
            half = self.head_dim // 2
            self._tables[key] = Rotary(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
        return self._tables[key]

    def tune(self, rows: int, head: Tensor | None = None) -> None:
        """Finds the fastest kernels for products of so many rows; part of starting up.

        Args:
            head: the LM head's weight, where it is used in full.
        """
        if self.device.type != "cuda" or self.dtype == torch.float32:
            return
        with torch.cuda.device(self.device), torch.inference_mode():
            for name in ("qkv", "out", "gate_up", "down"):
                self.ops.tune(rows, [getattr(layer, name) for layer in self.layers])
            if head is not None:
                self.ops.tune(rows, [head])

    # -- forward passes ---------------------------------------------------------------------

    def trunk(self, ids: Tensor, layers: int, prefix: Prefix) -> Tensor:
        """Hidden states [n, T, d] after ``layers`` layers, without the final norm.

        Args:
            ids: [n, T], padded on the right.
            prefix: of the first ``layers`` layers or more.
        """
        residual, delta = self._run(self.embed(ids), layers, prefix)
        return (residual + delta).view(*ids.shape, -1)

    def last(self, x: Tensor, last: Tensor, prefix: Prefix, cache: Cache | None = None) -> Tensor:
        """Normed states [n, d] of one position a row, after all layers.

        Args:
            x: input embeddings [n, T, d]; they are overwritten.
            last: [n] that position of each row's T.
            prefix: what stands before.
            cache: gets the keys and values of prefix and tokens; [n, P + T, G, D] a layer.
        """
        residual, delta = self._run(x, len(self.layers), prefix, cache=cache, last=last)
        return self.ops.add_rms_norm(delta, residual, self.norm, self.eps)

    def step(self, tokens: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Normed states [n, d] of one more token a row, which ``cache`` takes in.

        Args:
            tokens: [n] ids.
            positions: [n] where they stand; what stands behind in the cache is not seen.
        """
        x = self.embed(tokens[:, None])
        residual, delta = self._run(x, len(self.layers), (), cache=cache, start=positions)
        return self.ops.add_rms_norm(delta, residual, self.norm, self.eps)

    @torch.inference_mode()
    def prefix(self, ids: Sequence[int], layers: int | None = None) -> Prefix:
        """Keys and values of the tokens ``ids`` (none: an empty prefix) in the first layers."""
        count = layers or len(self.layers)
        if not ids:
            return ()
        cache = self.cache(1, len(ids), count)
        row = torch.tensor([list(ids)], device=self.device)
        with torch.cuda.device(self.device if self.device.type == "cuda" else -1):
            self._run(self.embed(row), count, (), cache=cache)
        return [(keys[0], values[0]) for keys, values in cache.layers]

    def cache(self, rows: int, slots: int, layers: int | None = None) -> Cache:
        """Room for the keys and values of ``rows`` rows of ``slots`` tokens."""
        return Cache(tuple(self._slots(rows, slots) for _ in range(layers or len(self.layers))))

    def _slots(self, rows: int, slots: int) -> KeyValue:
        shape = (rows, slots, self.groups, self.head_dim)
        return (
            torch.zeros(shape, dtype=self.dtype, device=self.device),
            torch.zeros(shape, dtype=self.dtype, device=self.device),
        )

    def _room(self, rows: int, slots: int) -> KeyValue:
        shape = (rows, slots, self.groups, self.head_dim)
        return (
            torch.empty(shape, dtype=self.dtype, device=self.device),
            torch.empty(shape, dtype=self.dtype, device=self.device),
        )

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
        """The residual stream, and what the last layer still has to add to it."""
        n, t, width = x.shape
        residual = x.reshape(n * t, width)
        delta: Tensor | None = None
        length = prefix[0][0].shape[0] if prefix else 0
        for i in range(count):
            fixed = prefix[i] if prefix else None
            room = self._room(n, length + t) if cache is None else cache.layers[i]
            asked = last if i == count - 1 else None
            residual, delta = self._compute(
                self.layers[i], residual, delta, (n, t), room, fixed, asked, start
            )
        if delta is None:
            raise ValueError("a pass needs one layer or more")
        return residual, delta

    def _compute(
        self,
        layer: Layer,
        residual: Tensor,
        delta: Tensor | None,
        shape: tuple[int, int],
        room: KeyValue,
        fixed: KeyValue | None,
        last: Tensor | None,
        start: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ops, eps, (n, t) = self.ops, self.eps, shape
        if delta is None:
            h = ops.rms_norm(residual, layer.before_attention, eps)
        else:
            h = ops.add_rms_norm(delta, residual, layer.before_attention, eps)
        qkv = ops.linear(h, layer.qkv, layer.qkv_bias).view(n, t, -1)
        if layer.query_norm is not None and layer.key_norm is not None:
            self._norm_heads(qkv, layer.query_norm, layer.key_norm)
        q = ops.rotary(qkv, layer.rotary, room, heads=self.heads, prefix=fixed, start=start)
        if start is not None:
            mixed = ops.attend_one(q[:, 0], room, start + 1, self.scale, layer.window)
        elif last is not None:
            rows = torch.arange(n, device=q.device)
            residual = residual.view(n, t, -1)[rows, last]
            length = room[0].shape[1] - t
            lengths = last + (length + 1)
            mixed = ops.attend_one(q[rows, last], room, lengths, self.scale, layer.window)
        else:
            mixed = ops.attend(q, room, self.scale, layer.window)
        delta = ops.linear(mixed.reshape(residual.shape[0], -1), layer.out, layer.out_bias)
        if layer.after_attention is not None:
            delta = ops.rms_norm(delta, layer.after_attention, eps)
        h = ops.add_rms_norm(delta, residual, layer.before_mlp, eps)
        delta = ops.linear(ops.gated(ops.linear(h, layer.gate_up), gelu=self.gelu), layer.down)
        if layer.after_mlp is not None:
            delta = ops.rms_norm(delta, layer.after_mlp, eps)
        return residual, delta

    def _norm_heads(self, qkv: Tensor, query_norm: Tensor, key_norm: Tensor) -> None:
        heads = qkv.view(*qkv.shape[:2], -1, self.head_dim)
        end = self.heads + self.groups
        for part, weight in (
            (slice(0, self.heads), query_norm),
            (slice(self.heads, end), key_norm),
        ):
            normed = self.ops.rms_norm(heads[:, :, part].contiguous(), weight, self.eps)
            heads[:, :, part] = normed


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", ""))


@torch.no_grad()
def _fused(parts: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight for several products of the same input; the parts become views of it."""
    weight = torch.cat([part.weight for part in parts])
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    bias = torch.cat(biases) if len(biases) == len(parts) else None
    at = 0
    for part in parts:
        part.weight = nn.Parameter(weight[at : at + part.out_features], requires_grad=False)
        at += part.out_features
    return weight, bias
