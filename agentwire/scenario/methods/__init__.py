"""The methods that a scenario may name: one file each, found here by name."""

from __future__ import annotations

from agentwire.scenario.methods.base import MethodSpec
from agentwire.scenario.methods.bridge import BRIDGE
from agentwire.scenario.methods.receiver_direct import RECEIVER_DIRECT
from agentwire.scenario.methods.sender_direct import SENDER_DIRECT
from agentwire.scenario.methods.text_relay import TEXT_RELAY, TEXT_RELAY_VERBATIM

METHODS: dict[str, MethodSpec] = {
    method.name: method
    for method in (BRIDGE, TEXT_RELAY, TEXT_RELAY_VERBATIM, RECEIVER_DIRECT, SENDER_DIRECT)
}

__all__ = ["METHODS", "MethodSpec"]
