"""``backend: transformers``: the transformers library on a CPU, the static engine on a GPU."""

from __future__ import annotations

import logging

from agentwire.download import OnProgress
from agentwire.errors import ModelError
from agentwire.model.backend import Backend
from agentwire.spec.agent import AgentSpec
from agentwire.spec.backends import BackendKind

log = logging.getLogger(__name__)


def is_static(spec: AgentSpec) -> bool:
    """Whether the static engine is tried: where it is asked for, and by default on a GPU."""
    if spec.backend != "transformers":
        return False
    return spec.engine == "static" or (spec.engine == "auto" and spec.device.startswith("cuda"))


def _load(spec: AgentSpec, progress: OnProgress) -> Backend:
    from agentwire.model.transformers import TransformersBackend

    plain = TransformersBackend.load(spec, progress)
    if not is_static(spec):
        return plain.for_inference()
    from agentwire.model.static.decoder import UnsupportedModel
    from agentwire.model.static.engine import StaticBackend

    try:
        return StaticBackend(plain, spec, progress)
    except UnsupportedModel as reason:
        if spec.engine == "static":
            raise ModelError(
                f"{spec.name}: the static engine does not support {spec.model}: {reason}.",
                hint="Set `engine: transformers` or `engine: auto` in the agent's file.",
            ) from None
        log.warning("The model runs in transformers, without CUDA graphs: %s.", reason)
        return plain.for_inference()


KIND = BackendKind(
    load=_load, summary="Hugging Face transformers; CUDA graphs on a GPU", shares_cpu=True
)
