"""Runs a scenario: ``agentwire.open`` and what it returns."""

from agentwire.agent.launching.limits import AgentLimits
from agentwire.runtime.call_options import GenerationOptions
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import AgentInfo, KeptPayload, ProgressEvent, Reply
from agentwire.runtime.runtime import Runtime, open

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
