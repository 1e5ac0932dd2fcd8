"""A vLLM engine in this process: how it is started, and how requests run through it.

It runs in the agent's own process (``uni`` executor), which is supervised already, and where hooks
reach the model. After an exception its scheduler counts work that was never done, so the agent
exits and is restarted.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from agentwire import config
from agentwire.errors import DeviceError, ModelError, first_line
from agentwire.spec.agent import AgentSpec

log = logging.getLogger(__name__)

INSTALL: Final = (
    "Run `pip install '.[vllm]'` (with a GPU), or `make vllm` for the CPU build in an "
    "environment of its own; or set `backend: transformers`."
)
CPU_LENGTH: Final = 4096
"""Tokens of a prompt and its answer on a CPU, where the KV cache has 1 GiB."""
STEP_TOKENS: Final = 8192
"""Tokens of one step; large enough to read a batch's prompts without splitting them."""
CPU_ENVIRONMENT: Final[Mapping[str, str]] = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, a whole number
    # Agents share a machine, so threads are not bound to cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
ENVIRONMENT: Final[Mapping[str, str]] = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}


def import_vllm(device: str) -> Any:
    """Imports vLLM with the settings for this device.

    Raises ModelError or DeviceError if it is missing, broken, or built for other devices.
    """
    if device == "cpu":
        config.set_defaults(CPU_ENVIRONMENT)
    else:
        config.show_gpu(int(device.removeprefix("cuda:")))
    config.set_defaults(ENVIRONMENT)
    try:
        import vllm
        from vllm.platforms import current_platform
    except ModuleNotFoundError as error:
        raise ModelError(f"vLLM is not installed ({error.name}).", hint=INSTALL) from None
    except Exception as error:  # a build for another torch fails in many ways
        first = first_line(error)
        raise ModelError(f"vLLM cannot be imported: {first}.", hint=INSTALL) from error
    if (device == "cpu") != current_platform.is_cpu():
        here = "CPUs" if current_platform.is_cpu() else "GPUs"
        raise DeviceError(
            f"the device is {device}, but the installed vLLM is built for {here}.",
            hint="Change `device:` in the agent's file, or install the other build. " + INSTALL,
        )
    return vllm


class Engine:
    """A running engine (``vllm.LLM``), used by one thread."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._names = itertools.count()

    @classmethod
    def start(cls, spec: AgentSpec, folder: Path, *, length: int | None) -> Engine:
        """Loads the model of ``spec``; ``length``: tokens that the model can read, if known.

        Raises as ``import_vllm``, and ModelError if vLLM cannot run this model.
        """
        vllm = import_vllm(spec.device)
        cpu = spec.device == "cpu"
        if cpu:
            length = min(length or CPU_LENGTH, CPU_LENGTH)
        settings: dict[str, Any] = {
            "model": str(folder),
            "dtype": spec.dtype,
            "skip_tokenizer_init": True,  # requests are token ids
            "max_num_seqs": max(spec.max_batch, 1),
            "max_num_batched_tokens": max(STEP_TOKENS, length or 0),
            "enable_prompt_embeds": True,
            # States are captured while they are computed; cached prefixes are not computed.
            "enable_prefix_caching": not spec.bridges,
            # Hooks need eager layers; on a CPU graphs gain nothing at these sizes.
            "enforce_eager": cpu or bool(spec.bridges),
            "distributed_executor_backend": "uni",
            "disable_log_stats": True,
            "seed": 0,
        }
        if length is not None:
            settings["max_model_len"] = length
        if cpu:
            import torch._dynamo

            # Compiling the sampler would take half a minute at the first request.
            torch._dynamo.config.disable = True
        try:
            return cls(vllm.LLM(**settings))
        except Exception as error:  # the library raises many types
            first = first_line(error)
            raise ModelError(
                f"vLLM cannot run {spec.model}: {first}",
                hint="See the agent's log, or set `backend: transformers`.",
            ) from error

    @property
    def model(self) -> Any:
        """The model inside the engine."""
        return self._llm.apply_model(lambda model: model)[0]

    @property
    def length(self) -> int:
        """Most tokens of a prompt and its answer."""
        return int(self._llm.model_config.max_model_len)

    @property
    def step_limits(self) -> tuple[int, int]:
        """Most tokens and rows of one step."""
        scheduler = self._llm.llm_engine.vllm_config.scheduler_config
        return int(scheduler.max_num_batched_tokens), int(scheduler.max_num_seqs)

    def run(self, prompts: Sequence[Mapping[str, Any]], **sampling: Any) -> list[Any]:
        """Completions of checked prompts, in order; ``sampling`` as in ``vllm.SamplingParams``."""
        with _exit_on_error():
            done = self._llm.generate(list(prompts), _parameters(sampling), use_tqdm=False)
        return [output.outputs[0] for output in done]

    def watch(
        self,
        prompts: Sequence[Mapping[str, Any]],
        take: Callable[[int, Any], bool],
        **sampling: Any,
    ) -> None:
        """Runs prompts step by step.

        After each step that added a token to a row, ``take`` gets the row and its completion so
        far (``vllm.CompletionOutput``), and returns whether the row should go on.
        """
        engine = self._llm.llm_engine
        with _exit_on_error():
            names = [f"watched-{next(self._names)}" for _ in prompts]
            for name, prompt in zip(names, prompts, strict=True):
                engine.add_request(name, dict(prompt), _parameters(sampling))
            rows = {name: row for row, name in enumerate(names)}
            while engine.has_unfinished_requests():
                for output in engine.step():
                    row = rows[output.request_id]
                    wanted = take(row, output.outputs[0])
                    if not wanted and not output.finished:
                        engine.abort_request([output.request_id])


def _parameters(sampling: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(detokenize=False, **sampling)


@contextmanager
def _exit_on_error() -> Iterator[None]:
    try:
        yield
    except Exception:
        log.exception("The vLLM engine failed; this agent exits so that it can be restarted.")
        raise SystemExit(1) from None
