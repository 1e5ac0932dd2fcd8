"""Captured computations, and the transfer of their inputs and outputs between host and device.

A ``Program`` is a CUDA graph, or a plain call on a CPU. Copies go through pinned memory on separate
streams, so that those of one batch overlap with the computation of another:

    upload stream:     host -> device of batch n+1
    compute stream:    graph of batch n, its output copied aside
    download stream:   device -> host of batch n-1

Without another batch there is nothing to overlap with: a runner of few rows has a second graph that
contains both copies (``express``), with one launch and one event instead of three streams.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import psutil
import torch
from torch import Tensor

log = logging.getLogger(__name__)
T = TypeVar("T")
WARM_UPS = 2


class GraphDevice:
    """A device's streams, and the memory that its graphs share (no two run at once)."""

    def __init__(self, device: torch.device, *, graphs: bool) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self.graphs = graphs and self.is_cuda  # whether CUDA graphs are captured
        self.running = 0  # batches that were launched and not collected
        self.captured = 0
        self.captured_bytes = 0
        self.compute = self.upload = self.download = None
        if self.is_cuda:
            make: Any = torch.cuda.Stream
            self.compute, self.upload, self.download = (make(device) for _ in range(3))
        self.total = (
            torch.cuda.get_device_properties(device).total_memory
            if self.is_cuda
            else psutil.virtual_memory().total
        )
        self.pool: Any = torch.cuda.graph_pool_handle() if self.graphs else None

    def host(self, like: Tensor) -> Tensor:
        """Host memory for a copy of ``like``, pinned for a GPU."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self.is_cuda)

    def reserved(self) -> int:
        """Bytes of the GPU that this process has reserved."""
        return int(torch.cuda.memory_reserved(self.device)) if self.is_cuda else 0


class Program:
    """One computation of static shape, captured when it is made; ``compute`` reads fixed memory."""

    def __init__(self, device: GraphDevice, compute: Callable[[], Tensor]) -> None:
        self._device = device
        self._compute = compute
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Tensor | None = None
        if device.graphs:
            self._capture()

    @torch.inference_mode()
    def _capture(self) -> None:
        device, before = self._device, self._device.reserved()
        torch.cuda.synchronize(device.device)
        graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()  # freeing other tensors would become part of the capture
        try:
            with torch.cuda.stream(device.compute):
                for _ in range(WARM_UPS):  # cuBLAS and Triton choose and compile kernels here
                    self._compute()
                torch.cuda.synchronize(device.device)
                # Other threads may wait for earlier batches meanwhile.
                graph.capture_begin(pool=device.pool, capture_error_mode="thread_local")
                try:
                    self._output = self._compute()
                finally:
                    graph.capture_end()
        finally:
            if collects:
                gc.enable()
        self._graph = graph
        device.captured += 1
        device.captured_bytes += max(0, device.reserved() - before)

    def launch(self) -> Tensor:
        """Starts it on the current stream; the next launch overwrites the returned tensor."""
        if self._graph is not None:
            self._graph.replay()
        else:
            with torch.inference_mode():
                self._output = self._compute()
        assert self._output is not None
        return self._output


class Staging:
    """Memory and events for one batch; ``express`` is a program that does its copies itself."""

    def __init__(self, device: GraphDevice, inputs: Sequence[Tensor]) -> None:
        self.host_in = [device.host(tensor) for tensor in inputs]
        self.on_device = [torch.empty_like(tensor) for tensor in inputs]
        self.kept: Tensor | None = None  # the output, copied aside on the device
        self.host_out: Tensor | None = None
        self.express: Program | None = None
        self.took = 0.0  # milliseconds, on a CPU
        if device.is_cuda:
            make: Any = torch.cuda.Event
            self.uploaded, self.began, self.computed, self.downloaded = (
                make(enable_timing=True) for _ in range(4)
            )

    def took_ms(self) -> float:
        """Milliseconds of the computation, without what ran before it on its stream."""
        on_device = self.kept is not None or self.express is not None
        return float(self.began.elapsed_time(self.computed)) if on_device else self.took


class Runner:
    """A program with its static inputs, and reusable staging memory for each batch in flight.

    ``compute`` reads ``inputs`` on the device. With ``express``, a second graph contains the copies
    as well.
    """

    def __init__(
        self,
        device: GraphDevice,
        inputs: list[Tensor],
        compute: Callable[[], Tensor],
        *,
        express: bool = False,
    ) -> None:
        self.device = device
        self._inputs = inputs
        self._program = Program(device, compute)
        self._free: list[Staging] = []
        self._express: Staging | None = None  # while no batch uses it
        if express and device.graphs:
            try:
                self._express = _express(device, inputs, compute)
            except RuntimeError as error:  # for example a driver that cannot capture copies
                log.warning("No graph with its copies inside: %s.", error)

    def staging(self) -> Staging:
        """Staging memory for a batch; write its inputs to ``host_in``."""
        if self._express is not None and not self.device.running:
            staging, self._express = self._express, None
            return staging
        return self._free.pop() if self._free else Staging(self.device, self._inputs)

    def launch(self, staging: Staging, bind: Callable[[], None] | None = None) -> None:
        """Starts the computation of ``staging``; ``bind`` runs before it on the compute stream."""
        self.device.running += 1
        if staging.express is not None:
            self._launch_express(staging, staging.express, bind)
        elif self.device.is_cuda:
            self._launch_streams(staging, bind)
        else:
            for static, given in zip(self._inputs, staging.host_in, strict=True):
                static.copy_(given)
            if bind is not None:
                bind()
            begin = time.perf_counter()
            staging.host_out = self._program.launch().clone()
            staging.took = (time.perf_counter() - begin) * 1e3

    def _launch_express(
        self, staging: Staging, program: Program, bind: Callable[[], None] | None
    ) -> None:
        compute = self.device.compute
        assert compute is not None
        # The stream stays set: changing it back costs as much again, and this thread's other work
        # may run on any stream.
        torch.cuda.set_stream(compute)
        if bind is not None:
            bind()
        staging.began.record(compute)
        program.launch()
        staging.computed.record(compute)

    def _launch_streams(self, staging: Staging, bind: Callable[[], None] | None) -> None:
        device = self.device
        assert device.compute and device.upload and device.download
        with torch.cuda.stream(device.upload):
            for there, given in zip(staging.on_device, staging.host_in, strict=True):
                there.copy_(given, non_blocking=True)
            staging.uploaded.record(device.upload)
        with torch.cuda.stream(device.compute):
            device.compute.wait_event(staging.uploaded)
            staging.began.record(device.compute)
            for static, there in zip(self._inputs, staging.on_device, strict=True):
                static.copy_(there, non_blocking=True)
            if bind is not None:
                bind()
            output = self._program.launch()
            if staging.kept is None or staging.host_out is None:
                staging.kept, staging.host_out = torch.empty_like(output), device.host(output)
            staging.kept.copy_(output, non_blocking=True)  # the next batch may overwrite it
            staging.computed.record(device.compute)
        with torch.cuda.stream(device.download):
            device.download.wait_event(staging.computed)
            staging.host_out.copy_(staging.kept, non_blocking=True)
            staging.downloaded.record(device.download)

    def release(self, staging: Staging) -> None:
        """Makes staging memory available again, after its result was read."""
        self.device.running -= 1
        if staging.express is not None:
            self._express = staging
        else:
            self._free.append(staging)


def _express(
    device: GraphDevice, inputs: Sequence[Tensor], compute: Callable[[], Tensor]
) -> Staging:
    staging = Staging(device, inputs)
    for given, static in zip(staging.host_in, inputs, strict=True):
        given.copy_(static)  # valid inputs for the warm-up
    staging.downloaded = staging.computed

    def copy_and_compute() -> Tensor:
        for static, given in zip(inputs, staging.host_in, strict=True):
            static.copy_(given, non_blocking=True)
        output = compute()
        if staging.host_out is None:
            staging.host_out = device.host(output)
        staging.host_out.copy_(output, non_blocking=True)
        return output

    staging.express = Program(device, copy_and_compute)
    return staging


class RunnerJob(Generic[T]):
    """A batch that was launched (``backend.Job``).

    ``read`` makes the result from the output on the host, which is reused, and the milliseconds.
    """

    def __init__(
        self, runner: Runner, staging: Staging, read: Callable[[Tensor, float], T]
    ) -> None:
        self._runner = runner
        self._staging: Staging | None = staging
        self._read = read

    def done(self) -> bool:
        staging = self._staging
        if staging is None or not self._runner.device.is_cuda:
            return True
        return bool(staging.downloaded.query())

    def wait(self) -> None:
        staging = self._staging
        if staging is not None and self._runner.device.is_cuda:
            staging.downloaded.synchronize()

    def result(self) -> T:
        staging = self._staging
        if staging is None or staging.host_out is None:
            raise RuntimeError("the result was taken already")
        self.wait()
        self._staging = None
        value = self._read(staging.host_out, staging.took_ms())
        self._runner.release(staging)
        return value
