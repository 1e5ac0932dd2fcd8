"""agentwire: LLM agents that send each other soft tokens instead of text.

``import agentwire`` is light: torch, transformers and pyzmq are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentwire.errors import AgentwireError, RequestError

if TYPE_CHECKING:
    from agentwire.runtime import GenerationOptions, KeptPayload, Reply, Runtime, open

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
        from agentwire import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module 'agentwire' has no attribute {name!r}")
