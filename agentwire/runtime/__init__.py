"""Agents, bus and client of one scenario: ``agentwire.open`` and what it returns."""

from agentwire.runtime.runtime import (
    AgentInfo,
    AgentLimits,
    GenerationOptions,
    KeptPayload,
    Outcome,
    ProgressEvent,
    Reply,
    Runtime,
    open,
)

__all__ = [
    "AgentInfo",
    "AgentLimits",
    "GenerationOptions",
    "KeptPayload",
    "Outcome",
    "ProgressEvent",
    "Reply",
    "Runtime",
    "open",
]
