"""The backends that compute an agent's model, by the name in ``backend:`` (docs/engines.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from agentwire.spec.agent import AgentSpec
from agentwire.spec.registry import Registry, known_name


@dataclass(frozen=True, slots=True)
class Library:
    """A library that a backend needs and that agentwire does not install."""

    title: str  # its name in messages
    module: str  # what Python imports
    distributions: tuple[str, ...]  # packages that provide the module and its version
    install: str  # how to get it, as a hint


@dataclass(frozen=True, slots=True)
class SyntheticBridges:
    """Bridges that a backend makes itself instead of reading a folder."""

    prefix: str  # such a bridge is named ``<prefix><receiver's model>[:<prompt hash>]``
    fingerprint: Callable[[str, str], str]  # of (sender's model, bridge name)


@dataclass(frozen=True, slots=True)
class BackendKind:
    """What the rest of agentwire must know about a backend before it is loaded.

    Attributes:
        load: loads an agent's model and reports (stage, fraction) on the way; returns an
            ``agentwire.model.backend.Backend``, or raises an ``InputError``.
        summary: one phrase, shown where a model has no weights.
        needs_weights: whether the model's weights must be on this machine.
        uses_gpu: whether ``device: auto`` may choose a GPU.
        shares_cpu: whether its CPU threads may change while it computes (``SharesCpu``).
        library: what must be installed for it.
        fingerprint: fingerprint of a model without weights, from its name.
        bridges: how it makes its bridges; None: it reads trained ones from folders.
    """

    load: Callable[[AgentSpec, Callable[[str, float], None]], Any]
    summary: str
    needs_weights: bool = True
    uses_gpu: bool = True
    shares_cpu: bool = False
    library: Library | None = None
    fingerprint: Callable[[str], str] | None = None
    bridges: SyntheticBridges | None = None


BACKENDS: Registry[BackendKind] = Registry("agentwire.backends", "backend")
BACKENDS.lazy("transformers", "agentwire.model.backends.transformers:KIND")
BACKENDS.lazy("vllm", "agentwire.model.backends.vllm:KIND")
BACKENDS.lazy("fake", "agentwire.model.backends.fake:KIND")

BackendName = Annotated[str, known_name(BACKENDS)]
