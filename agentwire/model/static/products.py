"""Products of few rows: one Triton kernel, used for the shapes where it was measured faster.

At batch 1 a product is its weights' way from memory, and cuBLAS' kernels for 32 or 48 rows leave a
part of the bandwidth unused. Which of the candidates is fastest differs with the shape and the
GPU, so it is timed when the agent starts, over the weights of several layers (one alone would lie
in the L2 cache), and cuBLAS stays wherever none is faster.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger(__name__)

MOST_ROWS = 32
"""From 48 rows on cuBLAS was the fastest for every shape of the 7B layers (H100)."""
LAYERS = 8
"""Weights that a timing goes through: more than any L2 cache holds."""
REPEATS = 5
GAIN = 0.98
"""A candidate is taken if it needs at most this part of cuBLAS' time."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the kernel divides its work: columns and depth of a tile, stages of loads, warps."""

    columns: int
    depth: int
    stages: int
    warps: int


CANDIDATES = (Tiles(64, 128, 4, 4), Tiles(32, 128, 6, 4), Tiles(32, 256, 4, 4))


class Products:
    """``F.linear`` for bf16 and fp16, with the fastest kernel that was found for each shape."""

    def __init__(self) -> None:
        self._best: dict[tuple[int, int, int], Tiles] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [N, k], weight [n, k] -> [N, n]."""
        tiles = self._best.get((_rows(x.shape[0]), *weight.shape))
        if tiles is None or bias is not None or x.shape[0] > MOST_ROWS:
            return F.linear(x, weight, bias)
        return few_rows(x, weight, tiles)

    def tune(self, rows: int, weights: Sequence[Tensor]) -> dict[str, float]:
        """Times all ways for products of about ``rows`` rows with weights of one shape.

        Returns:
            Milliseconds of one product by way, for the log.
        """
        size, some = _rows(rows), weights[:LAYERS]
        n, k = some[0].shape
        if size > MOST_ROWS or (size, n, k) in self._best:
            return {}
        x = torch.randn(min(rows, size), k, dtype=some[0].dtype, device=some[0].device)
        times = {"cublas": _time(lambda weight: F.linear(x, weight), some)}
        best, least = None, times["cublas"] * GAIN
        for tiles in CANDIDATES:
            if n % tiles.columns or k % tiles.depth:
                continue
            product = partial(few_rows, x, tiles=tiles)
            try:
                took = _time(product, some)
            except Exception as error:  # too large for this GPU's shared memory, say
                log.info("%s cannot run here: %s", tiles, error)
                continue
            times[f"{tiles.columns}x{tiles.depth}x{tiles.stages}x{tiles.warps}"] = took
            if took < least:
                best, least = tiles, took
        if best is not None:
            self._best[size, n, k] = best
        return times


def few_rows(x: Tensor, weight: Tensor, tiles: Tiles) -> Tensor:
    """x [N, k] times weight [n, k], for N up to ``MOST_ROWS``; tiles divide n and k."""
    rows, k = x.shape
    n = weight.shape[0]
    out = x.new_empty(rows, n)
    _few_rows[(n // tiles.columns,)](
        x,
        weight,
        out,
        rows,
        n,
        k,
        _rows(rows),
        tiles.columns,
        tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out


def _rows(rows: int) -> int:
    return max(16, int(triton.next_power_of_2(rows)))


def _time(call: Callable[[Tensor], Tensor], weights: Sequence[Tensor]) -> float:
    """Milliseconds of one product, from a graph of one for each weight."""
    cuda: Any = torch.cuda
    for weight in weights[:2]:
        call(weight)
    graph = cuda.CUDAGraph()
    cuda.synchronize()
    with cuda.graph(graph, stream=cuda.Stream(), capture_error_mode="thread_local"):
        for weight in weights:
            call(weight)
    began, ended = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    times: list[float] = []
    for _ in range(REPEATS):
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / len(weights))
    return sorted(times)[len(times) // 2]


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _few_rows(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    out_ptr,
    rows,
    n,
    k,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One program for some columns and all rows: each weight is read once."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    there = row < rows
    weight = weight_ptr + column[:, None] * k + depth[None, :]
    x = x_ptr + row[None, :] * k + depth[:, None]
    total = tl.zeros([COLUMNS, ROWS], dtype=tl.float32)
    for _ in range(0, k, DEPTH):
        part = tl.load(weight, eviction_policy="evict_first")
        given = tl.load(x, mask=there[None, :], other=0.0)
        total = tl.dot(part, given, total)
        weight += DEPTH
        x += DEPTH
    out = out_ptr + row[None, :] * n + column[:, None]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=there[None, :])
