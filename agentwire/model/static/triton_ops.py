"""The operations of ``ops`` as Triton kernels: one launch each, fp32 inside.

A 7B layer at batch 1 is limited by reading its weights, so the operations between the products must
not cost launches. transformers' modules launch about 40 kernels per layer; these launch 6.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from agentwire.model.static.ops import KeyValue, PlainOps, Rotary

GATED_BLOCK = 1024
SLOTS_BLOCK = 32


class FusedOps:
    """``Ops`` for CUDA; plain ones compute windows and head sizes without a kernel."""

    def __init__(self) -> None:
        self._plain = PlainOps()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _launch_norm(x, x, weight, eps, add=False)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _launch_norm(x, residual, weight, eps, add=True)

    def gated(self, gate_up: Tensor, *, gelu: bool) -> Tensor:
        if gelu:
            return self._plain.gated(gate_up, gelu=True)
        rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, inner)
        grid = (rows, triton.cdiv(inner, GATED_BLOCK))
        _silu_mul[grid](gate_up, out, inner, GATED_BLOCK)
        return out

    def rotary(
        self, qkv: Tensor, table: Rotary, cache: KeyValue, prefix: KeyValue, start: Tensor | None
    ) -> Tensor:
        keys, values = cache
        n, t = qkv.shape[:2]
        groups, d = keys.shape[2:]
        if not _power_of_2(d):
            return self._plain.rotary(qkv, table, cache, prefix, start)
        length, heads = prefix[0].shape[0], qkv.shape[2] // d - 2 * groups
        query = qkv.new_empty(n, t, heads, d)
        fixed_keys, fixed_values = prefix if length else cache
        _rotate[(n, length + t)](
            qkv,
            table.cos,
            table.sin,
            query,
            keys,
            values,
            fixed_keys,
            fixed_values,
            table.cos if start is None else start,
            t,
            length,
            keys.stride(0),
            keys.stride(1),
            start is not None,
            heads,
            groups,
            d // 2,
            triton.next_power_of_2(heads),
            triton.next_power_of_2(groups),
        )
        return query

    def attend(self, q: Tensor, cache: KeyValue, scale: float, window: int | None) -> Tensor:
        if (window is not None and window < cache[0].shape[1]) or q.dtype == torch.float32:
            return self._plain.attend(q, cache, scale, window)
        # FlashAttention 2 (Dao, 2023, arXiv:2307.08691) aligns its causal mask to the last slot.
        keys, values = (tensor.transpose(1, 2) for tensor in cache)
        mixed: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            q.transpose(1, 2), keys, values, 0.0, True, scale=scale
        )[0]
        return mixed.transpose(1, 2)

    def attend_one(
        self, q: Tensor, cache: KeyValue, lengths: Tensor, scale: float, window: int | None
    ) -> Tensor:
        keys, values = cache
        n, heads, d = q.shape
        if (window is not None and window < keys.shape[1]) or not _power_of_2(d):
            return self._plain.attend_one(q, cache, lengths, scale, window)
        q = q.contiguous()
        out = torch.empty_like(q)
        _attend_one[(n, heads)](
            q,
            keys,
            values,
            out,
            lengths,
            scale,
            keys.stride(0),
            keys.stride(1),
            heads,
            heads // keys.shape[2],
            d,
            SLOTS_BLOCK,
        )
        return out


def _launch_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, add: bool) -> Tensor:
    out = torch.empty_like(x)
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    warps = min(16, max(4, block // 512))
    grid = (x.numel() // width,)
    _norm[grid](x, residual, weight, out, width, eps, add, block, num_warps=warps)
    return out


def _power_of_2(value: int) -> bool:
    return value & (value - 1) == 0


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _norm(  # type: ignore[no-untyped-def]
    x_ptr, residual_ptr, weight_ptr, out_ptr, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + at + columns, mask=inside, other=0.0)
    if ADD:
        residual = tl.load(residual_ptr + at + columns, mask=inside, other=0.0)
        # Rounded before the norm, like the sum of two bf16 tensors.
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(residual_ptr + at + columns, x, mask=inside)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at + columns, (wide * scale * weight).to(x.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _silu_mul(gate_up_ptr, out_ptr, inner, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < inner
    gate = tl.load(gate_up_ptr + row * 2 * inner + columns, mask=inside, other=0.0)
    up = tl.load(gate_up_ptr + row * 2 * inner + inner + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    active = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    out = active.to(tl.float32) * up.to(tl.float32)
    tl.store(out_ptr + row * inner + columns, out.to(gate.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _rotate(  # type: ignore[no-untyped-def]
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    prefix_key_ptr,
    prefix_value_ptr,
    start_ptr,
    tokens,
    prefix,
    stride_row,
    stride_slot,
    STARTS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_2: tl.constexpr,
    GROUPS_2: tl.constexpr,
):
    """One program per row and slot: copies the prefix, or rotates a token."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1)
    d = 2 * HALF
    half = tl.arange(0, HALF)
    group = tl.arange(0, GROUPS_2)
    some = (group[:, None] < GROUPS) & (half[None, :] < HALF)
    low = group[:, None] * d + half[None, :]
    if slot < prefix:
        to = row * stride_row + slot * stride_slot + low
        at = slot * GROUPS * d + low
        tl.store(key_ptr + to, tl.load(prefix_key_ptr + at, mask=some), mask=some)
        tl.store(key_ptr + to + HALF, tl.load(prefix_key_ptr + at + HALF, mask=some), mask=some)
        tl.store(value_ptr + to, tl.load(prefix_value_ptr + at, mask=some), mask=some)
        tl.store(value_ptr + to + HALF, tl.load(prefix_value_ptr + at + HALF, mask=some), mask=some)
    else:
        token = row * tokens + slot - prefix
        position = slot.to(tl.int64)
        if STARTS:
            position = tl.load(start_ptr + row).to(tl.int64) + slot
        cos = tl.load(cos_ptr + position * HALF + half)[None, :]
        sin = tl.load(sin_ptr + position * HALF + half)[None, :]
        base = qkv_ptr + token * (HEADS + 2 * GROUPS) * d
        head = tl.arange(0, HEADS_2)
        all_heads = (head[:, None] < HEADS) & (half[None, :] < HALF)
        places = head[:, None] * d + half[None, :]
        first = tl.load(base + places, mask=all_heads, other=0.0).to(tl.float32)
        second = tl.load(base + places + HALF, mask=all_heads, other=0.0).to(tl.float32)
        kind = query_ptr.dtype.element_ty
        query = query_ptr + token * HEADS * d + places
        tl.store(query, (first * cos - second * sin).to(kind), mask=all_heads)
        tl.store(query + HALF, (second * cos + first * sin).to(kind), mask=all_heads)
        target = row * stride_row + position * stride_slot + low
        base += HEADS * d
        first = tl.load(base + low, mask=some, other=0.0).to(tl.float32)
        second = tl.load(base + low + HALF, mask=some, other=0.0).to(tl.float32)
        tl.store(key_ptr + target, (first * cos - second * sin).to(kind), mask=some)
        tl.store(key_ptr + target + HALF, (second * cos + first * sin).to(kind), mask=some)
        base += GROUPS * d
        tl.store(value_ptr + target, tl.load(base + low, mask=some), mask=some)
        tl.store(value_ptr + target + HALF, tl.load(base + low + HALF, mask=some), mask=some)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _attend_one(  # type: ignore[no-untyped-def]
    q_ptr,
    key_ptr,
    value_ptr,
    out_ptr,
    length_ptr,
    scale,
    stride_row,
    stride_slot,
    heads,
    per_group,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row and head: softmax with a running maximum over blocks of slots."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(length_ptr + row)
    d = tl.arange(0, D)
    at = (row * heads + head) * D + d
    q = tl.load(q_ptr + at).to(tl.float32) * scale
    base = row * stride_row + (head // per_group) * D + d[None, :]
    high = -float("inf")
    total = 0.0
    mixed = tl.zeros([D], dtype=tl.float32)
    for begin in range(0, length, BLOCK):
        slot = begin + tl.arange(0, BLOCK)
        inside = slot < length
        places = base + slot[:, None].to(tl.int64) * stride_slot
        key = tl.load(key_ptr + places, mask=inside[:, None], other=0.0).to(tl.float32)
        score = tl.where(inside, tl.sum(key * q[None, :], axis=1), -float("inf"))
        now = tl.maximum(high, tl.max(score, axis=0))
        weight = tl.exp(score - now)
        keep = tl.exp(high - now)
        value = tl.load(value_ptr + places, mask=inside[:, None], other=0.0).to(tl.float32)
        mixed = mixed * keep + tl.sum(value * weight[:, None], axis=0)
        total = total * keep + tl.sum(weight, axis=0)
        high = now
    tl.store(out_ptr + at, (mixed / total).to(out_ptr.dtype.element_ty))
