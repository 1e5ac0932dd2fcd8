"""agentwire: LLM agents that hand each other soft tokens instead of text.

``import agentwire`` imports no torch, no transformers and no pyzmq; they load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentwire.errors import AgentwireError, RequestError

if TYPE_CHECKING:
    from agentwire.runtime.runtime import GenerationOptions, KeptPayload, Reply, Runtime, open

__version__ = "0.1.0"
__all__ = [
    "AgentwireError",
    "GenerationOptions",
    "KeptPayload",
    "Reply",
    "RequestError",
    "Runtime",
    "__version__",
    "open",
]


def __getattr__(name: str) -> Any:
    if name in {"open", "Runtime", "Reply", "GenerationOptions", "KeptPayload"}:
        from agentwire.runtime import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'agentwire' has no attribute {name!r}")
