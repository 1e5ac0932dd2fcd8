"""One vLLM engine in this process: how it is started, and how requests run through it.

The engine lives in the agent's own process (``uni`` executor, no engine process): the agent is a
process already, watched and restarted, and hooks on the model need it here. What the engine reads
from the environment is set before vLLM is imported (``config.set_defaults``).

An engine that raised while it computed cannot be trusted with another request: its scheduler
still counts what was never computed. The agent then ends (``SystemExit``), and its supervisor
starts another.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from agentwire import config
from agentwire.errors import DeviceError, ModelError
from agentwire.spec.agent import AgentSpec

log = logging.getLogger(__name__)

INSTALL: Final = (
    "Run `pip install 'agentwire[vllm]'` (with a GPU), or `make vllm` for the CPU build in an "
    "environment of its own; or set `backend: transformers`."
)
CPU_LENGTH: Final = 4096
"""Tokens of a prompt and its answer on a CPU, where the cache of keys and values is 1 GiB."""
STEP_TOKENS: Final = 8192
"""Tokens of one step: the prompts of a batch are read in one step, never in parts."""
CPU_ENVIRONMENT: Final[Mapping[str, str]] = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; only whole numbers are understood
    # Agents share a machine: each has its threads, and the system places them.
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
    """The library, imported with the settings that fit the device.

    Raises:
        ModelError: it is not installed, or cannot be imported.
        DeviceError: it was built for another kind of device.
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
        raise ModelError(f"vLLM is not installed here ({error.name}).", hint=INSTALL) from None
    except Exception as error:  # a build that does not fit its torch fails in many ways
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"vLLM cannot be imported: {first}.", hint=INSTALL) from error
    if (device == "cpu") != current_platform.is_cpu():
        here = "CPUs" if current_platform.is_cpu() else "GPUs"
        raise DeviceError(
            f"the device is {device}, and the vLLM that is installed here is built for {here}.",
            hint="Set `device:` in the agent's file to fit, or install the other build. " + INSTALL,
        )
    return vllm


class Engine:
    """A running engine. Used by one thread.

    Args:
        llm: a ``vllm.LLM`` of this process.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._names = itertools.count()

    @classmethod
    def start(cls, spec: AgentSpec, folder: Path, *, room: int | None) -> Engine:
        """Loads the model of ``spec``.

        Args:
            room: tokens that the model can see, if it says so.

        Raises:
            ModelError, DeviceError: see ``import_vllm``; or vLLM cannot run this model.
        """
        vllm = import_vllm(spec.device)
        cpu = spec.device == "cpu"
        length = min(room or CPU_LENGTH, CPU_LENGTH) if cpu else room
        settings: dict[str, Any] = {
            "model": str(folder),
            "dtype": spec.dtype,
            "skip_tokenizer_init": True,  # ids in, ids out
            "max_num_seqs": max(spec.max_batch, 1),
            "max_num_batched_tokens": max(STEP_TOKENS, length or 0),
            "enable_prompt_embeds": True,
            # States are read while they are computed: what a cache remembers is not computed.
            "enable_prefix_caching": not spec.bridges,
            # Hooks see eager layers only; on a CPU graphs bring nothing at these sizes.
            "enforce_eager": cpu or bool(spec.bridges),
            "distributed_executor_backend": "uni",
            "disable_log_stats": True,
            "seed": 0,
        }
        if length is not None:
            settings["max_model_len"] = length
        if cpu:
            import torch._dynamo

            # Compiling the sampler takes half a minute, at the first request.
            torch._dynamo.config.disable = True
        try:
            return cls(vllm.LLM(**settings))
        except Exception as error:  # whatever the library raises for models that it cannot run
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"vLLM cannot run {spec.model}: {first}",
                hint="Its log says more; or set `backend: transformers`.",
            ) from error

    @property
    def model(self) -> Any:
        """The model inside: it is in this process."""
        return self._llm.apply_model(lambda model: model)[0]

    @property
    def length(self) -> int:
        """Tokens of a prompt and its answer."""
        return int(self._llm.model_config.max_model_len)

    @property
    def step_limits(self) -> tuple[int, int]:
        """Tokens and rows that one step can take."""
        scheduler = self._llm.llm_engine.vllm_config.scheduler_config
        return int(scheduler.max_num_batched_tokens), int(scheduler.max_num_seqs)

    def run(self, prompts: Sequence[Mapping[str, Any]], **sampling: Any) -> list[Any]:
        """Completions (``vllm.CompletionOutput``) of checked prompts, in order.

        Args:
            sampling: of ``vllm.SamplingParams``, the same for each.
        """
        with _unharmed():
            done = self._llm.generate(list(prompts), _parameters(sampling), use_tqdm=False)
        return [output.outputs[0] for output in done]

    def watch(
        self,
        prompts: Sequence[Mapping[str, Any]],
        take: Callable[[int, Sequence[int]], bool],
        **sampling: Any,
    ) -> None:
        """Runs prompts step by step.

        Args:
            take: told a row and all tokens of its answer so far, after each step that added one;
                says whether to go on with that row.
        """
        engine = self._llm.llm_engine
        with _unharmed():
            names = [f"watched-{next(self._names)}" for _ in prompts]
            for name, prompt in zip(names, prompts, strict=True):
                engine.add_request(name, dict(prompt), _parameters(sampling))
            rows = {name: row for row, name in enumerate(names)}
            while engine.has_unfinished_requests():
                for output in engine.step():
                    row = rows[output.request_id]
                    wanted = take(row, output.outputs[0].token_ids)
                    if not wanted and not output.finished:
                        engine.abort_request([output.request_id])


def _parameters(sampling: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(detokenize=False, **sampling)


@contextmanager
def _unharmed() -> Iterator[None]:
    try:
        yield
    except Exception:
        log.exception("the engine raised: this agent ends, so that another can start")
        _leave()


def _leave() -> NoReturn:
    raise SystemExit(1)
