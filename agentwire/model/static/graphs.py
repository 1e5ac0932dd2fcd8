"""Captured computations, and the way of their inputs and outputs between host and device.

A ``Program`` is one computation of static shape: a CUDA graph, or on a CPU a plain call. ``launch``
returns at once. Inputs go up and outputs come down through pinned memory on streams of their own,
so that the copies of one batch run beside the products of another:

    upload stream:     host -> device of batch n+1
    compute stream:    graph of batch n, its output put aside
    download stream:   device -> host of batch n-1

Nothing waits but where the data says so: the graph for its input, the download for the graph, and
the host for the download.

Where nothing is under way there is nothing to overlap with. A port of few rows therefore has a
second graph with both copies inside (``express``): one launch and one event instead of three
streams that wait for each other.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import psutil
import torch
from torch import Tensor

log = logging.getLogger(__name__)
T = TypeVar("T")
WARM_UPS = 2


class Device:
    """One device's streams, and the memory that its graphs share (no two run at once).

    Args:
        device: where to compute.
        graphs: capture CUDA graphs; off, or on a CPU: call plainly.
    """

    def __init__(self, device: torch.device, *, graphs: bool) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self.graphs = graphs and self.is_cuda
        self.under_way = 0  # batches that were launched and not collected
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

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """Work in here goes to ``stream``; on a CPU it just runs."""
        if stream is None:
            yield
            return
        with torch.cuda.stream(stream):
            yield

    def host(self, like: Tensor) -> Tensor:
        """Host memory for a copy of ``like``; pinned where that helps."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self.is_cuda)

    def memory(self) -> int:
        """Bytes of the device that this process has reserved."""
        return int(torch.cuda.memory_reserved(self.device)) if self.is_cuda else 0


class Program:
    """One computation of static shape, captured when it is made.

    Args:
        device: where.
        compute: the computation; it reads the same memory at every call, and returns its result.

    Attributes:
        output: the result of the last launch, on the device.
    """

    def __init__(self, device: Device, compute: Callable[[], Tensor]) -> None:
        self._device = device
        self._compute = compute
        self._graph: torch.cuda.CUDAGraph | None = None
        self.output: Tensor | None = None
        if device.graphs:
            self._capture()

    @torch.inference_mode()
    def _capture(self) -> None:
        device, before = self._device, self._device.memory()
        torch.cuda.synchronize(device.device)
        graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()  # what it would free belongs to no capture
        try:
            with torch.cuda.stream(device.compute):
                for _ in range(WARM_UPS):  # cuBLAS and Triton choose and compile kernels here
                    self._compute()
                torch.cuda.synchronize(device.device)
                # Another thread may wait for an earlier batch meanwhile: only this one must not.
                graph.capture_begin(pool=device.pool, capture_error_mode="thread_local")
                try:
                    self.output = self._compute()
                finally:
                    graph.capture_end()
        finally:
            if collects:
                gc.enable()
        self._graph = graph
        device.captured += 1
        device.captured_bytes += max(0, device.memory() - before)

    def launch(self) -> Tensor:
        """Starts it on the compute stream; the returned tensor is overwritten by the next one."""
        if self._graph is not None:
            self._graph.replay()
        else:
            with torch.inference_mode():
                self.output = self._compute()
        assert self.output is not None
        return self.output


class Slot:
    """Memory and events for one batch on its way through a port."""

    def __init__(self, device: Device, inputs: Sequence[Tensor]) -> None:
        self.host_in = [device.host(tensor) for tensor in inputs]
        self.on_device = [torch.empty_like(tensor) for tensor in inputs]
        self.kept: Tensor | None = None  # the output, put aside
        self.host_out: Tensor | None = None
        self.express: Program | None = None  # moves this slot's data itself
        self.took = 0.0  # milliseconds, on a CPU
        if device.is_cuda:
            make: Any = torch.cuda.Event
            self.uploaded, self.began, self.computed, self.downloaded = (
                make(enable_timing=True) for _ in range(4)
            )

    def took_ms(self) -> float:
        """What the device took, once it is done; what came before on its stream not counted."""
        on_device = self.kept is not None or self.express is not None
        return float(self.began.elapsed_time(self.computed)) if on_device else self.took


