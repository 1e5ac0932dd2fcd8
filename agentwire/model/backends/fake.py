"""``backend: fake``: deterministic models without weights, for tests."""

from __future__ import annotations

import time

from agentwire.download import OnProgress
from agentwire.model.backend import Backend
from agentwire.model.fake import (
    BRIDGE_PREFIX,
    FakeBackend,
    FakeDevice,
    bridge_fingerprint,
    fingerprint,
)
from agentwire.spec.agent import AgentSpec
from agentwire.spec.backends import BackendKind, SyntheticBridges


def _load(spec: AgentSpec, progress: OnProgress) -> Backend:
    steps = 4
    for step in range(steps):
        progress("load", step / steps)
        time.sleep(spec.fake.load_ms / 1000 / steps)
    progress("load", 1.0)
    make = FakeDevice if spec.fake.pipelined else FakeBackend
    return make(spec.model, spec.fake, spec.device)


KIND = BackendKind(
    load=_load,
    summary="a fake model",
    needs_weights=False,
    uses_gpu=False,
    fingerprint=fingerprint,
    bridges=SyntheticBridges(BRIDGE_PREFIX, bridge_fingerprint),
)
