"""A worker: takes jobs until none is left, whatever happens to one of them."""

from __future__ import annotations

import gc
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch

from lab import bridges, readers, rivals, search, soft_tokens, studies, together
from lab.bridges import Answer
from lab.files import Folder, Predictions
from lab.jobs import Job
from lab.world import World, versions

KINDS: dict[str, Callable[[World, Job, Folder], Answer]] = {
    "sweep": bridges.sweep,
    "bridge": bridges.bridge,
    "random_sender": bridges.random_sender,
    "probe": rivals.probe,
    "encoder": rivals.encoder,
    "direct": rivals.direct,
    "relay": rivals.relay,
    "prompt_tuning": readers.prompt_tuning,
    "lora": readers.lora,
    "lora_relay": readers.lora_relay,
    "lora_reads_relay": readers.lora_reads_relay,
    "blind": readers.blind,
    "soft_tokens_papers": soft_tokens.papers_budget,
    "soft_tokens_rates": soft_tokens.rates,
    "soft_tokens": soft_tokens.converged,
    "layers": studies.layers,
    "sensitivity": studies.sensitivity,
    "ablation": studies.ablation,
    "first_try": studies.first_try,
    "universal": together.universal,
    "passkey": together.passkey,
    "search": search.search,
}
ROOM = 24 << 30
"""Bytes on the device above which cached states are dropped between jobs."""


class TooLong(Exception):
    """A job ran past its limit."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises ``TooLong`` in the main thread after so many seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def do(job: Job, world: World, folder: Folder, worker: str, command: str) -> None:
    """One job; its result is written, also where it fails."""
    started = time.monotonic()
    predictions: Predictions = {}
    about = {"job": job.name, "kind": job.kind, "worker": worker, "command": command,
             "task": job.task, "direction": job.direction}  # fmt: skip
    world.train_until = started + job.train_s
    try:
        with limited(job.limit_s):
            result, predictions = KINDS[job.kind](world, job, folder)
        status = {"status": "ok", **result}
    except Exception as error:  # whatever it was, the other jobs must go on
        status = {"status": "failed", "error": f"{type(error).__name__}: {error}",
                  "trace": traceback.format_exc()[-3000:]}  # fmt: skip
    seconds = round(time.monotonic() - started, 1)
    folder.write(job.name, {**about, "seconds": seconds, "versions": versions(), **status},
                 predictions)  # fmt: skip
    best = [f"{r['method']} {r['accuracy']:.4f}" for r in status.get("runs", [])
            if "accuracy" in r]  # fmt: skip
    folder.log(worker, f"{job.name} {status['status']} in {seconds} s {status.get('error', '')} "
                       f"{' '.join(best)}")  # fmt: skip


def work(
    jobs: Sequence[Job], world: World, folder: Folder, worker: str, *, light: bool | None,
    command: str, until: float, patience_s: float = 0.5,
) -> None:  # fmt: skip
    """Takes jobs in order until all are done, or the time is up.

    Args:
        light: take only light jobs (True), only others (False), or all (None).
        until: monotonic time at which no new job is begun.
    """
    folder.bury(worker, jobs)
    while time.monotonic() < until and folder.open_jobs(jobs):
        job = folder.next(jobs, worker, light=light)
        if job is None and light is not None:
            job = folder.next(jobs, worker, light=None)
        if job is None:
            time.sleep(patience_s)
            continue
        folder.log(worker, f"{job.name} begins")
        do(job, world, folder, worker, command)
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
            if torch.cuda.memory_allocated() > ROOM:
                world.forget_states()