@dataclass(eq=False)
class Port:
    """A program with its static inputs, and as many slots as there were batches at once.

    Attributes:
        inputs: device tensors that the program reads.
        program: what is computed from them.
    """

    device: Device
    inputs: list[Tensor]
    program: Program
    free: list[Slot] = field(default_factory=list)
    express: Slot | None = None  # while it is free

    @classmethod
    def of(
        cls,
        device: Device,
        inputs: list[Tensor],
        compute: Callable[[], Tensor],
        *,
        express: bool = False,
    ) -> Port:
        """Captures ``compute``, which reads ``inputs``.

        Args:
            express: a graph that moves its data itself, too, for when nothing else is under way.
        """
        port = cls(device, inputs, Program(device, compute))
        if express and device.graphs:
            try:
                port.express = _express(device, inputs, compute)
            except RuntimeError as error:  # a driver that cannot capture copies, say
                log.warning("no graph with its copies inside: %s", error)
        return port

    def slot(self) -> Slot:
        """A slot to fill: write the inputs to its ``host_in``."""
        if self.express is not None and not self.device.under_way:
            slot, self.express = self.express, None
            return slot
        return self.free.pop() if self.free else Slot(self.device, self.inputs)

    def launch(self, slot: Slot, bind: Callable[[], None] | None = None) -> None:
        """Starts the computation of what was written to ``slot``; returns at once.

        Args:
            bind: called on the compute stream before the program.
        """
        device = self.device
        device.under_way += 1
        if slot.express is not None:
            # Left as it is afterwards: to change back costs as much again, and no other work of
            # this thread minds on which stream it runs.
            assert device.compute is not None
            torch.cuda.set_stream(device.compute)
            if bind is not None:
                bind()
            slot.began.record(device.compute)
            slot.express.launch()
            slot.computed.record(device.compute)
            return
        if not device.is_cuda:
            for static, given in zip(self.inputs, slot.host_in, strict=True):
                static.copy_(given)
            if bind is not None:
                bind()
            begin = time.perf_counter()
            slot.host_out = self.program.launch().clone()
            slot.took = (time.perf_counter() - begin) * 1e3
            return
        assert device.compute is not None and device.upload is not None
        assert device.download is not None
        with torch.cuda.stream(device.upload):
            for there, given in zip(slot.on_device, slot.host_in, strict=True):
                there.copy_(given, non_blocking=True)
            slot.uploaded.record(device.upload)
        with torch.cuda.stream(device.compute):
            device.compute.wait_event(slot.uploaded)
            slot.began.record(device.compute)
            for static, there in zip(self.inputs, slot.on_device, strict=True):
                static.copy_(there, non_blocking=True)
            if bind is not None:
                bind()
            output = self.program.launch()
            if slot.kept is None or slot.host_out is None:
                slot.kept, slot.host_out = torch.empty_like(output), device.host(output)
            slot.kept.copy_(output, non_blocking=True)  # the next batch may overwrite the output
            slot.computed.record(device.compute)
        with torch.cuda.stream(device.download):
            device.download.wait_event(slot.computed)
            slot.host_out.copy_(slot.kept, non_blocking=True)
            slot.downloaded.record(device.download)

    def give_back(self, slot: Slot) -> None:
        """Its result was read."""
        self.device.under_way -= 1
        if slot.express is not None:
            self.express = slot
        else:
            self.free.append(slot)


def _express(device: Device, inputs: Sequence[Tensor], compute: Callable[[], Tensor]) -> Slot:
    slot = Slot(device, inputs)
    for given, static in zip(slot.host_in, inputs, strict=True):
        given.copy_(static)  # what the warm-up computes must be sound
    slot.downloaded = slot.computed

    def moved() -> Tensor:
        for static, given in zip(inputs, slot.host_in, strict=True):
            static.copy_(given, non_blocking=True)
        output = compute()
        if slot.host_out is None:
            slot.host_out = device.host(output)
        slot.host_out.copy_(output, non_blocking=True)
        return output

    slot.express = Program(device, moved)
    return slot


class PortJob(Generic[T]):
    """A batch that was launched (``backend.Job``).

    Args:
        read: makes the result from the host's copy of the output and the milliseconds that the
            device took; the copy is reused afterwards.
    """

    def __init__(self, port: Port, slot: Slot, read: Callable[[Tensor, float], T]) -> None:
        self._port = port
        self._slot: Slot | None = slot
        self._read = read

    def done(self) -> bool:
        slot = self._slot
        return slot is None or not self._port.device.is_cuda or _is_done(slot)

    def wait(self) -> None:
        slot = self._slot
        if slot is not None and self._port.device.is_cuda:
            slot.downloaded.synchronize()

    def result(self) -> T:
        slot = self._slot
        if slot is None or slot.host_out is None:
            raise RuntimeError("the result was taken before")
        self.wait()
        self._slot = None
        value = self._read(slot.host_out, slot.took_ms())
        self._port.give_back(slot)
        return value


def _is_done(slot: Slot) -> bool:
    return bool(slot.downloaded.query())
