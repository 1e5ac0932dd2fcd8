"""Cost of training a bridge at the 8B and 7B shapes: one step, and the states that it reads.

The code is that of ``agentwire train``: the frozen sender's states are cached once; one step is the
bridge, the frozen receiver forward and backward, and the optimiser, captured as a CUDA graph. With
one device both models share it while states are computed; with two each model has its own, and the
step runs on the receiver's. Weights are random, so only time and memory mean something.

    python bench/train_step.py [--devices cuda:0 cuda:1] [--out bench/results/train-step.json]

``--sender random/tiny-llama --receiver random/tiny-mistral --devices cpu`` runs on any machine.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from typing import Any

import torch
from records import parser_of, provenance, write

from agentwire.bridge.resampler import Resampler
from agentwire.bridge.shape import BridgeShape
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.agent import AgentSpec
from agentwire.spec.scenario import TrainSpec
from agentwire.training.objective import BridgeObjective, TrainingTask
from agentwire.training.optimise import Step
from agentwire.training.states import StateCache, cache_layers
from agentwire.wire.messages import RelaySpec, TaskSpec

LLAMA, MISTRAL = "meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"
LABEL = "random weights: speed only"


def words(count: int, seed: int) -> str:
    return " ".join(f"t{3 + (seed * 131 + i * 17) % 400}" for i in range(count))


def backend(name: str, model: str, device: str) -> TransformersBackend:
    dtype = "float32" if device == "cpu" else "bfloat16"
    spec = AgentSpec(
        name=name,
        backend="transformers",
        model=model,
        weights="random",
        device=device,
        dtype=dtype,
        threads=None,
    )
    return TransformersBackend.load(spec, lambda *_: None)


def clear(devices: list[str]) -> None:
    gc.collect()
    for device in devices:
        if device != "cpu":
            torch.zeros(1, device=device)  # creates the device's counters
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)


def peaks(devices: list[str]) -> dict[str, float]:
    return {d: round(torch.cuda.max_memory_allocated(d) / 2**30, 2) for d in devices if d != "cpu"}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def states(args: argparse.Namespace, device: str) -> tuple[StateCache, dict[str, Any]]:
    """The cache, and rows a second."""
    sender = backend("sender", args.sender, device)
    texts = [words(args.text_tokens, i) for i in range(args.rows)]
    options = {"layers": [args.layer], "max_tokens": args.text_tokens}
    cache_layers(sender, texts[:64], [0] * 64, **options)
    wait(sender.device)
    start = time.perf_counter()
    labels = [i % 2 for i in range(args.rows)]
    cache = cache_layers(sender, texts, labels, **options)[args.layer]
    wait(sender.device)
    rate = args.rows / (time.perf_counter() - start)
    return cache, {"rows": args.rows, "rows_per_s": round(rate, 1)}


def new_bridge(args: argparse.Namespace, cache: StateCache, receiver: TransformersBackend) -> Any:
    recipe = TrainSpec(hidden=args.hidden)
    shape = BridgeShape(
        cache.flat.shape[1], receiver.identity.width, args.soft_tokens, hidden=args.hidden
    )
    module = Resampler(shape, dropout=recipe.dropout).to(receiver.device)
    mean, std = cache.statistics()
    module.mean.copy_(mean)
    module.std.copy_(std)
    module.alpha.fill_(receiver.identity.embedding_rms)
    return module.train()


def time_steps(
    args: argparse.Namespace, cache: StateCache, receiver: TransformersBackend, batch: int
) -> dict[str, Any]:
    """Milliseconds of a step: waited for one by one, and many in a row as in training."""
    prompt = words(args.prompt_tokens, 7)
    task = TaskSpec("train-step", prompt, "{text} " + prompt, ("t10", "t20"), RelaySpec())
    receiver.prepare(task)
    module = new_bridge(args, cache, receiver)
    recipe = TrainSpec(hidden=args.hidden, batch_size=batch)
    start = time.perf_counter()
    asked = TrainingTask(lambda soft: receiver.logits_from_soft(soft, task), [cache], [cache])
    step = Step(BridgeObjective([module], [asked], [recipe]), [recipe])
    wait(receiver.device)
    setup_s = time.perf_counter() - start
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(len(cache), (args.steps, batch), generator=draw).to(receiver.device)
    rate = [recipe.learning_rate]
    for i in range(min(3, args.steps)):
        step(rate, [[rows[i]]])
    wait(receiver.device)
    single = []
    for i in range(args.steps):
        begin = time.perf_counter()
        step(rate, [[rows[i]]])
        wait(receiver.device)
        single.append((time.perf_counter() - begin) * 1e3)
    begin = time.perf_counter()
    for i in range(args.steps):
        step(rate, [[rows[i]]])
    wait(receiver.device)
    each = (time.perf_counter() - begin) * 1e3 / args.steps
    if not torch.isfinite(step.losses).all():
        raise SystemExit("The loss is not finite.")
    return {
        "step_ms_p50": round(statistics.median(single), 2),
        "step_ms_p99": round(sorted(single)[int(0.99 * (len(single) - 1))], 2),
        "step_ms_in_a_row": round(each, 2),
        "rows_per_s": round(batch * 1e3 / each, 1),
        "setup_s": round(setup_s, 2),
        "parameters": module.count_parameters(),
    }


def measure(args: argparse.Namespace, devices: list[str]) -> dict[str, Any]:
    """Sender on the first device, receiver on the last."""
    clear(devices)
    receiver = backend("receiver", args.receiver, devices[-1])
    cache, made = states(args, devices[0])
    made["peak_gib"] = peaks(devices)
    found: dict[str, Any] = {"devices": devices, "states": made, "steps": {}}
    cache = cache.to(receiver.device)
    if receiver.device.type == "cuda":
        torch.cuda.set_device(receiver.device)
    for batch in args.batches:
        clear(devices)
        try:
            found["steps"][batch] = time_steps(args, cache, receiver, batch)
        except torch.OutOfMemoryError as error:
            found["steps"][batch] = {"error": str(error).splitlines()[0]}
        found["steps"][batch]["peak_gib"] = peaks(devices)
    return found


def record_of(args: argparse.Namespace, runs: dict[str, Any]) -> dict[str, Any]:
    figures = {
        f"step_ms@{batch}/{count}gpu": step["step_ms_in_a_row"]
        for count, run in runs.items()
        for batch, step in run["steps"].items()
        if "step_ms_in_a_row" in step
    }
    for count, run in runs.items():
        figures[f"states_rows_per_s/{count}gpu"] = run["states"]["rows_per_s"]
    return {
        **provenance(),
        "label": LABEL,
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "figures": figures,
        "runs": runs,
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--sender", default=LLAMA)
    parser.add_argument("--receiver", default=MISTRAL)
    parser.add_argument("--devices", nargs="+", default=["cuda:0"])
    parser.add_argument(
        "--counts", type=int, nargs="+", help="numbers of devices; default: 1, 2, ..."
    )
    parser.add_argument("--layer", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--soft-tokens", type=int, default=8)
    parser.add_argument("--text-tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    runs: dict[str, Any] = {}
    for count in args.counts or range(1, len(args.devices) + 1):
        runs[str(count)] = measure(args, args.devices[:count])
        write(record_of(args, runs), args.out)  # after every part, so that it survives Ctrl-C
    return 0


if __name__ == "__main__":
    sys.exit(main())
